"""What answering costs: networks side by side in ONNX Runtime, batch norm folded, beside unfolded eager execution.

Eager execution is measured twice: of the network as it is trained here (channels_last, the branches of a layer in one call), and
of the same tree as one would write it first (a module per branch, NCHW).

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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distbranch.bench.candidates import Candidate, NaiveNet, branch_counts
from distbranch.export import require_onnx
from distbranch.models.architecture import Architecture

TURN_S = 0.05  # quick networks answer several times in their turn: their first call finds the caches of the network before it
FEWEST_ROUNDS = 3  # the fewest of which a median leaves out an outlier
ONNX = "onnxruntime"
EAGER = "eager, unfolded"
NAIVE = "eager, a module per branch"

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


@dataclass(frozen=True)
class Latency:
    """One network at one batch size: `median_ms` per batch with the 10th and 90th percentile, `peak_mib` above an idle process."""

    network: str
    runtime: str
    batch_size: int
    branches: str  # of every layer, from the input up
    weights: int
    multiply_adds: int
    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    peak_mib: float | None
    relative: float  # to the thin network in ONNX Runtime at this batch size


def bench_latency(
    candidates: Sequence[Candidate],
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    eager: bool = False,
    seconds: float = 20.0,
    num_threads: int = 1,
) -> list[Latency]:
    """Latency, throughput and peak memory of every candidate at every batch size.

    Args:
        candidates: those to be measured, then the baselines; all are relative to the thin network among them.
        batch_sizes: images per call.
        eager: measure unfolded eager execution of torch too, and of the measured trees as a module per branch.
        seconds: about so long per batch size, and at least three rounds.
        num_threads: of both runtimes.
    """
    require_onnx()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = [_write_onnx(one, Path(folder) / f"{number}.onnx") for number, one in enumerate(candidates)]
            entries = _prepare_entries(candidates, files, eager, num_threads)
            rows: list[Latency] = []
            for batch_size in batch_sizes:
                rows += _measure_rows(entries, batch_size, seconds, num_threads)
    finally:
        torch.set_num_threads(before)
    return rows


def compare_latencies(rows: Sequence[Latency], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Per batch size and measured network (those before the thin one): what it costs beside the others, as ratios of medians."""
    medians = {(row.network, row.runtime, row.batch_size): row.median_ms for row in rows}
    names = [one.name for one in candidates]
    thin = _find_reference(candidates)
    found = []
    for batch_size in dict.fromkeys(row.batch_size for row in rows):
        for name in names[:thin]:
            own = medians[name, ONNX, batch_size]
            line = {"network": name, "batch": batch_size}
            line[f"x {names[thin]}"] = own / medians[names[thin], ONNX, batch_size]
            for other in names[thin + 1 :]:
                line[f"{other} costs x"] = medians[other, ONNX, batch_size] / own
            for runtime in (EAGER, NAIVE):
                if (name, runtime, batch_size) in medians:
                    line[f"faster than {runtime} x"] = medians[name, runtime, batch_size] / own
            found.append(line)
    return found


def describe_machine(num_threads: int) -> dict[str, Any]:
    """Where it was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:(.*)", text, re.MULTILINE)
    processor = platform.machine()
    if model and model[1].strip():
        processor = model[1].strip()
    versions = {name: version(name) for name in ("torch", "onnxruntime")}
    return {"processor": processor, "threads": num_threads, **versions}


@dataclass(frozen=True)
class _Entry:
    candidate: Candidate
    runtime: str
    answer: Callable[[Any], Any]
    file: Path


def _find_reference(candidates: Sequence[Candidate]) -> int:
    """The place of the thin network; those before it are measured, those after it are its baselines."""
    return [one.is_reference for one in candidates].index(True)


def _write_onnx(candidate: Candidate, file: Path) -> Path:
    from distbranch.export.onnx_graph import onnx_bytes

    file.write_bytes(onnx_bytes(candidate.network, {}, input_type="uint8"))
    return file


def _prepare_entries(
    candidates: Sequence[Candidate], files: Sequence[Path], eager: bool, num_threads: int
) -> list[_Entry]:
    from distbranch.export.onnx_model import open_session

    entries = []
    num_measured = _find_reference(candidates)
    for number, (candidate, file) in enumerate(zip(candidates, files, strict=True)):
        session = open_session(str(file), num_threads=num_threads)
        name = session.get_inputs()[0].name

        def run(images: Any, session: Any = session, name: str = name) -> None:
            session.run(None, {name: images})

        entries.append(_Entry(candidate, ONNX, run, file))
        if eager:
            entries.append(_Entry(candidate, EAGER, _answer_eagerly(candidate.network), file))
        if eager and number < num_measured and _is_tree(candidate.network.architecture):
            naive = NaiveNet(candidate.network).eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            entries.append(_Entry(candidate, NAIVE, _answer_eagerly(naive), file))
    return entries


def _is_tree(architecture: Architecture) -> bool:
    """Whether one would write it as modules within modules."""
    return not architecture.has_policy and not architecture.backbone.low_rank


def _answer_eagerly(network: nn.Module) -> Callable[[Any], Any]:
    def run(images: Any) -> None:
        with torch.inference_mode():
            network(torch.from_numpy(images))

    return run


def _measure_rows(entries: Sequence[_Entry], batch_size: int, seconds: float, num_threads: int) -> list[Latency]:
    size = entries[0].candidate.network.architecture.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 3, *size), dtype=np.uint8)
    times = _time_interleaved([entry.answer for entry in entries], images, seconds)
    # Everything is relative to the thin network as it would serve.
    is_thin = [entry.candidate.is_reference and entry.runtime == ONNX for entry in entries]
    reference = float(np.median(times[is_thin.index(True)]))
    rows = []
    for entry, own in zip(entries, times, strict=True):
        # Independent networks answer one after another, and are alike.
        all_copies = np.array(own) * entry.candidate.copies
        rows.append(_make_row(entry, batch_size, all_copies, reference, images.shape, num_threads))
    return rows


def _time_interleaved(answers: Sequence[Callable[[Any], Any]], images: Any, seconds: float) -> list[list[float]]:
    """Seconds of every call after the first ones; each round gives everyone a turn, beginning with another."""
    calls = []
    for answer in answers:
        for _ in range(2):
            began = time.perf_counter()
            answer(images)
            took = time.perf_counter() - began
            if took > 1:  # what warms up in the first call is little of so long a one
                break
        calls.append(max(1, round(TURN_S / took)))
    times: list[list[float]] = [[] for _ in answers]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() < end:
        for turn in range(len(answers)):
            # Another one first in every round: who comes after a large network finds cold caches.
            number = (turn + rounds) % len(answers)
            for _ in range(calls[number]):
                began = time.perf_counter()
                answers[number](images)
                times[number].append(time.perf_counter() - began)
        rounds += 1
    return times


def _make_row(
    entry: _Entry, batch_size: int, times: Any, reference: float, shape: tuple[int, ...], num_threads: int
) -> Latency:
    candidate = entry.candidate
    architecture = candidate.network.architecture
    cost = architecture.cost()
    low, median, high = np.percentile(times, (10, 50, 90)).tolist()
    peak = None
    if entry.runtime == ONNX and Path("/proc/self/status").exists():
        # A process of its own, for the memory of this one is that of all networks together.
        arguments = [str(entry.file), str(candidate.copies), json.dumps(shape), str(num_threads)]
        ended = subprocess.run(
            [sys.executable, "-c", _ANSWER_ONCE, *arguments], capture_output=True, text=True, check=True
        )
        peak = float(ended.stdout)
    return Latency(
        candidate.name,
        entry.runtime,
        batch_size,
        branch_counts(architecture.tree),
        cost.weights * candidate.copies,
        cost.multiply_adds * candidate.copies,
        1000 * median,
        1000 * low,
        1000 * high,
        batch_size / median,
        peak,
        median / reference,
    )
