"""A table with one row per image (CSV, .xlsx, .parquet) and a folder, zip or tar of images.

The table is read, each column judged by all its values, and only then are rows learnt: so all problems are told at once.
"""

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from distbranch.data.image_files import open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import Labels, LabelValue, LeftOut
from distbranch.data.sources.column_checks import select_learnable_columns
from distbranch.data.sources.columns import Column, ColumnTasks, infer_tasks
from distbranch.data.sources.label_text import is_missing, parse_mark, tidy_text
from distbranch.data.sources.layout import ALL, find_split_column, find_task_columns
from distbranch.data.sources.source import (
    Answer,
    ImageFileOptions,
    Row,
    Source,
    draw_split,
    read_rows,
    sample_key,
)
from distbranch.data.sources.tables import Problems, Table, read_table
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

NAMED_CHARACTERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}


def _split_at_commas(value: Any) -> Any:
    """A name that holds a comma stands in double quotes; YAML reads one that is a number as such."""
    if isinstance(value, list | tuple):
        return [str(part) if isinstance(part, int | float) else part for part in value]
    if not isinstance(value, str | int | float):
        return value
    parts = next(csv.reader([str(value)], skipinitialspace=True), [])
    stripped = map(str.strip, parts)
    return list(filter(None, stripped))


def _parse_answers(value: Any) -> Any:
    """`no`, or `COLUMN=no,COLUMN=unknown`; YAML reads `no` as false."""
    if isinstance(value, str | bool):
        # An answer without a column is for all of them.
        texts = _split_at_commas("no" if value is False else str(value))
        pairs = [text.rpartition("=") for text in texts]
        value = {name.strip() or ALL: answer.strip() for name, _, answer in pairs}
    if isinstance(value, dict):
        value = {tidy_text(str(name)): answer for name, answer in value.items()}
    return value


def _parse_character(value: str) -> str:
    character = NAMED_CHARACTERS.get(value, value)
    if len(character) > 1:
        character = character.strip()  # ', '
    if len(character) != 1:
        raise ValueError("should be one character, or one of tab, space, comma, semicolon")
    return character


def _check_encoding(value: str) -> str:
    try:
        "".encode(value)
    except LookupError:
        raise ValueError("should be an encoding of text, such as utf-8, utf-16, cp1252, shift_jis") from None
    return value


# Tidy as those of the header, so that names are equal where they look equal.
Name = Annotated[str, AfterValidator(tidy_text)]
# Split before pydantic, which would refuse a text where a list should stand.
Names = Annotated[tuple[Name, ...], BeforeValidator(_split_at_commas)]
Answers = Annotated[dict[str, Answer], BeforeValidator(_parse_answers)]
Character = Annotated[str, AfterValidator(_parse_character)]
Encoding = Annotated[str, AfterValidator(_check_encoding)]


class CsvOptions(ImageFileOptions):
    """Images and a table: binary columns hold 1, 0 or nothing (or 1, -1; or yes, no), others hold class names or tags."""

    source: Literal["csv"] = "csv"
    images: Path = Field(description="Folder, .zip or .tar with the images.")
    table: Path = Field(
        description="Table with a header line and one line per image: CSV (also .gz, .bz2, .xz), .xlsx or .parquet."
    )
    delimiter: Character | None = Field(
        None, description="What separates the cells of a CSV: a character or `tab`; found out if empty."
    )
    encoding: Encoding | None = Field(
        None,
        description="Encoding of a CSV, such as cp1252 (Excel on Windows); UTF-8, or UTF-16 with its mark, if empty.",
    )
    image_column: Name = Field("image", description="Column with the names of the image files.")
    split_column: Name | None = Field(
        None, description="Column with train, val or test; `split` if there is one, else the split is drawn."
    )
    group_column: Name | None = Field(
        None, description="Draw the split so that the images of one group (a person, a brand) stay together."
    )
    fractions: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="Shares of train, val and test of a drawn split."
    )
    seed: int = Field(0, description="Seed of a drawn split.")
    tasks: Names | None = Field(None, description="Columns to learn; all others if empty.")
    categorical: Names = Field((), description="Columns whose values are names of classes even if numbers.")
    one_task_per_class: Names = Field(
        (), description="Columns whose every class becomes a binary task, so that classes can branch apart."
    )
    tags: Names = Field(
        (),
        description="Columns with several tags in a cell, each of which becomes a binary task: 1 where it is mentioned, else 0.",
    )
    separator: Character | None = Field(None, description="What stands between tags: a character, `space` or `tab`.")
    class_prefix: str = Field(
        "", description="Put before the names of such tasks, to tell them from those of other sets."
    )
    minus_one: Answers = Field(
        {},
        description="What -1 means beside 1 and 0: `unknown` (0 is no) or `no` (0 is unknown); COLUMN=no,COLUMN=unknown for each.",
    )
    blank: Answers = Field(
        {},
        description="What an empty cell means in binary columns and in those of tags: `no`, or `unknown` as if empty; COLUMN=no for each.",
    )
    missing: Names = Field(
        (),
        description="More words for a missing label, such as 9 or unknown, beside NA, N/A, None, null, nan, ? and -.",
    )
    as_written: Names = Field(
        (), description="Columns whose values are classes as they are written: NA and None are, and Red is not red."
    )
    ignore: Names = Field((), description="Columns to leave out.")

    @field_validator("fractions", mode="before")
    @classmethod
    def _split_fractions(cls, value: Any) -> Any:
        shares = _split_at_commas(value)
        if isinstance(shares, Sequence) and len(shares) != len(SPLITS):
            raise ValueError(
                f"should be three shares, those of train, val and test, for instance 0.8,0.1,0.1, not {len(shares)}"
            )
        return shares

    @field_validator("fractions")
    @classmethod
    def _check_shares(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or sum(value) <= 0:
            raise ValueError("should be three shares that are not negative, for instance 0.8,0.1,0.1")
        return value

    def open(self) -> Source:
        """Learns the tasks from the table. Raises UserError that names everything that is not in order, with its line."""
        images = open_images(self.images)
        tasks, rows, num_rows = learn_table(self)
        checksums = {"table_sha256": file_sha256(self.table)}
        if self.images.is_file():
            # The size, for a checksum would read a large archive once more.
            checksums["images_bytes"] = str(self.images.stat().st_size)
        left_out: list[LeftOut] = []
        return Source(
            tasks, read_rows(rows, images, self, left_out), self.describe(**checksums), num_rows, left_out=left_out
        )


def learn_table(options: CsvOptions) -> tuple[tuple[Task, ...], Iterator[Row], int]:
    """The tasks that a table gives, its labelled rows, and their number.

    Raises UserError with all problems of the table in one message.
    """
    problems = Problems(options.table)
    table = read_table(options, problems)
    names = find_task_columns(options, table, problems)
    columns = [Column(name, list(map(tidy_text, table.columns[name])), table.lines, options) for name in names]
    _check_images(options, table, problems)
    found: list[ColumnTasks] = []
    # Without rows every column would be refused as empty, which says nothing new.
    if table.lines:
        may_be_names = options.image_column not in table.columns
        learnable = select_learnable_columns(columns, problems, may_be_names=may_be_names)
        # Also of columns that were refused, so that the names told now are those of the next try.
        taken = [column.name for column in columns if column.kind in ("", "categorical")]
        found = infer_tasks(learnable, problems, taken=taken)
    problems.raise_all()
    has_minus_one = any(parse_mark(value) == -1 for column in columns for value in column.counts)
    if ALL in options.minus_one and not has_minus_one:
        logger.warning("No column holds -1, so --minus-one (minus_one) is without effect.")
    tasks = tuple(task for tasks, _ in found for task in tasks)
    labels = zip(*(labels for _, labels in found), strict=True)
    return tasks, _create_rows(options, table, labels), len(table.lines)


def _check_images(options: CsvOptions, table: Table, problems: Problems) -> None:
    """Every row should have an image, whose key no other has, and a split if there is a column for it."""
    split = find_split_column(options, table)
    for line, value in zip(table.lines, table.columns.get(split or "", ()), strict=False):
        if split and value not in SPLITS:
            problems.add(
                f"line {line}: the split should be one of {', '.join(SPLITS)}, found '{value[:40]}'",
                "Correct it there.",
            )
    seen: dict[str, str] = {}  # the image of a key
    for line, image in zip(table.lines, table.columns.get(options.image_column, ()), strict=False):
        key = sample_key(image)
        if not image:
            problems.add(
                f"line {line}: the column '{options.image_column}' is empty",
                "The name of an image file should stand there.",
            )
        elif seen.get(key) == image:
            problems.add(
                f"line {line}: image '{image}' has a line already", "Every image should stand in one line only."
            )
        elif key in seen:
            problems.add(
                f"line {line}: image '{image}' and one above differ only in their extension, which no sample keeps",
                "Rename one of them.",
            )
        seen[key] = image


def _create_rows(options: CsvOptions, table: Table, labels: Iterable[tuple[Labels, ...]]) -> Iterator[Row]:
    """One row per image; `labels` are those of its columns."""
    images = table.columns[options.image_column]
    split_column = find_split_column(options, table)
    # By the group where there is one: a person in train and test would be known by sight.
    decisive = table.columns[split_column or options.group_column or options.image_column]
    fractions = dict(zip(SPLITS, options.fractions, strict=True))
    for line, image, value, parts in zip(table.lines, images, decisive, labels, strict=True):
        split = value
        if split_column is None:
            split = draw_split(image if is_missing(tidy_text(value)) else value, fractions, options.seed)
        joined: dict[str, LabelValue] = {}
        for part in parts:
            joined |= part
        yield Row(f"{options.table}, line {line}", image, split, joined)
