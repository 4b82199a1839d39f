"""Tasks and labels learnt from a table with a row per image.

Each column is judged by all its values, and only then are rows learnt: so all problems are told at once.
"""

import difflib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from distbranch.data.image_files import ImageFiles
from distbranch.data.images import SUFFIXES
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
from distbranch.data.sources.label_text import fold_text, is_missing, parse_mark, tidy_text
from distbranch.data.sources.like import LikeDataset, read_like
from distbranch.data.sources.number_columns import find_common_sign
from distbranch.data.sources.source import (
    Row,
    Source,
    as_typed,
    draw_split,
    read_rows,
    sample_key,
)
from distbranch.data.sources.stratified_split import draw_stratified_splits
from distbranch.data.sources.tables import Problems, Table
from distbranch.errors import UserError
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
OF_COLUMNS = (
    *("image_column", "split_column", "group_column", "stratify", "ignore", "tasks"),
    *("unknown_as_missing", *OF_TASKS),
)


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
    learnt = learn_table(options, table, problems, class_names)
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
) -> LearntTable:
    """Learns tasks and labels from a table, of whose columns `class_names` gives the classes of some.

    Raises UserError with all problems of the table in one message.
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
    options, known = _add_class_names(options, class_names or {}, like)
    names = _find_task_columns(options, table, problems)
    columns = _create_columns(options, table, names, known)
    if options.image_column not in table.columns:
        columns = _leave_out_images(columns, _find_image_columns(table))
    _check_images(options, table, problems)
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
    _check_options(options, table, wanted, problems)
    _check_twins([*special, *wanted], table, problems)
    return [name for name in dict.fromkeys(wanted) if name in table.names]


def _check_options(
    options: TableOptions, table: Table, wanted: Sequence[str], problems: Problems
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
                if option == "image_column":
                    near = ", ".join(_find_image_columns(table)) or near
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


def _leave_out_images(columns: Sequence[Column], evident: Sequence[str]) -> list[Column]:
    """The columns that cannot be that of the images, for which another name was given."""
    if evident:
        return [column for column in columns if column.name not in evident]
    # It may be one of those with a name in every row, of which nothing else need be said.
    return [
        column for column in columns if column.marks or max(column.counts.values(), default=0) > 1
    ]


def _find_image_columns(table: Table) -> list[str]:
    """The columns whose first cells are names of image files."""
    first = {name: cells[0].lower() for name, cells in table.columns.items() if cells}
    return [name for name, cell in first.items() if cell.endswith(SUFFIXES)]


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


def _check_images(options: TableOptions, table: Table, problems: Problems) -> None:
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
