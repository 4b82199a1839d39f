"""What a column of a table means: binary marks or names of classes, learnt from the values that occur in it."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distbranch.data.shards import LabelValue
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

MAX_CLASSES = 1000
# Tables written by pandas hold 1.0 where a column has gaps, and True where it was made by a comparison; Excel and R write TRUE.
MARKS = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1}
MARKS |= {"True": 1, "False": 0, "true": 1, "false": 0, "TRUE": 1, "FALSE": 0}


@dataclass
class Column:
    """A task column on the first pass: `lines` has the first line of every value that is not empty.

    `declared`: its values are classes whatever they look like; `per_class`: each of them is to be a task.
    """

    name: str
    at: int
    declared: bool
    per_class: bool = False
    lines: dict[str, int] = field(default_factory=dict)
    num_cells: int = 0  # that are not empty

    def see(self, value: str, line: int, table: Path) -> None:
        """Notes a value. Raises UserError when a column has so many different ones that they cannot be classes."""
        self.num_cells += bool(value)
        if value and value not in self.lines:
            self.lines[value] = line
            if len(self.lines) > MAX_CLASSES:
                raise UserError(
                    f"{table}, line {line}: the column '{self.name}' has more than {MAX_CLASSES} different values, so "
                    "it is no task. Put it into --ignore."
                )


@dataclass(frozen=True)
class Meaning:
    """What a column means: its task, and for every value that occurs the label (None: unlabelled)."""

    task: Task
    at: int
    labels: dict[str, LabelValue | None]


def meanings(columns: Sequence[Column], table: Path, class_prefix: str = "") -> list[Meaning]:
    """The meaning of every column, or of every class of a column that is to give one task per class.

    Raises UserError for values that are no labels, or that could mean two things.
    """
    _check_zeros(columns, table)
    found = {column.name: _meaning(column, table) for column in columns}
    taken = {column.name for column in columns if not column.per_class}
    every: list[Meaning] = []
    for column in columns:
        meaning = found[column.name]
        if not column.per_class:
            every.append(meaning)
            continue
        tasks = class_tasks(column.name, meaning.task.classes, prefix=class_prefix, taken=taken)
        taken |= {task.name for task in tasks}
        for task, own in zip(tasks, meaning.task.classes, strict=True):
            every.append(Meaning(task, column.at, {"": None, **{c: int(c == own) for c in meaning.task.classes}}))
    return every


def class_tasks(set_name: str, classes: Sequence[str], *, prefix: str, taken: Collection[str]) -> list[Task]:
    """One exclusive binary task per class, named by the prefix and the class; by set and class where that is taken.

    The prefix is in the name of the set as well, so that like columns of two data sets are two sets.
    """
    tasks = []
    for one in classes:
        name = prefix + one
        if name in taken:
            name = f"{set_name}_{one}"
            logger.warning("There is a task '%s' already, so the class '%s' is called '%s'.", prefix + one, one, name)
        if name in taken:
            raise UserError(
                f"The class '{one}' of '{set_name}' cannot be a task: the names '{prefix + one}' and '{name}' are taken by "
                "other tasks. Give --class-prefix (class_prefix), which is put before the names of classes."
            )
        tasks.append(Task(name, exclusive=prefix + set_name))
    return tasks


def _meaning(column: Column, table: Path) -> Meaning:
    place = f"{table}, column '{column.name}'"
    if not column.lines:
        raise UserError(f"{place}: all its cells are empty, so there is nothing to learn. Put it into --ignore.")
    if _is_binary(column):
        signed = any(MARKS[value] == -1 for value in column.lines)
        meaning = {1: 1, -1: 0, 0: None if signed else 0}
        marks: dict[str, LabelValue | None] = {value: meaning[MARKS[value]] for value in column.lines}
        return Meaning(Task(column.name), column.at, {"": None, **marks})
    numbers = [value for value in column.lines if value in MARKS or _is_number(value)]
    if numbers and not column.declared:
        _refuse_numbers(column, numbers, table)
    if len(column.lines) == 1:
        raise UserError(
            f"{place}: '{next(iter(column.lines))}' is its only value. A task has at least two; put it into --ignore."
        )
    if not column.declared and len(column.lines) == column.num_cells:
        raise UserError(
            f"{place}: each of its {column.num_cells} values is in one line only. Is it an id? Put it into --ignore, or into "
            "--categorical if its values are classes all the same."
        )
    classes = sorted(column.lines, key=float if len(numbers) == len(column.lines) else str)
    return Meaning(Task(column.name, "categorical", tuple(classes)), column.at, {"": None, **{c: c for c in classes}})


def _is_binary(column: Column) -> bool:
    return not column.declared and all(value in MARKS for value in column.lines)


def _refuse_numbers(column: Column, numbers: Sequence[str], table: Path) -> None:
    """Points at the first value that is no mark, or, in a column of names, at the first that is a number."""
    marks = [value for value in column.lines if value in MARKS]
    odd = [value for value in column.lines if value not in MARKS] if marks else numbers
    raise UserError(
        f"{table}, line {column.lines[odd[0]]}: the column '{column.name}' holds '{odd[0]}', which is neither 1, 0, -1 "
        "nor empty. Correct it, put the column into --categorical if its values are classes, or into --ignore."
    )


def _check_zeros(columns: Sequence[Column], table: Path) -> None:
    """In a table of 1 and -1 a 0 means unknown; a column with 0 but without -1 beside such columns is ambiguous."""
    values = {column.name: {MARKS[value] for value in column.lines} for column in columns if _is_binary(column)}
    signed = [name for name, marks in values.items() if -1 in marks]
    unsigned = [name for name, marks in values.items() if 0 in marks and -1 not in marks]
    if signed and unsigned:
        raise UserError(
            f"{table}: the column '{signed[0]}' says no with -1, the column '{unsigned[0]}' has 0 but no -1, so its 0 "
            "could mean no or unknown. Write no as -1 or as 0 in all columns, and leave unknown cells empty."
        )


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
