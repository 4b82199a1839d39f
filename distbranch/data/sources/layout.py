"""Where the columns of a table stand, by the names in its header and the names that the options give."""

import difflib
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from distbranch.data.sources.label_text import fold_text
from distbranch.data.sources.source import as_typed
from distbranch.data.sources.tables import Problems, Table

if TYPE_CHECKING:
    from distbranch.data.sources.csv import CsvOptions

logger = logging.getLogger("distbranch")

ALL = "*"  # every column, in options that answer a question for columns
KINDS = ("categorical", "one_task_per_class", "tags")  # options that say what the values of a column are
OF_TASKS = (*KINDS, "as_written", "minus_one", "blank")
OF_COLUMNS = ("image_column", "split_column", "group_column", "ignore", "tasks", *OF_TASKS)


def find_split_column(options: "CsvOptions", table: Table) -> str | None:
    """The column with the splits, if any; by --ignore a person can have them drawn all the same."""
    if options.split_column is None and "split" in table.names and "split" not in options.ignore:
        return "split"
    return options.split_column


def find_task_columns(options: "CsvOptions", table: Table, problems: Problems) -> list[str]:
    """The columns to learn: those that were named, else all without another use. `problems` name what does not fit together."""
    nameless = [str(at) for at, name in enumerate(table.names, start=1) if not name]
    if nameless:  # the first one of pandas, which numbers the rows
        logger.warning("%s, line 1: column %s has no name and is left out.", options.table, " and ".join(nameless))
    split = find_split_column(options, table)
    if split is not None and options.group_column in table.names:
        problems.add(
            f"the column '{split}' already says the split of every image, so none is drawn by the groups of "
            f"'{options.group_column}'",
            f"Leave --group-column (group_column) out, or put '{split}' into --ignore.",
        )
    special = ["", options.image_column, split, options.group_column]
    wanted = options.tasks
    if wanted is None:
        wanted = tuple(name for name in dict.fromkeys(table.names) if name not in (*special, *options.ignore))
    if not wanted:
        problems.add(
            f"it has no column left to learn. Its columns are: {', '.join(table.names)}",
            "Give others in --ignore.",
        )
    _check_options(options, table, wanted, problems)
    _check_twins([*special, *wanted], table, problems)
    return [name for name in dict.fromkeys(wanted) if name in table.names]


def _check_options(options: "CsvOptions", table: Table, wanted: Sequence[str], problems: Problems) -> None:
    """Columns that are listed should be there, be tasks, and be listed once."""
    for option in OF_COLUMNS:
        listed = getattr(options, option) or ()
        names = [listed] if isinstance(listed, str) else listed
        for name in names:
            if name not in (*table.names, ALL):
                near = ", ".join(_find_nearest(name, table.names))
                problems.add(f"it has no column '{name}'. Nearest: {near}", f"Give another with {as_typed(option)}.")
            elif option in OF_TASKS and name not in (*wanted, ALL):
                problems.add(
                    f"the column '{name}' is listed in {as_typed(option)}, but it is no task",
                    "Take it out of the list.",
                )
            elif option == "ignore" and name in wanted:
                problems.add(f"the column '{name}' is listed in --tasks and in --ignore", "Take it out of one of them.")
    counts = Counter(chain(options.categorical, options.one_task_per_class, options.tags))
    for name, count in counts.items():
        if count > 1:
            problems.add(
                f"the column '{name}' is one categorical task, one task per class or one per tag",
                "Take it out of the other lists and list it once.",
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
