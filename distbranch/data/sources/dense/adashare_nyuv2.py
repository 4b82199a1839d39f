"""NYUv2 as AdaShare ships it: pictures, 40 classes, depth in metres, and Ladicky's surface normals as colours."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distbranch.data.shard_writer import file_sha256
from distbranch.data.sources.dense.class_names import NYU_40, UNLABELLED, list_plain_ids
from distbranch.data.sources.dense.conversions import (
    NormalAxes,
    convert_classes,
    convert_metres,
    convert_normals,
    decode_colours,
)
from distbranch.data.sources.dense.files import (
    read_array,
    read_class_ids,
    read_colours,
    read_index,
)
from distbranch.data.sources.dense.frames import DrawnValOptions, Frame, Readers, name_block
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.published import GIVE_ROOT, find_first
from distbranch.data.sources.source import Source
from distbranch.tasks import Task

INDEX = "nyu_v2_3task.json"


class AdaShareNyuV2Options(DrawnValOptions):
    """NYUv2 as AdaShare ships it (nyu_v2_3task.json); val is drawn from train by blocks of ten frames."""

    all_tasks: ClassVar = ("segmentation", "normals", "depth")

    source: Literal["adashare-nyuv2"] = "adashare-nyuv2"
    root: Path = Field(description=f"Folder that holds {INDEX}.")
    tasks: Names = Field(all_tasks, description="Which labels become tasks.")
    # Red is x to the right, green z into the scene, blue y upwards.
    normal_axes: NormalAxes = Field(
        ("x", "z", "-y"),
        description="Which axes of the file of normals are x (right), y (up) and z (towards the camera).",
    )

    def open(self) -> Source:
        """Reads the index. Raises UserError for one of another make."""
        path = find_first(self.root, ("",), (INDEX,), GIVE_ROOT)
        train, test = read_index(path, num_files=4)
        splits = [self.draw_train_or_val(name_block(Path(files[0]).stem)) for files in train]
        splits += ["test"] * len(test)
        depth = Task("depth", "depth")
        return self.make_source(
            [
                Task("segmentation", "segmentation", NYU_40),
                Task("normals", "normals"),
                depth,
            ],
            _list_frames(path.parent, [*train, *test], splits),
            Readers(
                image=Path.read_bytes,
                labels={
                    "segmentation": _read_classes,
                    "normals": partial(_read_normals, axes=self.normal_axes),
                    "depth": partial(_read_depth, task=depth),
                },
            ),
            num_samples=len(splits),
            notes={"index_sha256": file_sha256(path)},
        )


def _list_frames(
    root: Path, samples: Iterable[list[str]], splits: Iterable[str]
) -> Iterator[Frame]:
    for files, split in zip(samples, splits, strict=True):
        image, classes, normals, depth = (root / file for file in files)
        labels = {"segmentation": classes, "normals": normals, "depth": depth}
        yield Frame(str(image), image.stem, split, image, labels)


def _read_classes(path: Path) -> NDArray[np.uint8]:
    return convert_classes(read_class_ids(path), list_plain_ids(len(NYU_40), unlabelled=UNLABELLED))


def _read_normals(path: Path, axes: tuple[str, str, str]) -> NDArray[np.uint8]:
    return convert_normals(decode_colours(read_colours(path)), axes)


def _read_depth(path: Path, task: Task) -> NDArray[np.uint16]:
    return convert_metres(task, read_array(path))
