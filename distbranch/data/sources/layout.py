"""Where the columns of a table stand, by the names in its header and the names that the options give."""

import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from distbranch.data.sources.label_text import fold_text
from distbranch.data.sources.source import as_typed
from distbranch.data.sources.tables import Problems, Table

if TYPE_CHECKING:
    from distbranch.data.sources.csv import CsvOptions

logger = logging.getLogger("distbranch")

ALL = "*"  # every column, in options that answer a question for columns


@dataclass(frozen=True)
class Layout:
    """Where the columns stand, counted from 0; `split` is None for a drawn split, `image` only if there is a problem."""

    image: int | None
    split: int | None
    group: int | None
    tasks: dict[str, int]


def find_columns(options: "CsvOptions", table: Table, problems: Problems) -> Layout:
    """Finds every column that the options name; what is not there, or there twice, goes into `problems`."""
    nameless = [str(at) for at, name in enumerate(table.names, start=1) if not name]
    if nameless:  # the first one of pandas, which numbers the rows
        logger.warning("%s, line 1: column %s has no name and is left out.", table.path, " and ".join(nameless))
    split = options.split_column
    # A column of this name is taken without being named; by --ignore a person can have the split drawn all the same.
    if split is None and "split" in table.names and "split" not in options.ignore:
        split = "split"
    if split is not None and options.group_column in table.names:
        problems.add(
            f"the column '{split}' already says the split of every image, so none is drawn by the groups of "
            f"'{options.group_column}'",
            f"Leave {as_typed('group_column')} out, or put '{split}' into --ignore.",
        )

    # Tasks are the columns that were named, else all that have no other use.
    special = [name for name in (options.image_column, split, options.group_column) if name]
    unused = [name for name in dict.fromkeys(table.names) if name and name not in (*special, *options.ignore)]
    wanted = unused if options.tasks is None else options.tasks
    if not wanted:
        problems.add(
            f"it has no column left to learn. Its columns are: {', '.join(table.names)}",
            "Give others in --ignore.",
        )
    _check_options(options, table, wanted, problems)
    _check_twins([*special, *wanted], table, problems)
    places = {name: at for at, name in enumerate(table.names) if name}
    return Layout(
        image=places.get(options.image_column),
        split=places.get(split or ""),
        group=places.get(options.group_column or ""),
        tasks={name: places[name] for name in wanted if name in places},
    )


def _check_options(options: "CsvOptions", table: Table, wanted: Sequence[str], problems: Problems) -> None:
    """Columns that are listed should be there, be tasks, and be listed once."""
    kinds = {
        "categorical": options.categorical,
        "one_task_per_class": options.one_task_per_class,
        "tags": options.tags,
    }
    of_tasks: dict[str, Sequence[str]] = {
        **kinds,
        "as_written": options.as_written,
        "minus_one": [name for name in options.minus_one if name != ALL],
        "blank": [name for name in options.blank if name != ALL],
    }
    named: dict[str, Sequence[str | None]] = {
        "image_column": [options.image_column],
        "split_column": [options.split_column],
        "group_column": [options.group_column],
        "ignore": options.ignore,
        "tasks": options.tasks or (),
        **of_tasks,
    }
    for option, names in named.items():
        for name in names:
            if name is not None and (not name or name not in table.names):
                near = ", ".join(_find_nearest(name, table.names))
                problems.add(f"it has no column '{name}'. Nearest: {near}", f"Give another with {as_typed(option)}.")
            elif option in of_tasks and name not in wanted:
                problems.add(
                    f"the column '{name}' is listed in {as_typed(option)}, but it is no task",
                    "Take it out of the list.",
                )
    for name in options.ignore:
        if name in (options.tasks or ()):
            problems.add(f"the column '{name}' is listed in --tasks and in --ignore", "Take it out of one of them.")
    counts = Counter(chain.from_iterable(kinds.values()))
    for name, count in counts.items():
        if count > 1:
            problems.add(
                f"the column '{name}' is one categorical task, one task per class or one per tag",
                "Take it out of the other lists and list it once.",
            )


def _find_nearest(name: str, names: Sequence[str]) -> Sequence[str]:
    """Compared as people read, so that a wrong case or a blank too many is the nearest."""
    alike = {fold_text(one): one for one in names if one}
    close = difflib.get_close_matches(fold_text(name), alike, n=3, cutoff=0.5)
    # A table may have a thousand columns; a few show what they are like.
    return [alike[one] for one in close] or names[:8]


def _check_twins(used: Sequence[str], table: Table, problems: Problems) -> None:
    """Names that stand in the header twice, or that differ in a way that people do not see."""
    first: dict[str, str] = {}
    for name in dict.fromkeys(table.names):
        # Columns that nobody uses may be called as they like.
        if name not in used:
            continue
        if table.names.count(name) > 1:
            problems.add(f"line 1: the column '{name}' stands there twice", "Rename one of them.")
        same = first.setdefault(fold_text(name), name)
        if same != name:
            problems.add(
                f"line 1: the columns '{same}' and '{name}' differ only in how they are written",
                "Rename one of them or put it into --ignore.",
            )
