"""The results of a sweep as one table: a row per trial, whatever became of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from distbranch.config import Config
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import read_lines
from distbranch.report.sweep_files import read_sweep
from distbranch.report.sweep_page import report_sweep
from distbranch.report.tensorboard import log_hparams
from distbranch.sweep.latency import measured
from distbranch.sweep.plan import value_of
from distbranch.sweep.trial_status import FINISHED, Standing, SweepDirectory

Row = dict[str, Any]
METRICS = ("accuracy", "balanced_accuracy", "average_precision", "top10_recall", "top3", "top5")
SIZES = ("weights", "parameters", "multiply_adds", "num_groups_top", "iterations", "seconds")


def rows_of(
    trials: Sequence[Config], varied: Sequence[str], directory: SweepDirectory, *, variants: Mapping[str, str]
) -> list[Row]:
    """One row per trial: name, status, reason, variant if any, varied keys, metrics in 0..1 per split, sizes, seconds, directory.

    A trial that has not finished shows its last evaluation on val, and at which iteration that was.
    """
    standings = directory.standings([str(config.run.name) for config in trials])
    named = {str(config.run.name): config for config in trials}
    return [
        _row(config, varied, directory, standings[name], {"variant": variants[name]} if variants else {})
        for name, config in named.items()
    ]


def write_results(rows: Sequence[Row], directory: SweepDirectory) -> None:
    """Measure the latency of finished networks, then write results.csv, results.parquet, the report and TensorBoard's view."""
    finished = [row for row in rows if row["status"] == FINISHED]
    latencies = measured([Path(row["directory"]) for row in finished], directory.latency) if finished else {}
    for row in finished:
        row["latency_ms"] = latencies[Path(row["directory"])]
    if not rows:  # Optuna before its first proposal
        return
    table = pandas.DataFrame([{key: _plain(value) for key, value in row.items()} for row in rows])
    for path, write in ((directory.results, table.to_csv), (directory.table, table.to_parquet)):
        aside = path.with_name(f".{path.name}")
        write(aside, index=False)
        aside.replace(path)
    log_hparams(read_sweep(directory.path), directory.tensorboard)
    report_sweep(directory.path)


def _row(
    config: Config, varied: Sequence[str], directory: SweepDirectory, standing: Standing, variant: Mapping[str, str]
) -> Row:
    name = str(config.run.name)
    row: Row = {"trial": name, "status": standing.status, "reason": standing.reason, **variant}
    row |= {key: value_of(config, key) for key in varied}
    result = read_result(config.run_directory) if standing.status == FINISHED else None
    summary = result.summary if result else _last_evaluation(directory, name)
    for split in ("val", "test"):
        means = summary.get("metrics", {}).get(split, {}).get("mean", {})
        row |= {f"{split}_{metric}": means.get(metric) for metric in METRICS}
    row |= {key: summary.get(key) for key in SIZES}
    row["latency_ms"] = None
    row["directory"] = str(config.run_directory)
    return row


def _last_evaluation(directory: SweepDirectory, name: str) -> dict[str, Any]:
    lines = [
        line
        for line in read_lines(directory.run(name).metrics)
        if line["kind"] == "evaluation" and line["split"] == "val"
    ]
    return {"metrics": {"val": lines[-1]}, "iterations": lines[-1]["iteration"]} if lines else {}


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value
