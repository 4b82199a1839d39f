"""Finished runs, restricted to what they have in common, and as one long table from which every analysis reads."""

import copy
import itertools
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pandas import DataFrame

from distbranch.config import Config, load_config
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UsageError, UserError
from distbranch.kinds.categorical import CHOICES
from distbranch.metrics import list_means

logger = logging.getLogger("distbranch")
SPLITS = ("test", "val")  # what is reported comes before what was chosen on
COSTS = ("multiply_adds", "weights")
MEAN = ""  # in the column `task`: no task is called so


Result = dict[str, Any]  # content of result.json, or a part of it


@dataclass(frozen=True)
class Run:
    """A finished run of a variant of an experiment (or of a method). `summary`: the content of result.json, perhaps with `latency_ms`."""

    variant: str
    config: Config
    summary: Result

    @property
    def seed(self) -> int:
        """Its seed; runs of different variants with the same seed are compared with each other."""
        return self.config.seed

    def get_scores(self, split: str) -> Result:
        """The metrics of a split; empty if it was not evaluated."""
        scores: Result = self.summary["metrics"].get(split, {})
        return scores

    def get_mean(self, metric: str, split: str) -> float | None:
        """The mean over tasks of a metric, in 0..1; None if it was not evaluated."""
        value: float | None = self.get_scores(split).get("mean", {}).get(metric)
        return value

    def read_log(self, kind: str) -> list[Result]:
        """The lines of metrics.jsonl of one kind."""
        return [
            line
            for line in read_lines(RunDirectory(self.config.run_directory).metrics)
            if line["kind"] == kind
        ]


Runs = Sequence[Run]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Finished runs by method: runs whose names differ only in `-seed<seed>` are one method.

    Raises:
        UserError: a folder without a finished run.
        UsageError: two runs of the same name and seed.
    """
    found: dict[tuple[str, int], Run] = {}
    for folder in folders:
        result = read_result(folder)
        if result is None:
            raise UserError(
                f"{folder} should be a finished run, found none. Train it to its end first."
            )
        config = load_config(RunDirectory(folder).config)
        method = folder.absolute().name.removesuffix(f"-seed{config.seed}")
        # A seed that was given twice would count twice in every mean.
        if (method, config.seed) in found:
            raise UsageError(
                f"Two runs are named {method} and have seed {config.seed}. Give each run once."
            )
        found[method, config.seed] = Run(method, config, result.summary)
    return restrict_to_common_tasks(list(found.values()))


# ---- the same tasks for all


def restrict_to_common_tasks(runs: Runs) -> list[Run]:
    """The runs with means over the same tasks, so that they can be compared.

    Which tasks have a metric depends on the labels, so runs of the same tasks and data have it for the same ones; but not those
    of an earlier release, of other draws of the data, or of which other samples were left out. Then a mean is over the tasks
    that have the metric in every run of the same tasks, and a warning says so.
    """
    # Copies, for the caller's results stay as they were read.
    copies = [replace(run, summary=copy.deepcopy(run.summary)) for run in runs]
    of_same_tasks = defaultdict(list)
    for run in copies:
        of_same_tasks[tuple(run.summary["tasks"])].append(run)
    for same in of_same_tasks.values():
        for split, metric in itertools.product(SPLITS, list_means()):
            _restrict_mean(same, metric, split)
    return copies


def _restrict_mean(runs: Runs, metric: str, split: str) -> None:
    """Where some runs lack the metric of a task, put the mean over the other tasks into all summaries."""
    values = DataFrame([_read_values_behind_mean(run, metric, split) for run in runs], dtype=float)
    shared = values.dropna(axis="columns", how="any")
    partial = values.dropna(axis="columns", how="all").columns.difference(shared.columns)
    if partial.empty or not all(run.get_scores(split) for run in runs):
        return
    logger.warning(
        "The mean %s on %s is over the %d tasks that have it in all runs; %s have it in some only.",
        metric,
        split,
        len(shared.columns),
        ", ".join(partial),
    )
    for run, mean in zip(runs, shared.mean(axis="columns"), strict=True):
        run.get_scores(split)["mean"][metric] = None if shared.empty else float(mean)


def _read_values_behind_mean(run: Run, metric: str, split: str) -> dict[str, float | None]:
    """What the mean of a metric is over: every task, and the exclusive sets for what only they have."""
    scores = run.get_scores(split)
    rows = dict(scores.get("tasks", {}))
    if metric in CHOICES:
        rows |= {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()}
    return {name: row.get(metric) for name, row in rows.items()}


def check_defined(runs: Runs, metric: str, splits: Collection[str]) -> None:
    """What is undefined for all tasks compares nothing.

    Raises:
        UserError: no run has the mean on one of the splits.
    """
    for split in splits:
        if all(run.get_mean(metric, split) is None for run in runs):
            known = [name for name in list_means() if runs[0].get_mean(name, split) is not None]
            raise UserError(
                f"The {len(runs)} runs are finished, but no task has {metric} on {split} in all of them, so they cannot be "
                f"compared by it: results.csv beside {runs[0].config.run_directory} has what there is. Give --metric, one of "
                f"{', '.join(known) or 'none'}, or data in which a task has labels of more than one class there."
            )


# ---- the table


def tabulate_runs(runs: Runs) -> DataFrame:
    """All metrics of all runs, a row per value: variant, seed, multiply_adds, weights, split, task, metric, value.

    Shares are in 0..1, NaN where a metric is undefined. The task `MEAN` is the mean over tasks, which every run has a row for.
    """
    rows = []
    for run, split in itertools.product(runs, SPLITS):
        about = {"variant": run.variant, "seed": run.seed, "split": split}
        about |= {cost: run.summary.get(cost) for cost in COSTS}
        scores = run.get_scores(split)
        # The mean is as recorded, and no mean of these rows: exclusive sets count in it as one choice each.
        for task, values in {MEAN: scores.get("mean", {}), **scores.get("tasks", {})}.items():
            rows += [
                {**about, "task": task, "metric": metric, "value": values.get(metric)}
                for metric in list_means()
            ]
    return DataFrame(rows).astype({"value": float})


def select_means(values: DataFrame, metric: str, split: str) -> DataFrame:
    """A row per run: the mean over tasks of a metric on a split."""
    chosen = (values["metric"] == metric) & (values["split"] == split)
    return values[chosen & (values["task"] == MEAN)]


def select_tasks(values: DataFrame, metric: str, split: str) -> DataFrame:
    """A row per run and task: a metric on a split."""
    chosen = (values["metric"] == metric) & (values["split"] == split)
    return values[chosen & (values["task"] != MEAN)]


def pivot_tasks(values: DataFrame, metric: str, split: str) -> DataFrame:
    """The same with a row per task, in the order of the runs, and a column per variant and seed."""
    chosen = select_tasks(values, metric, split)
    table = chosen.pivot(index="task", columns=["variant", "seed"], values="value")
    return table.reindex(chosen["task"].unique())


def read_curves(runs: Runs, metric: str) -> DataFrame:
    """The mean over tasks on val at every evaluation: variant, seed, iteration, value."""
    rows = []
    for run in runs:
        lines = [line for line in run.read_log("evaluation") if line["split"] == "val"]
        rows += [
            (run.variant, run.seed, line["iteration"], line["mean"].get(metric)) for line in lines
        ]
    curves = DataFrame(rows, columns=["variant", "seed", "iteration", "value"]).dropna()
    # A resumed run may have evaluated twice at one iteration; the last one counts.
    return curves.drop_duplicates(["variant", "seed", "iteration"], keep="last", ignore_index=True)


# ---- results side by side


def split_by_data_set(runs: Runs, split: str) -> dict[str, dict[str, list[Result]]]:
    """The results of all networks, then joint ones beside separate ones on just the tasks of every data set of a joint run.

    Returns:
        {"": {network: [content of result.json, ...]}, data set: {network: [the same, with the metrics of this data set alone]}}
    """
    found: dict[str, dict[str, list[Result]]] = {"": {}}
    tasks = {}
    for run in runs:
        found[""].setdefault(run.variant, []).append(run.summary)
        for name, part in run.get_scores(split).get("datasets", {}).items():
            tasks[name] = set(part["tasks"])
    for name, own in tasks.items():
        for network, results in found[""].items():
            parts = [_find_part(result["metrics"].get(split, {}), own) for result in results]
            if None not in parts:
                alone = [
                    {**result, "metrics": {split: part}}
                    for result, part in zip(results, parts, strict=True)
                ]
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
