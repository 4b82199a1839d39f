"""How long one image takes through each network of a sweep: measured in one process, by turns, on one thread.

By turns, so that whatever else the machine does falls on all networks alike. Networks of the same architecture are measured once.
"""

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distbranch.engine.artifact import load_model
from distbranch.engine.run_directory import write_json
from distbranch.models.networks import Network

NUM_TURNS, CALLS_PER_TURN = 15, 3


def measured(runs: Sequence[Path], record: Path) -> dict[Path, float]:
    """Milliseconds per image (batch 1, eval mode, one CPU thread) of the network of each finished run: medians.

    Args:
        runs: run directories with a model.
        record: a JSON file of earlier measurements; if a network is not in it, all are measured anew, for only then are they
            comparable.
    """
    keys = {run: _key(run) for run in runs}
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("host") != platform.node() or not set(keys.values()) <= known.get("latency_ms", {}).keys():
        one_each = {key: run for run, key in keys.items()}
        known = {"host": platform.node(), "threads": 1, "turns": NUM_TURNS, "latency_ms": _measure(one_each)}
        write_json(record, known)
    return {run: known["latency_ms"][key] for run, key in keys.items()}


def _key(run: Path) -> str:
    architecture = json.loads((run / "model" / "model.json").read_text())["architecture"]
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:16]


@torch.inference_mode()
def _measure(runs: dict[str, Path]) -> dict[str, float]:
    networks = {key: load_model(run)[0] for key, run in runs.items()}
    seconds: dict[str, list[float]] = {key: [] for key in networks}
    with _one_thread():
        for _ in range(NUM_TURNS):
            for key, network in networks.items():
                seconds[key] += _turn(network)
    return {key: 1000 * statistics.median(times) for key, times in seconds.items()}


def _turn(network: Network) -> list[float]:
    height, width = network.architecture.image_size
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network(image)  # fetches the weights that the network before has pushed out of the cache
    times = []
    for _ in range(CALLS_PER_TURN):
        began = time.perf_counter()
        network(image)
        times.append(time.perf_counter() - began)
    return times


@contextmanager
def _one_thread() -> Iterator[None]:
    before: Any = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
