"""Grown networks beside the thin networks of equal multiply-adds and of equal weights.

The line of thin networks (one per width, trained with the same recipe and the same seeds) is read at the cost of the grown
network by interpolation: linear in the logarithm of the cost, between the two neighbours, and nowhere beyond the ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import Config, MethodConfig, differences, load_config
from distbranch.config.sweep import SweepConfig
from distbranch.errors import UsageError
from distbranch.experiments.runner import Experiment, Findings, load_run_config
from distbranch.experiments.runs import (
    Run,
    Runs,
    interpolate_at_cost,
    make_spot,
    pair_by_seed,
    spread_of_means,
)
from distbranch.experiments.table import table_markdown, variants_of_files
from distbranch.report.console import amount, markdown_table, size, spread
from distbranch.report.experiment_figures import draw_company

COSTS = {"multiply_adds": "multiply-adds", "weights": "weights"}
BEGINNING = (
    "init",
    "pretrained",
    "pretrained_channels",
)  # keys of the method that a thin network shares with a grown one
OWN_OF_THE_LINE = ("model.width", "model.width_fraction")  # all else is the recipe of the grown networks


@dataclass(frozen=True)
class Neighbour:
    """A grown network beside the thin line at one cost; values are means over seeds, differences those of equal seeds."""

    network: str
    cost: str
    own_cost: float
    value: tuple[float | None, float | None]  # mean and deviation over seeds
    nearest: str  # the real thin network whose cost is nearest, by ratio
    nearest_cost: float
    nearest_value: tuple[float | None, float | None]
    thin_value: float | None  # of the line at the same cost; None beyond its ends
    difference: float | None
    difference_sd: float | None


def design_equal_cost(
    configs: Sequence[Path], widths: Sequence[int], overrides: Sequence[str], *, metric: str, split: str
) -> Experiment:
    """The grown networks and the thin line; found: [Neighbour, ...] on the split.

    Args:
        configs: of the grown networks, all of one recipe.
        widths: of the thin line.
        overrides: `key=value`, for all runs.
        metric: a mean over tasks.
        split: `val` or `test`, of what is shown and drawn; the table has both.

    Raises:
        UsageError: networks of different recipes, or none that grows.
    """
    line = thin_line(configs, widths, overrides)
    grown = {key: value for key, value in variants_of_files(configs).items() if key not in line}
    if not grown:
        raise UsageError("Give at least one config of a grown network, such as configs/fps-branch-16-2.yaml.")
    derived = {key for variant in line.values() for key in variant if key not in OWN_OF_THE_LINE}

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        thin = {key: runs[key] for key in line}
        others = {key: runs[key] for key in grown}
        found = {part: find_neighbours(others, thin, metric, part) for part in ("test", "val")}
        texts = {part: neighbours_markdown(members, metric, part) for part, members in found.items()}
        rows = [{"split": part, **_make_row(one)} for part, members in found.items() for one in members]
        thin_spots = [make_spot(name, members, COSTS, metric, split) for name, members in thin.items()]
        grown_spots = [make_spot(name, members, COSTS, metric, split) for name, members in others.items()]
        return Findings(
            found[split],
            texts[split],
            f"{table_markdown(runs, sweep)}\n" + "\n".join(texts.values()),
            tables={"company.csv": rows},
            figures={"company.png": draw_company(thin_spots, grown_spots, metric=metric, split=split)},
        )

    return Experiment(
        name="company",
        about={"experiment": "company", "metric": metric, "split": split},
        variants={**line, **grown},
        analyse=analyse,
        splits=(split,),
        metric=metric,
        derived=derived,
        among_runs=True,
    )


def thin_line(configs: Sequence[Path], widths: Sequence[int], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The variants of the thin line: the recipe of the grown networks, without growth, at every width.

    They are named after the data set, such as `fps-thin-16`.

    Raises:
        UsageError: the recipes differ.
    """
    recipes = {path: _make_thin(load_run_config(path, overrides)) for path in configs}
    first = next(iter(recipes))
    for path, other in recipes.items():
        different = [text for text in differences(recipes[first], other) if not text.startswith("run.")]
        if different:
            raise UsageError(
                f"The networks should be trained with the same recipe, but {first} and {path} differ in {'; '.join(different)}. "
                "Compare those of one recipe at a time."
            )
    recipe = recipes[first]
    data_name = "-".join(Path(path).name for path in recipe.data.paths)
    variant: dict[str, Any] = {"base": str(first.absolute())}
    variant |= {f"model.{key}": value for key, value in recipe.model.model_dump().items()}
    variant |= {f"method.{key}": value for key, value in recipe.method.model_dump().items()}
    return {f"{data_name}-thin-{width}": {**variant, "model.width": width} for width in sorted(set(widths))}


def _make_thin(config: Config) -> Config:
    """The recipe of a network, without growth and without a width."""
    kept: dict[str, Any] = {}
    if config.method.init != "random":
        kept = {key: getattr(config.method, key) for key in BEGINNING}
    method = MethodConfig(name="fixed", **kept)
    model = {**config.model.model_dump(), "width": None, "width_fraction": None}
    return load_config(config.model_dump() | {"method": method.model_dump(), "model": model})


def find_neighbours(grown: Runs, line: Runs, metric: str, split: str) -> list[Neighbour]:
    """Every grown network beside the line, at equal multiply-adds and at equal weights."""
    return [_compare_at_cost(name, cost, runs, line, metric, split) for name, runs in grown.items() for cost in COSTS]


def _compare_at_cost(network: str, cost: str, runs: Sequence[Run], line: Runs, metric: str, split: str) -> Neighbour:
    own_cost = float(np.mean([run.summary[cost] for run in runs]))
    costs = {name: float(np.mean([run.summary[cost] for run in members])) for name, members in line.items()}
    nearest = min(costs, key=lambda name: abs(np.log(costs[name] / own_cost)))

    # Every seed against the line of its own seed.
    thin_values = []
    gaps = []
    for run in runs:
        thin_value = interpolate_at_cost(run.summary[cost], _line_of_seed(line, run, cost, metric, split))
        value = run.get_mean(metric, split)
        if thin_value is not None and value is not None:
            thin_values.append(thin_value)
            gaps.append(value - thin_value)

    # A mean over some seeds only would compare different sets of runs.
    complete = len(gaps) == len(runs)
    difference, difference_sd = spread(gaps) if complete else (None, None)
    return Neighbour(
        network=network,
        cost=cost,
        own_cost=own_cost,
        value=spread_of_means(runs, metric, split),
        nearest=nearest,
        nearest_cost=costs[nearest],
        nearest_value=spread_of_means(line[nearest], metric, split),
        thin_value=float(np.mean(thin_values)) if complete else None,
        difference=difference,
        difference_sd=difference_sd,
    )


def _line_of_seed(line: Runs, run: Run, cost: str, metric: str, split: str) -> list[tuple[float, float]]:
    """The thin networks of the same seed: (cost, value)."""
    points = []
    for members in line.values():
        for _, thin in pair_by_seed([run], members):
            value = thin.get_mean(metric, split)
            if value is not None:
                points.append((thin.summary[cost], value))
    return points


def neighbours_markdown(found: Sequence[Neighbour], metric: str, split: str) -> str:
    """A row per grown network and cost."""
    shown = metric.replace("_", " ")
    heads = [
        "network",
        "at equal",
        "its cost",
        f"its {shown} %",
        "nearest thin network",
        "thin line there %",
        "difference",
    ]
    rows = []
    for one in found:
        nearest_value = amount(*one.nearest_value, scale=100, decimals=1)
        difference = amount(one.difference, one.difference_sd, scale=100, decimals=1)
        if one.difference is not None and one.difference >= 0:
            difference = f"+{difference}"
        rows.append(
            [
                one.network,
                COSTS[one.cost],
                size(one.own_cost),
                amount(*one.value, scale=100, decimals=1),
                f"{one.nearest}: {size(one.nearest_cost)}, {nearest_value}",
                amount(one.thin_value, None, scale=100, decimals=1),
                difference,
            ]
        )
    note = (
        "The thin line at a cost: linear in the logarithm of the cost between the two neighbouring widths, seed by seed; the "
        "difference is grown less thin, mean ± standard deviation over seeds, in percentage points. A dash: beyond the ends."
    )
    return f"## Fair company on {split}\n\n{note}\n\n{markdown_table(heads, rows)}"


def _make_row(one: Neighbour) -> dict[str, Any]:
    """A row of a CSV file: a spread is a value and its `_sd`."""
    row: dict[str, Any] = {}
    for key, value in vars(one).items():
        if isinstance(value, tuple):
            row[key], row[f"{key}_sd"] = value
        else:
            row[key] = value
    return row
