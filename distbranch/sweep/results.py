"""The results of a sweep as one table: a row per trial, whatever became of it, with the latency of every finished network.

Latency is how long one image takes as the network would serve: batch norm folded, one thread, all networks in one process. By
turns, so that whatever else the machine does falls on all networks alike. Networks of the same architecture are measured once.
"""

import hashlib
import json
import logging
import platform
import statistics
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas
import torch

from distbranch.config import Config
from distbranch.config.sweep import SHARES, VARIANT, SweepConfig
from distbranch.engine.artifact import load_model
from distbranch.engine.run_directory import RunDirectory, read_lines, write_json
from distbranch.launch.jobs import read_summary
from distbranch.metrics import list_means
from distbranch.models.units import fold_norms
from distbranch.report.sweep_files import read_sweep
from distbranch.report.sweep_page import report_sweep
from distbranch.report.tensorboard import log_hparams
from distbranch.sweep.plan import get_config_value, group_trials_by_variant
from distbranch.sweep.trial_status import FINISHED, SweepDirectory

Row = dict[str, Any]
# A median of 15 does not see a machine that is busy for a third of the time; three calls even out what a clock cannot resolve.
NUM_TURNS = 15
CALLS_PER_TURN = 3
SIZES = ("weights", "parameters", "multiply_adds", "num_groups_top", "iterations", "seconds")


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
        rows.append({**row, "latency_ms": None, "directory": str(config.run_directory)})
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


def write_results(rows: Sequence[Row], directory: SweepDirectory) -> None:
    """Measure the latency of finished networks, then write results.csv, results.parquet, the report and TensorBoard's view."""
    finished = {Path(row["directory"]): row for row in rows if row["status"] == FINISHED}
    if finished:
        latencies = measure_latencies(list(finished), directory.latency)
        for path, row in finished.items():
            row["latency_ms"] = latencies[path]
    if not rows:  # Optuna before its first proposal
        return
    write_table(rows, directory)
    log_hparams(read_sweep(directory.path), directory.tensorboard)
    report_sweep(directory.path)


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


def measure_latencies(runs: Sequence[Path], record: Path) -> dict[Path, float]:
    """Milliseconds per image (batch 1, folded, one CPU thread) of the network of each finished run: medians.

    In ONNX Runtime where it is installed, else in torch; the record says which.

    Args:
        runs: run directories with a model.
        record: a JSON file of earlier measurements; if a network is not in it, all are measured anew, for only then are they
            comparable.
    """
    keys = {run: _hash_architecture(run) for run in runs}
    about = {"host": platform.node(), "runtime": _find_runtime(), "threads": 1, "turns": NUM_TURNS}
    known = json.loads(record.read_text()) if record.exists() else {}
    latencies = known.pop("latency_ms", {})
    if known != about or not latencies.keys() >= set(keys.values()):
        latencies = _measure_by_turns({key: run for run, key in keys.items()})
        write_json(record, {**about, "latency_ms": latencies})
    return {run: latencies[key] for run, key in keys.items()}


def _find_runtime() -> str:
    return "ONNX Runtime" if find_spec("onnxscript") and find_spec("onnxruntime") else "torch"


def _hash_architecture(run: Path) -> str:
    architecture = json.loads((run / "model" / "model.json").read_text())["architecture"]
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:16]


@torch.inference_mode()
def _measure_by_turns(runs: dict[str, Path]) -> dict[str, float]:
    # It brings what builds extensions, which takes a second, and warns where there is a compiler for GPUs and no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    # A timer calls twice before it counts: that fetches the weights that the network before has pushed out of the cache.
    timers = {
        key: Timer("answer()", globals={"answer": _make_call(run)}, num_threads=1)
        for key, run in runs.items()
    }
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(NUM_TURNS):
        for key, timer in timers.items():
            seconds[key].append(timer.timeit(CALLS_PER_TURN).mean)
    return {key: 1000 * statistics.median(times) for key, times in seconds.items()}


def _make_call(run: Path) -> Callable[[], Any]:
    """The call that takes one image through the network of a run."""
    network, preprocessing = load_model(run)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(
        0, 256, (1, 3, *preprocessing.image_size), dtype=torch.uint8, generator=generator
    )
    if _find_runtime() == "torch":
        folded = fold_norms(network)
        return lambda: folded(image)
    from distbranch.export.onnx_graph import onnx_bytes
    from distbranch.export.onnx_model import open_session

    session = open_session(onnx_bytes(network, {}, input_type="uint8"), num_threads=1)
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)
