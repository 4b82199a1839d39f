"""Delta: how much better the dense tasks of a run are than those of other runs, over all their metrics; see `metrics.compute_delta`.

A Delta is against the mean over the seeds of the other runs, so these have a spread about 0 as all others do.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from pandas import DataFrame

from distbranch.experiments.runs import SPLITS, Runs
from distbranch.kinds import Metrics
from distbranch.metrics import DELTA, compute_delta, list_dense_metrics

logger = logging.getLogger("distbranch")
DELTAS = {
    DELTA: False,
    "delta_first": True,
}  # column: whether the first metric of a task alone counts


def has_dense_tasks(runs: Runs) -> bool:
    """Whether any run has a metric of dense tasks."""
    return any(select_dense_tasks(run.get_scores(split)) for run in runs for split in SPLITS)


def tabulate_deltas(runs: Runs, against: Runs, split: str) -> DataFrame:
    """A row per run: variant, seed and both `DELTAS`, where 0.05 is 5 % better.

    NaN, with a warning that says why, where `against` leaves them undefined: of 0 nothing is a share.

    Args:
        runs: of any variants; only their dense tasks count.
        against: runs of one variant, of the same tasks.
        split: `val` or `test`.
    """
    baseline = average_metrics(against, split)
    rows: list[dict[str, Any]] = []
    for run in runs:
        row: dict[str, Any] = {"variant": run.variant, "seed": run.seed}
        own = select_dense_tasks(run.get_scores(split))
        for column, first_only in DELTAS.items():
            row[column] = _compute_share(own, baseline, first_only=first_only)
        rows.append(row)
    return DataFrame(rows, columns=["variant", "seed", *DELTAS])


def _compute_share(
    own: Mapping[str, Metrics], baseline: Mapping[str, Metrics], *, first_only: bool
) -> float:
    try:
        return compute_delta(own, baseline, first_only=first_only) / 100
    except ValueError as error:
        logger.warning("There is no Delta: %s.", error)
        return np.nan


def average_metrics(runs: Runs, split: str) -> dict[str, Metrics]:
    """The mean over runs of every metric of every dense task; None where one of them has none."""
    scores = [select_dense_tasks(run.get_scores(split)) for run in runs]
    found: dict[str, Metrics] = {}
    for task, row in scores[0].items():
        means = DataFrame([one[task] for one in scores], columns=list(row), dtype=float)
        mean = means.mean(skipna=False)
        found[task] = {name: value for name, value in mean.items() if value == value}
    return found


def select_dense_tasks(scores: Mapping[str, Any]) -> dict[str, Metrics]:
    """The rows of dense tasks of an evaluation."""
    dense = list_dense_metrics().keys()
    return {name: row for name, row in scores.get("tasks", {}).items() if dense & row.keys()}
