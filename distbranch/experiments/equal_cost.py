"""Fair company: every grown network beside the thin networks of equal multiply-adds and of equal weights.

The line of thin networks (one per width, trained with the same recipe and the same seeds) is read at the cost of the grown
network by interpolation: linear in the logarithm of the cost, between the two neighbours, and nowhere beyond the ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import Config, MethodConfig, differences, load_config
from distbranch.engine.metrics import Report
from distbranch.errors import UsageError
from distbranch.experiments.comparison import (
    Run,
    Runs,
    check_defined,
    config_of,
    experiment_sweep,
    paired,
    run_experiment,
    write_csv,
    write_text,
)
from distbranch.experiments.place import check_place, record_place
from distbranch.experiments.table import table_markdown, variants_of_files
from distbranch.report.console import amount, markdown_table, size, spread
from distbranch.report.experiment_figures import Spot, draw_company, save_figure

COSTS = {"multiply_adds": "multiply-adds", "weights": "weights"}
BEGINNING = (
    "init",
    "pretrained",
    "pretrained_channels",
)  # of the method: what a thin network has in common with a grown one

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


def fair_company(
    configs: Sequence[Path],
    widths: Sequence[int],
    seeds: Sequence[int],
    overrides: Sequence[str],
    *,
    metric: str,
    split: str,
    name: str,
    jobs: int | None,
    report: Report,
) -> tuple[list[Neighbour], Path]:
    """Train the grown networks and the thin line; how they compare at equal costs, and where the tables and pictures are.

    Args:
        configs: of the grown networks, all of one recipe.
        widths: of the thin line.
        seeds: of every network.
        overrides: `key=value`, for all runs.
        metric: a mean over tasks.
        split: `val` or `test`, of what is returned and drawn; the table has both.
        name: of the experiment's directory.
        jobs: runs at the same time.
        report: told what happens.

    Raises:
        UsageError: networks of different recipes, or none that grows.
        UserError: a run failed.
    """
    line = thin_line(configs, widths, overrides)
    grown = {key: value for key, value in variants_of_files(configs).items() if key not in line}
    if not grown:
        raise UsageError("Give at least one config of a grown network, such as configs/fps-branch-16-2.yaml.")
    derived = {key for variant in line.values() for key in variant if key not in OWN_OF_THE_LINE}
    variants = {**line, **grown}
    sweep = experiment_sweep(name, variants, overrides, seeds=seeds, jobs=jobs, among_runs=True, derived=derived)
    about = {"experiment": "company", "metric": metric, "split": split}
    check_place(sweep, about)
    runs = run_experiment(sweep, report, splits=(split,))
    record_place(sweep, about)
    check_defined(runs, metric, (split,))
    thin, others = {key: runs[key] for key in line}, {key: runs[key] for key in grown}
    found = {part: neighbours(others, thin, metric, part) for part in ("test", "val")}
    rows = [{"split": part, **_flat(one)} for part, members in found.items() for one in members]
    write_csv(sweep.path, "company.csv", rows)
    text = f"{table_markdown(runs, sweep)}\n" + "\n".join(company_markdown(found[part], metric, part) for part in found)
    write_text(sweep.path, "table.md", text)
    figure = draw_company(_spots(thin, metric, split), _spots(others, metric, split), metric=metric, split=split)
    save_figure(figure, sweep.path / "company.png")
    return found[split], sweep.path


def thin_line(configs: Sequence[Path], widths: Sequence[int], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The variants of the thin line: the recipe of the grown networks, without growth, at every width.

    They are named after the data set, such as `fps-thin-16`.

    Raises:
        UsageError: the recipes differ.
    """
    recipes = {path: _thin(config_of(path, overrides)) for path in configs}
    first = next(iter(recipes))
    for path, recipe in recipes.items():
        different = [text for text in differences(recipes[first], recipe) if not text.startswith("run.")]
        if different:
            raise UsageError(
                f"The networks should be trained with the same recipe, but {first} and {path} differ in {'; '.join(different)}. "
                "Compare those of one recipe at a time."
            )
    recipe = recipes[first]
    method = {f"method.{key}": value for key, value in recipe.method.model_dump().items()}
    model = {f"model.{key}": value for key, value in recipe.model.model_dump().items()}
    base = {"base": str(first.absolute()), **model, **method}
    return {f"{_data_name(recipe)}-thin-{width}": {**base, "model.width": width} for width in sorted(set(widths))}


def _thin(config: Config) -> Config:
    """The recipe of a network, without growth and without a width."""
    kept = {key: getattr(config.method, key) for key in BEGINNING if config.method.init != "random"}
    model = {**config.model.model_dump(), "width": None, "width_fraction": None}
    return load_config(
        config.model_dump() | {"method": MethodConfig(name="fixed", **kept).model_dump(), "model": model}
    )


def _data_name(config: Config) -> str:
    return "-".join(Path(path).name for path in config.data.paths)


def neighbours(grown: Runs, line: Runs, metric: str, split: str) -> list[Neighbour]:
    """Every grown network beside the line, at equal multiply-adds and at equal weights."""
    return [_neighbour(network, cost, runs, line, metric, split) for network, runs in grown.items() for cost in COSTS]


def _neighbour(network: str, cost: str, runs: Sequence[Run], line: Runs, metric: str, split: str) -> Neighbour:
    own_cost = float(np.mean([run.summary[cost] for run in runs]))
    costs = {name: float(np.mean([run.summary[cost] for run in members])) for name, members in line.items()}
    nearest = min(costs, key=lambda name: abs(np.log(costs[name] / own_cost)))
    thin, differences_ = [], []
    for run in runs:
        value = line_at(run.summary[cost], _line_of(line, run, cost, metric, split))
        own = run.mean(metric, split)
        if value is not None and own is not None:
            thin.append(value)
            differences_.append(own - value)
    complete = len(thin) == len(runs)
    mean, deviation = spread(differences_)
    return Neighbour(
        network=network,
        cost=cost,
        own_cost=own_cost,
        value=_value(runs, metric, split),
        nearest=nearest,
        nearest_cost=costs[nearest],
        nearest_value=_value(line[nearest], metric, split),
        thin_value=float(np.mean(thin)) if complete else None,
        difference=mean if complete else None,
        difference_sd=deviation if complete else None,
    )


def _line_of(line: Runs, run: Run, cost: str, metric: str, split: str) -> list[tuple[float, float]]:
    """The thin networks of the same seed: (cost, value)."""
    same = [thin for members in line.values() for _, thin in paired([run], members)]
    return [(thin.summary[cost], value) for thin in same if (value := thin.mean(metric, split)) is not None]


def line_at(cost: float, points: Sequence[tuple[float, float]]) -> float | None:
    """The value at a cost, linear in its logarithm between the two neighbours; None beyond the ends of the line."""
    values: dict[float, list[float]] = {}
    for price, value in sorted(points):
        values.setdefault(price, []).append(value)
    costs = list(values)
    if not costs or not costs[0] <= cost <= costs[-1]:
        return None
    return float(np.interp(np.log(cost), np.log(costs), [np.mean(same) for same in values.values()]))


def _value(runs: Sequence[Run], metric: str, split: str) -> tuple[float | None, float | None]:
    return spread([run.mean(metric, split) for run in runs])


def company_markdown(found: Sequence[Neighbour], metric: str, split: str) -> str:
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
        nearest = f"{one.nearest}: {size(one.nearest_cost)}, {amount(*one.nearest_value, scale=100, decimals=1)}"
        difference = amount(one.difference, one.difference_sd, scale=100, decimals=1)
        rows.append(
            [
                one.network,
                COSTS[one.cost],
                size(one.own_cost),
                amount(*one.value, scale=100, decimals=1),
                nearest,
                amount(one.thin_value, None, scale=100, decimals=1),
                difference if one.difference is None or one.difference < 0 else f"+{difference}",
            ]
        )
    note = (
        "The thin line at a cost: linear in the logarithm of the cost between the two neighbouring widths, seed by seed; the "
        "difference is grown less thin, mean ± standard deviation over seeds, in percentage points. A dash: beyond the ends."
    )
    return f"## Fair company on {split}\n\n{note}\n\n{markdown_table(heads, rows)}"


def _flat(one: Neighbour) -> dict[str, Any]:
    """A row of a CSV file: a spread is a value and its `_sd`."""
    row: dict[str, Any] = {}
    for key, value in vars(one).items():
        row |= {key: value[0], f"{key}_sd": value[1]} if isinstance(value, tuple) else {key: value}
    return row


def _spots(runs: Runs, metric: str, split: str) -> list[Spot]:
    spots = []
    for name, members in runs.items():
        costs: Mapping[str, Any] = {cost: spread([run.summary[cost] for run in members]) for cost in COSTS}
        spots.append(Spot(name, costs, _value(members, metric, split)))
    return spots
