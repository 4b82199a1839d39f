"""Grown networks beside the thin networks of equal multiply-adds and of equal weights.

The line of thin networks (one per width, trained with the same recipe and the same seeds) is read at the cost of the grown
network by interpolation: linear in the logarithm of the cost, between the two neighbours, and nowhere beyond the ends.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from distbranch.config import Config, MethodConfig, differences, load_config
from distbranch.config.sweep import SweepConfig
from distbranch.errors import UsageError
from distbranch.experiments.runner import Experiment, Findings, load_run_config
from distbranch.experiments.runs import (
    COSTS,
    SPLITS,
    Runs,
    format_spread,
    interpolate_at_cost,
    make_spots,
    rows_markdown,
    select_means,
    tabulate_runs,
)
from distbranch.experiments.table import table_markdown, variants_of_files
from distbranch.report.console import format_size
from distbranch.report.experiment_figures import draw_company

BEGINNING = ("init", "pretrained", "pretrained_channels")  # that a thin network shares with a grown one
OWN_OF_THE_LINE = ("model.width", "model.width_fraction")  # all else is the recipe of the grown networks


def design_equal_cost(
    configs: Sequence[Path], widths: Sequence[int], overrides: Sequence[str], *, metric: str, split: str
) -> Experiment:
    """The grown networks and the thin line.

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
        values = tabulate_runs(runs)
        tables = []
        texts = {}
        for part in SPLITS:
            found = compare_at_equal_cost(select_means(values, metric, part), line)
            tables.append(found.assign(split=part))
            texts[part] = neighbours_markdown(found, metric, part)
        rows = pandas.concat(tables)
        means = select_means(values, metric, split)
        figure = draw_company(make_spots(means, line), make_spots(means, grown), metric=metric, split=split)
        return Findings(
            texts[split],
            f"{table_markdown(runs, sweep)}\n" + "\n".join(texts.values()),
            tables={"company.csv": rows[["split", *rows.columns.drop("split")]]},
            figures={"company.png": figure},
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


def compare_at_equal_cost(means: pandas.DataFrame, line: Collection[str]) -> pandas.DataFrame:
    """Every other network beside the line, at equal multiply-adds and at equal weights.

    Returns:
        A row per network and cost: network, cost, own_cost, value; nearest, the real thin network whose cost is nearest by ratio,
        nearest_cost, nearest_value; thin_value, of the line at the same cost, and difference. Values are means over seeds with
        `_sd`, NaN beyond the ends of the line; a difference is of equal seeds.
    """
    is_thin = means["variant"].isin(line)
    thin = means[is_thin]
    rows = []
    for network, own in means[~is_thin].groupby("variant", sort=False):
        for cost in COSTS:
            costs = thin.groupby("variant", sort=False)[cost].mean()
            nearest = np.log(costs / own[cost].mean()).abs().idxmin()
            beside = thin.query("variant == @nearest")["value"]

            # Every seed against the line of its own seed.
            by_cost = thin.set_index(cost)
            at_cost = [
                interpolate_at_cost(price, by_cost.loc[by_cost["seed"] == seed, "value"])
                for price, seed in zip(own[cost], own["seed"], strict=True)
            ]
            difference = own["value"] - at_cost
            thin_value = own["value"] - difference

            # A mean over some seeds only would compare different sets of runs: NaN is not skipped.
            row = {"network": network, "cost": cost, "own_cost": own[cost].mean()}
            row |= {"value": own["value"].mean(), "value_sd": own["value"].std()}
            row |= {"nearest": nearest, "nearest_cost": costs[nearest]}
            row |= {"nearest_value": beside.mean(), "nearest_value_sd": beside.std()}
            row["thin_value"] = thin_value.mean(skipna=False)
            row |= {"difference": difference.mean(skipna=False), "difference_sd": difference.std(skipna=False)}
            rows.append(row)
    return pandas.DataFrame(rows)


def neighbours_markdown(found: pandas.DataFrame, metric: str, split: str) -> str:
    """A row per grown network and cost."""
    rows = []
    for _, row in found.iterrows():
        nearest = f"{row['nearest']}: {format_size(row['nearest_cost'])}, {format_spread(row, 'nearest_value')}"
        rows.append(
            {
                "network": row["network"],
                "at equal": row["cost"].replace("_", "-"),
                "its cost": format_size(row["own_cost"]),
                f"its {metric.replace('_', ' ')} %": format_spread(row, "value"),
                "nearest thin network": nearest,
                "thin line there %": format_spread(row, "thin_value"),
                "difference": format_spread(row, "difference", signed=True),
            }
        )
    note = (
        "The thin line at a cost: linear in the logarithm of the cost between the two neighbouring widths, seed by seed; the "
        "difference is grown less thin, mean ± standard deviation over seeds, in percentage points. A dash: beyond the ends."
    )
    return f"## Fair company on {split}\n\n{note}\n\n{rows_markdown(rows)}"
