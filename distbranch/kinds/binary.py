"""Yes or no: one logit, whose sigmoid is the probability of yes. Labels are 0, 1 or, soft, between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError
from distbranch.kinds.kind import KINDS, Answer, Array, Kind, LabelValue, Metric, Metrics, Summary
from distbranch.kinds.label_counts import ClassCounts, Counts, merge_class_counts

if TYPE_CHECKING:
    from distbranch.tasks import Task

LEAST_SHOWN = 0.2  # of soft labels: below it a line would tell what the image most probably is not


class Binary(Kind):
    """Cross-entropy; the margin is the distance of probability and label (Eq. 6)."""

    metrics = {
        "accuracy": Metric("Accuracy", is_drawn=True),
        "balanced_accuracy": Metric("Balanced accuracy"),
        "average_precision": Metric("Average precision", is_drawn=True),
    }
    fields = ("exclusive",)
    meaning = "sigmoid of [batch]"
    is_share = True

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            logits.squeeze(2), labels, reduction="none"
        )

    def compute_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.squeeze(2).sigmoid().sub_(labels).abs_()

    def score(self, task: Task, logits: Array, labels: Array) -> Metrics:
        from sklearn.metrics import average_precision_score, balanced_accuracy_score

        scores = logits[:, 0]
        truth = labels >= 0.5
        predicted = scores >= 0
        num_positive = int(truth.sum())
        row: Metrics = dict.fromkeys(self.metrics)
        if truth.size:
            row["accuracy"] = float(np.mean(truth == predicted))
        # Of one class alone there is nothing to tell apart, nor to rank.
        if 0 < num_positive < truth.size:
            row["balanced_accuracy"] = float(balanced_accuracy_score(truth, predicted))
            row["average_precision"] = float(average_precision_score(truth, scores))
        row["num_labelled"] = truth.size
        row["num_positive"] = num_positive
        return row

    def is_defined(self, metric: str, counts: Counts) -> bool:
        least = 1 if metric == "accuracy" else 2
        return metric in self.metrics and count_classes(counts) >= least

    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        shares: list[Answer] = logits[:, 0].sigmoid().tolist()
        return shares

    def write_answer(self, task: Task, answer: Summary) -> dict[str, str]:
        # Six digits, for scores are computed in float32, which has seven.
        return {task.name: f"{answer:.6f}"}

    def decide_answer(
        self, task: Task, answer: Summary, threshold: float | None
    ) -> LabelValue | None:
        assert isinstance(answer, float)
        return None if threshold is None else int(answer >= threshold)

    def describe_answer(self, task: Task, answer: Summary, threshold: float) -> str:
        assert isinstance(answer, float)
        return f"{task.name} ({answer:.0%})" if answer >= threshold else ""

    def read_label(self, task: Task, value: object) -> float:
        if isinstance(value, int | float) and 0 <= value <= 1:
            return float(value)
        raise UserError(
            f"the label of '{task.name}' should be a number from 0 to 1, found {value!r}."
        )

    def write_label(self, task: Task, number: float) -> LabelValue:
        return int(number) if number in (0, 1) else number

    def describe_label(self, task: Task, number: float) -> str:
        if number == 1:
            return task.name
        return f"{task.name} {number:.2f}" if number >= LEAST_SHOWN else ""

    def make_counts(self, task: Task) -> ClassCounts:
        return ClassCounts(("1", "0"))

    def merge_counts(self, parts: Sequence[Counts]) -> dict[str, int | float]:
        return merge_class_counts(parts)


def count_classes(counts: Counts) -> int:
    """How many different labels occur; soft ones lie on either side of 0.5."""
    found = [name for name, count in counts.items() if count and name != "unlabelled"]
    return len(found) + found.count("soft")


KINDS.register("binary")(Binary())
