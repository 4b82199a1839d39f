"""The results of a sweep as one table: a row per trial, whatever became of it, with the latency of every finished network.

Latency is how long one image takes as the network would serve: batch norm folded, one thread, all networks in one process. By
turns, so that whatever else the machine does falls on all networks alike. Networks of the same architecture are measured once.
"""

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas
import torch

from distbranch.config import Config
from distbranch.config.sweep import METRICS
from distbranch.engine.artifact import load_model
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import read_lines, write_json
from distbranch.models.units import fold_norms
from distbranch.report.sweep_files import read_sweep
from distbranch.report.sweep_page import report_sweep
from distbranch.report.tensorboard import log_hparams
from distbranch.sweep.plan import get_config_value
from distbranch.sweep.trial_status import FINISHED, SweepDirectory, TrialStatus

Row = dict[str, Any]
NUM_TURNS = 15
CALLS_PER_TURN = 3
SIZES = ("weights", "parameters", "multiply_adds", "num_groups_top", "iterations", "seconds")


def make_rows(
    trials: Sequence[Config], varied: Sequence[str], directory: SweepDirectory, *, variants: Mapping[str, str]
) -> list[Row]:
    """One row per trial: name, status, reason, variant if any, varied keys, metrics in 0..1 per split, sizes, seconds, directory.

    A trial that has not finished shows its last evaluation on val, and at which iteration that was.
    """
    statuses = directory.read_statuses([str(config.run.name) for config in trials])
    named = {str(config.run.name): config for config in trials}
    return [
        _make_row(config, varied, directory, statuses[name], {"variant": variants[name]} if variants else {})
        for name, config in named.items()
    ]


def write_results(rows: Sequence[Row], directory: SweepDirectory) -> None:
    """Measure the latency of finished networks, then write results.csv, results.parquet, the report and TensorBoard's view."""
    finished = [row for row in rows if row["status"] == FINISHED]
    latencies = measure_latencies([Path(row["directory"]) for row in finished], directory.latency) if finished else {}
    for row in finished:
        row["latency_ms"] = latencies[Path(row["directory"])]
    if not rows:  # Optuna before its first proposal
        return
    table = pandas.DataFrame([{key: _format_cell(value) for key, value in row.items()} for row in rows])
    for path, write in ((directory.results, table.to_csv), (directory.table, table.to_parquet)):
        aside = path.with_name(f".{path.name}")
        write(aside, index=False)
        aside.replace(path)
    log_hparams(read_sweep(directory.path), directory.tensorboard)
    report_sweep(directory.path)


def _make_row(
    config: Config, varied: Sequence[str], directory: SweepDirectory, standing: TrialStatus, variant: Mapping[str, str]
) -> Row:
    name = str(config.run.name)
    row: Row = {"trial": name, "status": standing.status, "reason": standing.reason, **variant}
    row |= {key: get_config_value(config, key) for key in varied}
    result = read_result(config.run_directory) if standing.status == FINISHED else None
    summary = result.summary if result else _read_last_evaluation(directory, name)
    for split in ("val", "test"):
        means = summary.get("metrics", {}).get(split, {}).get("mean", {})
        row |= {f"{split}_{metric}": means.get(metric) for metric in METRICS}
    row |= {key: summary.get(key) for key in SIZES}
    row["latency_ms"] = None
    row["directory"] = str(config.run_directory)
    return row


def _read_last_evaluation(directory: SweepDirectory, name: str) -> dict[str, Any]:
    lines = [
        line
        for line in read_lines(directory.run(name).metrics)
        if line["kind"] == "evaluation" and line["split"] == "val"
    ]
    return {"metrics": {"val": lines[-1]}, "iterations": lines[-1]["iteration"]} if lines else {}


def _format_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


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
    if {key: known.get(key) for key in about} != about or not set(keys.values()) <= known["latency_ms"].keys():
        known = {**about, "latency_ms": _measure_by_turns({key: run for run, key in keys.items()})}
        write_json(record, known)
    return {run: known["latency_ms"][key] for run, key in keys.items()}


def _find_runtime() -> str:
    return "ONNX Runtime" if find_spec("onnxscript") and find_spec("onnxruntime") else "torch"


def _hash_architecture(run: Path) -> str:
    architecture = json.loads((run / "model" / "model.json").read_text())["architecture"]
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:16]


@torch.inference_mode()
def _measure_by_turns(runs: dict[str, Path]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    with _restrict_to_one_thread():
        answers = {key: _make_call(run) for key, run in runs.items()}
        for _ in range(NUM_TURNS):
            for key, answer in answers.items():
                seconds[key] += _measure_turn(answer)
    return {key: 1000 * statistics.median(times) for key, times in seconds.items()}


def _make_call(run: Path) -> Callable[[], Any]:
    """The call that takes one image through the network of a run."""
    network, preprocessing = load_model(run)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *preprocessing.image_size), dtype=torch.uint8, generator=generator)
    if _find_runtime() == "torch":
        folded = fold_norms(network)
        return lambda: folded(image)
    from distbranch.export.onnx_graph import onnx_bytes
    from distbranch.export.onnx_model import open_session

    session, pixels = open_session(onnx_bytes(network, {}, input_type="uint8"), num_threads=1), image.numpy()
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: pixels})


def _measure_turn(answer: Callable[[], Any]) -> list[float]:
    answer()  # fetches the weights that the network before has pushed out of the cache
    times = []
    for _ in range(CALLS_PER_TURN):
        began = time.perf_counter()
        answer()
        times.append(time.perf_counter() - began)
    return times


@contextmanager
def _restrict_to_one_thread() -> Iterator[None]:
    before: Any = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
