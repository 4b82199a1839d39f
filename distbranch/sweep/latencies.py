"""How long one image takes in the networks of a sweep as they would serve: batch norm folded, one thread, all in one process.

By turns, so that whatever else the machine does falls on all networks alike. Networks of the same architecture are measured once.
"""

import hashlib
import json
import logging
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from distbranch.engine.artifact import load_model
from distbranch.engine.run_directory import write_json
from distbranch.models.units import fold_norms

# A median of 15 does not see a machine that is busy for a third of the time; three calls even out what a clock cannot resolve.
NUM_TURNS = 15
CALLS_PER_TURN = 3
# The 4th shortest and the 4th longest of 15 turns enclose the true median with a probability of 96.5 %, whatever the times are
# distributed like: 1 - 2 P(Binomial(15, 1/2) <= 3).
RANK_OF_BOUND = 4


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image: the median over turns, and an interval that holds the true one 96 times of 100."""

    median_ms: float
    low_ms: float
    high_ms: float


def measure_latencies(runs: Sequence[Path], record: Path) -> dict[Path, Latency]:
    """The latency (batch 1, folded, one CPU thread) of the network of each finished run.

    In ONNX Runtime where it is installed, else in torch; the record says which.

    Args:
        runs: run directories with a model.
        record: a JSON file of earlier measurements; if a network is not in it, all are measured anew, for only then are they
            comparable.
    """
    keys = {run: _hash_architecture(run) for run in runs}
    about = _describe_measurement()
    before = json.loads(record.read_text()) if record.exists() else {}
    parts = ("latency_ms", "low_ms", "high_ms")
    # Records of earlier releases have medians alone: those networks are measured anew.
    medians, lows, highs = (before.pop(part, {}) for part in parts)
    if before != about or not lows.keys() >= set(keys.values()):
        times = _measure_by_turns({key: run for run, key in keys.items()})
        medians, lows, highs = _summarise_turns(times)
        write_json(record, {**about, **dict(zip(parts, (medians, lows, highs), strict=True))})
    return {run: Latency(medians[key], lows[key], highs[key]) for run, key in keys.items()}


def measure_new_latencies(runs: Sequence[Path], record: Path) -> dict[Path, float]:
    """Milliseconds per image while a search runs: those of the record stay, each new network is measured beside a known one.

    The other trials train meanwhile, so a new network is told as a multiple of the known one, by the median ratio of their
    turns: what slows the machine slows both.

    Args:
        runs: run directories with a model.
        record: a JSON file of earlier measurements.
    """
    keys = {run: _hash_architecture(run) for run in runs}
    folders = {key: run for run, key in keys.items()}
    known = json.loads(record.read_text())["latency_ms"] if record.exists() else {}
    new = {key: run for key, run in folders.items() if key not in known}
    if new:
        # None where the search has just begun, or where the known runs were removed.
        anchor = next((key for key in folders if key in known), next(iter(new)))
        times = _measure_by_turns({anchor: folders[anchor], **new})
        anchor_ms = known.get(anchor, 1000 * statistics.median(times[anchor]))
        for key in new:
            ratios = [one / other for one, other in zip(times[key], times[anchor], strict=True)]
            known[key] = anchor_ms * statistics.median(ratios)
        write_json(record, {**_describe_measurement(), "latency_ms": known})
    return {run: known[key] for run, key in keys.items()}


def _describe_measurement() -> dict[str, Any]:
    return {"host": platform.node(), "runtime": _find_runtime(), "threads": 1, "turns": NUM_TURNS}


def _find_runtime() -> str:
    return "ONNX Runtime" if find_spec("onnxscript") and find_spec("onnxruntime") else "torch"


def _hash_architecture(run: Path) -> str:
    architecture = json.loads((run / "model" / "model.json").read_text())["architecture"]
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:16]


def _summarise_turns(
    times: Mapping[str, Sequence[float]],
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """The medians in ms, and both bounds of their intervals."""
    medians, lows, highs = {}, {}, {}
    for key, seconds in times.items():
        ordered = sorted(1000 * second for second in seconds)
        medians[key] = statistics.median(ordered)
        lows[key] = ordered[RANK_OF_BOUND - 1]
        highs[key] = ordered[-RANK_OF_BOUND]
    return medians, lows, highs


@torch.inference_mode()
def _measure_by_turns(runs: Mapping[str, Path]) -> dict[str, list[float]]:
    """Seconds per image of every turn of every network."""
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
    return seconds


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
