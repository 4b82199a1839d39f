"""NYUv2 and CityScapes as MTAN and LibMTL ship them, numbered .npy files; CityScapes also by AdaShare's index of the same files.

What they call val is what everybody reports, so it is our test, and val is drawn from train by blocks of ten frames.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distbranch.data.shard_writer import file_sha256
from distbranch.data.sources.dense.class_names import (
    CITYSCAPES_7,
    CITYSCAPES_19,
    NYU_13,
    list_plain_ids,
)
from distbranch.data.sources.dense.conversions import (
    AS_GIVEN,
    MAX_CODE,
    NormalAxes,
    convert_classes,
    convert_metres,
    convert_normals,
    warn_of_first_axes,
)
from distbranch.data.sources.dense.files import (
    IMAGES,
    Array,
    find_suffix,
    read_array,
    read_array_as_picture,
    read_index,
)
from distbranch.data.sources.dense.frames import DrawnValOptions, Frame, Readers, name_block
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.source import Source, explain_unreadable, sample_key
from distbranch.errors import UserError
from distbranch.tasks import Task

SPLITS = {"train": "train", "val": "test"}
INDEX = "cityscape.json"
INDEXED = ("image", "depth", "label_2", "label_7", "label_19")  # the order of files in it

# Of their folder `label` LibMTL makes seven classes.
CLASSES = {
    "label": CITYSCAPES_7,
    "label_2": ("class 0", "class 1"),
    "label_7": CITYSCAPES_7,
    "label_19": CITYSCAPES_19,
}


class MtanNyuV2Options(DrawnValOptions):
    """NYUv2 as MTAN and LibMTL ship it: 288x384, 13 classes, depth, normals; val is drawn from train."""

    all_tasks: ClassVar = ("segmentation", "depth", "normals")

    source: Literal["mtan-nyuv2"] = "mtan-nyuv2"
    root: Path = Field(description="Folder that holds train and val.")
    tasks: Names = Field(all_tasks, description="Which labels become tasks.")
    normal_axes: NormalAxes | None = Field(
        None,
        description="Which axes of the normals are x (right), y (up) and z (towards the camera): x,z,-y; kept if empty.",
    )

    def open(self) -> Source:
        """Looks which files there are. Raises UserError for a folder that is absent or mixes conventions."""
        folders = {
            IMAGES: "image",
            "segmentation": "label",
            "depth": "depth",
            "normals": "normal",
        }
        frames = _list_frames(self, {name: folders[name] for name in (IMAGES, *self.tasks)})
        notes = {}
        if "normals" in self.tasks and self.normal_axes is None:
            notes["normals"] = AS_GIVEN
            normals = [frame.labels["normals"] for frame in frames]
            warn_of_first_axes(normals, _read_vectors)
        depth = Task("depth", "depth")
        return self.make_source(
            [
                Task("segmentation", "segmentation", NYU_13),
                depth,
                Task("normals", "normals"),
            ],
            frames,
            Readers(
                image=read_array_as_picture,
                labels={
                    "segmentation": partial(_read_classes, num_classes=len(NYU_13)),
                    "depth": partial(_read_depth, task=depth),
                    "normals": partial(_read_normals, axes=self.normal_axes),
                },
            ),
            num_samples=len(frames),
            notes=notes,
        )


class MtanCityscapesOptions(DrawnValOptions):
    """CityScapes as MTAN, LibMTL and AdaShare ship it: 2, 7 or 19 classes, disparity; val is drawn from train."""

    all_tasks: ClassVar = ("segmentation", "disparity")

    source: Literal["mtan-cityscapes"] = "mtan-cityscapes"
    root: Path = Field(description=f"Folder that holds train and val, or AdaShare's {INDEX}.")
    tasks: Names = Field(all_tasks, description="Which labels become tasks.")
    labels: Literal["label", "label_2", "label_7", "label_19"] | None = Field(
        None,
        description="Which labels: the name of their folder (`label`: 7 classes); needed where there are several.",
    )

    def open(self) -> Source:
        """Looks which files there are. Raises UserError for a folder that is absent or mixes conventions."""
        index = self.root / INDEX
        notes = {"disparity": "(value - 1) / 256 pixels of the camera of 2048 columns"}
        if index.is_file():
            labels = self._choose_labels(list(INDEXED[2:]), str(index))
            frames = _list_indexed(self, index, labels)
            notes["index_sha256"] = file_sha256(index)
        else:
            train = self.root / "train"
            there = [name for name in CLASSES if (train / name).is_dir()]
            labels = self._choose_labels(there, str(train))
            folders = {IMAGES: "image", "segmentation": labels, "disparity": "depth"}
            frames = _list_frames(self, {name: folders[name] for name in (IMAGES, *self.tasks)})
        classes = CLASSES[labels]
        if "segmentation" in self.tasks and labels != "label_19":
            notes["classes"] = "names inferred, not documented"
        return self.make_source(
            [
                Task("segmentation", "segmentation", classes),
                Task("disparity", "depth", quantity="disparity"),
            ],
            frames,
            Readers(
                image=read_array_as_picture,
                labels={
                    "segmentation": partial(_read_classes, num_classes=len(classes)),
                    "disparity": _read_disparity,
                },
            ),
            num_samples=len(frames),
            notes=notes,
        )

    def _choose_labels(self, there: list[str], where: str) -> str:
        """The one of the label sets that is asked for, or the only one."""
        if "segmentation" not in self.tasks:
            return "label_7"  # which nobody reads
        if self.labels in there:
            return self.labels
        if self.labels is None and len(there) == 1:
            return there[0]
        found = " and ".join(there) or "none"
        raise UserError(
            f"{where}: one set of labels should be chosen with --labels (labels), found {found}."
        )


def _list_frames(options: DrawnValOptions, folders: Mapping[str, str]) -> list[Frame]:
    """The frames of train and val, in the order of their numbers. folders: where pictures and labels lie."""
    frames = []
    for folder, split in SPLITS.items():
        places = {name: options.root / folder / own for name, own in folders.items()}
        for name, place in places.items():
            if find_suffix(place, (".npy", ".png"), name) == ".png":
                raise UserError(
                    f"{place} should hold .npy files, found .png files. Is it a data set of another source than {options.source}?"
                )
        with explain_unreadable(str(places[IMAGES])):
            stems = [path.stem for path in places[IMAGES].glob("*.npy")]
        for stem in sorted(stems, key=lambda stem: (len(stem), stem)):
            files = {name: place / f"{stem}.npy" for name, place in places.items()}
            image = files.pop(IMAGES)
            # Both folders count from 0.
            own_split = options.draw_train_or_val(name_block(stem)) if split == "train" else split
            frames.append(Frame(str(image), f"{folder}-{stem}", own_split, image, files))
    return frames


def _list_indexed(options: DrawnValOptions, index: Path, labels: str) -> list[Frame]:
    """The frames of AdaShare's index."""
    train, test = read_index(index, len(INDEXED))
    frames = []
    for number, files in enumerate([*train, *test]):
        places = dict(zip(INDEXED, (index.parent / file for file in files), strict=True))
        image = places["image"]
        split = "test"
        if number < len(train):
            split = options.draw_train_or_val(name_block(image.stem))
        own = {"segmentation": places[labels], "disparity": places["depth"]}
        key = sample_key(files[0]).replace("/", "-")
        frames.append(Frame(str(image), key, split, image, own))
    return frames


def _read_classes(path: Path, num_classes: int) -> NDArray[np.uint8]:
    return convert_classes(read_array(path), list_plain_ids(num_classes, unlabelled=-1))


def _read_depth(path: Path, task: Task) -> NDArray[np.uint16]:
    return convert_metres(task, read_array(path))


def _read_vectors(path: Path) -> Array:
    return read_array(path, 3)


def _read_normals(path: Path, axes: tuple[str, str, str] | None) -> NDArray[np.uint8]:
    return convert_normals(_read_vectors(path), axes)


def _read_disparity(path: Path) -> NDArray[np.uint16]:
    """The values of the official files, of which these are 65535ths; 0 is not labelled."""
    shares = read_array(path)
    if not np.isfinite(shares).all() or shares.min() < 0 or shares.max() > 1:
        raise UserError(
            f"disparity as shares of 65535, in 0..1, should stand there, found {shares.min():.3g} to {shares.max():.3g}"
        )
    codes: NDArray[np.uint16] = np.rint(shares * MAX_CODE).astype(np.uint16)
    return codes
