"""What a column of a table means: a binary or a categorical task, or a binary task for each of its classes or tags."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from distbranch.data.shards import Labels, LabelValue
from distbranch.data.sources.column import Column
from distbranch.data.sources.column_checks import columns_in_order
from distbranch.data.sources.problems import Problems
from distbranch.data.sources.source import as_typed
from distbranch.data.sources.words import tidy_text
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

GIVE_PREFIX = f"Give {as_typed('class_prefix')}, which is put before the names of classes."


@dataclass(frozen=True)
class Meaning:
    """What a column means: its tasks, and the labels that a cell gives (KeyError: the first pass has not seen the cell)."""

    tasks: tuple[Task, ...]
    at: int
    read: Callable[[str], Labels]


def learn_meanings(
    columns: Sequence[Column], problems: Problems, *, class_prefix: str = "", may_be_names: bool = False
) -> list[Meaning]:
    """The meaning of every column; for values that are no labels, or that could mean two things, `problems` grow.

    `may_be_names`: the column with the names of images was not found, so one of these may be it.
    """
    found = []
    taken = {column.name for column in columns if column.kind in ("", "categorical")}
    for column in columns_in_order(columns, problems, may_be_names=may_be_names):
        if column.kind not in ("per_class", "tags"):
            found.append(_one_task(column))
            continue
        try:
            names = name_classes(column.name, column.classes, prefix=class_prefix, taken=taken)
        except UserError as error:
            problems.add(str(error), GIVE_PREFIX)
            continue
        taken |= set(names.values())
        exclusive = class_prefix + column.name if column.kind == "per_class" else ""
        found.append(_task_per_class(column, names, exclusive=exclusive))
    return found


def class_tasks(set_name: str, classes: Sequence[str], *, prefix: str, taken: Collection[str]) -> list[Task]:
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


def _one_task(column: Column) -> Meaning:
    """A binary or a categorical task."""
    marks = column.marks
    values: Mapping[str, LabelValue | None] = {value: value for value in column.lines}
    if marks is not None:
        signed = -1 in marks.values() or column.minus_one == "no"
        label_of = {1: 1, -1: 0, 0: None if signed else 0}
        values = {value: label_of[mark] for value, mark in marks.items()}
    blank = 0 if column.blank == "no" and marks is not None else None
    labels = {value: _labels(column.name, label) for value, label in {**values, "": blank}.items()}
    task = Task(column.name) if marks is not None else Task(column.name, "categorical", tuple(column.classes))
    return Meaning((task,), column.at, lambda cell: _read(column, cell, labels))


def _labels(task: str, label: LabelValue | None) -> Labels:
    return {} if label is None else {task: label}


def _read(column: Column, cell: str, labels: Mapping[str, Labels]) -> Labels:
    value = tidy_text(cell)
    if value in labels:
        return labels[value]
    if column.is_missing(value):
        return {}
    raise KeyError(value)


def _task_per_class(column: Column, names: Mapping[str, str], *, exclusive: str) -> Meaning:
    """A binary task for every class or tag."""
    none = dict.fromkeys(names.values(), 0)
    # An empty list of tags is known to be empty; an empty cell is so if it was said to be.
    blank = none if column.blank == "no" and column.kind == "tags" else {}

    def read(cell: str) -> Labels:
        value = tidy_text(cell)
        if not value:
            return blank
        if column.is_missing(value):
            return {}
        return {**none, **{names[label]: 1 for label in column.labels_in(value)}}

    return Meaning(tuple(Task(name, exclusive=exclusive) for name in names.values()), column.at, read)
