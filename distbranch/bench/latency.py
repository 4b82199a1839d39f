"""What answering costs: networks side by side in ONNX Runtime, batch norm folded, beside unfolded eager execution.

Eager execution is measured twice: of the network as it is trained here (channels_last), and of the same tree as one would write it
first (a module per branch, NCHW).

All of them take turns in one process, so that whatever else the machine does falls on all of them alike. Peak memory is that of
a process of its own which does nothing but load the file and answer once.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from distbranch.bench.candidates import Candidate, NaiveNet, branch_counts
from distbranch.export import require_onnx
from distbranch.models.architecture import Architecture
from distbranch.models.units import set_memory_format

TURN_S = 0.05  # quick networks answer several times in their turn: their first call finds the caches of the network before it
FEWEST_ROUNDS = 3  # the fewest of which a median leaves out an outlier
ONNX = "onnxruntime"
EAGER = "eager, unfolded"
NAIVE = "eager, a module per branch"

Row = dict[str, Any]

_ANSWER_ONCE = """
import json, sys
import numpy as np, onnxruntime
def memory(kind):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(kind))
file, copies, shape, threads = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
options.enable_cpu_mem_arena = False  # which would keep what one call needed, once for every network
before = memory("VmRSS")
sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for _ in range(copies)]
images = np.zeros(shape, np.uint8)
for session in sessions:
    session.run(None, {session.get_inputs()[0].name: images})
print(memory("VmHWM") - before)
"""


class _Entry(NamedTuple):
    """A network in one runtime."""

    candidate: Candidate
    runtime: str
    answer: Callable[[Any], Any]
    file: Path


def bench_latency(
    candidates: Sequence[Candidate],
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    eager: bool = False,
    seconds: float = 20.0,
    num_threads: int = 1,
) -> tuple[list[Row], list[Row]]:
    """Latency, throughput and peak memory of every candidate at every batch size.

    Args:
        candidates: those to be measured, then the baselines, of which the first is the thin network.
        batch_sizes: images per call.
        eager: measure unfolded eager execution of torch too, and of the measured trees as a module per branch.
        seconds: about so long per batch size, and at least three rounds.
        num_threads: of both runtimes.

    Returns:
        A row per network, runtime and batch size. `median_ms` is per batch, `low_ms` and `high_ms` are the 10th and 90th
        percentile, `peak_mib` is above an idle process, `relative` to the thin network in ONNX Runtime at this batch size.
        And a row per measured network and batch size: what it costs beside the others, as ratios of medians.
    """
    require_onnx()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    rows: list[Row] = []
    compared: list[Row] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            entries: list[_Entry] = []
            for number, candidate in enumerate(candidates):
                entries += _prepare_entries(
                    candidate, Path(folder) / f"{number}.onnx", eager, num_threads
                )
            for batch_size in batch_sizes:
                measured = _measure_rows(entries, batch_size, seconds, num_threads)
                rows += measured
                compared += _compare_rows(entries, measured)
    finally:
        torch.set_num_threads(before)
    return rows, compared


def _prepare_entries(
    candidate: Candidate, file: Path, eager: bool, num_threads: int
) -> list[_Entry]:
    from distbranch.export.onnx_graph import onnx_bytes
    from distbranch.export.onnx_model import open_session

    network = candidate.network
    file.write_bytes(onnx_bytes(network, {}, input_type="uint8"))
    session = open_session(str(file), num_threads=num_threads)
    name = session.get_inputs()[0].name
    entries = [_Entry(candidate, ONNX, lambda images: session.run(None, {name: images}), file)]
    if eager:
        entries.append(_Entry(candidate, EAGER, _answer_eagerly(network), file))
    if eager and not candidate.is_baseline and _is_tree(network.architecture):
        naive = NaiveNet(network).eval()
        set_memory_format(naive, torch.contiguous_format)
        entries.append(_Entry(candidate, NAIVE, _answer_eagerly(naive), file))
    return entries


def _is_tree(architecture: Architecture) -> bool:
    """Whether one would write it as modules within modules."""
    is_plain = not architecture.has_policy and not architecture.backbone.low_rank
    return is_plain and architecture.baseline is None


def _answer_eagerly(network: nn.Module) -> Callable[[Any], Any]:
    @torch.inference_mode()
    def answer(images: Any) -> None:
        network(torch.from_numpy(images))

    return answer


def _measure_rows(
    entries: Sequence[_Entry], batch_size: int, seconds: float, num_threads: int
) -> list[Row]:
    size = entries[0].candidate.network.architecture.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 3, *size), dtype=np.uint8)
    all_times = _time_interleaved([entry.answer for entry in entries], images, seconds)
    rows = []
    for entry, times in zip(entries, all_times, strict=True):
        candidate = entry.candidate
        architecture = candidate.network.architecture
        cost = architecture.cost()
        # Independent networks answer one after another, and are alike.
        low, median, high = np.percentile(times, (10, 50, 90)) * candidate.copies * 1000
        rows.append(
            {
                "network": candidate.name,
                "runtime": entry.runtime,
                "batch_size": batch_size,
                "branches": branch_counts(architecture.tree),
                "weights": cost.weights * candidate.copies,
                "multiply_adds": cost.multiply_adds * candidate.copies,
                "median_ms": median,
                "low_ms": low,
                "high_ms": high,
                "images_per_s": 1000 * batch_size / median,
                "peak_mib": _measure_peak(entry, images.shape, num_threads),
            }
        )
    # Everything is relative to the thin network as it would serve, which is the first baseline.
    thin = [entry.candidate.is_baseline for entry in entries].index(True)
    for row in rows:
        row["relative"] = row["median_ms"] / rows[thin]["median_ms"]
    return rows


def _compare_rows(entries: Sequence[_Entry], rows: Sequence[Row]) -> list[Row]:
    """What each measured network costs beside the others; by position, for a run may be called like a baseline."""
    pairs = list(zip(entries, rows, strict=True))
    thin, *others = [
        row for entry, row in pairs if entry.candidate.is_baseline and entry.runtime == ONNX
    ]
    compared: list[Row] = []
    for entry, row in pairs:
        if entry.candidate.is_baseline:
            continue
        # A network in ONNX Runtime comes before the same in eager execution.
        if entry.runtime == ONNX:
            own = row
            compared.append(
                {
                    "network": row["network"],
                    "batch": row["batch_size"],
                    f"x {thin['network']}": row["relative"],
                }
            )
            for other in others:
                compared[-1][f"{other['network']} costs x"] = other["median_ms"] / own["median_ms"]
        else:
            compared[-1][f"faster than {row['runtime']} x"] = row["median_ms"] / own["median_ms"]
    return compared


def _time_interleaved(
    answers: Sequence[Callable[[Any], Any]], images: Any, seconds: float
) -> list[list[float]]:
    """Seconds of every call after the first ones; each round gives everyone a turn, beginning with another."""
    for answer in answers:
        answer(images)  # what warms up in the first call
    calls = [max(1, round(TURN_S / _time_call(answer, images))) for answer in answers]
    times: list[list[float]] = [[] for _ in answers]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() < end:
        for turn in range(len(answers)):
            # Another one first in every round: who comes after a large network finds cold caches.
            number = (turn + rounds) % len(answers)
            for _ in range(calls[number]):
                times[number].append(_time_call(answers[number], images))
        rounds += 1
    return times


def _time_call(answer: Callable[[Any], Any], images: Any) -> float:
    began = time.perf_counter()
    answer(images)
    return time.perf_counter() - began


def _measure_peak(entry: _Entry, shape: tuple[int, ...], num_threads: int) -> float | None:
    """MiB above an idle process; None where the system does not tell them, and of eager execution."""
    if entry.runtime != ONNX or not Path("/proc/self/status").exists():
        return None
    # A process of its own, for the memory of this one is that of all networks together.
    arguments = [str(entry.file), str(entry.candidate.copies), json.dumps(shape), str(num_threads)]
    command = [sys.executable, "-c", _ANSWER_ONCE, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def describe_machine(num_threads: int) -> Row:
    """Where it was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(\S.*)", text, re.MULTILINE)
    return {
        "processor": model[1] if model else platform.machine(),
        "threads": num_threads,
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }
