"""NYUv2 as it is published: one MATLAB file of 1,449 frames, whose axes HDF5 gives in reverse."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from distbranch.data.images import BrokenImageError
from distbranch.data.shard_writer import file_sha256
from distbranch.data.sources.dense.class_names import NYU_13, NYU_40, NYU_40_TO_13, UNLABELLED
from distbranch.data.sources.dense.conversions import (
    convert_classes,
    convert_metres,
)
from distbranch.data.sources.dense.files import Array, encode_png
from distbranch.data.sources.dense.frames import DrawnValOptions, Frame, Readers
from distbranch.data.sources.dense.plane_normals import fit_normals
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.published import GIVE_ROOT, find_first
from distbranch.data.sources.source import Source
from distbranch.errors import UserError, reason_of
from distbranch.extras import require
from distbranch.kinds.normals import encode_normals
from distbranch.tasks import Task

FRAMES = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
CLASS_MAP = "classMapping40.mat"
NUM_LABELS = 894
FIELDS = ("images", "depths", "rawDepths", "labels", "scenes")

# What scipy raises for files that are no such MATLAB files, damaged, or lack the array.
UNREADABLE = (
    NotImplementedError,
    zlib.error,
    OSError,
    ValueError,
    KeyError,
    TypeError,
)

# Rows and columns that are kept. The pictures have a white frame; Eigen's crop is the usual one for depth.
CROPS = {
    "none": (slice(None), slice(None)),
    "eigen": (slice(45, 471), slice(41, 601)),
    "border": (slice(8, -8), slice(8, -8)),
}


class NyuV2Options(DrawnValOptions):
    """NYUv2, the official file (extra `nyu`); val is drawn from train by scenes."""

    all_tasks: ClassVar = ("segmentation", "depth", "normals")

    source: Literal["nyuv2"] = "nyuv2"
    root: Path = Field(description=f"Folder that holds {FRAMES}, {SPLITS} and {CLASS_MAP}.")
    tasks: Names = Field(
        ("segmentation", "depth"),
        description="Which labels become tasks: segmentation, depth, normals (which are computed from raw depth).",
    )
    classes: Annotated[Literal["13", "40"], BeforeValidator(str)] = Field(
        "40", description="How many classes the segmentation has."
    )
    class_map: Path | None = Field(
        None, description=f"{CLASS_MAP}, the 40 classes of 894 labels; under root if empty."
    )
    splits: Path | None = Field(None, description=f"{SPLITS}; under root if empty.")
    crop: Literal["none", "eigen", "border"] = Field(
        "none",
        description="What is kept: all, Eigen's part (rows 45 to 470, columns 41 to 600), or all but 8 pixels of border.",
    )

    def open(self) -> Source:
        """Reads splits, classes and scenes. Raises UserError for files of another make."""
        frames = NyuFrames(find_first(self.root, ("",), (FRAMES,), GIVE_ROOT))
        splits = self.splits or find_first(self.root, ("",), (SPLITS,), "Give it with --splits.")
        notes = {"splits_sha256": file_sha256(splits)}
        class_of: dict[int, int] = {}
        if "segmentation" in self.tasks:
            advice = "Give it with --class-map."
            class_map = self.class_map or find_first(self.root, ("",), (CLASS_MAP,), advice)
            class_of = _read_class_map(class_map, self.classes)
            notes["class_map_sha256"] = file_sha256(class_map)
        if "normals" in self.tasks:
            # So that nobody compares them with Ladicky's.
            notes["normals"] = "from-depth"
        names = NYU_13 if self.classes == "13" else NYU_40
        depth = Task("depth", "depth")
        split_of = self._read_splits(splits, frames)
        return self.make_source(
            [
                Task("segmentation", "segmentation", names),
                depth,
                Task("normals", "normals"),
            ],
            self._list_frames(frames.path, split_of),
            self._make_readers(frames, class_of, depth),
            num_samples=len(split_of),
            notes=notes,
        )

    def _read_splits(self, path: Path, frames: "NyuFrames") -> dict[int, str]:
        """The split of every frame, counted from 0."""
        split_of: dict[int, str] = {}
        scenes = frames.read_texts("scenes")
        numbers = {name: _read_numbers(path, name) for name in ("trainNdxs", "testNdxs")}
        # MATLAB counts from 1.
        for name, found in numbers.items():
            for frame in (found - 1).tolist():
                if not 0 <= frame < len(scenes) or frame in split_of:
                    raise UserError(
                        f"{path}: each of the {len(scenes)} frames of {frames.path.name} should stand there once, counted from 1, "
                        f"found {frame + 1} in {name}. Get both files of the same release."
                    )
                is_train = name == "trainNdxs"
                split_of[frame] = self.draw_train_or_val(scenes[frame]) if is_train else "test"
        return split_of

    def _list_frames(self, path: Path, split_of: dict[int, str]) -> Iterator[Frame]:
        for number, split in sorted(split_of.items()):
            yield Frame(
                where=f"{path}, frame {number + 1}",
                key=f"{number + 1:04d}",
                split=split,
                image=number,
                labels=dict.fromkeys(self.tasks, number),
            )

    def _make_readers(self, frames: "NyuFrames", class_of: dict[int, int], depth: Task) -> Readers:
        rows, columns = CROPS[self.crop]

        def crop(array: Array) -> Array:
            return np.ascontiguousarray(array[rows, columns])

        return Readers(
            image=lambda number: encode_png(crop(frames.read_picture(number))),
            labels={
                "segmentation": lambda number: convert_classes(
                    crop(frames.read_map("labels", number)), class_of
                ),
                "depth": lambda number: convert_metres(
                    depth, crop(frames.read_map("depths", number))
                ),
                # Before the crop, for pixels are counted from the camera's corner.
                "normals": lambda number: _encode_fitted(
                    crop(fit_normals(frames.read_map("rawDepths", number)))
                ),
            },
        )


def _encode_fitted(normals: Array) -> Array:
    """Codes of normals [H, W, 3] that were fitted, which face the camera by the way they are made; 0 is not labelled."""
    return encode_normals(normals, np.any(normals, axis=2, keepdims=True)[..., 0])


class NyuFrames:
    """The official .mat, read frame by frame: whole fields take gigabytes.

    A dimension of MATLAB is one of HDF5, but they come in reverse, so every frame is transposed; a reshape would scramble it
    and keep its shape.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open_hdf5(path)
        absent = [name for name in FIELDS if name not in self._file]
        if absent:
            raise UserError(
                f"{path} should hold {', '.join(FIELDS)}, and {', '.join(absent)} is not there. Get {FRAMES} again from its source."
            )
        shape = self._file["images"].shape
        expected = dict.fromkeys(("depths", "rawDepths", "labels"), (shape[0], *shape[2:]))
        is_odd = any(self._file[name].shape != own for name, own in expected.items())
        if len(shape) != 4 or shape[1] != 3 or is_odd:
            raise UserError(
                f"{path} should hold as many maps as pictures of three colours, found pictures of {shape} and depths of "
                f"{self._file['depths'].shape}, as HDF5 has them. Get {FRAMES} again from its source."
            )

    def read_picture(self, number: int) -> NDArray[np.uint8]:
        """RGB [H, W, 3]."""
        picture: NDArray[np.uint8] = self._read("images", number).transpose(2, 1, 0)
        return picture

    def read_map(self, field: str, number: int) -> Array:
        """One of `depths`, `rawDepths`, `labels`: [H, W]."""
        return self._read(field, number).T

    def read_texts(self, field: str) -> list[str]:
        """A column or row of cells, each a text."""
        try:
            cells = np.asarray(self._file[field]).ravel()
            # A text is an array of characters by number.
            characters = [np.asarray(self._file[cell]).ravel().tolist() for cell in cells]
            return ["".join(map(chr, numbers)) for numbers in characters]
        except (TypeError, ValueError, KeyError):
            raise UserError(
                f"{self.path}: '{field}' should be cells, a text each, and they are not. Get {FRAMES} again from its source."
            ) from None

    def _read(self, field: str, number: int) -> Array:
        try:
            return np.asarray(self._file[field][number])
        except OSError as error:
            raise BrokenImageError(f"its {field} are damaged ({reason_of(error)})") from None


def _open_hdf5(path: Path) -> Any:
    h5py = require("h5py", "nyu", f"Reading {path}")
    if not h5py.is_hdf5(path):
        raise UserError(
            f"{path} should be a MATLAB file of version 7.3 (HDF5), and it is none. Get {FRAMES} again from its source, "
            "or save it in MATLAB with -v7.3."
        )
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is cut short or damaged ({reason_of(error)}). Get it again from its source."
        ) from None


def _read_numbers(path: Path, name: str) -> Array:
    """An array of whole numbers [n] of a MATLAB file of version 5."""
    from scipy.io import loadmat  # slow to load, and hardly ever needed
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=[name])
        return np.asarray(content[name], dtype=np.int64).ravel()
    except (MatReadError, *UNREADABLE) as error:
        raise UserError(
            f"{path} should be a MATLAB file (version 5) that holds the numbers '{name}', and it is not ({reason_of(error)}). "
            "Get it again from its source."
        ) from None


def _read_class_map(path: Path, classes: str) -> dict[int, int]:
    """The class, from 0, of every label, from 1."""
    numbers = _read_numbers(path, "mapClass")
    if len(numbers) != NUM_LABELS or numbers.min() < 1 or numbers.max() > len(NYU_40):
        raise UserError(
            f"{path} should map {NUM_LABELS} labels to 1..{len(NYU_40)}, found {len(numbers)} numbers of {numbers.min(initial=0)} to "
            f"{numbers.max(initial=0)}. Get {CLASS_MAP} again from its source."
        )
    if classes == "13":
        numbers = np.array(NYU_40_TO_13)[numbers - 1]
    return {0: UNLABELLED} | dict(enumerate((numbers - 1).tolist(), start=1))
