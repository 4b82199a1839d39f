"""NYUD-MT, NYUv2 with edges, as ASTMT, MTL-PyTorch, ATRC and those after them read it: some with .png and some with .npy."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distbranch.data.shard_writer import file_sha256
from distbranch.data.sources.dense.class_names import NYU_40, list_plain_ids
from distbranch.data.sources.dense.conversions import (
    AS_GIVEN,
    NormalAxes,
    convert_classes,
    convert_heat,
    convert_metres,
    convert_normals,
    decode_colours,
    warn_of_first_axes,
)
from distbranch.data.sources.dense.files import (
    IMAGES,
    Array,
    find_suffix,
    read_array,
    read_class_ids,
    read_colours,
    read_grey,
)
from distbranch.data.sources.dense.frames import DrawnValOptions, Frame, Readers, name_block
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.published import GIVE_ROOT, find_first, read_lines
from distbranch.data.sources.source import Source
from distbranch.errors import UserError
from distbranch.tasks import Task

NO_DEPTH = 255.0  # beside 0
FOLDERS = {
    "segmentation": "segmentation",
    "normals": "normals",
    "depth": "depth",
    "edges": "edge",
}
SUFFIXES = {
    "segmentation": (".png",),
    "normals": (".npy", ".png"),
    "depth": (".npy",),
    "edges": (".npy", ".png"),
}


class NyudMtOptions(DrawnValOptions):
    """NYUD-MT: 40 classes, normals, depth, edges; its val is our test, and val is drawn from train by blocks of ten frames."""

    all_tasks: ClassVar = ("segmentation", "normals", "depth", "edges")

    source: Literal["nyud-mt"] = "nyud-mt"
    root: Path = Field(description="Folder that holds images, gt_sets and a folder per label.")
    tasks: Names = Field(all_tasks, description="Which labels become tasks.")
    normal_axes: NormalAxes | None = Field(
        None,
        description="Which axes of the normals are x (right), y (up) and z (towards the camera): x,z,-y; kept if empty.",
    )

    def open(self) -> Source:
        """Reads the lists and which files there are. Raises UserError for a folder that mixes conventions."""
        notes = {}
        splits: dict[str, str] = {}
        for name in ("train", "val"):
            path = find_first(self.root, ("gt_sets",), (f"{name}.txt",), GIVE_ROOT)
            notes[f"{name}_sha256"] = file_sha256(path)
            stems = [text for _, text in read_lines(path)]
            # What they call val is the official test split.
            for stem in stems:
                if stem in splits:
                    raise UserError(
                        f"{path}: '{stem}' stands there or in train.txt already, and each frame should be listed once. "
                        "Get both lists again from their source."
                    )
                is_train = name == "train"
                splits[stem] = self.draw_train_or_val(name_block(stem)) if is_train else "test"
        folder = self.root / "images"
        images = f"{folder}/{{}}{find_suffix(folder, ('.jpg', '.png'), IMAGES)}"
        files: dict[str, str] = {}  # by task, with {} for the name of the frame
        for name in self.tasks:
            folder = self.root / FOLDERS[name]
            files[name] = f"{folder}/{{}}{find_suffix(folder, SUFFIXES[name], name)}"
        if "normals" in files and self.normal_axes is None:
            notes["normals"] = AS_GIVEN
            normals = [Path(files["normals"].format(stem)) for stem in splits]
            warn_of_first_axes(normals, _read_vectors)
        depth = Task("depth", "depth")
        return self.make_source(
            [
                Task("segmentation", "segmentation", NYU_40),
                Task("normals", "normals"),
                depth,
                Task("edges", "heat"),
            ],
            _list_frames(images, files, splits),
            Readers(
                image=Path.read_bytes,
                labels={
                    "segmentation": _read_classes,
                    "normals": partial(_read_normals, axes=self.normal_axes),
                    "depth": partial(_read_depth, task=depth),
                    "edges": _read_edges,
                },
            ),
            num_samples=len(splits),
            notes=notes,
        )


def _list_frames(
    images: str, files: Mapping[str, str], splits: Mapping[str, str]
) -> Iterator[Frame]:
    """images, files: where they lie, with {} for the name of the frame."""
    for stem, split in splits.items():
        image = Path(images.format(stem))
        labels = {name: Path(file.format(stem)) for name, file in files.items()}
        yield Frame(str(image), stem, split, image, labels)


def _read_classes(path: Path) -> NDArray[np.uint8]:
    # 0 is the background.
    return convert_classes(read_class_ids(path), list_plain_ids(len(NYU_40), first=1, unlabelled=0))


def _read_vectors(path: Path) -> Array:
    return decode_colours(read_colours(path)) if path.suffix == ".png" else read_array(path, 3)


def _read_normals(path: Path, axes: tuple[str, str, str] | None) -> NDArray[np.uint8]:
    return convert_normals(_read_vectors(path), axes)


def _read_depth(path: Path, task: Task) -> NDArray[np.uint16]:
    return convert_metres(task, read_array(path), invalid=NO_DEPTH)


def _read_edges(path: Path) -> NDArray[np.uint8]:
    values = read_array(path) if path.suffix == ".npy" else read_grey(path)
    # Pictures are 0 and 1, or 0 to 255.
    highest = 255.0 if values.max(initial=0) > 1 else 1.0
    return convert_heat(values, highest)
