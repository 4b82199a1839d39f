"""The run that tests train: a few seconds, several widenings, several checkpoints; and how two runs are compared."""

import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample
from distbranch.tasks import Task

TASKS = (
    *(Task(f"cell-{number}") for number in range(7)),
    Task("kind", "categorical", ("low", "middle", "high")),
)
NUM_SAMPLES = {"train": 201, "val": 37, "test": 29}
ITERATIONS = 48


def pack_tiny(folder: Path, tasks: Sequence[Task] = TASKS) -> DatasetInfo:
    """Pictures of 4 x 4 cells; whether a cell is bright is one task each. Some labels are missing, in two tasks."""
    names = {task.name for task in tasks}

    def select_labels() -> Iterator[Sample]:
        for sample in _samples():
            labels = {name: label for name, label in sample.labels.items() if name in names}
            yield replace(sample, labels=labels)

    return pack(select_labels(), folder, tasks, shard_samples=40)


def _samples() -> Iterator[Sample]:
    draw = np.random.default_rng(5)
    for split, count in NUM_SAMPLES.items():
        for number in range(count):
            cells = draw.random((4, 4))
            noise = (
                np.repeat([0.1, 0.5], 2) * draw.random()
            )  # the right half of a picture is the more difficult one
            shown = cells + noise * draw.standard_normal((4, 4))
            pixels = (255 * shown.clip(0, 1)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            labels: dict[str, int | float | str] = {
                f"cell-{n}": int(cells.flat[n] > 0.5) for n in range(7)
            }
            labels["kind"] = TASKS[-1].classes[int(cells[3].mean() * 2.99)]
            if number % 5 == 0:
                del labels["cell-2"]
            if number % 7 == 0:
                del labels["kind"]
            content = io.BytesIO()
            Image.fromarray(pixels).convert("RGB").save(content, "JPEG", quality=90)
            yield Sample(f"{split}-{number:03d}", split, content.getvalue(), labels)


def config_of(data: Path | str, directory: Path | str, **dotted: Any) -> dict[str, Any]:
    """The configuration of a tiny run, with dotted overrides; it grows at nearly every decision."""
    values: dict[str, Any] = {
        "seed": 3,
        "run": {"name": "tiny", "directory": str(directory)},
        "data": {"path": str(data), "flip": True, "shift": 1},
        "model": {"backbone": "vgg9", "width": 2},
        "method": {"round_iterations": 7, "alpha": 2.0, "unit_cost": 1e-5, "max_branches": 3},
        "train": {
            "iterations": ITERATIONS,
            "batch_size": 12,
            "checkpoint_every": 5,
            "log_every": 4,
            "evaluate_every": 16,
            "eval_batch_size": 16,
        },
        "optim": {"name": "adamw", "lr": 0.01, "schedule": "cosine"},
        "launch": {"device": "cpu", "threads": 1, "timeout_min": 1},
        # Pictures of decisions take longer than all the rest of a tiny run.
        "track": [],
    }
    for key, value in dotted.items():
        *sections, last = key.split(".")
        part = values
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return values


def anew_config(data: Path | str, directory: Path | str, **dotted: Any) -> dict[str, Any]:
    """The configuration of a tiny run whose tree is decided by a scout; short, for its parts are two."""
    values: dict[str, Any] = {
        "train.iterations": 12,
        "train.evaluate_every": 0,
        "optim.warmup": 3,
        "method": {"begin": "anew", "affinity": "importance", "unit_cost": 1e-5, "max_branches": 3},
        "method.split_from": "conv4_1",
        "method.scout_iterations": 8,
    }
    return config_of(data, directory, **(values | dotted))


def lines_of(file: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; none if there is no file."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if kind is None or line["kind"] == kind]


def without_times(value: Any) -> Any:
    """JSON values without what depends on the clock."""
    if isinstance(value, Mapping):
        return {
            key: without_times(part) for key, part in value.items() if not key.startswith("seconds")
        }
    return [without_times(part) for part in value] if isinstance(value, list) else value


def content_of(run: Path) -> dict[str, Any]:
    """All that a run found out, bit for bit: decisions and the matrices behind them, policies, trees, weights, optimiser, metrics."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    matrices = {
        file.name: dict(np.load(file, allow_pickle=False))
        for file in sorted((run / "affinity").glob("*.npz"))
    }
    state = json.loads((newest / "state.json").read_text())
    return {
        "tree": json.loads((run / "tree.json").read_text()),
        **{
            name: without_times(lines_of(run / f"{name}.jsonl"))
            for name in ("decisions", "policies")
        },
        "matrices": {
            name: {key: value.tobytes() for key, value in parts.items()}
            for name, parts in matrices.items()
        },
        "model": (run / "model" / "model.safetensors").read_bytes(),
        "description": (run / "model" / "model.json").read_text(),
        "result": without_times(json.loads((run / "result.json").read_text())),
        "checkpoint": {
            file.name: file.read_bytes() for file in sorted(newest.glob("*.safetensors"))
        },
        "state": without_times(state),
    }


def assert_same_content(run: Path, reference: Path) -> None:
    """Both runs found out the same, bit for bit."""
    found, expected = content_of(run), content_of(reference)
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, f"{run} differs from {reference} in {different}"


def seeded(seed: int) -> random.Random:
    """Random choices that are the same every time."""
    return random.Random(seed)


def train_tiny(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: train as one rank; how it ended (`done`, `stopped`, `failed`), what it said, and what it reported."""
    from distbranch.engine.results import StoppedEarly
    from distbranch.errors import UserError
    from distbranch.launch import local, train

    local.log_decision = lambda *_: (
        None
    )  # pictures of decisions take longer than all the rest of a tiny run
    events: list[dict[str, Any]] = []
    try:
        train(config, report=events.append)
    except StoppedEarly as stopped:
        return {
            "end": "stopped",
            "message": str(stopped),
            "events": events,
            "exit_code": stopped.exit_code,
        }
    except UserError as error:
        return {"end": "failed", "message": str(error), "events": events}
    return {"end": "done", "message": "", "events": events}
