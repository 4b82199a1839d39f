"""What of the numbers of a packed data set is sound and still looks odd: values far outside, and splits unlike the training split."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from distbranch.data.number_tasks import has_mean
from distbranch.data.shards import SplitInfo
from distbranch.kinds import KINDS
from distbranch.kinds.digits import write_digits
from distbranch.kinds.label_counts import Counts
from distbranch.tasks import Task

FAR = 8  # deviations: of a million normal numbers none is as far, and codes for missing (999) often are
SHIFT = 0.25  # deviations between the means of two splits that a person would want to know of
NUM_ERRORS = 4  # standard errors, so that a split of a few samples is no shift
NUM_SHOWN = 3
DIGITS = 4


class FarNumbers:
    """The labels of a data set that lie more than FAR deviations from the mean of their task, in the order of samples."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._numbers = {place: task for place, task in enumerate(tasks) if has_mean(task)}
        self._found: dict[Task, list[str]] = {}

    def add_sample(self, labels: NDArray[np.float32], where: str) -> None:
        """Note the labels [T] of a sample that lie far outside."""
        for place, task in self._numbers.items():
            number = float(labels[place])
            # NaN, which is no label, is never far.
            if abs(number - task.mean) > FAR * task.deviation:
                shown = f"{write_digits(number, DIGITS)} of {where}"
                self._found.setdefault(task, []).append(shown)

    def describe(self) -> Iterator[str]:
        """A sentence per task that has such labels."""
        for task, found in self._found.items():
            spread = KINDS[task.kind].describe_task(task).removeprefix(f"{task.name}: ")
            yield (
                f"Task '{task.name}': {len(found):,} number(s) lie more than {FAR} deviations from the mean of train ({spread}): "
                f"{', '.join(found[:NUM_SHOWN])}. If they stand for a missing label, pack again with --missing."
            )


def compare_splits(tasks: Sequence[Task], splits: Mapping[str, SplitInfo]) -> Iterator[str]:
    """A sentence per task and split whose mean is another than that of train, or whose numbers are all the same."""
    for task in tasks:
        if not has_mean(task):
            continue
        for name, split in splits.items():
            counts = split.labels[task.name]
            if counts.get("count", 0) > 1 and counts["min"] == counts["max"]:
                yield f"Task '{task.name}': all its numbers in {name} are {counts['min']:g}."
            elif name != "train" and _has_moved(task, counts):
                yield (
                    f"Task '{task.name}': its mean in {name} is {write_digits(counts['mean'], DIGITS)}, and "
                    f"{write_digits(task.mean, DIGITS)} in train, with a deviation of {write_digits(task.deviation, DIGITS)}: "
                    "the splits hold different samples."
                )


def _has_moved(task: Task, counts: Counts) -> bool:
    if not counts.get("count"):
        return False
    distance = abs(counts["mean"] - task.mean) / task.deviation
    return distance > max(SHIFT, NUM_ERRORS / sqrt(counts["count"]))
