"""CelebA: 40 binary attributes of faces, in the official layout, in torchvision's flat one, or as comma-separated files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import LabelValue, LeftOut
from distbranch.data.sources.published import (
    Line,
    find_file,
    map_marks,
    open_published_images,
    read_counted_lines,
    read_lines,
    read_marks,
)
from distbranch.data.sources.source import Answer, ImageFileOptions, Row, Source, read_rows
from distbranch.errors import UserError
from distbranch.tasks import Task

FOLDERS = ("Anno", "Eval", "", "celeba/Anno", "celeba/Eval", "celeba")
IMAGE_FOLDERS = ("Img", ".", "celeba/Img", "celeba")
ALIGNED = ("img_align_celeba/img_align_celeba", "img_align_celeba", "img_align_celeba.zip", "img_align_celeba.tar")
ORIGINAL = ("img_celeba", "img_celeba.zip", "img_celeba.tar")


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
        attributes = find_file(self.root, FOLDERS, ("list_attr_celeba.txt", "list_attr_celeba.csv"))
        partition = find_file(self.root, FOLDERS, ("list_eval_partition.txt", "list_eval_partition.csv"))
        names = ALIGNED if self.aligned else ORIGINAL
        places = [f"{folder}/{name}" for folder in IMAGE_FOLDERS for name in names]
        images = open_published_images(self.images, self.root, dict(zip(places, places, strict=True)))
        header, *lines = _read_attribute_lines(attributes)
        tasks = _split_cells(header)
        if attributes.suffix == ".csv":
            # Here the column of the images has a name too.
            tasks = tasks[1:]
        if not tasks or len(set(tasks)) < len(tasks):
            raise UserError(f"{attributes}: the names of the attributes should stand in its header, each once.")
        splits = _read_splits(partition)
        if len(lines) != len(splits):
            raise UserError(
                f"{attributes} has {len(lines)} images, {partition} has {len(splits)}. Both should list the same images; "
                "get both files again from their source."
            )

        # What 0 and -1 mean can be told only when all marks are known.
        marks: set[str] = set()
        for line in lines:
            marks.update(_split_cells(line)[1:])
        label_of = map_marks(marks, self.minus_one, attributes)
        left_out: list[LeftOut] = []
        rows = _label_rows(lines, tasks, splits, label_of)
        return Source(
            tasks=tuple(map(Task, tasks)),
            samples=read_rows(rows, images, self, left_out),
            description=self.describe(
                attributes_sha256=file_sha256(attributes), partition_sha256=file_sha256(partition)
            ),
            num_samples=len(lines),
            left_out=left_out,
        )


def _read_attribute_lines(path: Path) -> list[Line]:
    """The header and the line of every image; comma-separated copies have no count above it."""
    lines = read_lines(path) if path.suffix == ".csv" else read_counted_lines(path)
    return list(lines) or [(f"{path}, line 1", "")]


def _split_cells(line: Line) -> list[str]:
    """The cells of a line, between commas or blanks."""
    _, text = line
    return text.replace(",", " ").split()


def _read_splits(path: Path) -> dict[str, str]:
    """The split of every image; the file has 0, 1 or 2 behind its name, and a header only if it is comma-separated."""
    lines = read_lines(path)
    if path.suffix == ".csv":
        next(lines, None)
    splits: dict[str, str] = {}
    for where, text in lines:
        cells = _split_cells((where, text))
        if len(cells) != 2 or cells[1] not in ("0", "1", "2"):
            raise UserError(f"{where}: an image and 0, 1 or 2 should stand here, found '{text[:60]}'.")
        image, split = cells
        if image in splits:
            raise UserError(f"{where}: image '{image}' stands there a second time.")
        # 0 is train, 1 val and 2 test, as published.
        splits[image] = SPLITS[int(split)]
    return splits


def _label_rows(
    lines: Sequence[Line], tasks: Sequence[str], splits: Mapping[str, str], label_of: Mapping[str, LabelValue | None]
) -> Iterator[Row]:
    for line in lines:
        where, _ = line
        cells = _split_cells(line)
        labels = read_marks(where, cells, tasks, label_of)
        image = cells[0]
        if image not in splits:
            raise UserError(f"{where}: image '{image}' has no split in the list of splits.")
        yield Row(where, image, splits[image], labels)
