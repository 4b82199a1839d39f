"""What a column of a table means: one task of any kind, or a binary task for each of its classes or tags."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from distbranch.data.shards import Labels
from distbranch.data.sources.label_text import (
    find_vocabulary,
    is_missing,
    label_marks,
    parse_mark,
    parse_number,
    split_tags,
)
from distbranch.data.sources.number_columns import choose_decimal_sign, read_numbers
from distbranch.data.sources.number_text import DecimalSign, find_common_unit, without_unit
from distbranch.data.sources.source import Answer
from distbranch.data.sources.tables import Problems
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.tasks import Task

if TYPE_CHECKING:
    from distbranch.data.sources.label_options import TableOptions

logger = logging.getLogger("distbranch")

ALL = "*"  # every column, in options that answer a question for columns
# Options that say what the values of a column are.
KIND_OPTIONS = ("categorical", "one_task_per_class", "tags", "number", "ordinal", "kind")
MAX_CLASSES = 1000
KnownClasses = Mapping[str, str]
GIVE_PREFIX = "Give --class-prefix (class_prefix), which is put before the names of classes."


@dataclass(frozen=True)
class Column:
    """A column to learn: the tidy value of each row with its line, and the options that say something about it.

    `table_sign` is the decimal one of the table, as far as its columns of numbers agree; `known` the classes that are given
    beforehand, by the source or by the data set of --like, with the task of each.
    """

    name: str
    values: Sequence[str]
    line_numbers: Sequence[int]
    options: "TableOptions"
    table_sign: DecimalSign | None = None
    known: KnownClasses = field(default_factory=dict)

    @cached_property
    def kind(self) -> str:
        """The option that says what its values are; empty where that is to be found out."""
        return next((kind for kind in KIND_OPTIONS if self.name in getattr(self.options, kind)), "")

    @property
    def order(self) -> tuple[str, ...]:
        """The classes of an ordinal column, lowest first, if somebody gave them."""
        order = self.options.ordinal.get(self.name, ())
        return order or (tuple(self.known) if self.kind == "ordinal" else ())

    @cached_property
    def as_written(self) -> bool:
        """Whether no value is a word for "missing", and `Red` is another class than `red`."""
        return self.name in self.options.as_written

    @cached_property
    def minus_one(self) -> Answer | None:
        """What -1 means; None if nobody said. What was said of no column by name tells nothing of those that hold no -1."""
        return self.options.minus_one.get(self.name)

    @cached_property
    def blank(self) -> Answer | None:
        """What an empty cell means; None if nobody said."""
        return self.options.blank.get(self.name, self.options.blank.get(ALL))

    @cached_property
    def counts(self) -> Counter[str]:
        """How many cells hold each value; "" is that of empty cells."""
        return Counter(self.values)

    @cached_property
    def first_lines(self) -> dict[str, int]:
        """The first line of every value."""
        first: dict[str, int] = {}
        for value, number in zip(self.values, self.line_numbers, strict=True):
            first.setdefault(value, number)
        return first

    @cached_property
    def labelled(self) -> dict[str, int]:
        """The first line of every value that is a label, however many there are."""
        return {
            value: line for value, line in self.first_lines.items() if not self.is_missing(value)
        }

    @cached_property
    def cell_unit(self) -> str:
        """The unit that stands in each of its cells, if one does."""
        return find_common_unit(self.labelled)

    @cached_property
    def bare_numbers(self) -> dict[str, str]:
        """Every value that is a label, without that unit."""
        return {text: without_unit(text, self.cell_unit) for text in self.labelled}

    @cached_property
    def sign(self) -> DecimalSign | None:
        """The decimal sign of its numbers; None where it must be asked."""
        return choose_decimal_sign(self)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The number of every value that is one."""
        return read_numbers(self)

    @cached_property
    def lines(self) -> dict[str, int]:
        """The first line of every label, of a value or a tag; where there are too many to learn, no more than tells so."""
        found: dict[str, int] = {}
        for value, number in self.first_lines.items():
            for label in self.read_classes(value):
                found.setdefault(label, number)
            if len(found) > MAX_CLASSES:
                break
        return found

    @cached_property
    def missing_words(self) -> dict[str, int]:
        """The words that say that there is no label, and how often."""
        return {
            word: count
            for word, count in self.counts.items()
            if word and self.is_missing(word) and not self.is_dropped(word)
        }

    @cached_property
    def marks(self) -> dict[str, int] | None:
        """1, 0 or -1 for every value of a binary column; None if its values are classes."""
        if not self.is_open:
            return None
        marks = {value: parse_mark(value) for value in self.lines}
        known = {value: mark for value, mark in marks.items() if mark is not None}
        if len(known) == len(marks):
            return known
        # Not all are numbers: words for yes and no of one language?
        vocabulary = find_vocabulary(self.lines)
        if vocabulary is None:
            return None
        return {value: int(value.casefold() in vocabulary[0]) for value in self.lines}

    @property
    def classes(self) -> list[str]:
        """The values in the order that was given, else of their numbers, if all are numbers, else of the alphabet."""
        if self.order or self.known:
            return list(self.order or self.known)
        numbers = {value: parse_number(value) for value in self.lines}
        if None in numbers.values():
            return sorted(self.lines)
        # 2 before 10; the value itself tells 1 from 1.0.
        return sorted(self.lines, key=lambda value: (numbers[value], value))

    @property
    def is_like(self) -> bool:
        """Whether its task is that of another data set, so that it need not have every label, or any."""
        return self.options.like is not None

    @property
    def is_open(self) -> bool:
        """Whether nobody said that its values are classes or tags."""
        return not self.kind and not self.as_written

    @property
    def is_yes_or_nothing(self) -> bool:
        """Whether it has marks for yes and empty cells of which nobody said what they mean, and nothing else."""
        says_yes = self.marks is not None and set(self.marks.values()) == {1}
        return says_yes and self.counts[""] > 0 and self.blank is None

    def is_missing(self, value: str) -> bool:
        """Whether a value stands for no label."""
        if value in self.order:  # none < mild < severe
            return False
        if value in self.known and value not in self.options.missing:
            return False
        if self.kind != "tags" and self.is_dropped(value):
            return True
        said = self.minus_one
        # A number may well be -1: of such a column it must be said by name.
        if said is None and self.kind != "number":
            said = self.options.minus_one.get(ALL)
        if said == "unknown" and parse_mark(value) == -1:
            return True
        return (
            not value
            or value in self.options.missing
            or (not self.as_written and is_missing(value))
        )

    def read_classes(self, value: str) -> Collection[str]:
        """The classes that a value names: itself, or its tags; none where it is missing."""
        if self.is_missing(value):
            return ()
        return [label for label in self.split_labels(value) if not self.is_dropped(label)]

    def split_labels(self, value: str) -> Collection[str]:
        """The tags of a value, or the value itself."""
        if self.kind == "tags" and self.options.separator is not None:
            return split_tags(value, self.options.separator)
        return (value,)

    def is_dropped(self, label: str) -> bool:
        """Whether a class is unknown to the data set of --like, and somebody said that it counts as missing."""
        may_drop = self.name in self.options.unknown_as_missing
        return may_drop and bool(self.known) and bool(label) and label not in self.known

    @property
    def unknown(self) -> dict[str, int]:
        """The first line of every class that is not among those that are known beforehand."""
        return {
            label: line
            for label, line in self.lines.items()
            if self.known and label not in self.known
        }

    @property
    def dropped(self) -> Counter[str]:
        """The unknown classes that count as missing, and in how many cells each stands."""
        dropped: Counter[str] = Counter()
        for value, count in self.counts.items():
            for label in filter(self.is_dropped, self.split_labels(value)):
                dropped[label] += count
        return dropped


@dataclass(frozen=True)
class ColumnTasks:
    """The tasks of a column, the labels of each of its rows, and the task of each class where each has one."""

    column: str
    tasks: tuple[Task, ...]
    labels: Iterator[Labels]
    class_tasks: KnownClasses = field(default_factory=dict)


def infer_tasks(
    columns: Sequence[Column], problems: Problems, *, taken: Collection[str]
) -> list[ColumnTasks]:
    """The tasks of every column; for classes that find no name beside those that are taken, `problems` grow."""
    found = []
    taken = set(taken)
    for column in columns:
        if column.kind == "number":
            found.append(_infer_number(column))
            continue
        if column.kind == "kind":
            found.append(_infer_own_kind(column))
            continue
        if column.kind not in ("one_task_per_class", "tags"):
            found.append(_infer_one_task(column))
            continue
        try:
            names = dict(column.known)
            if not column.is_like:
                names = name_classes(
                    column.name, column.classes, prefix=column.options.class_prefix, taken=taken
                )
        except UserError as error:
            problems.add(str(error).removesuffix(f". {GIVE_PREFIX}"), GIVE_PREFIX)
            continue
        # A later column with a class of the same name puts its own name before it.
        taken |= set(names.values())
        found.append(_infer_task_per_class(column, names))
    return found


def name_classes(
    set_name: str, classes: Sequence[str], *, prefix: str, taken: Collection[str]
) -> dict[str, str]:
    """The task of each class, named by the prefix and the class, or where that is taken by set and class.

    Raises UserError for a class whose names are all taken.
    """
    names: dict[str, str] = {}
    for one in classes:
        name = prefix + one
        if name in taken:
            name = f"{set_name}_{one}"
            logger.warning(
                "There is a task '%s' already, so the class '%s' is called '%s'.",
                prefix + one,
                one,
                name,
            )
        # `red` of `a_b` and `b_red` of `a` would be one name.
        if name in taken or name in names.values():
            raise UserError(
                f"The class '{one}' of '{set_name}' cannot be a task: the names '{prefix + one}' and '{name}' are taken by "
                f"other tasks. {GIVE_PREFIX}"
            )
        names[one] = name
    return names


def _infer_one_task(column: Column) -> ColumnTasks:
    """A task that is binary or has classes."""
    marks = column.marks
    labels: dict[str, Labels] = {}
    if marks is None:
        kind = "ordinal" if column.kind == "ordinal" else "categorical"
        task = Task(column.name, kind, tuple(column.classes))
        for value in column.lines:
            labels[value] = {column.name: value}
    else:
        task = Task(column.name)
        label_of = label_marks(marks.values(), column.minus_one)
        for value, mark in marks.items():
            label = label_of[mark]
            if label is not None:
                labels[value] = {column.name: label}
        if column.blank == "no":
            labels[""] = {column.name: 0}
    return ColumnTasks(column.name, (task,), (labels.get(value, {}) for value in column.values))


def _infer_number(column: Column) -> ColumnTasks:
    """A task whose labels are the numbers; their mean and deviation are known when they are packed."""
    unit = column.options.unit.get(column.name, column.cell_unit)
    task = Task(column.name, "number", unit=unit)
    labels = {text: {column.name: number} for text, number in column.numbers.items()}
    return ColumnTasks(column.name, (task,), (labels.get(value, {}) for value in column.values))


def create_own_task(column: Column) -> Task:
    """The task of a column whose kind somebody named. Raises UserError for one that the kind refuses."""
    kind = column.options.kind[column.name]
    classes = tuple(column.classes) if "classes" in KINDS[kind].fields else ()
    return Task(column.name, kind, classes)


def read_own_label(task: Task, text: str) -> float:
    """What the kind of the task makes of a cell, which it gets as a number if it is one. Raises UserError."""
    kind = KINDS[task.kind]
    number = parse_number(text)
    if number is None or "classes" in kind.fields:
        return kind.read_label(task, text)
    return kind.read_label(task, number)


def _infer_own_kind(column: Column) -> ColumnTasks:
    """A task whose kind reads the cells itself."""
    task = create_own_task(column)
    kind = KINDS[task.kind]
    labels = {
        text: {task.name: kind.write_label(task, read_own_label(task, text))}
        for text in column.labelled
    }
    return ColumnTasks(column.name, (task,), (labels.get(value, {}) for value in column.values))


def _infer_task_per_class(column: Column, names: dict[str, str]) -> ColumnTasks:
    """A binary task for every class or tag."""
    # Of classes a sample has one, of tags any number.
    exclusive = (
        column.options.class_prefix + column.name if column.kind == "one_task_per_class" else ""
    )
    none = dict.fromkeys(names.values(), 0)

    def read_labels(value: str) -> Labels:
        # An empty list of tags is known to be empty; an empty cell is so if it was said to be.
        is_empty_list = not value and column.blank == "no" and column.kind == "tags"
        if column.is_missing(value) and not is_empty_list:
            return {}
        return none | {names[label]: 1 for label in column.read_classes(value)}

    tasks = tuple(Task(name, exclusive=exclusive) for name in names.values())
    return ColumnTasks(column.name, tasks, map(read_labels, column.values), names)
