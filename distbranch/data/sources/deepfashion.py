"""DeepFashion, Category and Attribute Prediction: one category out of 50 and 1000 binary attributes of clothes."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import Labels, LeftOut
from distbranch.data.sources.columns import name_classes
from distbranch.data.sources.published import (
    GIVE_IMAGES,
    GIVE_ROOT,
    LabelLine,
    Line,
    add_splits,
    find_first,
    map_marks,
    read_choices,
    read_list,
    read_marks,
    split_pair,
)
from distbranch.data.sources.source import Answer, ImageFileOptions, Source, read_rows
from distbranch.errors import UserError
from distbranch.tasks import Task, unused_name

ANNOTATIONS = ("Anno_coarse", "Anno", "Anno/Anno_coarse", "Eval", "")
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


class DeepFashionOptions(ImageFileOptions):
    """The DeepFashion data set (Category and Attribute Prediction) as it is published."""

    source: Literal["deepfashion"] = "deepfashion"
    root: Path = Field(description="Folder that holds Anno (or Anno_coarse), Eval and the images.")
    images: Path | None = Field(
        None, description="Folder, .zip or .tar in which `img/...` lies; under root if empty."
    )
    labels: Literal["category", "attributes", "both"] = Field(
        "category", description="Which labels become tasks: the category, the attributes, or both."
    )
    one_task_per_class: bool = Field(
        False,
        description="Every category becomes a binary task, so that categories can branch apart.",
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
        files = {
            name: find_first(self.root, ANNOTATIONS, (f"{name}.txt",), GIVE_ROOT)
            for name in LISTS[self.labels]
        }
        splits = read_choices(
            _read_rows(files["list_eval_partition"]), dict(zip(SPLITS, SPLITS, strict=True))
        )
        attributes: dict[str, str] = {}
        lines: Iterator[LabelLine]
        if self.labels == "category":
            lines = (
                (line[0], split_pair(line)[0], {})
                for line in _read_rows(files["list_category_img"])
            )
        else:
            attributes = _read_attributes(files["list_attr_cloth"])
            marks = files["list_attr_img"]
            # Read once for its count alone, so that a wrong one is told before anything is packed.
            deque(read_list(marks), maxlen=0)
            label_of = map_marks(("1", "0", "-1"), self.minus_one or _infer_minus_one(marks), marks)
            lines = read_marks(_read_rows(marks), tuple(attributes), label_of)
        tasks: list[Task] = []
        if self.labels != "attributes":
            classes = [split_pair(line)[0] for line in _read_rows(files["list_category_cloth"])]
            tasks, labels = self._create_category_tasks(classes, attributes)
            # In the file a category is a number, counted from 1.
            numbers = {str(number): one for number, one in enumerate(labels, start=1)}
            categories = read_choices(_read_rows(files["list_category_img"]), numbers)
            lines = _add_categories(lines, categories)
        images = self.images
        if images is None:
            images = find_first(self.root, ("Img", ""), ("img", "img.zip"), GIVE_IMAGES)
            # Names in the lists begin with img/, so the folder that holds img is opened.
            images = images.parent if images.is_dir() else images
        left_out: list[LeftOut] = []
        return Source(
            tasks=(*tasks, *map(Task, attributes)),
            samples=read_rows(add_splits(lines, splits), open_images(images), self, left_out),
            description=self.describe(**{name: file_sha256(path) for name, path in files.items()}),
            num_samples=len(splits),
            groups=_group_by_type(attributes),
            left_out=left_out,
        )

    def _create_category_tasks(
        self, classes: Sequence[str], attributes: Collection[str]
    ) -> tuple[list[Task], list[Labels]]:
        """The tasks of the categories, and the labels of a sample of each category."""
        if not self.one_task_per_class:
            return [Task(CATEGORY, "categorical", tuple(classes))], [
                {CATEGORY: name} for name in classes
            ]
        names = name_classes(CATEGORY, classes, prefix=self.class_prefix, taken=attributes).values()
        # The prefix tells the set from those of other data sets.
        tasks = [Task(name, exclusive=self.class_prefix + CATEGORY) for name in names]
        # Exclusive: the one category is 1, all others are 0.
        none = dict.fromkeys(names, 0)
        return tasks, [none | {name: 1} for name in names]


def _read_rows(path: Path) -> Iterator[Line]:
    """The rows below the header."""
    return islice(read_list(path), 1, None)


def _read_attributes(path: Path) -> dict[str, str]:
    """Name and type of the attributes in the order of the label columns; a name that comes again gets a number."""
    attributes: dict[str, str] = {}
    for name, kind in map(split_pair, _read_rows(path)):
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


def _infer_minus_one(path: Path) -> Answer:
    """-1 is no and 0 unknown, as published; a copy that has no -1 in its first lines may have put 0 in its place."""
    lines = islice(_read_rows(path), NUM_FIRST_LINES)
    first = {mark for _, line in lines for mark in line.split()[1:]}
    if "-1" not in first and "0" in first:
        raise UserError(
            f"{path} has 0 but no -1 in its first lines, so 0 could mean no or unknown. Say which: --minus-one (minus_one) "
            "unknown (0 is no) or no (0 is unknown)."
        )
    return "no"


def _add_categories(
    lines: Iterable[LabelLine], categories: Mapping[str, Labels]
) -> Iterator[LabelLine]:
    for where, image, labels in lines:
        if image not in categories:
            raise UserError(f"{where}: image '{image}' has no category in list_category_img.txt.")
        yield where, image, {**categories[image], **labels}
