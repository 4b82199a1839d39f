"""Where the columns of a table stand, by the names in its header and the names that the options give."""

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distbranch.data.sources.problems import Problems
from distbranch.data.sources.source import as_typed
from distbranch.data.sources.tables import Table
from distbranch.data.sources.words import fold_text, tidy_text
from distbranch.errors import UserError

if TYPE_CHECKING:
    from distbranch.data.sources.csv import CsvOptions

logger = logging.getLogger("distbranch")

ALL = "*"  # every column, in options that answer a question for columns
Find = Callable[[str, str], int | None]  # the place of a column, by its name and the option that gives it


@dataclass(frozen=True)
class Layout:
    """Where the columns stand, counted from 0; `split` is None for a drawn split, `image` only if there is a problem."""

    num_columns: int
    image: int | None
    split: int | None
    group: int | None
    tasks: dict[str, int]


def find_columns(options: "CsvOptions", table: Table, problems: Problems) -> Layout:
    """Finds every column that the options name; what is not there, or there twice, goes into `problems`."""
    header = [tidy_text(name) for name in next(table.rows(), (1, []))[1]]
    if not header:
        raise UserError(f"{options.table} is empty; its first line should name the columns.")
    named = list(dict.fromkeys(name for name in header if name))
    if "" in header:  # the first one of pandas, which numbers the rows
        logger.warning(
            "%s, line 1: column %s has no name and is left out.",
            options.table,
            " and ".join(str(at) for at, name in enumerate(header, start=1) if not name),
        )

    def find(name: str, option: str) -> int | None:
        if name in named:
            return header.index(name)
        alike = {fold_text(one): one for one in named}
        close = difflib.get_close_matches(fold_text(name), alike, n=3, cutoff=0.5)
        near = [alike[one] for one in close] or named[:8]
        problems.add(f"it has no column '{name}'. Nearest: {', '.join(near)}", f"Give another with {as_typed(option)}.")
        return None

    image = find(options.image_column, "image_column")
    split, group = _split_columns(options, header, find, problems)
    for name in options.ignore:
        find(name, "ignore")
    special = {image, split, group}
    others = [name for name in named if header.index(name) not in special and name not in options.ignore]
    wanted = others if options.tasks is None else options.tasks
    found = {name: find(name, "tasks") for name in wanted}
    tasks = {name: at for name, at in found.items() if at is not None}
    _check_lists(options, wanted, find, problems)
    _check_twins([header[at] for at in special if at is not None], tasks, header, problems)
    if not found:
        problems.add(f"it has no column left to learn. Its columns are: {', '.join(named)}", "Give others in --ignore.")
    return Layout(len(header), image, split, group, tasks)


def _check_lists(options: "CsvOptions", wanted: Sequence[str], find: Find, problems: Problems) -> None:
    """Columns that are listed should be there, be tasks, and be listed once."""
    for name in options.ignore:
        if name in (options.tasks or ()):
            problems.add(f"the column '{name}' is listed in --tasks and in --ignore", "Take it out of one of them.")
    lists: dict[str, Sequence[str]] = {
        "categorical": options.categorical,
        "one_task_per_class": options.one_task_per_class,
        "tags": options.tags,
        "as_written": options.as_written,
        "minus_one": [name for name in options.minus_one if name != ALL],
        "blank": [name for name in options.blank if name != ALL],
    }
    for option, listed in lists.items():
        for name in listed:
            if name not in wanted and find(name, option) is not None:
                problems.add(
                    f"the column '{name}' is listed in {as_typed(option)}, but it is no task",
                    "Take it out of the list.",
                )
    kinds = Counter(name for option in ("categorical", "one_task_per_class", "tags") for name in lists[option])
    for name, count in kinds.items():
        if count > 1:
            problems.add(
                f"the column '{name}' is one categorical task, one task per class or one per tag",
                "Take it out of the other lists and list it once.",
            )


def _check_twins(special: Sequence[str], tasks: Mapping[str, int], header: Sequence[str], problems: Problems) -> None:
    """Names that stand in the header twice, or that differ in a way that people do not see."""
    first: dict[str, str] = {}
    for name in dict.fromkeys([*special, *tasks]):
        if header.count(name) > 1:
            problems.add(f"line 1: the column '{name}' stands there twice", "Rename one of them.")
        same = first.setdefault(fold_text(name), name)
        if same != name:
            problems.add(
                f"line 1: the columns '{same}' and '{name}' differ only in how they are written",
                "Rename one of them or put it into --ignore.",
            )


def _split_columns(
    options: "CsvOptions", header: Sequence[str], find: Find, problems: Problems
) -> tuple[int | None, int | None]:
    name = options.split_column
    if name is None and "split" in header and "split" not in options.ignore:
        name = "split"
    group = None if options.group_column is None else find(options.group_column, "group_column")
    if name is not None and group is not None:
        problems.add(
            f"the column '{name}' already says the split of every image, so none is drawn by the groups of "
            f"'{options.group_column}'",
            f"Leave {as_typed('group_column')} out, or put '{name}' into --ignore.",
        )
    return (None if name is None else find(name, "split_column")), group
