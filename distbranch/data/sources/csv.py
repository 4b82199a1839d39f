"""A table with one row per image (CSV, .xlsx, .parquet) and a folder, zip or tar of images.

The table is read, each column judged by all its values, and only then are rows learnt: so all problems are told at once.
"""

import difflib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import open_images
from distbranch.data.pack import SPLITS
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import Labels, LeftOut
from distbranch.data.sources.column_checks import select_learnable_columns
from distbranch.data.sources.columns import ALL, KIND_OPTIONS, Column, ColumnTasks, infer_tasks
from distbranch.data.sources.label_text import fold_text, is_missing, parse_mark, tidy_text
from distbranch.data.sources.number_columns import find_common_sign
from distbranch.data.sources.number_text import DecimalSign
from distbranch.data.sources.option_values import (
    Answers,
    Character,
    Encoding,
    Fractions,
    Name,
    Names,
    Orders,
    Said,
)
from distbranch.data.sources.source import (
    ImageFileOptions,
    Row,
    Source,
    as_typed,
    draw_split,
    read_rows,
    sample_key,
)
from distbranch.data.sources.tables import Problems, Table, read_table
from distbranch.kinds import LabelValue
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

BUILT_IN_KINDS = {
    "binary": "columns of marks, such as 1 and 0, are binary by themselves",
    "categorical": "names of classes are those of --categorical",
    "number": "numbers are those of --number",
    "ordinal": "ordered classes are those of --ordinal",
}
# Options that name columns, of which some say something about tasks.
OF_TASKS = (*KIND_OPTIONS, "unit", "as_written", "minus_one", "blank")
OF_COLUMNS = ("image_column", "split_column", "group_column", "ignore", "tasks", *OF_TASKS)


class ColumnOptions(ImageFileOptions):
    """What the columns of a table mean, and how images are divided into splits."""

    split_column: Name | None = Field(
        None,
        description="Column with train, val or test; `split` if there is one, else the split is drawn.",
    )
    group_column: Name | None = Field(
        None,
        description="Draw the split so that the images of one group (a person, a brand) stay together.",
    )
    fractions: Fractions = Field(
        (0.8, 0.1, 0.1), description="Shares of train, val and test of a drawn split."
    )
    seed: int = Field(0, description="Seed of a drawn split.")
    tasks: Names | None = Field(None, description="Columns to learn; all others if empty.")
    categorical: Names = Field(
        (), description="Columns whose values are names of classes even if numbers."
    )
    one_task_per_class: Names = Field(
        (),
        description="Columns whose every class becomes a binary task, so that classes can branch apart.",
    )
    tags: Names = Field(
        (),
        description="Columns with several tags in a cell, each of which becomes a binary task: 1 where it is mentioned, else 0.",
    )
    number: Names = Field(
        (), description="Columns of numbers (a price, an age), each predicted as such."
    )
    unit: Said = Field({}, description="Units of such columns: COLUMN=kg,COLUMN=cm.")
    decimal: DecimalSign | None = Field(
        None,
        description="The sign before decimals, `point` or `comma`; what the cells tell if empty.",
    )
    ordinal: Orders = Field(
        {},
        description="Columns of classes in an order: 'COLUMN=low<middle<high', or COLUMN alone if they are numbers.",
    )
    kind: Said = Field({}, description="Columns of a kind of your own: COLUMN=KIND.")
    separator: Character | None = Field(
        None, description="What stands between tags: a character, `space` or `tab`."
    )
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
        (),
        description="Columns whose values are classes as they are written: NA and None are, and Red is not red.",
    )
    ignore: Names = Field((), description="Columns to leave out.")


class CsvOptions(ColumnOptions):
    """Images and a table: binary columns hold 1, 0 or nothing (or 1, -1; or yes, no), others hold class names or tags."""

    source: Literal["csv"] = "csv"
    images: Path = Field(description="Folder, .zip or .tar with the images.")
    table: Path = Field(
        description="Table with a header line and one line per image: CSV (also .gz, .bz2, .xz), .xlsx or .parquet."
    )
    delimiter: Character | None = Field(
        None,
        description="What separates the cells of a CSV: a character or `tab`; found out if empty.",
    )
    encoding: Encoding | None = Field(
        None,
        description="Encoding of a CSV, such as cp1252 (Excel on Windows); UTF-8, or UTF-16 with its mark, if empty.",
    )
    image_column: Name = Field("image", description="Column with the names of the image files.")

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
            tasks,
            read_rows(rows, images, self, left_out),
            self.describe(**checksums),
            num_rows,
            left_out=left_out,
        )


def learn_table(options: CsvOptions) -> tuple[tuple[Task, ...], Iterator[Row], int]:
    """The tasks that a table gives, its labelled rows, and their number.

    Raises UserError with all problems of the table in one message.
    """
    problems = Problems(options.table)
    table = read_table(options, problems)
    names = _find_task_columns(options, table, problems)
    columns = _create_columns(options, table, names)
    if options.image_column not in table.columns:
        # It may be one of those with a name in every row, of which nothing else need be said.
        columns = [
            column
            for column in columns
            if column.marks or max(column.counts.values(), default=0) > 1
        ]
    _check_images(options, table, problems)
    found: list[ColumnTasks] = []
    # Without rows every column would be refused as empty, which says nothing new.
    if table.lines:
        learnable = select_learnable_columns(columns, problems)
        # Also of columns that were refused, so that the names told now are those of the next try.
        taken = [
            column.name for column in columns if column.kind not in ("one_task_per_class", "tags")
        ]
        found = infer_tasks(learnable, problems, taken=taken)
    problems.raise_all()
    may_hold_marks = [column for column in columns if column.kind != "number"]
    has_minus_one = any(
        parse_mark(value) == -1 for column in may_hold_marks for value in column.counts
    )
    if ALL in options.minus_one and not has_minus_one:
        logger.warning("No column holds -1, so --minus-one (minus_one) is without effect.")
    if options.decimal is not None and not options.number:
        logger.warning("No column is one of --number, so --decimal is without effect.")
    tasks = tuple(task for tasks, _ in found for task in tasks)
    labels = zip(*(labels for _, labels in found), strict=True)
    return tasks, _create_rows(options, table, labels), len(table.lines)


def _create_columns(options: CsvOptions, table: Table, names: Sequence[str]) -> list[Column]:
    values = {name: list(map(tidy_text, table.columns[name])) for name in names}
    of_numbers = [set(values[name]) for name in options.number if name in values]
    sign = find_common_sign(of_numbers)
    return [Column(name, values[name], table.lines, options, sign) for name in names]


def _find_split_column(options: CsvOptions, table: Table) -> str | None:
    """The column with the splits, if any; by --ignore a person can have them drawn all the same."""
    if options.split_column is None and "split" in table.names and "split" not in options.ignore:
        return "split"
    return options.split_column


def _find_task_columns(options: CsvOptions, table: Table, problems: Problems) -> list[str]:
    """The columns to learn: those that were named, else all without another use. `problems` name what does not fit together."""
    nameless = [str(at) for at, name in enumerate(table.names, start=1) if not name]
    if nameless:  # the first one of pandas, which numbers the rows
        logger.warning(
            "%s, line 1: column %s has no name and is left out.",
            options.table,
            " and ".join(nameless),
        )
    split = _find_split_column(options, table)
    if split is not None and options.group_column in table.names:
        problems.add(
            f"the column '{split}' already says the split of every image, so none is drawn by the groups of "
            f"'{options.group_column}'",
            f"Leave --group-column (group_column) out, or put '{split}' into --ignore.",
        )
    special = ["", options.image_column, split, options.group_column]
    wanted = options.tasks
    if wanted is None:
        wanted = tuple(
            name for name in dict.fromkeys(table.names) if name not in (*special, *options.ignore)
        )
    if not wanted:
        problems.add(
            f"it has no column left to learn. Its columns are: {', '.join(table.names)}",
            "Give others in --ignore.",
        )
    _check_options(options, table, wanted, problems)
    _check_twins([*special, *wanted], table, problems)
    return [name for name in dict.fromkeys(wanted) if name in table.names]


def _check_options(
    options: CsvOptions, table: Table, wanted: Sequence[str], problems: Problems
) -> None:
    """Columns that are listed should be there, be tasks, and be listed once."""
    for option in OF_COLUMNS:
        listed = getattr(options, option) or ()
        names = [listed] if isinstance(listed, str) else listed
        for name in names:
            if name == ALL and option in ("minus_one", "blank"):
                continue
            if name not in table.names:
                near = ", ".join(_find_nearest(name, table.names))
                problems.add(
                    f"it has no column '{name}'. Nearest: {near}",
                    f"Give another with {as_typed(option)}.",
                )
            elif option in OF_TASKS and name not in wanted:
                problems.add(
                    f"the column '{name}' is listed in {as_typed(option)}, but it is no task",
                    "Take it out of the list.",
                )
            elif option == "ignore" and name in wanted:
                problems.add(
                    f"the column '{name}' is listed in --tasks and in --ignore",
                    "Take it out of one of them.",
                )
    counts = Counter(chain.from_iterable(getattr(options, option) for option in KIND_OPTIONS))
    for name, count in counts.items():
        if count > 1:
            problems.add(
                f"the column '{name}' has one kind and is listed for several (or twice for one)",
                "Take it out of the other lists and list it once.",
            )
    for name, kind in options.kind.items():
        if kind in BUILT_IN_KINDS:
            problems.add(
                f"column '{name}': {BUILT_IN_KINDS[kind]}",
                "--kind is for kinds of your own, from a file named in `plugins`.",
            )
    for name in options.unit:
        if name not in options.number:
            problems.add(
                f"the column '{name}' has a --unit, but it is none of --number",
                "Add it there, or leave its unit out.",
            )
    own = (*options.number, *options.ordinal, *options.kind)
    said = {
        "as_written": set(options.as_written) & set(options.number),
        "blank": {name for name in own if options.blank.get(name) == "no"},
        "minus_one": {name for name in own if options.minus_one.get(name) == "no"},
    }
    for option, names in said.items():
        for name in sorted(names):
            problems.add(
                f"the column '{name}' is no yes or no, and {as_typed(option)} says nothing of it",
                "Take it out of the list.",
            )


def _find_nearest(name: str, names: Sequence[str]) -> Sequence[str]:
    """Compared as people read, so that a wrong case or a blank too many is the nearest."""
    alike = {fold_text(one): one for one in names}
    close = difflib.get_close_matches(fold_text(name), alike, n=3, cutoff=0.5)
    # A table may have a thousand columns; a few show what they are like.
    return [alike[one] for one in close] or names[:8]


def _check_twins(used: Collection[str | None], table: Table, problems: Problems) -> None:
    """Names that stand in the header twice, or that differ in a way that people do not see."""
    first: dict[str, str] = {}
    for name, count in Counter(table.names).items():
        # Columns that nobody uses may be called as they like.
        if not name or name not in used:
            continue
        if count > 1:
            problems.add(f"line 1: the column '{name}' stands there twice", "Rename one of them.")
        same = first.setdefault(fold_text(name), name)
        if same != name:
            problems.add(
                f"line 1: the columns '{same}' and '{name}' differ only in how they are written",
                "Rename one of them or put it into --ignore.",
            )


def _check_images(options: CsvOptions, table: Table, problems: Problems) -> None:
    """Every row should have an image, whose key no other has, and a split if there is a column for it."""
    split = _find_split_column(options, table)
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
                f"line {line}: image '{image}' has a line already",
                "Every image should stand in one line only.",
            )
        elif key in seen:
            problems.add(
                f"line {line}: image '{image}' and one above differ only in their extension, which no sample keeps",
                "Rename one of them.",
            )
        seen[key] = image


def _create_rows(
    options: CsvOptions, table: Table, labels: Iterable[tuple[Labels, ...]]
) -> Iterator[Row]:
    """One row per image; `labels` are those of its columns."""
    images = table.columns[options.image_column]
    split_column = _find_split_column(options, table)
    # By the group where there is one: a person in train and test would be known by sight.
    decisive = table.columns[split_column or options.group_column or options.image_column]
    fractions = dict(zip(SPLITS, options.fractions, strict=True))
    for line, image, value, parts in zip(table.lines, images, decisive, labels, strict=True):
        split = value
        if split_column is None:
            split = draw_split(
                image if is_missing(tidy_text(value)) else value, fractions, options.seed
            )
        joined: dict[str, LabelValue] = {}
        for part in parts:
            joined |= part
        yield Row(f"{options.table}, line {line}", image, split, joined)
