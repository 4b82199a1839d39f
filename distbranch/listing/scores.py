"""The one score by which a row tells how good a run is so far.

What the kinds of tasks say about their metrics is repeated here in brief, for they load torch; a test compares the two.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Means = Mapping[str, float | None]


@dataclass(frozen=True)
class Score:
    """A mean over tasks.

    metric: its name; value: of it; split: on which it was measured; iteration: after how many steps, where that is known.
    """

    metric: str
    value: float
    split: str
    iteration: int | None = None

    @property
    def text(self) -> str:
        """`AP 74.5 %` or `RMSE 0.123`."""
        name, is_share, _ = SHORT_NAMES.get(self.metric, (self.metric, False, False))
        number = f"{100 * self.value:.1f} %" if is_share else f"{self.value:.4g}"
        return f"{name} {number}"


# {metric: (in brief, whether it is a share, whether less is better)}, the first that a run has is shown.
SHORT_NAMES = {
    "average_precision": ("AP", True, False),
    "miou": ("mIoU", True, False),
    "balanced_accuracy": ("bal.", True, False),
    "accuracy": ("acc.", True, False),
    "top3": ("top-3", True, False),
    "top5": ("top-5", True, False),
    "top10_recall": ("top-10", True, False),
    "r2": ("R2", False, False),
    "rank_correlation": ("rank corr.", False, False),
    "quadratic_kappa": ("kappa", False, False),
    "standardised_error": ("std. err.", False, True),
    "pixel_accuracy": ("pixel acc.", True, False),
    "mean_class_accuracy": ("class acc.", True, False),
    "abs_error": ("abs. err.", False, True),
    "rel_error": ("rel. err.", False, True),
    "rmse": ("RMSE", False, True),
    "delta1": ("δ1", True, False),
    "delta2": ("δ2", True, False),
    "delta3": ("δ3", True, False),
    "disparity_abs_error": ("disp. err.", False, True),
    "disparity_rel_error": ("disp. rel.", False, True),
    "disparity_rmse": ("disp. RMSE", False, True),
    "disparity_delta1": ("disp. δ1", True, False),
    "disparity_delta2": ("disp. δ2", True, False),
    "disparity_delta3": ("disp. δ3", True, False),
    "heat_error": ("heat err.", False, True),
    "mean_angle": ("angle", False, True),
    "median_angle": ("med. angle", False, True),
    "rmse_angle": ("RMSE angle", False, True),
    "below_11_25": ("< 11.25°", True, False),
    "below_22_5": ("< 22.5°", True, False),
    "below_30": ("< 30°", True, False),
}


def choose_metric(means: Means, wanted: str | None) -> str | None:
    """The metric that is shown: the wanted one where it is defined, else the first one that is; None if none is."""
    if wanted and means.get(wanted) is not None:
        return wanted
    names = (*SHORT_NAMES, *means)  # those of plug-ins last
    return next((name for name in names if means.get(name) is not None), None)


def find_best(scores: Iterable[Score]) -> Score | None:
    """The best of scores of one metric; of a plug-in's metric, of which it is unknown here what is better, the last."""
    best = None
    for score in scores:
        if best is None or is_better(score.metric, score.value, best.value):
            best = score
    return best


def is_better(metric: str, value: float, than: float) -> bool:
    """Whether a value of the metric is better than another one."""
    if metric not in SHORT_NAMES:
        return True
    *_, lower_is_better = SHORT_NAMES[metric]
    return value < than if lower_is_better else value > than


def read_test_score(summary: Mapping[str, Any], wanted: str | None) -> Score | None:
    """The score of a finished run (the content of result.json): on test, else on val."""
    for split in ("test", "val"):
        means = summary.get("metrics", {}).get(split, {}).get("mean", {})
        metric = choose_metric(means, wanted)
        if metric is not None:
            return Score(metric, means[metric], split, summary.get("iterations"))
    return None
