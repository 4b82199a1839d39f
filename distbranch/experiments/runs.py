"""Finished runs as one long table, and what is read off it: spreads over seeds, paired differences, values at equal cost.

`tabulate_runs` reads all values once: a row is one value of one run. Experiments select, pivot and join from there.
"""

import copy
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from distbranch.report.console import METRICS, UNDEFINED, compute_spread, format_amount, format_size
from distbranch.report.experiment_figures import Spot
from distbranch.report.tables import render_markdown

logger = logging.getLogger("distbranch")
SPLITS = ("test", "val")
COSTS = ("multiply_adds", "weights")
MEAN = ""  # in the column `task`: no task is called so


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

    def read_log(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind."""
        return [line for line in read_lines(RunDirectory(self.config.run_directory).metrics) if line["kind"] == kind]


Runs = Mapping[str, Sequence[Run]]  # by variant


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
    restricted: dict[str, list[Run]] = {}
    of_same_tasks: dict[tuple[str, ...], list[Run]] = {}
    for variant, members in runs.items():
        # Copies, for the caller's results stay as they were read.
        restricted[variant] = [Run(run.config, copy.deepcopy(run.summary)) for run in members]
        for run in restricted[variant]:
            of_same_tasks.setdefault(tuple(run.summary["tasks"]), []).append(run)
    for same in of_same_tasks.values():
        splits = set.intersection(*(set(run.summary["metrics"]) for run in same))
        for split in sorted(splits):
            for metric in same[0].summary["metrics"][split]["mean"]:
                _restrict_mean(same, metric, split)
    return restricted


def _restrict_mean(runs: Sequence[Run], metric: str, split: str) -> None:
    """Where some runs lack the metric of a task, put the mean over the other tasks into all summaries."""
    values = pandas.DataFrame([_read_values_behind_mean(run, metric, split) for run in runs]).sort_index(axis="columns")
    shared = values.dropna(axis="columns")
    partial = values.columns.difference(shared.columns)
    if partial.empty:
        return
    logger.warning(
        "The mean %s on %s is over the %d tasks that have it in all runs; %s have it in some only.",
        metric,
        split,
        len(shared.columns),
        ", ".join(partial),
    )
    for run, known in zip(runs, shared.to_numpy(), strict=True):
        run.summary["metrics"][split]["mean"][metric] = float(known.mean()) if known.size else None


def _read_values_behind_mean(run: Run, metric: str, split: str) -> dict[str, float]:
    """What the mean of a metric is over: every task that has it, and the exclusive sets for what only they have."""
    scores = run.summary["metrics"][split]
    rows = dict(scores.get("tasks", {}))
    if metric in CHOICES:
        rows |= {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()}
    return {name: row[metric] for name, row in rows.items() if row.get(metric) is not None}


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


# ---- the table


def tabulate_runs(runs: Runs) -> pandas.DataFrame:
    """All metrics of all runs, a row per value: variant, seed, multiply_adds, weights, split, task, metric, value.

    Values are in 0..1, NaN where a metric is undefined. The task `MEAN` is the mean over tasks, which every run has a row for.
    """
    rows = []
    for variant, members in runs.items():
        for run in members:
            costs = {cost: run.summary.get(cost) for cost in COSTS}
            for split in SPLITS:
                scores = run.summary["metrics"].get(split, {})
                tasks = {MEAN: scores.get("mean", {}), **scores.get("tasks", {})}
                for task, values in tasks.items():
                    about = {"variant": variant, "seed": run.seed, **costs, "split": split, "task": task}
                    rows += [{**about, "metric": metric, "value": values.get(metric)} for metric in METRICS]
    return pandas.DataFrame(rows).astype({"value": float})


def select_values(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """The rows of one metric on one split, with the means over tasks."""
    return values[(values["metric"] == metric) & (values["split"] == split)]


def select_means(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """A row per run: the mean over tasks of a metric on a split."""
    return select_values(values, metric, split).query("task == @MEAN")


def pivot_tasks(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """A row per task, in the order of the runs, and a column per variant and seed."""
    chosen = select_values(values, metric, split).query("task != @MEAN")
    table = chosen.pivot(index="task", columns=["variant", "seed"], values="value")
    return table.reindex(chosen["task"].unique())


def read_curves(runs: Runs, metric: str) -> pandas.DataFrame:
    """The mean over tasks on val at every evaluation: variant, seed, iteration, value."""
    rows = []
    for variant, members in runs.items():
        for run in members:
            # A resumed run may have evaluated twice at one iteration; the last one counts.
            lines = [line for line in run.read_log("evaluation") if line["split"] == "val"]
            by_iteration = {line["iteration"]: line["mean"].get(metric) for line in lines}
            rows += [(variant, run.seed, iteration, by_iteration[iteration]) for iteration in sorted(by_iteration)]
    return pandas.DataFrame(rows, columns=["variant", "seed", "iteration", "value"]).dropna()


# ---- what is read off it


def compare_methods(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """Means over seeds, and differences against the first method.

    A difference is paired by seed and task. It is averaged over the tasks of a seed, and its spread is over seeds.

    Returns:
        A row per method: method, seeds, the metric and its `_sd`, paired_seeds, difference and `_sd`, tasks_higher, tasks_lower
        (by their mean over seeds) and multiply_adds; values in 0..1, NaN where nothing can be said.
    """
    means = select_means(values, metric, split).groupby("variant", sort=False)
    table = means["value"].agg(**{"seeds": "size", metric: "mean", f"{metric}_sd": "std"})
    table["multiply_adds"] = means["multiply_adds"].mean()

    # A method without a value of any task has no pairs, which is unknown and not zero.
    pairs = pivot_tasks(values, metric, split).stack("seed").dropna(axis="columns", how="all")
    reference = table.index[0]
    if reference in pairs:
        differences = pairs.drop(columns=reference).sub(pairs[reference], axis="index")  # [T x S, methods]
        of_seeds = differences.groupby("seed").mean()
        of_tasks = differences.groupby("task").mean()
        table["paired_seeds"] = of_seeds.count()
        table["difference"] = of_seeds.mean()
        table["difference_sd"] = of_seeds.std()
        table["tasks_higher"] = (of_tasks > 0).sum()
        table["tasks_lower"] = (of_tasks < 0).sum()
    of_difference = ["paired_seeds", "difference", "difference_sd", "tasks_higher", "tasks_lower"]
    columns = ["method", "seeds", metric, f"{metric}_sd", *of_difference, "multiply_adds"]
    return table.rename_axis("method").reset_index().reindex(columns=columns)


def difference_rows(table: pandas.DataFrame, metric: str, split: str) -> list[dict[str, str]]:
    """The rows of `compare_methods` as text, in percent and percentage points."""
    rows = []
    for _, row in table.iterrows():
        rows.append(
            {
                "method": row["method"],
                "seeds": str(row["seeds"]),
                f"{metric.replace('_', ' ')} on {split} %": format_spread(row, metric),
                f"less {table['method'][0]}, points": format_spread(row, "difference", decimals=2, signed=True),
                "seeds paired": format_number(row["paired_seeds"]),
                "tasks higher": format_number(row["tasks_higher"]),
                "tasks lower": format_number(row["tasks_lower"]),
                "multiply-adds": format_size(row["multiply_adds"]),
            }
        )
    return rows


def interpolate_at_cost(cost: float, line: pandas.Series) -> float:
    """The value at a cost, linear in its logarithm between the two neighbours; NaN beyond the ends of the line.

    Args:
        cost: positive.
        line: values by their costs, in any order; those of one cost are averaged.
    """
    points = line.groupby(level=0).mean().dropna()
    if points.empty or not points.index[0] <= cost <= points.index[-1]:
        return np.nan
    return float(np.interp(np.log(cost), np.log(points.index), points))


def find_first_reach(curve: pandas.DataFrame, goal: float) -> float:
    """The first iteration at which a curve is at the goal, on straight lines between its points; NaN if it never is."""
    iterations = curve["iteration"].to_numpy(float)
    values = curve["value"].to_numpy(float)
    reached = np.flatnonzero(values >= goal)
    if not reached.size:
        return np.nan
    first = reached[0]
    around = slice(max(first - 1, 0), first + 1)
    return float(np.interp(goal, values[around], iterations[around]))


def make_spots(means: pandas.DataFrame, variants: Iterable[str]) -> list[Spot]:
    """The networks in a diagram of value against cost."""
    spots = []
    for variant in variants:
        own = means.query("variant == @variant")
        costs = {cost: compute_spread(list(own[cost])) for cost in COSTS}
        spots.append(Spot(variant, costs, compute_spread(list(own["value"].dropna()))))
    return spots


# ---- rows as text


def format_spread(row: Mapping[str, Any], key: str, *, decimals: int = 1, signed: bool = False) -> str:
    """A value in 0..1 and its `_sd` in percent, such as `74.5 ± 0.7`; a dash for NaN."""
    mean = row[key]
    if pandas.isna(mean):
        return UNDEFINED
    text = format_amount(mean, np.nan_to_num(row.get(f"{key}_sd", 0.0)), scale=100, decimals=decimals)
    return f"+{text}" if signed and mean >= 0 else text


def format_number(value: float, *, scale: float = 1, decimals: int = 0) -> str:
    """A number; a dash for NaN."""
    return UNDEFINED if pandas.isna(value) else format_amount(value, None, scale=scale, decimals=decimals)


def rows_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of text with the same columns as a table in Markdown."""
    return render_markdown(pandas.DataFrame(rows))
