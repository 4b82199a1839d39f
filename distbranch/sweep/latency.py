"""How long one image takes through each network of a sweep as it would serve: batch norm folded, one thread, all in one process.

By turns, so that whatever else the machine does falls on all networks alike. Networks of the same architecture are measured once.
"""

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from distbranch.engine.artifact import load_model
from distbranch.engine.run_directory import write_json
from distbranch.models.fold import fold

NUM_TURNS, CALLS_PER_TURN = 15, 3


def measured(runs: Sequence[Path], record: Path) -> dict[Path, float]:
    """Milliseconds per image (batch 1, folded, one CPU thread) of the network of each finished run: medians.

    In ONNX Runtime where it is installed, else in torch; the record says which.

    Args:
        runs: run directories with a model.
        record: a JSON file of earlier measurements; if a network is not in it, all are measured anew, for only then are they
            comparable.
    """
    keys = {run: _key(run) for run in runs}
    about = {"host": platform.node(), "runtime": _runtime(), "threads": 1, "turns": NUM_TURNS}
    known = json.loads(record.read_text()) if record.exists() else {}
    if {key: known.get(key) for key in about} != about or not set(keys.values()) <= known["latency_ms"].keys():
        known = {**about, "latency_ms": _measure({key: run for run, key in keys.items()})}
        write_json(record, known)
    return {run: known["latency_ms"][key] for run, key in keys.items()}


def _runtime() -> str:
    return "ONNX Runtime" if find_spec("onnx") and find_spec("onnxruntime") else "torch"


def _key(run: Path) -> str:
    architecture = json.loads((run / "model" / "model.json").read_text())["architecture"]
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:16]


@torch.inference_mode()
def _measure(runs: dict[str, Path]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    with _one_thread():
        answers = {key: _answer(run) for key, run in runs.items()}
        for _ in range(NUM_TURNS):
            for key, answer in answers.items():
                seconds[key] += _turn(answer)
    return {key: 1000 * statistics.median(times) for key, times in seconds.items()}


def _answer(run: Path) -> Callable[[], Any]:
    """The call that takes one image through the network of a run."""
    network, preprocessing = load_model(run)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *preprocessing.image_size), dtype=torch.uint8, generator=generator)
    folded = fold(network)
    if _runtime() == "torch":
        return lambda: folded(image)
    from distbranch.export.onnx_graph import onnx_bytes
    from distbranch.export.onnx_model import open_session

    session, pixels = open_session(onnx_bytes(folded, {}, input_type="uint8"), num_threads=1), image.numpy()
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: pixels})


def _turn(answer: Callable[[], Any]) -> list[float]:
    answer()  # fetches the weights that the network before has pushed out of the cache
    times = []
    for _ in range(CALLS_PER_TURN):
        began = time.perf_counter()
        answer()
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
