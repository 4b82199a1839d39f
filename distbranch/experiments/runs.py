"""Finished runs, restricted to what they have in common, and as one long table from which every analysis reads."""

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from distbranch.config import Config, load_config
from distbranch.config.sweep import METRICS
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UsageError, UserError
from distbranch.metrics import CHOICES

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
        members = found.setdefault(method, [])
        if run.seed in [other.seed for other in members]:
            raise UsageError(f"Two runs are named {method} and have seed {run.seed}. Give each run once.")
        members.append(run)
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
        for split in SPLITS:
            if all(split in run.summary["metrics"] for run in same):
                for metric in same[0].summary["metrics"][split]["mean"]:
                    _restrict_mean(same, metric, split)
    return restricted


def _restrict_mean(runs: Sequence[Run], metric: str, split: str) -> None:
    """Where some runs lack the metric of a task, put the mean over the other tasks into all summaries."""
    values = pandas.DataFrame([_read_values_behind_mean(run, metric, split) for run in runs], dtype=float)
    shared = values.dropna(axis="columns", how="any")
    partial = values.dropna(axis="columns", how="all").columns.difference(shared.columns)
    if partial.empty:
        return
    logger.warning(
        "The mean %s on %s is over the %d tasks that have it in all runs; %s have it in some only.",
        metric,
        split,
        len(shared.columns),
        ", ".join(partial),
    )
    for run, mean in zip(runs, shared.mean(axis="columns"), strict=True):
        run.summary["metrics"][split]["mean"][metric] = None if shared.empty else float(mean)


def _read_values_behind_mean(run: Run, metric: str, split: str) -> dict[str, float | None]:
    """What the mean of a metric is over: every task, and the exclusive sets for what only they have."""
    scores = run.summary["metrics"][split]
    rows = dict(scores.get("tasks", {}))
    if metric in CHOICES:
        rows |= {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()}
    return {name: row.get(metric) for name, row in rows.items()}


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


def select_means(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """A row per run: the mean over tasks of a metric on a split."""
    chosen = (values["metric"] == metric) & (values["split"] == split)
    return values[chosen & (values["task"] == MEAN)]


def select_tasks(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """A row per run and task: a metric on a split."""
    chosen = (values["metric"] == metric) & (values["split"] == split)
    return values[chosen & (values["task"] != MEAN)]


def pivot_tasks(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """The same with a row per task, in the order of the runs, and a column per variant and seed."""
    chosen = select_tasks(values, metric, split)
    table = chosen.pivot(index="task", columns=["variant", "seed"], values="value")
    return table.reindex(chosen["task"].unique())


def read_curves(runs: Runs, metric: str) -> pandas.DataFrame:
    """The mean over tasks on val at every evaluation: variant, seed, iteration, value."""
    rows = []
    for variant, members in runs.items():
        for run in members:
            lines = [line for line in run.read_log("evaluation") if line["split"] == "val"]
            rows += [(variant, run.seed, line["iteration"], line["mean"].get(metric)) for line in lines]
    curves = pandas.DataFrame(rows, columns=["variant", "seed", "iteration", "value"]).dropna()
    # A resumed run may have evaluated twice at one iteration; the last one counts.
    return curves.drop_duplicates(["variant", "seed", "iteration"], keep="last", ignore_index=True)


# ---- results side by side


def split_by_data_set(runs: Runs, split: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The results of all networks, then joint ones beside separate ones on just the tasks of every data set of a joint run.

    Returns:
        {"": {network: [content of result.json, ...]}, data set: {network: [the same, with the metrics of this data set alone]}}
    """
    results = {variant: [dict(run.summary) for run in members] for variant, members in runs.items()}
    found = {"": results}
    tasks: dict[str, set[str]] = {}
    for members in results.values():
        for result in members:
            for name, part in result["metrics"].get(split, {}).get("datasets", {}).items():
                tasks[name] = set(part["tasks"])
    for name, own in tasks.items():
        for network, members in results.items():
            parts = [_find_part(result["metrics"].get(split, {}), own) for result in members]
            if None not in parts:
                alone = [{**result, "metrics": {split: part}} for result, part in zip(members, parts, strict=True)]
                found.setdefault(name, {})[network] = alone
    return found


def _find_part(scores: Mapping[str, Any], tasks: set[str]) -> Mapping[str, Any] | None:
    """The scores on just these tasks: those of a data set in a joint run, or of a run that has no others with a label."""
    parts: list[Mapping[str, Any]] = [scores, *scores.get("datasets", {}).values()]
    for part in parts:
        labelled = {task for task, row in part.get("tasks", {}).items() if row["num_labelled"]}
        if labelled == tasks:
            return part
    return None
