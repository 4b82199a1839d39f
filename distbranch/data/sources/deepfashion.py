"""DeepFashion, Category and Attribute Prediction: one category out of 50 and 1000 binary attributes of clothes."""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import ImageFiles, open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import LabelValue, LeftOut
from distbranch.data.sources.columns import create_class_tasks
from distbranch.data.sources.source import (
    Answer,
    ImageFileOptions,
    Row,
    Source,
    as_typed,
    count_rows,
    counted_lines,
    first_existing,
    labels_of_marks,
    marks_to_labels,
    read_rows,
)
from distbranch.errors import UserError
from distbranch.tasks import Task, unused_name

ANNOTATIONS = ("Anno_coarse", "Anno", "Anno/Anno_coarse", "Eval", "")
ATTRIBUTE_TYPES = {"1": "texture", "2": "fabric", "3": "shape", "4": "part", "5": "style"}
CATEGORY = "category"
NUM_FIRST_LINES = 1000  # of a thousand attributes an image has a few

CategoryLabels = dict[str, LabelValue]


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
        files = {name: self._file(name) for name in self._names()}
        partition = self._file("list_eval_partition.txt")
        num_rows = count_rows(partition, num_header_lines=1)
        for path in files.values():
            count_rows(path, num_header_lines=1)
        classes = _classes(files["list_category_cloth.txt"]) if self.labels != "attributes" else ()
        attributes = _attributes(files["list_attr_cloth.txt"]) if self.labels != "category" else {}
        tasks, categories = self._category_tasks(classes, attributes)
        left_out: list[LeftOut] = []
        rows = _rows(files, partition, categories, tuple(attributes), self.minus_one)
        return Source(
            tasks=(*tasks, *(Task(name) for name in attributes)),
            samples=read_rows(rows, self._images(), self, left_out),
            description=self.describe(**{path.stem: file_sha256(path) for path in (*files.values(), partition)}),
            num_samples=num_rows,
            groups=_groups(attributes),
            left_out=left_out,
        )

    def _category_tasks(
        self, classes: Sequence[str], attributes: Collection[str]
    ) -> tuple[list[Task], list[CategoryLabels]]:
        """The tasks of the categories, and the labels of a sample of each category."""
        if not classes:
            return [], []
        if not self.one_task_per_class:
            return [Task(CATEGORY, "categorical", tuple(classes))], [{CATEGORY: name} for name in classes]
        tasks = create_class_tasks(CATEGORY, classes, prefix=self.class_prefix, taken=attributes)
        return tasks, [{task.name: int(task is own) for task in tasks} for own in tasks]

    def _names(self) -> list[str]:
        categories = ["list_category_cloth.txt", "list_category_img.txt"]
        attributes = ["list_attr_cloth.txt", "list_attr_img.txt"]
        return {"category": categories, "attributes": attributes, "both": categories + attributes}[self.labels]

    def _file(self, name: str) -> Path:
        return first_existing(self.root, ANNOTATIONS, (name,))

    def _images(self) -> ImageFiles:
        places = [self.root / "Img", self.root] if self.images is None else [self.images]
        for place in places:
            if self.images is not None or (place / "img").is_dir():
                return open_images(place)
        for place in (self.root / "Img/img.zip", self.root / "img.zip"):
            if place.is_file():
                return open_images(place)
        raise UserError(
            f"No images were found under {self.root} (Img/img, img, img.zip). Say with --images where they are."
        )


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, name and value below the header; names may hold blanks, so the value is split off from the right."""
    lines = counted_lines(path)
    next(lines, None)  # the header
    for number, line in lines:
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            raise UserError(f"{path}, line {number}: a name and a value should stand here, found '{line[:60]}'.")
        yield number, parts[0], parts[1]


def _classes(path: Path) -> tuple[str, ...]:
    """Names of the categories; label k of an image is the k-th of them, counted from 1."""
    return tuple(name for _, name, _ in _pairs(path))


def _attributes(path: Path) -> dict[str, str]:
    """Name and type of the attributes in the order of the label columns; a name that comes again gets a number."""
    attributes: dict[str, str] = {}
    for _, name, kind in _pairs(path):
        attributes[unused_name(name, {CATEGORY, *attributes})] = kind
    return attributes


def _groups(attributes: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The attributes by type: texture, fabric, shape, part, style."""
    groups: dict[str, list[str]] = {}
    for name, kind in attributes.items():
        groups.setdefault(ATTRIBUTE_TYPES.get(kind, kind), []).append(name)
    return {kind: tuple(names) for kind, names in groups.items()}


def _rows(
    files: dict[str, Path],
    partition: Path,
    classes: Sequence[CategoryLabels],
    attributes: Sequence[str],
    minus_one: Answer | None,
) -> Iterator[Row]:
    """One row per line of the attribute list, or of the category list where only the category is asked for.

    `classes`: the labels that say the category, for each of them.
    """
    splits = _splits(partition)
    categories = dict(_categories(files["list_category_img.txt"], classes)) if classes else {}
    lines = _category_lines(files)
    if attributes:
        lines = _attribute_lines(files["list_attr_img.txt"], attributes, minus_one)
    for where, image, labels in lines:
        if image not in splits:
            raise UserError(f"{where}: image '{image}' has no split in {partition}.")
        if classes and image not in categories:
            raise UserError(f"{where}: image '{image}' has no category in {files['list_category_img.txt']}.")
        category = classes[categories[image] - 1] if classes else {}
        yield Row(where, image, splits[image], category | labels)


def _splits(path: Path) -> dict[str, str]:
    splits = {}
    for number, image, split in _pairs(path):
        if split not in SPLITS:
            raise UserError(f"{path}, line {number}: the split should be one of {', '.join(SPLITS)}, found '{split}'.")
        splits[image] = SPLITS[SPLITS.index(split)]  # the one text, not a copy for every image
    return splits


def _categories(path: Path, classes: Sequence[object]) -> Iterator[tuple[str, int]]:
    for number, image, label in _pairs(path):
        if not label.isdecimal() or not 1 <= int(label) <= len(classes):
            raise UserError(
                f"{path}, line {number}: the category should be a number from 1 to {len(classes)}, found '{label}'."
            )
        yield image, int(label)


def _category_lines(files: dict[str, Path]) -> Iterator[tuple[str, str, dict[str, LabelValue]]]:
    path = files["list_category_img.txt"]
    for number, image, _ in _pairs(path):
        yield f"{path}, line {number}", image, {}


def _attribute_lines(
    path: Path, names: Sequence[str], minus_one: Answer | None
) -> Iterator[tuple[str, str, dict[str, LabelValue]]]:
    label_of = labels_of_marks(("1", "0", "-1"), minus_one or _published_meaning(path), path)
    for number, image, marks in _marks(path):
        where = f"{path}, line {number}"
        if len(marks) != len(names):
            raise UserError(f"{where}: {len(names)} labels should follow the image '{image}', found {len(marks)}.")
        yield where, image, marks_to_labels(names, marks, label_of, where)


def _marks(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Number, image and marks of every line."""
    lines = counted_lines(path)
    next(lines, None)  # the header
    for number, line in lines:
        image, *marks = line.split()
        yield number, image, marks


def _published_meaning(path: Path) -> Answer:
    """-1 is no and 0 unknown, as published; a copy that has no -1 in its first lines may have put 0 in its place."""
    first = {mark for _, _, marks in islice(_marks(path), NUM_FIRST_LINES) for mark in marks}
    if "-1" not in first and "0" in first:
        raise UserError(
            f"{path} has 0 but no -1 in its first lines, so 0 could mean no or unknown. Say which: {as_typed('minus_one')} "
            "unknown (0 is no) or no (0 is unknown)."
        )
    return "no"
