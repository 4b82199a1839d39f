"""What a column of a table means: a binary or a categorical task, or a binary task for each of its classes or tags.

A `Column` gathers the different values on the first pass over the table; `infer_tasks` makes tasks of them, and of every cell labels.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distbranch.data.shards import Labels
from distbranch.data.sources.label_text import (
    find_vocabulary,
    is_missing,
    parse_mark,
    parse_number,
    split_tags,
    tidy_text,
)
from distbranch.data.sources.source import Answer, as_typed
from distbranch.data.sources.tables import Problems
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

MAX_CLASSES = 1000
MAX_CELLS = 10 * MAX_CLASSES  # that are counted; only lists of tags have more that matter
GIVE_PREFIX = f"Give {as_typed('class_prefix')}, which is put before the names of classes."

Kind = Literal["", "categorical", "per_class", "tags"]  # "": to be found out


@dataclass
class Column:
    """A task column on the first pass: `lines` has the first line of every value (or tag) that is a label.

    `kind`: what it was said to be; `as_written`: no value is a word for "missing", and `Red` is another class than `red`.
    `minus_one` and `blank` say what -1 and an empty cell mean; None if nobody said. `minus_one_of_all` was said of no
    column by name, so it tells nothing of those that hold no -1.
    """

    name: str
    at: int
    kind: Kind = ""
    as_written: bool = False
    separator: str | None = None
    minus_one: Answer | None = None
    minus_one_of_all: Answer | None = None
    blank: Answer | None = None
    missing: frozenset[str] = frozenset()  # words beside those that always are
    lines: dict[str, int] = field(default_factory=dict)
    cells: dict[str, int] = field(default_factory=dict)  # how often each occurs
    too_many_at: int | None = None  # line

    def add_cell(self, cell: str, line: int) -> None:
        """Notes a cell of the table and its line."""
        if cell in self.cells:
            self.cells[cell] += 1
            return
        if self.too_many_at is not None:
            return
        if len(self.cells) < MAX_CELLS:
            self.cells[cell] = 1
        value = tidy_text(cell)
        if self.is_missing(value):
            return
        for label in self.labels_in(value):
            if label in self.lines:
                continue
            if len(self.lines) == MAX_CLASSES:
                self.too_many_at = line
            else:
                self.lines[label] = line

    def is_missing(self, value: str) -> bool:
        """Whether a tidy value stands for no label."""
        if not value:
            return True
        if (self.minus_one or self.minus_one_of_all) == "unknown" and parse_mark(value) == -1:
            return True
        return value in self.missing or (not self.as_written and is_missing(value))

    def labels_in(self, value: str) -> Collection[str]:
        """The tags of a value; the value itself where a cell has one."""
        if self.kind == "tags" and self.separator is not None:
            return split_tags(value, self.separator)
        return (value,)

    @property
    def value_counts(self) -> Counter[str]:
        """How many cells hold each tidy value; "" is that of empty cells."""
        counts: Counter[str] = Counter()
        for cell, count in self.cells.items():
            counts[tidy_text(cell)] += count
        return counts

    @property
    def num_labelled(self) -> int:
        """The number of cells with a label."""
        return sum(count for value, count in self.value_counts.items() if not self.is_missing(value))

    @property
    def holds_minus_one(self) -> bool:
        """Whether -1 stands in a cell, whatever it means."""
        return any(parse_mark(value) == -1 for value in self.value_counts)

    @property
    def missing_words(self) -> dict[str, int]:
        """The words that say that there is no label, and how often."""
        return {value: count for value, count in self.value_counts.items() if value and self.is_missing(value)}

    @property
    def is_open(self) -> bool:
        """Whether nobody said that its values are classes or tags."""
        return not self.kind and not self.as_written

    @property
    def is_yes_or_nothing(self) -> bool:
        """Whether it has marks for yes and empty cells of which nobody said what they mean, and nothing else."""
        says_yes = self.marks is not None and set(self.marks.values()) == {1}
        return says_yes and self.value_counts[""] > 0 and self.blank is None

    @property
    def marks(self) -> dict[str, int] | None:
        """1, 0 or -1 for every value of a binary column; None if its values are classes."""
        if not self.is_open:
            return None
        marks: dict[str, int] = {}
        for value in self.lines:
            mark = parse_mark(value)
            if mark is not None:
                marks[value] = mark
        if len(marks) == len(self.lines):
            return marks
        vocabulary = find_vocabulary(self.lines)
        if vocabulary is None:
            return None
        return {value: int(value.casefold() in vocabulary[0]) for value in self.lines}

    @property
    def classes(self) -> list[str]:
        """The values in the order of their numbers, if all are numbers, else of the alphabet."""
        numbers = {value: parse_number(value) for value in self.lines}
        if None in numbers.values():
            return sorted(self.lines)
        return sorted(self.lines, key=lambda value: (numbers[value], value))


@dataclass(frozen=True)
class ColumnTasks:
    """The tasks of a column, and the labels that a cell gives (KeyError: the first pass has not seen the cell)."""

    tasks: tuple[Task, ...]
    at: int
    read_labels: Callable[[str], Labels]


def infer_tasks(
    columns: Sequence[Column], problems: Problems, *, class_prefix: str = "", taken: Collection[str] = ()
) -> list[ColumnTasks]:
    """The tasks of every column; for classes that find no name beside those that are taken, `problems` grow."""
    found = []
    taken = set(taken)
    for column in columns:
        if column.kind not in ("per_class", "tags"):
            found.append(_infer_one_task(column))
            continue
        try:
            names = name_classes(column.name, column.classes, prefix=class_prefix, taken=taken)
        except UserError as error:
            problems.add(str(error), GIVE_PREFIX)
            continue
        taken |= set(names.values())
        found.append(_infer_task_per_class(column, names, class_prefix))
    return found


def create_class_tasks(set_name: str, classes: Sequence[str], *, prefix: str, taken: Collection[str]) -> list[Task]:
    """One exclusive binary task per class, named by the prefix and the class; by set and class where that is taken.

    The prefix is in the name of the set as well, so that like columns of two data sets are two sets.
    """
    try:
        names = name_classes(set_name, classes, prefix=prefix, taken=taken)
    except UserError as error:
        raise UserError(f"{error}. {GIVE_PREFIX}") from None
    return [Task(name, exclusive=prefix + set_name) for name in names.values()]


def name_classes(set_name: str, classes: Sequence[str], *, prefix: str, taken: Collection[str]) -> dict[str, str]:
    """The name of the task of each class. Raises UserError for one whose names are all taken."""
    names: dict[str, str] = {}
    for one in classes:
        name = prefix + one
        if name in taken:
            name = f"{set_name}_{one}"
            logger.warning("There is a task '%s' already, so the class '%s' is called '%s'.", prefix + one, one, name)
        if name in taken or name in names.values():
            raise UserError(
                f"The class '{one}' of '{set_name}' cannot be a task: the names '{prefix + one}' and '{name}' are taken by "
                "other tasks"
            )
        names[one] = name
    return names


def _infer_one_task(column: Column) -> ColumnTasks:
    """A binary or a categorical task."""
    marks = column.marks
    labels: dict[str, Labels] = {"": {}}
    if marks is None:
        task = Task(column.name, "categorical", tuple(column.classes))
        for value in column.lines:
            labels[value] = {column.name: value}
    else:
        task = Task(column.name)
        yes: Labels = {column.name: 1}
        no: Labels = {column.name: 0}
        # Where -1 says no, 0 is what nobody looked at.
        signed = -1 in marks.values() or column.minus_one == "no"
        label_of = {1: yes, -1: no, 0: {} if signed else no}
        for value, mark in marks.items():
            labels[value] = label_of[mark]
        if column.blank == "no":
            labels[""] = no

    def read_labels(cell: str) -> Labels:
        value = tidy_text(cell)
        if value not in labels and column.is_missing(value):
            return {}
        return labels[value]

    return ColumnTasks((task,), column.at, read_labels)


def _infer_task_per_class(column: Column, names: Mapping[str, str], class_prefix: str) -> ColumnTasks:
    """A binary task for every class or tag."""
    # Of classes a sample has one, of tags any number.
    exclusive = class_prefix + column.name if column.kind == "per_class" else ""
    none = dict.fromkeys(names.values(), 0)
    # An empty list of tags is known to be empty; an empty cell is so if it was said to be.
    blank = none if column.blank == "no" and column.kind == "tags" else {}

    def read_labels(cell: str) -> Labels:
        value = tidy_text(cell)
        if not value:
            return blank
        if column.is_missing(value):
            return {}
        return none | {names[label]: 1 for label in column.labels_in(value)}

    tasks = tuple(Task(name, exclusive=exclusive) for name in names.values())
    return ColumnTasks(tasks, column.at, read_labels)
