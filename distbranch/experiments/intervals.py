"""How sure a difference is: confidence intervals over seeds, for these tasks or for tasks like them.

Seeds are repetitions of training. The tasks of a data set are what they are, so the interval over seeds is for them; whoever
means other tasks too takes the wider one, which has them as a second sample.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pandas import DataFrame
from scipy.stats import t as student

LEVEL = 95  # percent of confidence
# What `measure_differences` tells.
OF_DIFFERENCES = (
    "repetitions",
    "difference",
    "difference_sd",
    "low",
    "high",
    "low_over_tasks",
    "high_over_tasks",
    "tasks_higher",
    "tasks_lower",
)


def measure_differences(differences: DataFrame) -> dict[str, Any]:
    """The mean of differences [tasks, repetitions], and how sure it is.

    Returns:
        repetitions; difference (over all) and its `_sd` over them; low and high, between which it is with 95 % confidence for these
        tasks, and low_over_tasks and high_over_tasks, for tasks like them; how many tasks are higher or lower by their mean. Only
        repetitions, which are 0, where nothing is known.
    """
    if differences.empty:
        return {"repetitions": 0}
    # Over tasks or over repetitions first: the same mean, and a spread of its own each.
    of_tasks = differences.mean(axis="columns")
    of_repetitions = differences.mean(axis="index")
    over_seeds = interval_over_seeds(of_repetitions)
    over_tasks = interval_over_seeds_and_tasks(differences)
    return {
        "repetitions": len(of_repetitions),
        "difference": of_repetitions.mean(),
        "difference_sd": of_repetitions.std(),
        "low": over_seeds[0],
        "high": over_seeds[1],
        "low_over_tasks": over_tasks[0],
        "high_over_tasks": over_tasks[1],
        "tasks_higher": int((of_tasks > 0).sum()),
        "tasks_lower": int((of_tasks < 0).sum()),
    }


def interval_over_seeds(values: ArrayLike) -> tuple[float, float]:
    """The interval of a mean by Student's t; NaN for fewer than two values.

    Args:
        values: [S], one per seed.

    Example:
        >>> interval_over_seeds([0.01, 0.02, 0.03])  # 0.02 -+ 4.30 * 0.01 / sqrt(3)
        (-0.0048..., 0.0448...)
    """
    found = np.asarray(values, dtype=float)
    if found.size < 2:
        return np.nan, np.nan
    return _student_interval(found.mean(), found.var(ddof=1) / found.size, found.size - 1)


def interval_over_seeds_and_tasks(differences: DataFrame) -> tuple[float, float]:
    """The interval of a mean over two crossed samples; NaN for fewer than two seeds or two tasks.

    The variances of the means of seeds and of the means of tasks add up, which is what a bootstrap of both estimates (Owen 2007, The
    pigeonhole bootstrap); Student's t has Welch's degrees of freedom, for percentiles of a bootstrap of five seeds are too narrow.

    Args:
        differences: [tasks, seeds]; NaN where one is unknown.
    """
    means = [differences.mean(axis=axis).dropna() for axis in ("index", "columns")]
    sizes = [len(of) for of in means]
    if min(sizes) < 2:
        return np.nan, np.nan
    variances = np.array([of.var() / len(of) for of in means])
    # Without any spread the interval is a point, whatever its degrees of freedom.
    freedom = min(sizes) - 1.0
    if variances.any():
        freedom = variances.sum() ** 2 / (variances**2 / (np.array(sizes) - 1)).sum()
    return _student_interval(means[0].mean(), variances.sum(), freedom)


def _student_interval(mean: float, variance: float, freedom: float) -> tuple[float, float]:
    """`variance` is that of the mean."""
    reach = student.ppf((1 + LEVEL / 100) / 2, freedom) * np.sqrt(variance)
    return float(mean - reach), float(mean + reach)
