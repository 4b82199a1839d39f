"""Run and sweep directories as a machine would find them, written by hand: a list is about files, whoever wrote them."""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

STEP = {"kind": "train", "samples_per_second": 50.0}


def write_run(
    folder: Path, *, done: int = 0, evaluations: dict[int, float] | None = None, **dotted: Any
) -> Path:
    """A run of 1,000 steps of 10 images that has logged `done` of them, with these values of average precision on val."""
    train = {"iterations": 1000, "batch_size": 10, "metric": None, **dotted}
    values = {
        "run": {"name": folder.name, "directory": str(folder.parent)},
        "method": {"name": "branching"},
        "train": train,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    lines: list[dict[str, Any]] = []
    for iteration, value in (evaluations or {}).items():
        means = {"accuracy": 0.5, "average_precision": value, "standardised_error": 1 - value}
        line = {"kind": "evaluation", "iteration": iteration, "split": "val", "mean": means}
        lines += [line, {**line, "split": "train", "mean": {"average_precision": 1.0}}]
    if done:
        lines.append({**STEP, "iteration": done})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def finish(run: Path, **means: float) -> None:
    """Give a run its result, with these means on val, and on test a hundredth less."""
    on_test = {name: value - 0.01 for name, value in means.items()}
    summary = {
        "iterations": 1000,
        "seconds": 60.0,
        "metrics": {"val": {"mean": means}, "test": {"mean": on_test}},
    }
    (run / "result.json").write_text(json.dumps(summary))


def begin_on(run: Path, host: str) -> None:
    """The record of a start on that host, with a sign of life of this moment."""
    (run / "environment.json").write_text(json.dumps({"host": host}))
    (run / ".alive").touch()


def set_age(path: Path, seconds: float) -> None:
    """Let a file have been written so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def write_sweep_directory(folder: Path, **keys: Any) -> Path:
    """A sweep over widths and two seeds: six trials, of which none has begun."""
    folder.mkdir(parents=True)
    values = {
        "base": "base.yaml",
        "name": folder.name,
        "directory": str(folder.parent),
        "metric": "average_precision",
        "search": "grid",
        "grid": {"model.width": [8, 16, 32]},
        "seeds": [0, 1],
        **keys,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    return folder


def write_results(sweep: Path, rows: list[dict[str, Any]]) -> None:
    """The table of a sweep, as its driver last wrote it."""
    columns = ("trial", "status", "reason", "val_average_precision", "seconds", "directory")
    with (sweep / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({"directory": str(sweep / row["trial"]), **row})


def write_program(folder: Path, name: str, script: str) -> None:
    """A program of that name, to be put on PATH before the real one."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
