"""Finished runs beside each other: paired by seed, on the tasks that all have, read along their curves or at equal cost."""

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from distbranch.config import Config, load_config
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UsageError, UserError
from distbranch.metrics import CHOICES
from distbranch.report.console import amount, size, spread
from distbranch.report.experiment_figures import Spot

logger = logging.getLogger("distbranch")


@dataclass(frozen=True)
class Run:
    """A finished run. `summary`: the content of result.json, in an experiment with `latency_ms`."""

    config: Config
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Its seed; runs of different variants with the same seed are compared with each other."""
        return self.config.seed

    def get_mean(self, metric: str, split: str) -> float | None:
        """The mean over tasks of a metric, in 0..1; None if it was not evaluated."""
        value = self.summary["metrics"].get(split, {}).get("mean", {}).get(metric)
        return None if value is None else float(value)

    def get_task_values(self, metric: str, split: str) -> dict[str, float]:
        """A metric of every task that has it, in 0..1."""
        rows = self.summary["metrics"].get(split, {}).get("tasks", {})
        return {task: float(row[metric]) for task, row in rows.items() if row.get(metric) is not None}

    def read_log(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind."""
        return [line for line in read_lines(RunDirectory(self.config.run_directory).metrics) if line["kind"] == kind]

    def read_curve(self, metric: str) -> list[tuple[int, float]]:
        """The mean over tasks on val at every evaluation: [(iteration, value), ...]."""
        by_iteration: dict[int, float] = {}
        for line in self.read_log("evaluation"):
            value = line["mean"].get(metric)
            if line["split"] == "val" and value is not None:
                by_iteration[int(line["iteration"])] = float(value)
        return sorted(by_iteration.items())


Runs = Mapping[str, Sequence[Run]]  # by variant
Curve = Sequence[tuple[float, float]]  # (iteration or cost, value in 0..1)


def read_runs(folders: Sequence[Path]) -> dict[str, list[Run]]:
    """Finished runs by method: runs whose names differ only in `-seed<seed>` are one method.

    Raises:
        UserError: a folder without a finished run.
        UsageError: two runs of the same name and seed.
    """
    found: dict[str, list[Run]] = {}
    for folder in folders:
        result = read_result(folder)
        if result is None:
            raise UserError(f"{folder} should be a finished run, found none. Train it to its end first.")
        run = Run(load_config(RunDirectory(folder).config), result.summary)
        method = folder.absolute().name.removesuffix(f"-seed{run.seed}")
        if any(run.seed == other.seed for other in found.get(method, [])):
            raise UsageError(f"Two runs are named {method} and have seed {run.seed}. Give each run once.")
        found.setdefault(method, []).append(run)
    return restrict_to_common_tasks(found)


# ---- the same tasks for all


def restrict_to_common_tasks(runs: Runs) -> dict[str, list[Run]]:
    """The runs with means over the same tasks, so that they can be compared.

    Which tasks have a metric depends on the labels, so runs of the same tasks and data have it for the same ones; but not those
    of an earlier release, of other draws of the data, or of which other samples were left out. Then a mean is over the tasks
    that have the metric in every run of the same tasks, and a warning says so.
    """
    of_same_tasks: dict[tuple[str, ...], list[Run]] = {}
    for members in runs.values():
        for run in members:
            of_same_tasks.setdefault(tuple(run.summary["tasks"]), []).append(run)
    restricted: dict[int, Run] = {}
    for same in of_same_tasks.values():
        for run, one in zip(same, _with_common_means(same), strict=True):
            restricted[id(run)] = one
    return {variant: [restricted[id(run)] for run in members] for variant, members in runs.items()}


def _with_common_means(runs: Sequence[Run]) -> list[Run]:
    splits = sorted(set.intersection(*(set(run.summary["metrics"]) for run in runs)))
    summaries = [copy.deepcopy(dict(run.summary)) for run in runs]
    for split in splits:
        for metric in runs[0].summary["metrics"][split]["mean"]:
            values = [_values_behind_mean(run, metric, split) for run in runs]
            shared = set.intersection(*map(set, values))
            partial = set.union(*map(set, values)) - shared
            if not partial:
                continue
            logger.warning(
                "The mean %s on %s is over the %d tasks that have it in all runs; %s have it in some only.",
                metric,
                split,
                len(shared),
                ", ".join(sorted(partial)),
            )
            for summary, value in zip(summaries, values, strict=True):
                known = [value[task] for task in sorted(shared)]
                summary["metrics"][split]["mean"][metric] = float(np.mean(known)) if known else None
    return [Run(run.config, summary) for run, summary in zip(runs, summaries, strict=True)]


def _values_behind_mean(run: Run, metric: str, split: str) -> dict[str, float]:
    """What the mean of a metric is over: every task that has it, and the exclusive sets for what only they have."""
    values = run.get_task_values(metric, split)
    if metric in CHOICES:
        for name, row in run.summary["metrics"][split].get("exclusive", {}).items():
            if row[metric] is not None:
                values[f"{name} (arg-max)"] = row[metric]
    return values


def check_defined(runs: Runs, metric: str, splits: Collection[str]) -> None:
    """What is undefined for all tasks compares nothing.

    Raises:
        UserError: no run has the mean on one of the splits.
    """
    every = [run for members in runs.values() for run in members]
    for split in splits:
        if all(run.get_mean(metric, split) is None for run in every):
            raise UserError(
                f"The {len(every)} runs are finished, but no task has {metric} on {split} in all of them, so they cannot be "
                f"compared by it: results.csv beside {every[0].config.run_directory} has what there is. Give data in which a "
                "task has labels of more than one class there."
            )


# ---- what is read off them


def pair_by_seed(one: Sequence[Run], other: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of two variants with the same seed."""
    by_seed = {run.seed: run for run in other}
    return [(run, by_seed[run.seed]) for run in one if run.seed in by_seed]


def compare_methods(runs: Runs, metric: str, split: str) -> pandas.DataFrame:
    """Means over seeds, and differences against the first method.

    A difference is paired by seed and task. It is averaged over the tasks of a seed, and its spread is over seeds.

    Returns:
        A row per method: method, seeds, the metric and its `_sd`, paired_seeds, difference and `_sd`, tasks_higher, tasks_lower
        (by their mean over seeds) and multiply_adds; values in 0..1, NaN where nothing can be said.
    """
    values = pandas.DataFrame(
        [
            {"method": method, "seed": run.seed, "task": task, "value": value}
            for method, members in runs.items()
            for run in members
            for task, value in run.get_task_values(metric, split).items()
        ],
        columns=["method", "seed", "task", "value"],
    )
    by_method = values.pivot_table(index=["seed", "task"], columns="method", values="value")
    reference = next(iter(runs))
    rows = []
    for method, members in runs.items():
        means = pandas.Series([run.get_mean(metric, split) for run in members], dtype=float)
        row: dict[str, Any] = {
            "method": method,
            "seeds": len(members),
            metric: means.mean(),
            f"{metric}_sd": means.std(),
        }
        row["multiply_adds"] = float(np.mean([run.summary["multiply_adds"] for run in members]))
        if method != reference and {method, reference} <= set(by_method):
            pairs = (by_method[method] - by_method[reference]).dropna()
            of_seeds = pairs.groupby("seed").mean()
            of_tasks = pairs.groupby("task").mean()
            row["paired_seeds"] = len(of_seeds)
            row["difference"] = of_seeds.mean()
            row["difference_sd"] = of_seeds.std()
            row["tasks_higher"] = int((of_tasks > 0).sum())
            row["tasks_lower"] = int((of_tasks < 0).sum())
        rows.append(row)
    of_difference = ["paired_seeds", "difference", "difference_sd", "tasks_higher", "tasks_lower"]
    columns = ["method", "seeds", metric, f"{metric}_sd", *of_difference, "multiply_adds"]
    return pandas.DataFrame(rows, columns=columns)


def difference_rows(table: pandas.DataFrame, metric: str, split: str) -> list[dict[str, str]]:
    """The rows of `compare_methods` as text, in percent and percentage points."""
    shown = table.astype(object).where(table.notna(), None)
    rows = []
    for row in shown.to_dict("records"):
        difference = amount(row["difference"], row["difference_sd"], scale=100, decimals=2)
        if row["difference"] is not None and row["difference"] >= 0:
            difference = f"+{difference}"
        rows.append(
            {
                "method": row["method"],
                "seeds": str(row["seeds"]),
                f"{metric.replace('_', ' ')} on {split} %": amount(
                    row[metric], row[f"{metric}_sd"], scale=100, decimals=1
                ),
                f"less {table['method'][0]}, points": difference,
                "seeds paired": amount(row["paired_seeds"], None),
                "tasks higher": amount(row["tasks_higher"], None),
                "tasks lower": amount(row["tasks_lower"], None),
                "multiply-adds": size(row["multiply_adds"]),
            }
        )
    return rows


def interpolate_at_cost(cost: float, points: Curve) -> float | None:
    """The value at a cost, linear in its logarithm between the two neighbours; None beyond the ends of the line."""
    values: dict[float, list[float]] = {}
    for price, value in sorted(points):
        values.setdefault(price, []).append(value)
    costs = list(values)
    if not costs or not costs[0] <= cost <= costs[-1]:
        return None
    means = [np.mean(same) for same in values.values()]
    return float(np.interp(np.log(cost), np.log(costs), means))


def find_first_reach(curve: Curve, goal: float) -> float | None:
    """The first iteration at which a curve is at the goal, on straight lines between its points; None if it never is."""
    before: tuple[float, float] | None = None
    for iteration, value in curve:
        if value >= goal:
            if before is None:
                return float(iteration)
            rise = (iteration - before[0]) * (goal - before[1])
            return before[0] + rise / (value - before[1])
        before = iteration, value
    return None


def spread_of_means(runs: Sequence[Run], metric: str, split: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation over seeds of a mean over tasks, in 0..1."""
    return spread([run.get_mean(metric, split) for run in runs])


def make_spot(name: str, runs: Sequence[Run], costs: Collection[str], metric: str, split: str) -> Spot:
    """A network in a diagram of value against cost."""
    spreads = {cost: spread([run.summary[cost] for run in runs]) for cost in costs}
    return Spot(name, spreads, spread_of_means(runs, metric, split))
