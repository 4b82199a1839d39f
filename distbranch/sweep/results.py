"""The results of a sweep as one table: a row per trial, whatever became of it, with the latency of every finished network."""

import json
import logging
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from distbranch.config import Config
from distbranch.config.sweep import SHARES, VARIANT, SweepConfig
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UserError
from distbranch.launch.jobs import read_summary
from distbranch.metrics import list_means
from distbranch.permissions import explain_damage
from distbranch.report.sweep_files import read_sweep
from distbranch.report.sweep_page import report_sweep
from distbranch.report.tensorboard import log_hparams
from distbranch.sweep.importances import write_importances
from distbranch.sweep.latencies import Latency, measure_latencies
from distbranch.sweep.plan import get_config_value, group_trials_by_variant
from distbranch.sweep.trial_status import FINISHED, SweepDirectory

Row = dict[str, Any]
logger = logging.getLogger("distbranch")
SIZES = ("weights", "parameters", "multiply_adds", "num_groups_top", "iterations", "seconds")
LATENCIES = ("latency_ms", "latency_low_ms", "latency_high_ms")  # of one image, and its interval


def make_rows(
    sweep: SweepConfig,
    trials: Sequence[Config],
    directory: SweepDirectory,
    *,
    variants: Mapping[str, Row] | None = None,
    known: MutableMapping[str, Row] | None = None,
) -> list[Row]:
    """One row per trial: name, status, reason, variant if any, varied keys, metrics in 0..1 per split, sizes, seconds, directory.

    A trial that has not finished shows its last evaluation on val, and at which iteration that was.

    Args:
        sweep: of the trials.
        trials: in the order of the rows.
        directory: of the sweep.
        variants: what `list_variants` gives, for who asks again and again.
        known: rows of finished trials by name, which are read once and added here.
    """
    variants = list_variants(sweep) if variants is None else variants
    known = {} if known is None else known
    statuses = directory.read_statuses(trials)
    rows = []
    for config in trials:
        name = str(config.run.name)
        status = statuses[name]
        if name in known and status.status == FINISHED:
            rows.append(known[name])
            continue
        row: Row = {
            "trial": name,
            "status": status.status,
            "reason": status.reason,
            **variants.get(name, {}),
        }
        row |= {key: get_config_value(config, key) for key in sweep.varied}
        summary = _read_summary(RunDirectory(config.run_directory), status.status)
        for split in ("val", "test"):
            means = summary.get("metrics", {}).get(split, {}).get("mean", {})
            row |= {f"{split}_{metric}": means.get(metric) for metric in list_means()}
        row |= {key: summary.get(key) for key in SIZES}
        # As `export` writes them; only branches that store differences have fewer weights than that.
        row["folded_weights"] = summary.get("folded_weights", row["weights"])
        row |= dict.fromkeys(LATENCIES)
        rows.append({**row, "directory": str(config.run_directory)})
        if status.status == FINISHED:
            known[name] = rows[-1]
    return rows


def list_variants(sweep: SweepConfig) -> dict[str, Row]:
    """The cell that says the variant of each trial, by name; none of a sweep without variants, which has no such column."""
    variants: dict[str, Row] = {}
    if sweep.variants:
        for variant, own in group_trials_by_variant(sweep).items():
            variants |= {str(config.run.name): {VARIANT: variant} for config in own}
    return variants


def _read_summary(files: RunDirectory, status: str) -> dict[str, Any]:
    if status == FINISHED:
        return read_summary(files) or {}
    summary = {}
    for line in read_lines(files.metrics):
        if line["kind"] == "evaluation" and line["split"] == "val":
            summary = {"metrics": {"val": line}, "iterations": line["iteration"]}
    return summary


def write_results(
    rows: Sequence[Row],
    directory: SweepDirectory,
    *,
    has_ended: bool = True,
    in_tensorboard: bool = True,
) -> None:
    """Measure the latency of finished networks, then write results.csv, results.parquet, the report and TensorBoard's view.

    The latter only `in_tensorboard`, where its trials are (`track`). Of a sweep that was stopped (`has_ended` False) nothing is
    measured: that may take minutes, and whoever stopped it may kill it.
    """
    finished = {Path(row["directory"]): row for row in rows if row["status"] == FINISHED}
    if finished and has_ended:
        for path, latency in _measure_or_warn(list(finished), directory.latency).items():
            numbers = (latency.median_ms, latency.low_ms, latency.high_ms)
            finished[path] |= dict(zip(LATENCIES, numbers, strict=True))
    if not rows:  # Optuna before its first proposal
        return
    write_table(rows, directory)
    written = read_sweep(directory.path)
    if in_tensorboard:
        log_hparams(written, directory.tensorboard)
    if has_ended:
        write_importances(written, directory.importances)
    report_sweep(directory.path)


def _measure_or_warn(runs: Sequence[Path], record: Path) -> dict[Path, Latency]:
    """The latencies; none where a model is damaged, which is warned of: the table has all else."""
    try:
        with explain_damage(
            "The model of a trial is damaged", "Remove its folder to train it again."
        ):
            return measure_latencies(runs, record)
    except UserError as error:
        logger.warning("The table has no latencies: %s", error)
        return {}


def write_table(rows: Sequence[Row], directory: SweepDirectory) -> None:
    """Write results.csv and results.parquet, each whole or not at all."""
    table = pandas.DataFrame(rows).map(_format_cell)
    # What only numbers have is no column where no task is one.
    others = [key for key in list_means() if key not in SHARES]
    columns = [f"{split}_{key}" for split in ("val", "test") for key in others]
    table = table.drop(columns=[column for column in columns if table[column].isna().all()])
    # Whole or not at all: a report may read while a sweep ends.
    for path, write in ((directory.results, table.to_csv), (directory.table, table.to_parquet)):
        aside = path.with_name(f".{path.name}")
        write(aside, index=False)
        aside.replace(path)


def _format_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
