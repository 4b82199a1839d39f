"""What predictions are worth, from labels and scores alone: thresholds, calibration, curves, and how sure a score is.

All functions are pure. Curves are scikit-learn's; the bootstrap weighs samples instead of copying them, so that a thousand
resamples are a few products of matrices.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from distbranch.kinds.kind import Array

RESAMPLES = 1000
LEVEL = 95  # percent of confidence
NUM_BINS = 10  # of a reliability curve
MOST_WEIGHTS = 400_000  # of resamples at a time: 3 MB, which stay in a processor's cache


def choose_threshold(truth: Array, scores: Array, precision: float | None = None) -> dict[str, Any]:
    """From which score on the answer is yes: at the best F1, or where most is recalled at a precision of at least `precision`.

    Of thresholds that recall as much the most precise one. A precision that none reaches gives the most precise of all, and
    `"reached": False`.

    Args:
        truth: bool [N], of both values.
        scores: [N]; higher means yes.
        precision: in 0..1; None: best F1.

    Returns:
        {"threshold", "chosen_by", "reached", "precision", "recall", "f1"}

    Example:
        >>> choose_threshold(np.array([False, True, True]), np.array([0.2, 0.6, 0.9]))["threshold"]
        0.6
    """
    precisions, recalls, thresholds = precision_recall_curve(truth, scores)
    precisions, recalls = precisions[:-1], recalls[:-1]  # the last point has no threshold
    f1 = 2 * precisions * recalls / np.maximum(precisions + recalls, np.finfo(float).tiny)
    chosen_by, reached = "best F1", True
    best = int(np.argmax(f1))
    if precision is not None:
        chosen_by = f"recall at precision {precision:g}"
        reached = bool((precisions >= precision).any())
        # Recall only falls as the threshold rises: the first that is precise enough recalls most, and others may as much.
        first = np.argmax(np.minimum(precisions, precision))
        best = int(np.flatnonzero(recalls == recalls[first])[-1])
    return {
        "threshold": float(thresholds[best]),
        "chosen_by": chosen_by,
        "reached": reached,
        "precision": float(precisions[best]),
        "recall": float(recalls[best]),
        "f1": float(f1[best]),
    }


def measure_yes(truth: Array, predicted: Array, weights: Array) -> dict[str, Array]:
    """Precision, recall and F1 [R] of answers with yes; NaN where undefined. truth, predicted: bool [N]; weights: [R, N]."""
    found, answered, there = (weights @ np.stack([truth & predicted, predicted, truth], axis=1)).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": found / answered,
            "recall": found / there,
            "f1": 2 * found / (answered + there),
        }


def average_precision(truth: Array, scores: Array, weights: Array) -> Array:
    """Average precision [R], as scikit-learn's, for every row of weights [R, N]; NaN where nothing is true."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # equal scores are one step
    weights = weights[:, order]
    found = np.cumsum(weights * truth[order], axis=1)[:, ends]
    answered = np.cumsum(weights, axis=1)[:, ends]
    gains = np.diff(found, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Where no sample was drawn yet nothing is gained either.
        mean: Array = (gains * found / np.maximum(answered, 1)).sum(axis=1) / found[:, -1]
    return mean


def find_intervals(
    measure: Callable[[Array], dict[str, Array]], num_samples: int, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Between which values every metric lies with 95 % confidence, by the percentiles of a bootstrap over samples (Efron 1979).

    Args:
        measure: metrics [R] of samples that count as often as weights [R, N] say.
        num_samples: N.
        seed: the same seed draws the same samples, so that tasks with equal labels are compared on the same resamples.
    """
    parts = [measure(weights) for weights in _draw_weights(num_samples, seed)]
    intervals = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        if not np.isnan(values).all():
            low, high = np.nanpercentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
            intervals[name] = (float(low), float(high))
    return intervals


def _draw_weights(num_samples: int, seed: int) -> Iterator[Array]:
    """How often each sample was drawn, [R, N], in parts that fit into memory."""
    generator = np.random.default_rng(seed)
    at_a_time = max(1, MOST_WEIGHTS // num_samples)
    for start in range(0, RESAMPLES, at_a_time):
        num_rows = min(at_a_time, RESAMPLES - start)
        drawn = generator.integers(0, num_samples, (num_rows, num_samples))
        drawn += num_samples * np.arange(num_rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num_rows * num_samples)
        yield counts.reshape(num_rows, num_samples).astype(np.float64)


def measure_reliability(is_right: Array, confidence: Array) -> tuple[list[list[float]], float]:
    """How often answers of a confidence are right, and the expected calibration error (Naeini et al. 2015, Guo et al. 2017).

    Args:
        is_right: bool [N]: whether what has the probability is true.
        confidence: [N], that probability.

    Returns:
        per bin that has samples [mean confidence, share that is right, number], and the mean distance of the two over samples.
    """
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    sums = [np.bincount(bins, values, NUM_BINS) for values in (confidence, is_right)]
    error = np.abs(sums[0] - sums[1]).sum() / max(1, len(confidence))
    filled = counts > 0
    table = np.stack([*(one[filled] / counts[filled] for one in sums), counts[filled]], axis=1)
    rows: list[list[float]] = table.tolist()
    return rows, float(error)


def thin_curve(truth: Array, scores: Array, most: int = 200) -> list[list[float]]:
    """The precision-recall curve as [recall, precision], thinned to about `most` points, evenly by recall."""
    precisions, recalls, _ = precision_recall_curve(truth, scores)
    wanted = np.linspace(1, recalls[-2], most)  # the last point is one that no threshold has
    evenly = np.searchsorted(-recalls[:-1], -wanted, side="right") - 1
    kept = np.unique(np.append(evenly, 0))  # the first says yes to all
    curve = np.stack([recalls[kept], precisions[kept]], axis=1)
    points: list[list[float]] = curve.round(5).tolist()
    return points
