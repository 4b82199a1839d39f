"""What the predictions of a task amount to: a row of numbers, and the curves behind them.

Thresholds are chosen on val and everything else is measured on test, which has had no part in the choice.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from distbranch.answers.measures import (
    average_precision,
    choose_threshold,
    find_intervals,
    measure_reliability,
    measure_yes,
    thin_curve,
)
from distbranch.answers.predictions import TaskAnswers
from distbranch.kinds import KINDS
from distbranch.kinds.categorical import Categorical
from distbranch.kinds.kind import Array
from distbranch.kinds.number import Number
from distbranch.tasks import Task

Finding = dict[str, Any]
# Of a finding, in the order of tables; each may have an interval.
SHARES = ("accuracy", "average_precision", "precision", "recall", "f1")


def find_threshold(
    answers: TaskAnswers, chosen_on: Array, precision: float | None
) -> Finding | None:
    """See `choose_threshold`, on the rows of the table for which `chosen_on` [rows] holds; None where they have one label alone."""
    own = chosen_on[answers.rows]
    truth = answers.labels[own] >= 0.5
    if not 0 < truth.sum() < truth.size:
        return None
    return choose_threshold(truth, answers.scores[own, 0], precision)


def measure_task(
    task: Task, answers: TaskAnswers, measured_on: Array, threshold: float | None
) -> Finding:
    """All that is found of a task on the rows for which `measured_on` [rows] holds.

    Returns:
        {"kind", "num_labelled", "base_rate", "accuracy", ..., "intervals": {metric: (low, high)}} with what its kind defines.
        The base rate is what the most frequent label alone would have as accuracy; "share_of_yes" that of binary tasks.
    """
    own = measured_on[answers.rows]
    labels, scores = answers.labels[own], answers.scores[own]
    found: Finding = {"kind": task.kind, "num_labelled": len(labels)}
    if not len(labels):
        return found
    kind = KINDS[task.kind]
    if kind.is_share:
        return found | _measure_binary(labels >= 0.5, scores[:, 0], threshold)
    if isinstance(kind, Categorical):
        return found | _measure_choice(task, kind, labels.astype(int), scores)
    if isinstance(kind, Number):
        return found | {"unit": task.unit} | _measure_errors(np.abs(scores[:, 0] - labels))
    return found


def _measure_binary(truth: Array, scores: Array, threshold: float | None) -> Finding:
    share = float(truth.mean())
    # A decision has one threshold, which stands beside all that is counted by it.
    answered = scores >= (0.5 if threshold is None else threshold)
    is_right = truth == answered

    def measure(weights: Array) -> dict[str, Array]:
        metrics = {"accuracy": _average(is_right, weights)}
        if 0 < share < 1:
            metrics["average_precision"] = average_precision(truth, scores, weights)
        if threshold is not None:
            metrics |= measure_yes(truth, answered, weights)
        return metrics

    reliability, error = measure_reliability(truth, scores)
    found: Finding = {
        "base_rate": max(share, 1 - share),
        "share_of_yes": share,
        "threshold": threshold,
    }
    found |= _measure_with_intervals(measure, len(truth))
    found |= {"calibration_error": error, "reliability": reliability}
    if 0 < share < 1:
        found["curve"] = thin_curve(truth, scores)
    return found


def _measure_choice(task: Task, kind: Categorical, truth: Array, shares: Array) -> Finding:
    chosen = kind.choose_classes(shares)
    is_right = chosen == truth
    reliability, error = measure_reliability(is_right, shares[np.arange(len(chosen)), chosen])
    counts = np.bincount(truth, minlength=len(task.classes))
    found: Finding = {"base_rate": float(counts.max() / len(truth)), "classes": list(task.classes)}
    found |= _measure_with_intervals(
        lambda weights: {"accuracy": _average(is_right, weights)}, len(truth)
    )
    confusion = confusion_matrix(truth, chosen, labels=range(len(task.classes)))
    return found | {
        "calibration_error": error,
        "reliability": reliability,
        "confusion": confusion.tolist(),
    }


def _measure_errors(errors: Array) -> Finding:
    measure = partial(_average, errors)
    return _measure_with_intervals(
        lambda weights: {"mean_absolute_error": measure(weights)}, len(errors)
    )


def _measure_with_intervals(measure: Any, num_samples: int) -> Finding:
    found = {name: float(value[0]) for name, value in measure(np.ones((1, num_samples))).items()}
    known = {name: value for name, value in found.items() if not np.isnan(value)}
    return known | {"intervals": find_intervals(measure, num_samples)}


def _average(values: Array, weights: Array) -> Array:
    mean: Array = weights @ values / weights.sum(axis=1)
    return mean


def tabulate_findings(findings: Mapping[str, Finding]) -> list[Finding]:
    """A row per task of plain numbers; an interval is two columns."""
    rows = []
    for name, found in findings.items():
        row = {"task": name}
        intervals = found.get("intervals", {})
        for key, value in found.items():
            if not isinstance(value, list | dict):
                row[key] = value
            if key in intervals:
                row[f"{key}_low"], row[f"{key}_high"] = intervals[key]
        rows.append(row)
    return rows
