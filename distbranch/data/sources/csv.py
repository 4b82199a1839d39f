"""A table with one row per image (CSV, .xlsx, .parquet) and a folder, zip or tar of images.

The table is read twice: first to learn what each column means, then, row by row, to make samples.
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from distbranch.data.image_files import open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import LabelValue, LeftOut
from distbranch.data.sources.column_checks import select_learnable_columns
from distbranch.data.sources.columns import Column, ColumnTasks, Kind, infer_tasks
from distbranch.data.sources.label_text import is_missing, tidy_text
from distbranch.data.sources.layout import ALL, Layout, find_columns
from distbranch.data.sources.source import (
    Answer,
    ImageFileOptions,
    Row,
    Source,
    as_typed,
    draw_split,
    read_rows,
    sample_key,
)
from distbranch.data.sources.tables import Cells, Problems, Rows, Table, open_table
from distbranch.errors import UserError

logger = logging.getLogger("distbranch")

LISTS = (
    "tasks",
    "categorical",
    "one_task_per_class",
    "tags",
    "as_written",
    "ignore",
    "missing",
)  # options of several names
NAMED_CHARACTERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}


class CsvOptions(ImageFileOptions):
    """Images and a table: binary columns hold 1, 0 or nothing (or 1, -1; or yes, no), others hold class names or tags."""

    source: Literal["csv"] = "csv"
    images: Path = Field(description="Folder, .zip or .tar with the images.")
    table: Path = Field(
        description="Table with a header line and one line per image: CSV (also .gz, .bz2, .xz), .xlsx or .parquet."
    )
    delimiter: str | None = Field(
        None, description="What separates the cells of a CSV: a character or `tab`; found out if empty."
    )
    encoding: str | None = Field(
        None,
        description="Encoding of a CSV, such as cp1252 (Excel on Windows); UTF-8, or UTF-16 with its mark, if empty.",
    )
    image_column: str = Field("image", description="Column with the names of the image files.")
    split_column: str | None = Field(
        None, description="Column with train, val or test; `split` if there is one, else the split is drawn."
    )
    group_column: str | None = Field(
        None, description="Draw the split so that the images of one group (a person, a brand) stay together."
    )
    fractions: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1), description="Shares of train, val and test of a drawn split."
    )
    seed: int = Field(0, description="Seed of a drawn split.")
    tasks: tuple[str, ...] | None = Field(None, description="Columns to learn; all others if empty.")
    categorical: tuple[str, ...] = Field((), description="Columns whose values are names of classes even if numbers.")
    one_task_per_class: tuple[str, ...] = Field(
        (), description="Columns whose every class becomes a binary task, so that classes can branch apart."
    )
    tags: tuple[str, ...] = Field(
        (),
        description="Columns with several tags in a cell, each of which becomes a binary task: 1 where it is mentioned, else 0.",
    )
    separator: str | None = Field(None, description="What stands between tags: a character, `space` or `tab`.")
    class_prefix: str = Field(
        "", description="Put before the names of such tasks, to tell them from those of other sets."
    )
    minus_one: dict[str, Answer] = Field(
        {},
        description="What -1 means beside 1 and 0: `unknown` (0 is no) or `no` (0 is unknown); COLUMN=no,COLUMN=unknown for each.",
    )
    blank: dict[str, Answer] = Field(
        {},
        description="What an empty cell means in binary columns and in those of tags: `no`, or `unknown` as if empty; COLUMN=no for each.",
    )
    missing: tuple[str, ...] = Field(
        (),
        description="More words for a missing label, such as 9 or unknown, beside NA, N/A, None, null, nan, ? and -.",
    )
    as_written: tuple[str, ...] = Field(
        (), description="Columns whose values are classes as they are written: NA and None are, and Red is not red."
    )
    ignore: tuple[str, ...] = Field((), description="Columns to leave out.")

    @field_validator("fractions", mode="before")
    @classmethod
    def _check_count(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and len(value) != len(SPLITS):
            raise ValueError(
                f"should be three shares, those of train, val and test, for instance 0.8,0.1,0.1, not {len(value)}"
            )
        return value

    @field_validator(*LISTS, "fractions", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        """A name that holds a comma stands in double quotes; YAML reads one that is a number as such."""
        if isinstance(value, list | tuple):
            return [str(part) if isinstance(part, int | float) else part for part in value]
        if not isinstance(value, str | int | float):
            return value
        parts = next(csv.reader([str(value)], skipinitialspace=True), [])
        stripped = [part.strip() for part in parts]
        return [part for part in stripped if part]

    @field_validator(*LISTS)
    @classmethod
    def _tidy_names(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(map(tidy_text, value))

    @field_validator("image_column", "split_column", "group_column")
    @classmethod
    def _tidy_name(cls, value: str | None) -> str | None:
        return None if value is None else tidy_text(value)

    @field_validator("minus_one", "blank", mode="before")
    @classmethod
    def _parse_answers(cls, value: Any) -> Any:
        """`no`, or `COLUMN=no,COLUMN=unknown`; YAML reads `no` as false."""
        if isinstance(value, str | bool):
            texts = cls._split_at_commas("no" if value is False else str(value))
            pairs = [text.rpartition("=") for text in texts]
            value = {name.strip() or ALL: answer.strip() for name, _, answer in pairs}
        if isinstance(value, dict):
            value = {tidy_text(str(name)): answer for name, answer in value.items()}
        return value

    @field_validator("delimiter", "separator")
    @classmethod
    def _parse_character(cls, value: str | None) -> str | None:
        if value is None:
            return None
        character = NAMED_CHARACTERS.get(value, value)
        if len(character) > 1:
            character = character.strip()  # ', '
        if len(character) != 1:
            raise ValueError("should be one character, or one of tab, space, comma, semicolon")
        return character

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                "".encode(value)
        except LookupError:
            raise ValueError("should be an encoding of text, such as utf-8, utf-16, cp1252, shift_jis") from None
        return value

    @field_validator("fractions")
    @classmethod
    def _check_shares(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or sum(value) <= 0:
            raise ValueError("should be three shares that are not negative, for instance 0.8,0.1,0.1")
        return value

    def open(self) -> Source:
        """Learns the tasks from the table. Raises UserError that names everything that is not in order, with its line."""
        images = open_images(self.images)
        table = open_table(self.table, delimiter=self.delimiter, encoding=self.encoding, image_column=self.image_column)
        layout, columns, num_rows = learn_table(self, table)
        left_out: list[LeftOut] = []
        checksums = {"table_sha256": file_sha256(self.table)}
        if self.images.is_file():
            # The size, for a checksum would read a large archive once more.
            checksums["images_bytes"] = str(self.images.stat().st_size)
        return Source(
            tasks=tuple(task for column in columns for task in column.tasks),
            samples=read_rows(label_rows(self, table, layout, columns), images, self, left_out),
            description=self.describe(**checksums),
            num_samples=num_rows,
            left_out=left_out,
        )


def learn_table(options: CsvOptions, table: Table) -> tuple[Layout, list[ColumnTasks], int]:
    """First pass: where the columns stand, what those to learn mean, and the number of rows.

    Raises:
        UserError: with all problems of the table in one message.
    """
    problems = Problems(table.path)
    layout = find_columns(options, table, problems)
    columns = _create_columns(options, layout)
    num_rows = _read_columns(options, table, layout, columns, problems)
    found: list[ColumnTasks] = []
    if num_rows:
        learnable = select_learnable_columns(columns, problems, may_be_names=layout.image is None)
        taken = [column.name for column in columns if column.kind in ("", "categorical")]
        found = infer_tasks(learnable, problems, class_prefix=options.class_prefix, taken=taken)
    problems.raise_all()
    if ALL in options.minus_one and not any(column.holds_minus_one for column in columns):
        logger.warning("No column holds -1, so %s is without effect.", as_typed("minus_one"))
    return layout, found, num_rows


def _create_columns(options: CsvOptions, layout: Layout) -> list[Column]:
    """The columns to learn, with all that was said of them."""
    kinds: dict[str, Kind] = dict.fromkeys(options.categorical, "categorical")
    kinds |= dict.fromkeys(options.one_task_per_class, "per_class")
    kinds |= dict.fromkeys(options.tags, "tags")
    return [
        Column(
            name,
            at,
            kind=kinds.get(name, ""),
            as_written=name in options.as_written,
            separator=options.separator,
            minus_one=options.minus_one.get(name),
            minus_one_of_all=options.minus_one.get(ALL),
            blank=options.blank.get(name, options.blank.get(ALL)),
            missing=frozenset(options.missing),
        )
        for name, at in layout.tasks.items()
    ]


def _read_columns(
    options: CsvOptions, table: Table, layout: Layout, columns: Sequence[Column], problems: Problems
) -> int:
    """Adds every cell to its column, checks names and splits on the way, and counts the rows."""
    seen: dict[int, int] = {}  # hashes of keys and images, a few bytes each
    num_rows = 0
    for line, cells in _read_rows_below_header(table):
        num_rows += 1
        if len(cells) != layout.num_columns:
            problems.add(
                f"line {line}: {layout.num_columns} columns were expected as in line 1, found {len(cells)}",
                "Mend the lines, or say with --delimiter what separates cells.",
            )
            continue

        if layout.image is not None:
            _check_image(cells[layout.image], line, seen, options, problems)

        if layout.split is not None and cells[layout.split] not in SPLITS:
            problems.add(
                f"line {line}: the split should be one of {', '.join(SPLITS)}, found '{cells[layout.split][:40]}'",
                "Correct it there.",
            )

        for column in columns:
            column.add_cell(cells[column.at], line)
    if not num_rows:
        problems.add("it has a header but not a single row", "Add a line per image.")
    return num_rows


def _check_image(image: str, line: int, seen: dict[int, int], options: CsvOptions, problems: Problems) -> None:
    """The name of an image should stand there, and give a key that no other has."""
    if not image:
        problems.add(
            f"line {line}: the column '{options.image_column}' is empty",
            "The name of an image file should stand there.",
        )
        return
    key = hash(sample_key(image))
    if seen.get(key) == hash(image):
        problems.add(f"line {line}: image '{image}' has a line already", "Every image should stand in one line only.")
    elif key in seen:
        problems.add(
            f"line {line}: image '{image}' and one above differ only in their extension, which no sample keeps",
            "Rename one of them.",
        )
    seen[key] = hash(image)


def _read_rows_below_header(table: Table) -> Rows:
    rows = table.rows()
    next(rows, None)
    return rows


def label_rows(options: CsvOptions, table: Table, layout: Layout, columns: Sequence[ColumnTasks]) -> Iterator[Row]:
    """Second pass: one row per image. Raises UserError if the table is not what the first pass has seen."""
    assert layout.image is not None
    fractions = dict(zip(SPLITS, options.fractions, strict=True))
    for line, cells in _read_rows_below_header(table):
        where = f"{options.table}, line {line}"
        labels: dict[str, LabelValue] = {}
        try:
            for column in columns:
                labels |= column.read_labels(cells[column.at])
        except (KeyError, IndexError):
            raise UserError(f"{where}: the table was changed while it was read. Start again.") from None

        image = cells[layout.image]
        if layout.split is not None:
            split = cells[layout.split]
        else:
            split = draw_split(_read_group(cells, layout) or image, fractions, options.seed)
        yield Row(where, image, split, labels)


def _read_group(cells: Cells, layout: Layout) -> str:
    """The group of an image; empty where it has none."""
    if layout.group is None or is_missing(tidy_text(cells[layout.group])):
        return ""
    return cells[layout.group]
