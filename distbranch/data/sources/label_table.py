"""Tasks and labels learnt from a table with a row per image.

Each column is judged by all its values, and only then are rows learnt: so all problems are told at once.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from distbranch.data.image_files import ImageFiles
from distbranch.data.pack import CLASS_TASKS, SPLITS
from distbranch.data.shards import Labels, LeftOut
from distbranch.data.sources.column_checks import select_learnable_columns
from distbranch.data.sources.columns import (
    ALL,
    KIND_OPTIONS,
    Column,
    ColumnTasks,
    KnownClasses,
    infer_tasks,
)
from distbranch.data.sources.label_options import TableOptions
from distbranch.data.sources.label_text import is_missing, parse_mark, tidy_text
from distbranch.data.sources.like import LikeDataset, read_like
from distbranch.data.sources.number_columns import find_common_sign
from distbranch.data.sources.source import (
    Row,
    Source,
    draw_split,
    read_rows,
)
from distbranch.data.sources.stratified_split import draw_stratified_splits
from distbranch.data.sources.table_checks import (
    check_files,
    check_images,
    check_options,
    check_twins,
    correct_names,
    find_image_columns,
)
from distbranch.data.sources.tables import Problems, Table
from distbranch.errors import UserError
from distbranch.kinds import LabelValue
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")


@dataclass(frozen=True)
class LearntTable:
    """What a table gives: tasks, its labelled rows (read once), and their number.

    `notes` go into `dataset.json`, beside the options: by them another table can be read as this one was.
    """

    tasks: tuple[Task, ...]
    rows: Iterator[Row]
    num_rows: int
    notes: Mapping[str, Any]


def open_table(
    options: TableOptions,
    table: Table,
    problems: Problems,
    images: ImageFiles,
    description: Mapping[str, Any],
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Source:
    """The source of a table's rows and the images that it names; see `learn_table`."""
    learnt = learn_table(options, table, problems, class_names, images)
    left_out: list[LeftOut] = []
    return Source(
        learnt.tasks,
        read_rows(learnt.rows, images, options, left_out),
        {**description, **learnt.notes},
        learnt.num_rows,
        left_out=left_out,
    )


def learn_table(
    options: TableOptions,
    table: Table,
    problems: Problems,
    class_names: Mapping[str, Sequence[str]] | None = None,
    images: ImageFiles | None = None,
) -> LearntTable:
    """Learns tasks and labels from a table, of whose columns `class_names` gives the classes of some.

    Raises UserError with all problems of the table in one message, and with the `images` that are not there.
    """
    like = None
    if options.like is not None:
        special = _list_special(options, table)
        like = read_like(options, table.names, special)
        options = like.options
    elif options.unknown_as_missing:
        problems.add(
            "--unknown-as-missing says what is unknown to another data set",
            "Give that with --like.",
        )
    options = correct_names(options, table, problems)
    options, known = _add_class_names(options, class_names or {}, like)
    names = _find_task_columns(options, table, problems)
    columns = _create_columns(options, table, names, known)
    if options.image_column not in table.columns:
        columns = _leave_out_images(columns, find_image_columns(table))
    check_images(options, table, _find_split_column(options, table), problems)
    splits = _assign_splits(options, table, problems)
    found: list[ColumnTasks] = []
    # Without rows every column would be refused as empty, which says nothing new.
    if table.lines:
        learnable = select_learnable_columns(columns, problems)
        # Also of columns that were refused, so that the names told now are those of the next try.
        taken = [
            column.name for column in columns if column.kind not in ("one_task_per_class", "tags")
        ]
        found = infer_tasks(learnable, problems, taken=taken)
    tasks = tuple(task for one in found for task in one.tasks)
    notes: dict[str, Any] = {}
    per_class = {one.column: dict(one.class_tasks) for one in found if one.class_tasks}
    if per_class:
        notes[CLASS_TASKS] = per_class
    if like is not None:
        like.check_tasks(tasks, problems)
        notes |= like.describe()
    # Of a table in order reading tells it, for which each file has to be looked for anyway.
    if problems and images is not None and options.on_bad_image == "fail":
        check_files(options, table, images, problems)
    problems.raise_all()
    if like is not None:
        tasks = like.sort_tasks(tasks)
    _warn_unused(options, columns)
    labels = zip(*(one.labels for one in found), strict=True)
    rows = _create_rows(options, table, splits, labels)
    return LearntTable(tasks, rows, len(table.lines), notes)


def _warn_unused(options: TableOptions, columns: Sequence[Column]) -> None:
    may_hold_marks = [column for column in columns if column.kind != "number"]
    has_minus_one = any(
        parse_mark(value) == -1 for column in may_hold_marks for value in column.counts
    )
    if ALL in options.minus_one and not has_minus_one:
        logger.warning("No column holds -1, so --minus-one (minus_one) is without effect.")
    if options.decimal is not None and not options.number:
        logger.warning("No column is one of --number, so --decimal is without effect.")


def _add_class_names(
    options: TableOptions,
    class_names: Mapping[str, Sequence[str]],
    like: LikeDataset | None,
) -> tuple[TableOptions, dict[str, KnownClasses]]:
    """The options, by which columns of given classes are categorical if nothing else is said of them, and the classes known."""
    if like is not None:
        return options, dict(like.known)
    listed = set(chain.from_iterable(getattr(options, option) for option in KIND_OPTIONS))
    new = [name for name in class_names if name not in (*listed, *options.ignore)]
    new = [name for name in new if options.tasks is None or name in options.tasks]
    known: dict[str, KnownClasses] = {}
    for name in new:
        known[name] = dict.fromkeys(map(tidy_text, class_names[name]), name)
    return options.model_copy(update={"categorical": (*options.categorical, *new)}), known


def _create_columns(
    options: TableOptions,
    table: Table,
    names: Sequence[str],
    known: Mapping[str, KnownClasses],
) -> list[Column]:
    values = {name: list(map(tidy_text, table.columns[name])) for name in names}
    sign = find_common_sign(set(values[name]) for name in options.number if name in values)
    return [
        Column(name, values[name], table.lines, options, sign, known.get(name, {}))
        for name in names
    ]


def _list_special(options: TableOptions, table: Table) -> tuple[str | None, ...]:
    """The columns with a use of their own, which are no tasks."""
    return (options.image_column, _find_split_column(options, table), options.group_column)


def _find_split_column(options: TableOptions, table: Table) -> str | None:
    """The column with the splits, if any; by --ignore a person can have them drawn all the same."""
    if options.split_column is None and "split" in table.names and "split" not in options.ignore:
        return "split"
    return options.split_column


def _find_task_columns(options: TableOptions, table: Table, problems: Problems) -> list[str]:
    """The columns to learn: those that were named, else all without another use. `problems` name what does not fit together."""
    nameless = [str(at) for at, name in enumerate(table.names, start=1) if not name]
    if nameless:  # the first one of pandas, which numbers the rows
        logger.warning(
            "%s, line 1: column %s has no name and is left out.",
            table.place,
            " and ".join(nameless),
        )
    split = _find_split_column(options, table)
    if split is not None and options.group_column in table.names:
        problems.add(
            f"the column '{split}' already says the split of every image, so none is drawn by the groups of "
            f"'{options.group_column}'",
            f"Leave --group-column (group_column) out, or put '{split}' into --ignore.",
        )
    if split is not None and options.stratify is not None:
        problems.add(
            f"the column '{split}' already says the split of every image, so none is stratified by '{options.stratify}'",
            f"Leave --stratify out, or put '{split}' into --ignore.",
        )
    special = ["", *_list_special(options, table)]
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
    check_options(options, table, wanted, problems)
    check_twins([*special, *wanted], table, problems)
    return [name for name in dict.fromkeys(wanted) if name in table.names]


def _leave_out_images(columns: Sequence[Column], evident: Sequence[str]) -> list[Column]:
    """The columns that cannot be that of the images, for which another name was given."""
    if evident:
        return [column for column in columns if column.name not in evident]
    # It may be one of those with a name in every row, of which nothing else need be said.
    return [
        column for column in columns if column.marks or max(column.counts.values(), default=0) > 1
    ]


def _assign_splits(options: TableOptions, table: Table, problems: Problems) -> Sequence[str]:
    """The split of every row: from its column, or drawn."""
    split = _find_split_column(options, table)
    if split is not None:
        if options.model_fields_set & {"fractions", "seed"}:
            logger.warning(
                "Each image has its split, so --fractions and --seed are without effect."
            )
        return table.columns.get(split, [""] * len(table.lines))
    images = table.columns.get(options.image_column, [""] * len(table.lines))
    units = images
    if options.group_column in table.columns:
        # By the group where there is one: a person in train and test would be known by sight.
        groups = table.columns[options.group_column]
        units = [
            image if is_missing(tidy_text(group)) else group
            for image, group in zip(images, groups, strict=True)
        ]
    shares = dict(zip(SPLITS, options.fractions, strict=True))
    if options.stratify not in table.columns or not table.lines:
        return [draw_split(unit, shares, options.seed) for unit in units]
    classes = list(map(tidy_text, table.columns[options.stratify]))
    together = None if units is images else units
    try:
        return draw_stratified_splits(classes, shares, options.seed, groups=together)
    except UserError as error:
        problems.add(
            f"the split cannot be stratified by '{options.stratify}': {error}",
            "Give other --fractions, a column of fewer classes, or leave --stratify out.",
        )
        return [SPLITS[0]] * len(table.lines)


def _create_rows(
    options: TableOptions,
    table: Table,
    splits: Sequence[str],
    labels: Iterable[tuple[Labels, ...]],
) -> Iterator[Row]:
    """One row per image; `labels` are those of its columns."""
    images = table.columns[options.image_column]
    for line, image, split, parts in zip(table.lines, images, splits, labels, strict=True):
        joined: dict[str, LabelValue] = {}
        for part in parts:
            joined |= part
        yield Row(f"{table.place}, {table.row_word} {line}", image, split, joined)
