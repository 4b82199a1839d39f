"""Taskonomy as it is published: a folder per domain and building, in any of the three layouts of its downloads."""

import csv
import logging
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distbranch.data.pack import SPLITS
from distbranch.data.sources.dense.class_names import TASKONOMY_17, list_plain_ids
from distbranch.data.sources.dense.conversions import (
    NormalAxes,
    convert_classes,
    convert_heat,
    convert_normals,
    decode_colours,
)
from distbranch.data.sources.dense.files import read_class_ids, read_colours, read_deep_grey
from distbranch.data.sources.dense.frames import DenseOptions, Frame, Readers
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.source import Source, explain_unreadable
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

DOMAINS = {
    "segmentation": "segment_semantic",
    "normals": "normal",
    "depth": "depth_zbuffer",
    "keypoints": "keypoints2d",
    "edges": "edge_texture",
}
# The last word is not always the folder's: labels of segment_semantic end in _domain_segmentsemantic.
FILE = re.compile(r"(point_\d+_view_\d+)_domain_\w+\.png")
DEPTH_SCALE = 512.0  # per metre
NO_DEPTH = 65_535
# What AdaShare clips the values to, of 65,536.
HIGHEST_KEYPOINT = 0.005 * 65_536
HIGHEST_EDGE = 0.08 * 65_536

# The buildings of the split that its authors call tiny.
TINY = {
    "train": (
        "hanson merom klickitat onaga leonardo marstons newfields pinesdale lakeville cosmos benevolence pomaria tolstoy "
        "shelbyville allensville wainscott beechwood coffeen stockman hiteman woodbine lindenwood forkland mifflinburg ranchester"
    ),
    "val": "wiconisco corozal collierville markleeville darden",
    "test": "ihlen muleshoe uvalda noxapater mcdade",
}


class TaskonomyOptions(DenseOptions):
    """Taskonomy, the official files; splits go by buildings, those of `tiny` unless a table says otherwise."""

    all_tasks: ClassVar = tuple(DOMAINS)

    source: Literal["taskonomy"] = "taskonomy"
    root: Path = Field(
        description="Folder that holds the domains (rgb, normal, ...) or the buildings."
    )
    tasks: Names = Field(all_tasks, description="Which labels become tasks.")
    split_table: Path | None = Field(
        None,
        description="CSV of other splits, with the columns id, train, val and test (1 or 0); the buildings of `tiny` if empty.",
    )
    # Red is x to the right, green y downwards, blue z towards the camera.
    normal_axes: NormalAxes = Field(
        ("x", "-y", "z"),
        description="Which axes of the file of normals are x (right), y (up) and z (towards the camera).",
    )

    def open(self) -> Source:
        """Finds the buildings of every domain. Raises UserError for a domain that is absent or lies there in two layouts."""
        rooms = {"rgb": _find_buildings(self.root, "rgb")}
        for name in self.tasks:
            rooms[name] = _find_buildings(self.root, DOMAINS[name])
        if "normals" in rooms and "depth" not in rooms:
            # Where there is no depth there are no normals either.
            rooms["depth"] = _find_buildings(self.root, DOMAINS["depth"])
        splits = self._read_splits()
        _check_buildings(list(rooms["rgb"]), splits)
        return self.make_source(
            [
                Task("segmentation", "segmentation", TASKONOMY_17),
                Task("normals", "normals"),
                Task("depth", "depth", scale=DEPTH_SCALE),
                Task("keypoints", "heat"),
                Task("edges", "heat"),
            ],
            _list_frames(rooms, splits),
            Readers(
                image=Path.read_bytes,
                labels={
                    "segmentation": _read_classes,
                    "normals": partial(_read_normals, axes=self.normal_axes),
                    "depth": _read_depth,
                    "keypoints": partial(_read_heat, highest=HIGHEST_KEYPOINT),
                    "edges": partial(_read_heat, highest=HIGHEST_EDGE),
                },
            ),
            num_samples=None,
            notes={},
        )

    def _read_splits(self) -> dict[str, str]:
        """The split of every building."""
        if self.split_table is None:
            return {name: split for split, names in TINY.items() for name in names.split()}
        splits: dict[str, str] = {}
        path = self.split_table
        with explain_unreadable(str(path)), path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                marks = {split: (row.get(split) or "").strip() for split in SPLITS}
                own = [split for split, mark in marks.items() if mark == "1"]
                if "id" not in row or len(own) > 1 or set(marks.values()) - {"0", "1"}:
                    raise UserError(
                        f"{path}, line {number}: a building should stand there with 1 in at most one of the columns train, val, test "
                        f"and 0 in the others, below the header id,train,val,test; found {row}."
                    )
                if own:
                    splits[row["id"].strip()] = own[0]
        return splits


def _check_buildings(buildings: list[str], splits: Mapping[str, str]) -> None:
    """Warns of buildings that are in no split. Raises UserError if that is all of them."""
    unknown = [name for name in buildings if name not in splits]
    if len(unknown) == len(buildings):
        raise UserError(
            f"Of {len(buildings)} buildings none is in a split, such as '{unknown[0]}'. Give with --split-table the table of theirs."
        )
    if unknown:
        logger.warning(
            "%d of %d buildings are in no split and are left out, such as '%s'; --split-table gives other splits.",
            len(unknown),
            len(buildings),
            unknown[0],
        )


def _find_buildings(root: Path, domain: str) -> dict[str, Path]:
    """The folder of every building, in the one layout in which the domain lies there."""
    nested = root / domain / "taskonomy"
    by_layout = {
        f"{domain}/taskonomy/BUILDING": {path.name: path for path in nested.glob("*/")},
        f"{domain}/BUILDING": {
            path.name: path for path in (root / domain).glob("*/") if path != nested
        },
        f"BUILDING/{domain}": {path.parent.name: path for path in root.glob(f"*/{domain}/")},
    }
    found = {layout: buildings for layout, buildings in by_layout.items() if buildings}
    if len(found) > 1:
        raise UserError(
            f"{root} holds {' and '.join(found)}, and it should be clear which of them counts. Keep one of these layouts."
        )
    if not found:
        hint = ""
        if domain == DOMAINS["depth"]:
            hint = " (which also says where there are no normals; depth_euclidean, measured along the ray, is no substitute)"
        raise UserError(
            f"{root} should hold the folder {domain}{hint}, in one of the layouts {', '.join(by_layout)}, and it was not found. "
            "Get it, give another --root, or name with --tasks the labels that are there."
        )
    return dict(sorted(found.popitem()[1].items()))


def _list_frames(
    rooms: Mapping[str, Mapping[str, Path]], splits: Mapping[str, str]
) -> Iterator[Frame]:
    """The frames, building by building: the whole set has millions of files. rooms: by domain the folder of each building."""
    for building, folder in rooms["rgb"].items():
        if building not in splits:
            continue
        images = _list_views(folder)
        views = {
            name: _list_views(folders[building])
            for name, folders in rooms.items()
            if building in folders
        }
        for view, image in sorted(images.items()):
            labels: dict[str, Any] = {name: own[view] for name, own in views.items() if view in own}
            if "normals" in labels:
                labels["normals"] = (labels["normals"], labels.get("depth"))
            key = f"{building}/{view}"
            yield Frame(str(image), key, splits[building], image, labels)


def _list_views(folder: Path) -> dict[str, Path]:
    """The file of every view, by what is the same in all domains: the point and the view."""
    views: dict[str, Path] = {}
    with explain_unreadable(str(folder)):
        for path in folder.iterdir():
            match = FILE.fullmatch(path.name)
            if match:
                views[match[1]] = path
    return views


def _read_classes(path: Path) -> NDArray[np.uint8]:
    # 0 is "uncertain".
    class_of = list_plain_ids(len(TASKONOMY_17), first=1, unlabelled=0)
    return convert_classes(read_class_ids(path), class_of)


def _read_normals(paths: tuple[Path, Path | None], axes: tuple[str, str, str]) -> NDArray[np.uint8]:
    path, depth = paths
    vectors = decode_colours(read_colours(path))
    if depth is not None:
        has_depth = read_deep_grey(depth) != NO_DEPTH
        if has_depth.shape != vectors.shape[:2]:
            raise UserError(
                f"a file of the size of {depth} should lie there, {has_depth.shape[0]}x{has_depth.shape[1]} pixels, "
                f"found {vectors.shape[0]}x{vectors.shape[1]}"
            )
        vectors[~has_depth] = 0
    return convert_normals(vectors, axes)


def _read_depth(path: Path) -> NDArray[np.uint16]:
    depth = read_deep_grey(path)
    # Values are those of ours, 1 / 512 m; only what is not labelled has another mark.
    return np.where(depth == NO_DEPTH, 0, depth).astype(np.uint16)


def _read_heat(path: Path, highest: float) -> NDArray[np.uint8]:
    return convert_heat(read_deep_grey(path), highest)
