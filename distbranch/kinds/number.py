"""A number, such as an age or a price: one output, standardised by mean and deviation of the training split.

Labels, predictions and errors are in the unit of the table; loss and margin see (label - mean) / deviation, so that tasks in
grams and in tons weigh alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError
from distbranch.kinds.digits import count_decimals
from distbranch.kinds.kind import KINDS, UNIT_OF_TASK, Array, Kind, Metric, Metrics
from distbranch.kinds.label_counts import Counts

if TYPE_CHECKING:
    from distbranch.tasks import Task


class Number(Kind):
    """Smooth L1 of the standardised error e, so that one wrong cell of a table does not rule a batch."""

    metrics = {
        "mean_absolute_error": Metric(
            "Mean absolute error",
            UNIT_OF_TASK,
            lower_is_better=True,
            is_averaged=False,
            is_drawn=True,
        ),
        "standardised_error": Metric("Standardised error", "", lower_is_better=True),
        "r2": Metric("R2", "", is_drawn=True),
        "rank_correlation": Metric("Rank correlation", ""),
    }
    fields = ("mean", "deviation", "unit")
    meaning = "[batch] * deviation + mean, in the unit of the task,"

    def check_task(self, task: Task) -> None:
        super().check_task(task)
        if not (math.isfinite(task.mean) and 0 < task.deviation < math.inf):
            raise UserError(
                f"A {task.kind} task has the mean and the deviation, above 0, of its training labels, found mean {task.mean} and "
                f"deviation {task.deviation} of the task {task.name!r}. A column with one value alone is no task."
            )

    def describe_task(self, task: Task) -> str:
        # As fine as the deviation says: 2,015.3 ± 4.1.
        decimals = count_decimals(task.deviation, 3)
        spread = f"{task.mean:,.{decimals}f} \u00b1 {task.deviation:,.{decimals}f}"
        return f"{task.name}: {spread} {task.unit}".rstrip()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.smooth_l1_loss(logits.squeeze(2), labels, reduction="none")

    def compute_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """1 - exp(-|e|) of the error e in deviations.

        min(1, |e|) would make all equal that are more than a deviation wrong: a third of the samples at the start.
        """
        errors = (logits.squeeze(2) - labels).abs()
        return -(-errors).expm1()

    def score(self, task: Task, logits: Array, labels: Array) -> Metrics:
        """Mean absolute error (in the unit of the task, and in its deviations), R2 and Spearman's rank correlation."""
        row: Metrics = dict.fromkeys(self.metrics)
        if not labels.size:
            return row
        predicted = logits[:, 0] * task.deviation + task.mean
        errors = predicted - labels
        mean_error = float(np.abs(errors).mean())
        row["mean_absolute_error"] = mean_error
        row["standardised_error"] = mean_error / task.deviation
        # Of labels that are all equal there is nothing to explain.
        if np.ptp(labels) > 0:
            row["r2"] = float(1 - np.square(errors).sum() / np.square(labels - labels.mean()).sum())
        row["rank_correlation"] = correlate_ranks(predicted, labels)
        return row

    def is_defined(self, metric: str, counts: Counts) -> bool:
        varies = counts.get("min") != counts.get("max")
        needs_range = metric in ("r2", "rank_correlation")
        return super().is_defined(metric, counts) and (varies or not needs_range)


def correlate_ranks(predicted: Array, labels: Array) -> float | None:
    """Spearman's rank correlation of [N] and [N]; None where one of them is constant, and has no ranks."""
    from scipy.stats import spearmanr

    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return None
    return float(spearmanr(predicted, labels).statistic)


KINDS.register("number")(Number())
