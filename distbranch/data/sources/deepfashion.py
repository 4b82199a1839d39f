"""DeepFashion, Category and Attribute Prediction: one category out of 50 and 1000 binary attributes of clothes."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import Labels, LabelValue, LeftOut
from distbranch.data.sources.columns import name_classes
from distbranch.data.sources.published import (
    find_file,
    map_marks,
    open_published_images,
    read_counted_lines,
    read_marks,
)
from distbranch.data.sources.source import Answer, ImageFileOptions, Row, Source, as_typed, read_rows
from distbranch.errors import UserError
from distbranch.tasks import Task, unused_name

ANNOTATIONS = ("Anno_coarse", "Anno", "Anno/Anno_coarse", "Eval", "")
# Names in the lists begin with img/, so the folder that holds img is opened.
IMAGES = {"Img/img": "Img", "img": ".", "Img/img.zip": "Img/img.zip", "img.zip": "img.zip"}
ATTRIBUTE_TYPES = {"1": "texture", "2": "fabric", "3": "shape", "4": "part", "5": "style"}
CATEGORY = "category"
NUM_FIRST_LINES = 1000  # of a thousand attributes an image has a few
CATEGORY_LISTS = ["list_category_cloth", "list_category_img"]
ATTRIBUTE_LISTS = ["list_attr_cloth", "list_attr_img"]
LISTS = {
    "category": [*CATEGORY_LISTS, "list_eval_partition"],
    "attributes": [*ATTRIBUTE_LISTS, "list_eval_partition"],
    "both": [*CATEGORY_LISTS, *ATTRIBUTE_LISTS, "list_eval_partition"],
}

LabelLine = tuple[str, str, dict[str, LabelValue]]  # where it stands, the image, its labels


class DeepFashionOptions(ImageFileOptions):
    """The DeepFashion data set (Category and Attribute Prediction) as it is published."""

    source: Literal["deepfashion"] = "deepfashion"
    root: Path = Field(description="Folder that holds Anno (or Anno_coarse), Eval and the images.")
    images: Path | None = Field(None, description="Folder, .zip or .tar in which `img/...` lies; under root if empty.")
    labels: Literal["category", "attributes", "both"] = Field(
        "category", description="Which labels become tasks: the category, the attributes, or both."
    )
    one_task_per_class: bool = Field(
        False, description="Every category becomes a binary task, so that categories can branch apart."
    )
    class_prefix: str = Field(
        "", description="Put before the names of such tasks, to tell them from those of other sets."
    )
    minus_one: Answer | None = Field(
        None,
        description="What -1 means in the list of attributes: `no` (0 is unknown, as published) or `unknown` (0 is no).",
    )

    def open(self) -> Source:
        """Reads all lists but that of the attributes' marks. Raises UserError where a count line and its rows differ."""
        files = {name: find_file(self.root, ANNOTATIONS, (f"{name}.txt",)) for name in LISTS[self.labels]}
        splits = _read_splits(files["list_eval_partition"])
        classes: list[str] = []
        attributes: dict[str, str] = {}
        if "list_category_cloth" in files:
            classes = [name for _, name, _ in _read_pairs(files["list_category_cloth"])]
        if "list_attr_cloth" in files:
            attributes = _read_attributes(files["list_attr_cloth"])
        tasks, category_labels = self._create_category_tasks(classes, attributes)

        # The labels of each image: of its category where there are any, and of its attributes.
        categories: dict[str, Labels] | None = None
        if classes:
            categories = _read_categories(files["list_category_img"], category_labels)
        if attributes:
            # Read once for its count alone, so that a wrong one is told before anything is packed.
            deque(read_counted_lines(files["list_attr_img"]), maxlen=0)
            lines = _read_attribute_lines(files["list_attr_img"], tuple(attributes), self.minus_one)
        else:
            lines = _read_category_lines(files["list_category_img"])
        left_out: list[LeftOut] = []
        return Source(
            tasks=(*tasks, *map(Task, attributes)),
            samples=read_rows(
                _join_labels(lines, splits, categories),
                open_published_images(self.images, self.root, IMAGES),
                self,
                left_out,
            ),
            description=self.describe(**{name: file_sha256(path) for name, path in files.items()}),
            num_samples=len(splits),
            groups=_group_by_type(attributes),
            left_out=left_out,
        )

    def _create_category_tasks(
        self, classes: Sequence[str], attributes: Collection[str]
    ) -> tuple[list[Task], list[Labels]]:
        """The tasks of the categories, and the labels of a sample of each category."""
        if not classes:
            return [], []
        if not self.one_task_per_class:
            return [Task(CATEGORY, "categorical", tuple(classes))], [{CATEGORY: name} for name in classes]
        names = name_classes(CATEGORY, classes, prefix=self.class_prefix, taken=attributes).values()
        # Exclusive: the one category is 1, all others are 0. The prefix tells the set from those of other data sets.
        none = dict.fromkeys(names, 0)
        return [Task(name, exclusive=self.class_prefix + CATEGORY) for name in names], [
            none | {name: 1} for name in names
        ]


def _read_pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Place, name and value below the header; names may hold blanks, so the value is split off from the right."""
    lines = read_counted_lines(path)
    next(lines, None)  # the header
    for where, line in lines:
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            raise UserError(f"{where}: a name and a value should stand here, found '{line[:60]}'.")
        yield where, parts[0], parts[1]


def _read_splits(path: Path) -> dict[str, str]:
    splits = {}
    for where, image, split in _read_pairs(path):
        if split not in SPLITS:
            raise UserError(f"{where}: the split should be one of {', '.join(SPLITS)}, found '{split}'.")
        splits[image] = SPLITS[SPLITS.index(split)]  # the one text, not a copy for every image
    return splits


def _read_attributes(path: Path) -> dict[str, str]:
    """Name and type of the attributes in the order of the label columns; a name that comes again gets a number."""
    attributes: dict[str, str] = {}
    for _, name, kind in _read_pairs(path):
        # A task has one name; the order, by which labels are found, stays that of the list.
        attributes[unused_name(name, {CATEGORY, *attributes})] = kind
    return attributes


def _group_by_type(attributes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The attributes by type: texture, fabric, shape, part, style."""
    groups: dict[str, tuple[str, ...]] = {}
    for name, kind in attributes.items():
        group = ATTRIBUTE_TYPES.get(kind, kind)
        groups[group] = (*groups.get(group, ()), name)
    return groups


def _read_categories(path: Path, classes: Sequence[Labels]) -> dict[str, Labels]:
    """The labels that say the category of every image; in the file it is a number, counted from 1."""
    categories = {}
    for where, image, label in _read_pairs(path):
        if not label.isdecimal() or not 1 <= int(label) <= len(classes):
            raise UserError(f"{where}: the category should be a number from 1 to {len(classes)}, found '{label}'.")
        categories[image] = classes[int(label) - 1]
    return categories


def _read_category_lines(path: Path) -> Iterator[LabelLine]:
    for where, image, _ in _read_pairs(path):
        yield where, image, {}


def _read_attribute_lines(path: Path, names: Sequence[str], minus_one: Answer | None) -> Iterator[LabelLine]:
    label_of = map_marks(("1", "0", "-1"), minus_one or _infer_minus_one(path), path)
    lines = read_counted_lines(path)
    next(lines)  # the header
    for where, line in lines:
        cells = line.split()
        yield where, cells[0], read_marks(where, cells, names, label_of)


def _infer_minus_one(path: Path) -> Answer:
    """-1 is no and 0 unknown, as published; a copy that has no -1 in its first lines may have put 0 in its place."""
    lines = islice(read_counted_lines(path), 1, NUM_FIRST_LINES)
    first = {mark for _, line in lines for mark in line.split()[1:]}
    if "-1" not in first and "0" in first:
        raise UserError(
            f"{path} has 0 but no -1 in its first lines, so 0 could mean no or unknown. Say which: {as_typed('minus_one')} "
            "unknown (0 is no) or no (0 is unknown)."
        )
    return "no"


def _join_labels(
    lines: Iterable[LabelLine], splits: Mapping[str, str], categories: Mapping[str, Labels] | None
) -> Iterator[Row]:
    for where, image, labels in lines:
        if image not in splits:
            raise UserError(f"{where}: image '{image}' has no split in list_eval_partition.txt.")
        if categories is not None and image not in categories:
            raise UserError(f"{where}: image '{image}' has no category in list_category_img.txt.")
        category = (categories or {}).get(image, {})
        yield Row(where, image, splits[image], {**category, **labels})
