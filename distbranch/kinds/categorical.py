"""One of several classes: a logit per class, whose softmax are their probabilities. A label is the number of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from distbranch.errors import UserError
from distbranch.kinds.binary import Binary, count_classes
from distbranch.kinds.kind import KINDS, Answer, Array, Kind, LabelValue, Metric, Metrics, Summary
from distbranch.kinds.label_counts import ClassCounts, Counts, merge_class_counts

if TYPE_CHECKING:
    from distbranch.tasks import Task

CHOICES = {"top3": Metric("Top-3"), "top5": Metric("Top-5")}


class Categorical(Kind):
    """Cross-entropy; the margin is what the true class lacks of a probability of 1 (Eq. 6)."""

    metrics = {
        **Binary.metrics,
        **CHOICES,
    }
    fields = ("classes",)
    meaning = "softmax of [batch, classes]"

    def check_task(self, task: Task) -> None:
        super().check_task(task)
        if len(task.classes) < 2 or len(set(task.classes)) != len(task.classes):
            raise UserError(
                f"A {task.kind} task has at least two different classes, found {list(task.classes)} of the task {task.name!r}."
            )

    def count_outputs(self, task: Task) -> int:
        return len(task.classes)

    def describe_task(self, task: Task) -> str:
        return f"{task.name}: {len(task.classes)} classes"

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -_pick_true_class(logits.log_softmax(dim=2), labels)

    def compute_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 1 - _pick_true_class(logits.softmax(dim=2), labels)

    def score(self, task: Task, logits: Array, labels: Array) -> Metrics:
        from scipy.special import softmax
        from sklearn.metrics import average_precision_score

        truth = labels.astype(np.int64)
        shares = softmax(logits, axis=1)
        # One class against the others; a class that never occurs has no precision.
        precisions = [
            average_precision_score(truth == index, shares[:, index]) for index in np.unique(truth)
        ]
        row: Metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "average_precision"))
        row |= score_choice(logits, truth)
        if len(precisions) > 1:
            row["average_precision"] = float(np.mean(precisions))
        return row

    def is_defined(self, metric: str, counts: Counts) -> bool:
        least = 1 if metric in ("accuracy", *CHOICES) else 2
        return metric in self.metrics and count_classes(counts) >= least

    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        shares = self.compute_shares(logits).tolist()
        return [dict(zip(task.classes, row, strict=True)) for row in shares]

    def compute_shares(self, logits: Tensor) -> Tensor:
        """The probability of every class [B, classes]. logits: [B, K]."""
        return logits.softmax(dim=1)

    def write_answer(self, task: Task, answer: Summary) -> dict[str, str]:
        assert isinstance(answer, dict)
        return {f"{task.name}:{name}": f"{share:.6f}" for name, share in answer.items()}

    def describe_answer(self, task: Task, answer: Summary, threshold: float) -> str:
        assert isinstance(answer, dict)
        best = self.decide_answer(task, answer, threshold)
        return f"{task.name}={best} ({answer[best]:.0%})"

    def decide_answer(self, task: Task, answer: Summary, threshold: float | None) -> str:
        assert isinstance(answer, dict)
        shares = np.array([list(answer.values())])
        return task.classes[int(self.choose_classes(shares)[0])]

    def choose_classes(self, shares: Array) -> Array:
        """The number of the class that is answered for every image [N]. shares: [N, classes]."""
        index: Array = np.argmax(shares, axis=1)
        return index

    def read_label(self, task: Task, value: object) -> float:
        if value not in task.classes:
            raise UserError(
                f"the label of '{task.name}' should be one of its {len(task.classes)} classes, found {value!r}."
            )
        return task.classes.index(str(value))

    def write_label(self, task: Task, number: float) -> LabelValue:
        return task.classes[int(number)]

    def describe_label(self, task: Task, number: float) -> str:
        return f"{task.name}: {task.classes[int(number)]}"

    def make_counts(self, task: Task) -> ClassCounts:
        return ClassCounts(task.classes)

    def merge_counts(self, parts: Sequence[Counts]) -> dict[str, int | float]:
        return merge_class_counts(parts)


def _pick_true_class(values: Tensor, labels: Tensor) -> Tensor:
    """Of values [B, n, K] those of the true classes [B, n]."""
    index = labels.long().unsqueeze(2)
    return values.gather(2, index).squeeze(2)


def score_choice(scores: Array, truth: Array) -> Metrics:
    """How well the highest of the scores [N, K] finds the true class [N]; the first one wins a tie.

    Nothing is found where there are no samples, or one class alone competes; nothing is balanced where one class alone is true.
    """
    row: Metrics = dict.fromkeys(("accuracy", "balanced_accuracy", *CHOICES))
    row["num_labelled"] = truth.size
    if not truth.size or scores.shape[1] < 2:
        return row
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.argmax(order == truth[:, None], axis=1)
    is_first = rank == 0
    recalls = [is_first[truth == index].mean() for index in np.unique(truth)]
    row["accuracy"] = float(is_first.mean())
    if len(recalls) > 1:
        row["balanced_accuracy"] = float(np.mean(recalls))
    row["top3"] = float(np.mean(rank < 3))
    row["top5"] = float(np.mean(rank < 5))
    return row


KINDS.register("categorical")(Categorical())
