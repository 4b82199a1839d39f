"""Classes with an order, such as small, medium, large: a logit for each step between two of them, "is it above this one?".

Thresholds as binary tasks (Frank and Hall, 2001; Niu et al., 2016) are one file here and know that a miss by two classes is
worse than by one; a single number would assume that all steps are equally wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distbranch.kinds.binary import count_classes
from distbranch.kinds.categorical import Categorical
from distbranch.kinds.kind import KINDS, Array, Metric, Metrics
from distbranch.kinds.label_counts import Counts
from distbranch.kinds.number import Number, correlate_ranks

if TYPE_CHECKING:
    from distbranch.tasks import Task


class Ordinal(Categorical):
    """Mean cross-entropy of the thresholds; the margin is the mean distance of their probabilities and labels.

    With two classes both are those of a binary task.
    """

    metrics = {
        "accuracy": Metric("Accuracy", is_drawn=True),
        "mean_absolute_error": Number.metrics["mean_absolute_error"],
        "rank_correlation": Number.metrics["rank_correlation"],
        "quadratic_kappa": Metric("Quadratic kappa", ""),
    }
    meaning = "sigmoid of [batch, classes - 1], each the probability of a class above,"

    def count_outputs(self, task: Task) -> int:
        return len(task.classes) - 1

    def describe_task(self, task: Task) -> str:
        return f"{task.name}: {' < '.join(task.classes)}"

    def get_unit(self, task: Task) -> str:
        return "steps"

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        is_above = _compare_thresholds(logits, labels)
        losses = functional.binary_cross_entropy_with_logits(logits, is_above, reduction="none")
        return losses.mean(dim=2)

    def compute_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.sigmoid() - _compare_thresholds(logits, labels)).abs().mean(dim=2)

    def compute_shares(self, logits: Tensor) -> Tensor:
        # Above the second class is only what is above the first: what the thresholds say otherwise is cut off.
        above = logits.sigmoid().cummin(dim=1).values
        ends = above.new_ones(len(above), 1)
        return torch.cat([ends, above], dim=1) - torch.cat([above, 0 * ends], dim=1)

    def choose_classes(self, shares: Array) -> Array:
        """The median, which is what is scored; the most probable class may lie at either end."""
        index: Array = np.argmax(np.cumsum(shares, axis=1) >= 0.5, axis=1)
        return index

    def score(self, task: Task, logits: Array, labels: Array) -> Metrics:
        """Accuracy, mean absolute error in steps, Spearman's rank correlation and Cohen's kappa with quadratic weights.

        What is predicted is the median of the classes' probabilities, which has the least expected error in steps.
        """
        from sklearn.metrics import cohen_kappa_score

        row: Metrics = dict.fromkeys(self.metrics)
        if not labels.size:
            return row
        truth = labels.astype(np.int64)
        predicted = np.minimum.accumulate(logits > 0, axis=1).sum(axis=1)
        row["accuracy"] = float(np.mean(predicted == truth))
        row["mean_absolute_error"] = float(np.abs(predicted - truth).mean())
        row["rank_correlation"] = correlate_ranks(predicted, truth)
        if np.ptp(truth) > 0:
            row["quadratic_kappa"] = float(cohen_kappa_score(predicted, truth, weights="quadratic"))
        return row

    def is_defined(self, metric: str, counts: Counts) -> bool:
        least = 2 if metric in ("rank_correlation", "quadratic_kappa") else 1
        return metric in self.metrics and count_classes(counts) >= least


def _compare_thresholds(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether labels [B, n] are above each of the thresholds, [B, n, classes - 1] of 0 and 1."""
    thresholds = torch.arange(logits.shape[2], device=logits.device)
    return (labels.unsqueeze(2) > thresholds).to(logits.dtype)


KINDS.register("ordinal")(Ordinal())
