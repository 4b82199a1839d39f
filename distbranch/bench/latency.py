"""What answering costs: networks side by side in ONNX Runtime, batch norm folded, beside unfolded eager execution.

All of them take turns in one process, so that whatever else the machine does falls on all of them alike. Peak memory is that of
a process of its own which does nothing but load the file and answer once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distbranch.branching.tree import Split, Tree
from distbranch.engine.artifact import load_model
from distbranch.errors import UsageError, UserError
from distbranch.export import require
from distbranch.models.backbones import Architecture
from distbranch.models.cost import multiply_adds, num_weights
from distbranch.models.fold import fold
from distbranch.models.networks import Network
from distbranch.models.tree_net import TreeNet
from distbranch.tasks import Task

TURN_S = 0.05  # quick networks answer several times in their turn
FEWEST_ROUNDS = 3
ONNX, EAGER = "onnxruntime", "eager, unfolded"

_ANSWER_ONCE = """
import json, sys
import numpy as np, onnxruntime
def memory(kind):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(kind))
file, copies, shape, threads = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
before = memory("VmRSS")
sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for _ in range(copies)]
images = np.zeros(shape, np.uint8)
for session in sessions:
    session.run(None, {session.get_inputs()[0].name: images})
print(memory("VmHWM") - before)
"""


@dataclass(frozen=True)
class Candidate:
    """A network to measure. `copies`: networks that run one after another; one is measured, the time counts so often."""

    name: str
    network: Network
    copies: int = 1


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


def candidates_of_runs(runs: Sequence[Path], against: Sequence[str]) -> list[Candidate]:
    """The runs' networks, the thin network of their width, independent thin networks, and full backbones.

    Raises:
        UserError: no run there, or the runs are of different image sizes, widths or tasks.
    """
    networks = [load_model(run)[0] for run in runs]
    kinds = {replace(network.architecture, tree=_thin(network.architecture).tree) for network in networks}
    if len(kinds) > 1:
        raise UserError(
            "Latencies are compared between runs of the same backbone, width, image size and tasks, but these differ. "
            "Measure them one by one."
        )
    names = [run.name or str(run) for run in runs]
    return [*map(Candidate, names, networks), *_company(networks[0].architecture, against)]


def candidates_of_tree(
    *,
    backbone: str,
    width: int,
    image_size: tuple[int, int],
    num_tasks: int,
    least_weights: float | None,
    tree: Path | None,
    against: Sequence[str],
) -> list[Candidate]:
    """A tree with random weights in the same company: read from a run's tree.json, or grown to so many weights.

    Raises:
        UserError: the file holds no tree, or no tree has so many weights.
    """
    tasks = tuple(Task(f"task {number}") for number in range(num_tasks))
    if tree is not None:
        try:
            content = json.loads(tree.read_text())
            read = Tree.from_json(content.get("tree", content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{tree} holds no tree ({error}). Give the tree.json of a run.") from None
        tasks = tuple(Task(f"task {number}") for number in range(read.num_tasks))
        grown = Architecture(backbone, width, image_size, tasks, read)
    else:
        grown = halved_to(Architecture.thin(backbone, width, image_size, tasks), least_weights or 0)
    return [Candidate(f"tree-{width}", _random(grown)), *_company(grown, against)]


def halved_to(thin: Architecture, least_weights: float) -> Architecture:
    """The tree of at least so many weights with the fewest branches, every layer having half as many as the one above.

    Raises:
        UserError: even one branch per task in the top layer gives fewer.
    """
    num_tasks = len(thin.tasks)
    for widest in range(1, num_tasks + 1):
        grown, count = thin, widest
        while count > 1 and grown.tree.active_layer:
            tree = grown.tree
            above = np.arange(tree.num_branches(tree.active_layer + 1))
            groups = tuple(tuple(int(branch) for branch in group) for group in np.array_split(above, count))
            grown, count = grown.with_tree(tree.split(Split(tree.active_layer, groups))), (count + 1) // 2
            count = min(count, len(groups) - 1)
        if num_weights(grown) >= least_weights:
            return grown
    raise UserError(
        f"A halved tree of {num_tasks} tasks of width {thin.width} has at most {num_weights(grown):,} weights, fewer than "
        f"{least_weights:,.0f}. Ask for fewer, or for more tasks."
    )


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
        candidates: the one that is called `thin-...` is what the others are relative to.
        batch_sizes: images per call.
        eager: measure unfolded eager execution of torch too.
        seconds: about so long per batch size, and at least three rounds.
        num_threads: of both runtimes.
    """
    require("onnx")
    require("onnxruntime")
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = [_written(one, Path(folder) / f"{number}.onnx") for number, one in enumerate(candidates)]
            entries = _entries(candidates, files, eager, num_threads)
            rows: list[Latency] = []
            for batch_size in batch_sizes:
                rows += _rows(entries, batch_size, seconds, num_threads)
    finally:
        torch.set_num_threads(before)
    return rows


@dataclass(frozen=True)
class _Entry:
    candidate: Candidate
    runtime: str
    answer: Callable[[Any], Any]
    file: Path


def _company(architecture: Architecture, against: Sequence[str]) -> list[Candidate]:
    """Thin, independent and full networks for the same tasks and images."""
    thin = _thin(architecture)
    alone = thin.thin_of(thin.tasks[:1])
    num_tasks = len(thin.tasks)
    name = f"thin-{thin.width or thin.width_fraction or thin.backbone}"
    return [
        Candidate(name, _random(thin)),
        Candidate(f"independent ({num_tasks} x {name})", _random(alone), num_tasks),
        *(Candidate(full, _random(Architecture.thin(full, None, thin.image_size, thin.tasks))) for full in against),
    ]


def _thin(architecture: Architecture) -> Architecture:
    return architecture.thin_of(architecture.tasks)


def _random(architecture: Architecture) -> TreeNet:
    return TreeNet(architecture).eval()


def _written(candidate: Candidate, file: Path) -> Path:
    from distbranch.export.onnx_graph import onnx_bytes

    file.write_bytes(onnx_bytes(fold(candidate.network), {}, input_type="uint8"))
    return file


def _entries(candidates: Sequence[Candidate], files: Sequence[Path], eager: bool, num_threads: int) -> list[_Entry]:
    from distbranch.export.onnx_model import open_session

    entries = []
    for candidate, file in zip(candidates, files, strict=True):
        session = open_session(str(file), num_threads=num_threads)
        name = session.get_inputs()[0].name

        def run(images: Any, session: Any = session, name: str = name) -> None:
            session.run(None, {name: images})

        entries.append(_Entry(candidate, ONNX, run, file))
        if eager:
            entries.append(_Entry(candidate, EAGER, _eagerly(candidate.network), file))
    return entries


def _eagerly(network: Network) -> Callable[[Any], Any]:
    def run(images: Any) -> None:
        with torch.inference_mode():
            network(torch.from_numpy(images))

    return run


def _rows(entries: Sequence[_Entry], batch_size: int, seconds: float, num_threads: int) -> list[Latency]:
    size = entries[0].candidate.network.architecture.image_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 3, *size), dtype=np.uint8)
    times = _interleaved([entry.answer for entry in entries], images, seconds)
    thin = next(
        number
        for number, entry in enumerate(entries)
        if entry.candidate.name.startswith("thin-") and entry.runtime == ONNX
    )
    reference = float(np.median(times[thin]))
    return [
        _row(entry, batch_size, np.array(own) * entry.candidate.copies, reference, images.shape, num_threads)
        for entry, own in zip(entries, times, strict=True)
    ]


def _interleaved(answers: Sequence[Callable[[Any], Any]], images: Any, seconds: float) -> list[list[float]]:
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
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() < end:
        for turn in range(len(answers)):
            number = (turn + rounds) % len(answers)
            for _ in range(calls[number]):
                began = time.perf_counter()
                answers[number](images)
                times[number].append(time.perf_counter() - began)
        rounds += 1
    return times


def _row(
    entry: _Entry, batch_size: int, times: Any, reference: float, shape: tuple[int, ...], num_threads: int
) -> Latency:
    candidate, architecture = entry.candidate, entry.candidate.network.architecture
    low, median, high = (float(value) for value in np.percentile(times, (10, 50, 90)))
    tree, peak = architecture.tree, None
    if entry.runtime == ONNX and Path("/proc/self/status").exists():
        arguments = [str(entry.file), str(candidate.copies), json.dumps(shape), str(num_threads)]
        ended = subprocess.run(
            [sys.executable, "-c", _ANSWER_ONCE, *arguments], capture_output=True, text=True, check=True
        )
        peak = float(ended.stdout)
    return Latency(
        candidate.name,
        entry.runtime,
        batch_size,
        "-".join(str(tree.num_branches(layer)) for layer in range(1, tree.num_layers + 1)),
        num_weights(architecture) * candidate.copies,
        multiply_adds(architecture) * candidate.copies,
        1000 * median,
        1000 * low,
        1000 * high,
        batch_size / median,
        peak,
        median / reference,
    )


def parse_size(text: str) -> tuple[int, int]:
    """`224x224` (height x width) as numbers."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UsageError(f"An image size is HEIGHTxWIDTH, such as 224x224, found {text!r}.")
    return int(height), int(width)
