"""CelebA: 40 binary attributes of faces, in the official layout, in torchvision's flat one, or as comma-separated files."""

from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import LeftOut
from distbranch.data.sources.published import (
    GIVE_IMAGES,
    GIVE_ROOT,
    add_splits,
    find_first,
    map_marks,
    read_choices,
    read_lines,
    read_list,
    read_marks,
)
from distbranch.data.sources.source import Answer, ImageFileOptions, Source, read_rows
from distbranch.errors import UserError
from distbranch.tasks import Task

FOLDERS = ("Anno", "Eval", "", "celeba/Anno", "celeba/Eval", "celeba")
ATTRIBUTE_LISTS = ("list_attr_celeba.txt", "list_attr_celeba.csv")
SPLIT_LISTS = ("list_eval_partition.txt", "list_eval_partition.csv")
IMAGE_FOLDERS = ("Img", "", "celeba/Img", "celeba")
ALIGNED = (
    "img_align_celeba/img_align_celeba",
    "img_align_celeba",
    "img_align_celeba.zip",
    "img_align_celeba.tar",
)
ORIGINAL = ("img_celeba", "img_celeba.zip", "img_celeba.tar")


class CelebaOptions(ImageFileOptions):
    """The CelebA data set as it is published."""

    source: Literal["celeba"] = "celeba"
    root: Path = Field(description="Folder that holds the data set.")
    images: Path | None = Field(
        None, description="Folder, .zip or .tar with the images; looked for under root if empty."
    )
    aligned: bool = Field(
        True,
        description="Whether to look for the aligned faces (178x218) or the original photographs.",
    )
    minus_one: Answer | None = Field(
        None,
        description="What -1 means where a list holds 1, 0 and -1: `unknown` (0 is no) or `no` (0 is unknown).",
    )

    def open(self) -> Source:
        """Checks names, counts and splits of both lists. Raises UserError that names the line."""
        attributes = find_first(self.root, FOLDERS, ATTRIBUTE_LISTS, GIVE_ROOT)
        partition = find_first(self.root, FOLDERS, SPLIT_LISTS, GIVE_ROOT)
        names = ALIGNED if self.aligned else ORIGINAL
        images = open_images(
            self.images or find_first(self.root, IMAGE_FOLDERS, names, GIVE_IMAGES)
        )
        # Of comma-separated files the header has a name above the images too, and that of the splits is there at all.
        is_csv = attributes.suffix == ".csv"
        header, *lines = list(read_list(attributes)) or [("", "")]
        tasks = header[1].split()[is_csv:]
        if not tasks or len(set(tasks)) < len(tasks):
            raise UserError(
                f"{attributes}: the names of the attributes should stand in its header, each once."
            )
        split_lines = islice(read_lines(partition), partition.suffix == ".csv", None)
        splits = read_choices(split_lines, dict(zip("012", SPLITS, strict=True)))
        if len(lines) != len(splits):
            raise UserError(
                f"{attributes} has {len(lines)} images, {partition} has {len(splits)}. Both should list the same images; "
                "get both files again from their source."
            )

        # What 0 and -1 mean can be told only when all marks are known.
        marks: set[str] = set()
        for _, text in lines:
            marks.update(text.split()[1:])
        label_of = map_marks(marks, self.minus_one, attributes)
        left_out: list[LeftOut] = []
        return Source(
            tasks=tuple(map(Task, tasks)),
            samples=read_rows(
                add_splits(read_marks(lines, tasks, label_of), splits), images, self, left_out
            ),
            description=self.describe(
                attributes_sha256=file_sha256(attributes), partition_sha256=file_sha256(partition)
            ),
            num_samples=len(lines),
            left_out=left_out,
        )
