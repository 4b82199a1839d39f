"""Where the columns of a table stand, by the names in its header and the names that the options give."""

import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distbranch.data.sources.label_text import fold_text, tidy_text
from distbranch.data.sources.source import as_typed
from distbranch.data.sources.tables import Problems, Table
from distbranch.errors import UserError

if TYPE_CHECKING:
    from distbranch.data.sources.csv import CsvOptions

logger = logging.getLogger("distbranch")

ALL = "*"  # every column, in options that answer a question for columns


@dataclass(frozen=True)
class Layout:
    """Where the columns stand, counted from 0; `split` is None for a drawn split, `image` only if there is a problem."""

    num_columns: int
    image: int | None
    split: int | None
    group: int | None
    tasks: dict[str, int]


@dataclass(frozen=True)
class Header:
    """The names of the columns, as they stand in the first line."""

    names: list[str]
    problems: Problems

    @property
    def distinct(self) -> list[str]:
        """Every name that is not empty, once."""
        return [name for name in dict.fromkeys(self.names) if name]

    def find(self, name: str | None, option: str) -> int | None:
        """The place of a column; None, and a problem of this option, if there is none of this name."""
        if name is None:
            return None
        if name and name in self.names:
            return self.names.index(name)
        alike = {fold_text(one): one for one in self.distinct}
        close = difflib.get_close_matches(fold_text(name), alike, n=3, cutoff=0.5)
        near = [alike[one] for one in close] or self.distinct[:8]
        self.problems.add(
            f"it has no column '{name}'. Nearest: {', '.join(near)}", f"Give another with {as_typed(option)}."
        )
        return None


def find_columns(options: "CsvOptions", table: Table, problems: Problems) -> Layout:
    """Finds every column that the options name; what is not there, or there twice, goes into `problems`."""
    header = _read_header(table, problems)
    image = header.find(options.image_column, "image_column")
    split, group = _find_split_columns(options, header)
    for name in options.ignore:
        header.find(name, "ignore")

    # Tasks are the columns that were named, else all that have no other use.
    special = [header.names[at] for at in sorted({at for at in (image, split, group) if at is not None})]
    wanted = options.tasks
    if wanted is None:
        wanted = tuple(name for name in header.distinct if name not in (*special, *options.ignore))
    places = {name: header.find(name, "tasks") for name in wanted}
    tasks = {name: at for name, at in places.items() if at is not None}

    _check_lists(options, wanted, header)
    _check_twins([*special, *tasks], header)
    if not wanted:
        problems.add(
            f"it has no column left to learn. Its columns are: {', '.join(header.distinct)}",
            "Give others in --ignore.",
        )
    return Layout(len(header.names), image, split, group, tasks)


def _read_header(table: Table, problems: Problems) -> Header:
    _, cells = next(table.rows(), (1, []))
    names = [tidy_text(name) for name in cells]
    if not names:
        raise UserError(f"{table.path} is empty; its first line should name the columns.")
    nameless = [str(at) for at, name in enumerate(names, start=1) if not name]
    if nameless:  # the first one of pandas, which numbers the rows
        logger.warning(
            "%s, line 1: column %s has no name and is left out.",
            table.path,
            " and ".join(nameless),
        )
    return Header(names, problems)


def _find_split_columns(options: "CsvOptions", header: Header) -> tuple[int | None, int | None]:
    """Where the split and the group stand; a column called `split` is taken without being named."""
    name = options.split_column
    if name is None and "split" in header.names and "split" not in options.ignore:
        name = "split"
    group = header.find(options.group_column, "group_column")
    if name is not None and group is not None:
        header.problems.add(
            f"the column '{name}' already says the split of every image, so none is drawn by the groups of "
            f"'{options.group_column}'",
            f"Leave {as_typed('group_column')} out, or put '{name}' into --ignore.",
        )
    return header.find(name, "split_column"), group


def _check_lists(options: "CsvOptions", wanted: Sequence[str], header: Header) -> None:
    """Columns that are listed should be there, be tasks, and be listed once."""
    problems = header.problems
    for name in options.ignore:
        if name in (options.tasks or ()):
            problems.add(f"the column '{name}' is listed in --tasks and in --ignore", "Take it out of one of them.")
    kinds = {
        "categorical": options.categorical,
        "one_task_per_class": options.one_task_per_class,
        "tags": options.tags,
    }
    lists: dict[str, Sequence[str]] = {
        **kinds,
        "as_written": options.as_written,
        "minus_one": [name for name in options.minus_one if name != ALL],
        "blank": [name for name in options.blank if name != ALL],
    }
    for option, listed in lists.items():
        for name in listed:
            if name not in wanted and header.find(name, option) is not None:
                problems.add(
                    f"the column '{name}' is listed in {as_typed(option)}, but it is no task",
                    "Take it out of the list.",
                )
    for name, count in Counter(name for listed in kinds.values() for name in listed).items():
        if count > 1:
            problems.add(
                f"the column '{name}' is one categorical task, one task per class or one per tag",
                "Take it out of the other lists and list it once.",
            )


def _check_twins(used: Sequence[str], header: Header) -> None:
    """Names that stand in the header twice, or that differ in a way that people do not see."""
    first: dict[str, str] = {}
    for name in dict.fromkeys(used):
        if header.names.count(name) > 1:
            header.problems.add(f"line 1: the column '{name}' stands there twice", "Rename one of them.")
        same = first.setdefault(fold_text(name), name)
        if same != name:
            header.problems.add(
                f"line 1: the columns '{same}' and '{name}' differ only in how they are written",
                "Rename one of them or put it into --ignore.",
            )
