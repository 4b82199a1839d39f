"""A table with one row per image (CSV) and a folder, zip or tar of images.

The table is read twice: first to learn what each column means, then, row by row, to make samples.
"""

import csv
import difflib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from distbranch.data.image_files import open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import Labels
from distbranch.data.sources.columns import Column, Meaning, meanings
from distbranch.data.sources.source import ImageFileOptions, Row, Source, as_typed, read_rows, sample_key, seeded_split
from distbranch.errors import UserError
from distbranch.permissions import denied

logger = logging.getLogger("distbranch")

Cells = list[str]


class CsvOptions(ImageFileOptions):
    """Images and a table: binary columns hold 1, 0 or nothing (or 1, -1, with 0 for unknown), others hold class names."""

    source: Literal["csv"] = "csv"
    images: Path = Field(description="Folder, .zip or .tar with the images.")
    table: Path = Field(description="CSV file with a header line and one line per image.")
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
    class_prefix: str = Field(
        "", description="Put before the names of such tasks, to tell them from those of other sets."
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

    @field_validator("tasks", "categorical", "one_task_per_class", "ignore", "fractions", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("fractions")
    @classmethod
    def _check_shares(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or sum(value) <= 0:
            raise ValueError("should be three shares that are not negative, for instance 0.8,0.1,0.1")
        return value

    def open(self) -> Source:
        """Learns the tasks from the table. Raises UserError that names the line for anything not in order."""
        images = open_images(self.images)
        layout = _layout(self)
        found, num_rows = _learn(self, layout)
        skipped: Counter[str] = Counter()
        archive = {"images_bytes": str(self.images.stat().st_size)} if self.images.is_file() else {}
        return Source(
            tasks=tuple(meaning.task for meaning in found),
            samples=read_rows(_rows(self, layout, found), images, self, skipped),
            description=self.describe(table_sha256=file_sha256(self.table), **archive),
            num_samples=num_rows,
            skipped=skipped,
        )


@dataclass(frozen=True)
class _Layout:
    """Where the columns stand, counted from 0; `split` is None for a drawn split."""

    num_columns: int
    image: int
    split: int | None
    group: int | None
    tasks: dict[str, int]


def _layout(options: CsvOptions) -> _Layout:
    header = next(_cells(options.table), (1, []))[1]
    if not header:
        raise UserError(f"{options.table} is empty; its first line should name the columns.")
    named = [name for name in header if name]
    if len(named) < len(header):  # the first one of pandas, which numbers the rows
        logger.warning(
            "%s, line 1: column %s has no name and is left out.",
            options.table,
            " and ".join(str(at) for at, name in enumerate(header, start=1) if not name),
        )
    twice = [name for name, count in Counter(named).items() if count > 1]
    if twice:
        raise UserError(f"{options.table}, line 1: the column '{twice[0]}' stands there twice. Rename one of them.")

    def find(name: str, option: str) -> int:
        if name not in named:
            near = difflib.get_close_matches(name, named, n=3) or named[:8]
            raise UserError(
                f"{options.table} has no column '{name}'. Nearest: {', '.join(near)}. Give another with {as_typed(option)}."
            )
        return header.index(name)

    image = find(options.image_column, "image_column")
    split, group = _split_columns(options, header, find)
    for name in options.ignore:
        find(name, "ignore")
        if name in (options.tasks or ()):
            raise UserError(f"The column '{name}' is listed in --tasks and in --ignore. Take it out of one of them.")
    special = {image, split, group}
    others = [name for name in named if header.index(name) not in special and name not in options.ignore]
    tasks = {name: find(name, "tasks") for name in (others if options.tasks is None else options.tasks)}
    for option, listed in (("categorical", options.categorical), ("one_task_per_class", options.one_task_per_class)):
        for name in listed:
            if name not in tasks:
                find(name, option)
                raise UserError(
                    f"The column '{name}' is listed in {as_typed(option)}, but it is no task. Take it out of the list."
                )
    both = [name for name in options.categorical if name in options.one_task_per_class]
    if both:
        raise UserError(f"The column '{both[0]}' is one categorical task or one task per class; list it once.")
    if not tasks:
        raise UserError(f"{options.table} has no column left to learn. Its columns are: {', '.join(named)}.")
    return _Layout(len(header), image, split, group, tasks)


def _split_columns(
    options: CsvOptions, header: Sequence[str], find: Callable[[str, str], int]
) -> tuple[int | None, int | None]:
    name = options.split_column
    if name is None and "split" in header and "split" not in options.ignore:
        name = "split"
    group = None if options.group_column is None else find(options.group_column, "group_column")
    if name is not None and group is not None:
        raise UserError(
            f"The column '{name}' already says the split of every image, so none is drawn by the groups of "
            f"'{options.group_column}'. Leave {as_typed('group_column')} out, or put '{name}' into --ignore."
        )
    return (None if name is None else find(name, "split_column")), group


def _cells(table: Path) -> Iterator[tuple[int, Cells]]:
    """Line number and cells, without blanks around them, of every line that is not empty; the header comes first."""
    number = 0
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                number = reader.line_num
                if row:
                    yield number, [cell.strip() for cell in row]
    except FileNotFoundError:
        raise UserError(f"The table {table} does not exist.") from None
    except PermissionError as error:
        raise denied(error) from None
    except OSError as error:
        raise UserError(f"The table {table} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The table {table} is not text in UTF-8. Save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise UserError(f"{table}, line {number + 1}: this is not CSV ({error}).") from None


def _checked_cells(options: CsvOptions, layout: _Layout) -> Iterator[tuple[int, Cells]]:
    """The rows below the header, each with as many cells as the header."""
    rows = _cells(options.table)
    next(rows, None)
    for line, cells in rows:
        if len(cells) != layout.num_columns:
            raise UserError(
                f"{options.table}, line {line}: {layout.num_columns} columns were expected as in line 1, "
                f"found {len(cells)}."
            )
        yield line, cells


def _learn(options: CsvOptions, layout: _Layout) -> tuple[list[Meaning], int]:
    """First pass: what every task column means, and the number of rows. Checks names and splits on the way."""
    per_class = options.one_task_per_class
    columns = [
        Column(name, at, declared=name in (*options.categorical, *per_class), per_class=name in per_class)
        for name, at in layout.tasks.items()
    ]
    seen: dict[int, int] = {}  # hashes of keys and images, a few bytes each
    for line, cells in _checked_cells(options, layout):
        where = f"{options.table}, line {line}"
        image = cells[layout.image]
        if not image:
            raise UserError(f"{where}: the column '{options.image_column}' is empty; an image file should stand there.")
        key = hash(sample_key(image))
        if seen.get(key) == hash(image):
            raise UserError(f"{where}: image '{image}' has a line already. Every image should stand in one line only.")
        if key in seen:
            raise UserError(
                f"{where}: image '{image}' and one above differ only in their extension, which no sample keeps. "
                "Rename one of them."
            )
        seen[key] = hash(image)
        if layout.split is not None and cells[layout.split] not in SPLITS:
            raise UserError(f"{where}: the split should be one of {', '.join(SPLITS)}, found '{cells[layout.split]}'.")
        for column in columns:
            column.see(cells[column.at], line, options.table)
    if not seen:
        raise UserError(f"{options.table} has a header but not a single row.")
    return meanings(columns, options.table, options.class_prefix), len(seen)


def _rows(options: CsvOptions, layout: _Layout, found: Sequence[Meaning]) -> Iterator[Row]:
    """Second pass: one row per image."""
    fractions = dict(zip(SPLITS, options.fractions, strict=True))
    for line, cells in _checked_cells(options, layout):
        image = cells[layout.image]
        if layout.split is not None:
            split = cells[layout.split]
        else:
            group = "" if layout.group is None else cells[layout.group]
            split = seeded_split(group or image, fractions, options.seed)
        yield Row(f"{options.table}, line {line}", image, split, _labels(cells, found, options.table, line))


def _labels(cells: Cells, found: Sequence[Meaning], table: Path, line: int) -> Labels:
    try:
        values = ((meaning.task.name, meaning.labels[cells[meaning.at]]) for meaning in found)
        return {name: value for name, value in values if value is not None}
    except KeyError:
        raise UserError(f"{table}, line {line}: the table was changed while it was read. Start again.") from None
