"""Numbers among the tasks of a data set: their mean and deviation are known when the last training sample is packed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distbranch.data.shards import SplitInfo
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.kinds.label_counts import Counts
from distbranch.tasks import Task

MAX_ROUNDING = 0.01  # of the deviation: less than any network predicts


def has_mean(task: Task) -> bool:
    """Whether its labels are numbers with a mean and a deviation."""
    return "deviation" in KINDS[task.kind].fields


def measure_tasks(tasks: Sequence[Task], splits: Mapping[str, SplitInfo]) -> tuple[Task, ...]:
    """The tasks with the mean and deviation of their training labels, where they have such and none were given.

    Without a split train, whose data are only ever evaluated, they are those of all labels. Raises UserError where there is no
    label, or one value alone.
    """
    measured = []
    for task in tasks:
        if not _has_unknown_mean(task):
            measured.append(task)
        elif "train" in splits:
            measured.append(_measure_task(task, splits["train"].labels[task.name], " in train"))
        else:
            parts = [split.labels[task.name] for split in splits.values()]
            measured.append(_measure_task(task, KINDS[task.kind].merge_counts(parts), ""))
    return tuple(measured)


def with_known_means(tasks: Sequence[Task], known: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks, where nothing was said with the mean and deviation of those of the same name that are known."""
    found = {task.name: task for task in known}
    completed = []
    for task in tasks:
        if _has_unknown_mean(task) and task.name in found:
            same = found[task.name]
            task = replace(task, mean=same.mean, deviation=same.deviation)
        completed.append(task)
    return tuple(completed)


def _measure_task(task: Task, counts: Counts, where: str) -> Task:
    if not counts.get("count"):
        raise UserError(
            f"The task '{task.name}' has no label{where}, so nothing says what its mean and its deviation are. Put samples with "
            "labels into train, or leave the task out."
        )
    if not counts["deviation"]:
        raise UserError(
            f"All labels of the task '{task.name}'{where} are {counts['mean']:g}, so there is nothing to learn. Leave the task out."
        )
    if is_rounded_away(counts["min"], counts["max"], counts["deviation"]):
        raise UserError(
            f"The labels of the task '{task.name}'{where}, {counts['min']:.15g} to {counts['max']:.15g}, differ behind the seven "
            "digits that a label has. Subtract from all of them what they have in common."
        )
    return replace(task, mean=counts["mean"], deviation=counts["deviation"])


def is_rounded_away(least: float, largest: float, deviation: float) -> bool:
    """Whether the float32 of labels is too coarse for the differences of such numbers."""
    step = np.spacing(np.float32(max(abs(least), abs(largest))))
    return float(step) / 2 > MAX_ROUNDING * deviation


def _has_unknown_mean(task: Task) -> bool:
    return has_mean(task) and (task.mean, task.deviation) == (0.0, 1.0)
