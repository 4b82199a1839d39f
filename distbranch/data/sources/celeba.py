"""CelebA: 40 binary attributes of faces, in the official layout, in torchvision's flat one, or as comma-separated files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import LabelValue, LeftOut
from distbranch.data.sources.source import (
    Answer,
    ImageFileOptions,
    Row,
    Source,
    count_rows,
    find_first_file,
    map_marks_to_labels,
    read_counted_lines,
    read_lines,
    read_marks,
    read_rows,
)
from distbranch.errors import UserError
from distbranch.tasks import Task

FOLDERS = ("Anno", "Eval", "", "celeba/Anno", "celeba/Eval", "celeba")
IMAGE_FOLDERS = {
    True: ("img_align_celeba/img_align_celeba", "img_align_celeba", "img_align_celeba.zip", "img_align_celeba.tar"),
    False: ("img_celeba", "img_celeba.zip", "img_celeba.tar"),
}


class CelebaOptions(ImageFileOptions):
    """The CelebA data set as it is published."""

    source: Literal["celeba"] = "celeba"
    root: Path = Field(description="Folder that holds the data set.")
    images: Path | None = Field(
        None, description="Folder, .zip or .tar with the images; looked for under root if empty."
    )
    aligned: bool = Field(
        True, description="Whether to look for the aligned faces (178x218) or the original photographs."
    )
    minus_one: Answer | None = Field(
        None,
        description="What -1 means where a list holds 1, 0 and -1: `unknown` (0 is no) or `no` (0 is unknown).",
    )

    def open(self) -> Source:
        """Checks names, counts and splits of both lists. Raises UserError that names the line."""
        attributes = find_first_file(self.root, FOLDERS, ("list_attr_celeba.txt", "list_attr_celeba.csv"))
        partition = find_first_file(self.root, FOLDERS, ("list_eval_partition.txt", "list_eval_partition.csv"))
        images = open_images(self.images or find_images(self.root, IMAGE_FOLDERS[self.aligned]))
        if attributes.suffix == ".txt":
            count_rows(attributes, num_header_lines=1)
        names = _read_names(attributes)
        splits = _read_splits(partition)
        num_rows, marks = _collect_marks(attributes)
        label_of = map_marks_to_labels(marks, self.minus_one, attributes)
        if num_rows != len(splits):
            raise UserError(
                f"{attributes} has {num_rows} images, {partition} has {len(splits)}. Both should list the same images; "
                "get both files again from their source."
            )
        left_out: list[LeftOut] = []
        rows = _read_label_rows(attributes, partition, names, splits, label_of)
        return Source(
            tasks=tuple(Task(name) for name in names),
            samples=read_rows(rows, images, self, left_out),
            description=self.describe(
                attributes_sha256=file_sha256(attributes), partition_sha256=file_sha256(partition)
            ),
            num_samples=num_rows,
            left_out=left_out,
        )


def find_images(root: Path, places: Sequence[str]) -> Path:
    """The first of the places that exists, under `Img/`, the root itself or `celeba/`."""
    for folder in ("Img", "", "celeba/Img", "celeba"):
        for place in places:
            if (root / folder / place).exists():
                return root / folder / place
    raise UserError(
        f"No images were found under {root}: none of {', '.join(places)}. Say with --images where they are."
    )


def _split_cells(path: Path, line: str) -> list[str]:
    if path.suffix == ".csv":
        return [cell.strip() for cell in line.split(",")]
    return line.split()


def _read_names(path: Path) -> list[str]:
    """Names of the attributes: the header without its first column (comma-separated), or the second line."""
    if path.suffix == ".csv":
        lines = read_lines(path)
        num_other = 1
    else:
        lines = read_counted_lines(path)
        num_other = 0
    _, header = next(lines, (1, ""))
    names = _split_cells(path, header)[num_other:]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: the names of the attributes should stand in its header, each once.")
    return names


def _read_label_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line with an image."""
    lines = read_lines(path) if path.suffix == ".csv" else read_counted_lines(path)
    next(lines, None)  # the header
    for number, line in lines:
        yield number, _split_cells(path, line)


def _read_splits(path: Path) -> dict[str, str]:
    """The split of every image; the file has 0, 1 or 2 behind its name, and a header only if it is comma-separated."""
    splits: dict[str, str] = {}
    lines = read_lines(path)
    if path.suffix == ".csv":
        next(lines, None)
    for number, line in lines:
        cells = _split_cells(path, line)
        if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
            raise UserError(f"{path}, line {number}: an image and 0, 1 or 2 should stand here, found '{line[:60]}'.")
        image, split = cells
        if image in splits:
            raise UserError(f"{path}, line {number}: image '{image}' stands there a second time.")
        splits[image] = SPLITS[int(split)]
    return splits


def _collect_marks(path: Path) -> tuple[int, set[str]]:
    """The number of images, and the different marks of all their labels."""
    num_rows = 0
    marks: set[str] = set()
    for _, (_, *values) in _read_label_lines(path):
        num_rows += 1
        marks.update(values)
    return num_rows, marks


def _read_label_rows(
    attributes: Path,
    partition: Path,
    names: Sequence[str],
    splits: Mapping[str, str],
    label_of: Mapping[str, LabelValue | None],
) -> Iterator[Row]:
    for number, (image, *marks) in _read_label_lines(attributes):
        where = f"{attributes}, line {number}"
        labels = read_marks(image, marks, names, label_of, where)
        if image not in splits:
            raise UserError(f"{where}: image '{image}' has no split in {partition}.")
        yield Row(where, image, splits[image], labels)
