"""Which images are difficult, by the margins that the affinity compares: for one task, for a group of tasks, or suspiciously so.

A margin is how wrong an answer is, in 0..1. One far above what is usual for a label is either an error or a wrong label.
"""

from collections.abc import Sequence

import numpy as np
import pandas

from distbranch.answers.predictions import TaskAnswers
from distbranch.kinds import KINDS
from distbranch.kinds.categorical import Categorical
from distbranch.kinds.kind import Array
from distbranch.kinds.number import Number
from distbranch.tasks import Task

FAR = 0.5  # as a margin: what is yes or no is more wrong than right from there on, a number wrong by 0.7 deviations


def find_wrong(task: Task, answers: TaskAnswers, threshold: float = FAR) -> Array:
    """Whether each answer is another one than the label [n]: yes from the threshold on; of a number whether it is far from it."""
    kind = KINDS[task.kind]
    if kind.is_share:
        return np.asarray((answers.scores[:, 0] >= threshold) != (answers.labels >= 0.5))
    if isinstance(kind, Categorical):
        return np.asarray(kind.choose_classes(answers.scores) != answers.labels)
    return np.asarray(answers.margins >= FAR)


def measure_suspicion(task: Task, answers: TaskAnswers) -> Array:
    """How much more wrong than usual each label is found [n]: its margin less the mean one of the same task and label.

    So confident learning compares probabilities (Northcutt et al. 2021). That a rare class is missed is usual; that what is always
    found is not found is suspicious.
    """
    table = pandas.DataFrame({"label": np.zeros(len(answers.rows)), "margin": answers.margins})
    if not isinstance(KINDS[task.kind], Number):
        table["label"] = answers.labels.round()
    usual = table.groupby("label")["margin"].transform("mean")
    return np.asarray(table["margin"] - usual)


class GroupMargins:
    """Sums of margins [rows] of the tasks of every group; a sum per group is all that is kept.

    Args:
        groups: names of tasks.
        num_rows: of the table.
    """

    def __init__(self, groups: Sequence[Sequence[str]], num_rows: int) -> None:
        self.groups = [tuple(group) for group in groups]
        self.sums = np.zeros((len(self.groups), num_rows), dtype=np.float32)

    def add(self, task: str, answers: TaskAnswers) -> None:
        """Add the margins of a task."""
        for group, own in zip(self.groups, self.sums, strict=True):
            if task in group:
                own[answers.rows] += answers.margins

    def find_hardest(self, considered: Array, most: int) -> list[Array]:
        """Of every group the rows with the largest sums, of those for which `considered` [rows] holds."""
        hardest = []
        for own in self.sums:
            sums = np.where(considered, own, 0)
            order = np.argsort(-sums, kind="stable")[:most]
            hardest.append(order[sums[order] > 0])
        return hardest
