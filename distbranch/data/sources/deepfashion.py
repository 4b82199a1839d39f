"""DeepFashion, Category and Attribute Prediction: one category out of 50 and 1000 binary attributes of clothes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import ImageFiles, open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import Labels, LabelValue, LeftOut
from distbranch.data.sources.columns import create_class_tasks
from distbranch.data.sources.source import (
    Answer,
    ImageFileOptions,
    Row,
    Source,
    as_typed,
    count_rows,
    find_first_file,
    map_marks_to_labels,
    read_counted_lines,
    read_marks,
    read_rows,
)
from distbranch.errors import UserError
from distbranch.tasks import Task, unused_name

ANNOTATIONS = ("Anno_coarse", "Anno", "Anno/Anno_coarse", "Eval", "")
ATTRIBUTE_TYPES = {"1": "texture", "2": "fabric", "3": "shape", "4": "part", "5": "style"}
CATEGORY = "category"
NUM_FIRST_LINES = 1000  # of a thousand attributes an image has a few

CATEGORY_FILES = ["list_category_cloth.txt", "list_category_img.txt"]
ATTRIBUTE_FILES = ["list_attr_cloth.txt", "list_attr_img.txt"]
FILES = {"category": CATEGORY_FILES, "attributes": ATTRIBUTE_FILES, "both": CATEGORY_FILES + ATTRIBUTE_FILES}

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
        """Checks the counts of all lists. Raises UserError where a count line and its rows differ."""
        files = {name: find_first_file(self.root, ANNOTATIONS, (name,)) for name in FILES[self.labels]}
        partition = find_first_file(self.root, ANNOTATIONS, ("list_eval_partition.txt",))
        num_rows = count_rows(partition, num_header_lines=1)
        for path in files.values():
            count_rows(path, num_header_lines=1)

        classes: list[str] = []
        attributes: dict[str, str] = {}
        if self.labels != "attributes":
            classes = [name for _, name, _ in _read_pairs(files["list_category_cloth.txt"])]
        if self.labels != "category":
            attributes = _read_attributes(files["list_attr_cloth.txt"])
        tasks, categories = self._create_category_tasks(classes, attributes)
        rows = _read_label_rows(files, partition, categories, tuple(attributes), self.minus_one)
        left_out: list[LeftOut] = []
        checksums = {path.stem: file_sha256(path) for path in (*files.values(), partition)}
        return Source(
            tasks=(*tasks, *(Task(name) for name in attributes)),
            samples=read_rows(rows, self._open_images(), self, left_out),
            description=self.describe(**checksums),
            num_samples=num_rows,
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
        tasks = create_class_tasks(CATEGORY, classes, prefix=self.class_prefix, taken=attributes)
        none = dict.fromkeys((task.name for task in tasks), 0)
        return tasks, [none | {task.name: 1} for task in tasks]

    def _open_images(self) -> ImageFiles:
        if self.images is not None:
            return open_images(self.images)
        for folder in (self.root / "Img", self.root):
            if (folder / "img").is_dir():
                return open_images(folder)
        for archive in (self.root / "Img/img.zip", self.root / "img.zip"):
            if archive.is_file():
                return open_images(archive)
        raise UserError(
            f"No images were found under {self.root} (Img/img, img, img.zip). Say with --images where they are."
        )


def _read_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, name and value below the header; names may hold blanks, so the value is split off from the right."""
    lines = read_counted_lines(path)
    next(lines, None)  # the header
    for number, line in lines:
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            raise UserError(f"{path}, line {number}: a name and a value should stand here, found '{line[:60]}'.")
        yield number, parts[0], parts[1]


def _read_attributes(path: Path) -> dict[str, str]:
    """Name and type of the attributes in the order of the label columns; a name that comes again gets a number."""
    attributes: dict[str, str] = {}
    for _, name, kind in _read_pairs(path):
        attributes[unused_name(name, {CATEGORY, *attributes})] = kind
    return attributes


def _group_by_type(attributes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The attributes by type: texture, fabric, shape, part, style."""
    groups: dict[str, tuple[str, ...]] = {}
    for name, kind in attributes.items():
        group = ATTRIBUTE_TYPES.get(kind, kind)
        groups[group] = (*groups.get(group, ()), name)
    return groups


def _read_label_rows(
    files: Mapping[str, Path],
    partition: Path,
    classes: Sequence[Labels],
    attributes: Sequence[str],
    minus_one: Answer | None,
) -> Iterator[Row]:
    """One row per line of the attribute list, or of the category list where only the category is asked for.

    `classes`: the labels that say the category, for each of them.
    """
    splits = _read_splits(partition)
    categories: dict[str, Labels] = {}
    if classes:
        categories = _read_categories(files["list_category_img.txt"], classes)
    if attributes:
        lines = _read_attribute_lines(files["list_attr_img.txt"], attributes, minus_one)
    else:
        lines = _read_category_lines(files["list_category_img.txt"])
    for where, image, labels in lines:
        if image not in splits:
            raise UserError(f"{where}: image '{image}' has no split in {partition}.")
        if classes and image not in categories:
            raise UserError(f"{where}: image '{image}' has no category in {files['list_category_img.txt']}.")
        yield Row(where, image, splits[image], {**categories.get(image, {}), **labels})


def _read_splits(path: Path) -> dict[str, str]:
    splits = {}
    for number, image, split in _read_pairs(path):
        if split not in SPLITS:
            raise UserError(f"{path}, line {number}: the split should be one of {', '.join(SPLITS)}, found '{split}'.")
        splits[image] = SPLITS[SPLITS.index(split)]  # the one text, not a copy for every image
    return splits


def _read_categories(path: Path, classes: Sequence[Labels]) -> dict[str, Labels]:
    """The labels that say the category of every image; in the file it is a number, counted from 1."""
    categories = {}
    for number, image, label in _read_pairs(path):
        if not label.isdecimal() or not 1 <= int(label) <= len(classes):
            raise UserError(
                f"{path}, line {number}: the category should be a number from 1 to {len(classes)}, found '{label}'."
            )
        categories[image] = classes[int(label) - 1]
    return categories


def _read_category_lines(path: Path) -> Iterator[LabelLine]:
    for number, image, _ in _read_pairs(path):
        yield f"{path}, line {number}", image, {}


def _read_attribute_lines(path: Path, names: Sequence[str], minus_one: Answer | None) -> Iterator[LabelLine]:
    label_of = map_marks_to_labels(("1", "0", "-1"), minus_one or _infer_minus_one(path), path)
    for number, image, marks in _split_mark_lines(path):
        where = f"{path}, line {number}"
        yield where, image, read_marks(image, marks, names, label_of, where)


def _split_mark_lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Number, image and marks of every line."""
    lines = read_counted_lines(path)
    next(lines, None)  # the header
    for number, line in lines:
        image, *marks = line.split()
        yield number, image, marks


def _infer_minus_one(path: Path) -> Answer:
    """-1 is no and 0 unknown, as published; a copy that has no -1 in its first lines may have put 0 in its place."""
    first: set[str] = set()
    for _, _, marks in islice(_split_mark_lines(path), NUM_FIRST_LINES):
        first.update(marks)
    if "-1" not in first and "0" in first:
        raise UserError(
            f"{path} has 0 but no -1 in its first lines, so 0 could mean no or unknown. Say which: {as_typed('minus_one')} "
            "unknown (0 is no) or no (0 is unknown)."
        )
    return "no"
