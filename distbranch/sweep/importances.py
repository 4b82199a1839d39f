"""How much of the differences between the settings of a sweep each key explains: Optuna's fANOVA (Hutter et al., ICML 2014).

A forest is fitted to the finished settings, and the variance of what it predicts is divided among the keys. It is a statement about
the ranges that were searched and not about the keys by themselves.
"""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from distbranch.engine.run_directory import write_json
from distbranch.report.sweep_files import SweepFiles

FEWEST_SETTINGS = 8  # a forest over fewer tells keys apart by chance
# Its time grows with the square of the settings: a second for these, 40 for 2,000. Sixteen trees say the same as Optuna's 64.
MOST_SETTINGS = 300
NUM_TREES = 16


def write_importances(sweep: SweepFiles, file: Path) -> None:
    """Write {`metric` or `cost` of the sweep: {key: its share}}, largest first, for the page of the sweep.

    Nothing where Optuna is not installed, fewer than two keys take several values, or fewer than 8 settings have finished.
    """
    if find_spec("optuna") is None:
        return
    importances = measure_importances(sweep)
    if importances:
        write_json(file, importances)


def measure_importances(sweep: SweepFiles) -> dict[str, dict[str, float]]:
    """The shares of all keys, which sum to 1, in the metric on val and in the cost that the search weighed it against."""
    points = sweep.points[sweep.points["is_complete"]]
    keys = [key for key in sweep.keys if points[key].nunique() > 1]
    if len(points) < FEWEST_SETTINGS or len(keys) < 2:
        return {}
    columns = {sweep.metric: f"val_{sweep.metric}"}
    if sweep.config.get("cost"):
        columns[sweep.config["cost"]] = sweep.config["cost"]
    shares = {}
    for name, column in columns.items():
        if points[column].nunique() > 1:  # else there is nothing to divide
            known = points.dropna(subset=column)
            # Evenly over the whole search, where there are more.
            numbers = np.linspace(0, len(known) - 1, min(len(known), MOST_SETTINGS))
            known = known.iloc[numbers.astype(int)]
            shares[name] = _divide_variance(sweep, known, keys, column)
    return shares


def _divide_variance(
    sweep: SweepFiles, points: pandas.DataFrame, keys: list[str], column: str
) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions
    params: dict[str, list[Any]] = {}
    distributions: dict[str, Any] = {}
    for key in keys:
        span = sweep.config.get("space", {}).get(key, {})
        if span.get("low") is None:
            params[key] = list(points[key])
            distributions[key] = kinds.CategoricalDistribution(list(points[key].unique()))
            continue
        # fANOVA weighs a range evenly, so it is given the scale on which the values were drawn.
        scale = math.log if span["log"] else float
        params[key] = [scale(float(text)) for text in points[key]]
        distributions[key] = kinds.FloatDistribution(scale(span["low"]), scale(span["high"]))

    study = optuna.create_study()
    for number, value in enumerate(points[column]):
        trial = optuna.trial.create_trial(
            value=float(value),
            params={key: values[number] for key, values in params.items()},
            distributions=distributions,
        )
        study.add_trial(trial)
    # A seed, so that the same table gives the same shares.
    evaluator = FanovaImportanceEvaluator(seed=0, n_trees=NUM_TREES)
    shares = get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}
