"""Where a run stands as gauges of Prometheus: a number each, with labels. They are made of the lines of metrics.jsonl.

As text they are the file `metrics.prom` of the run directory, which node_exporter collects; under Ray its metrics agent has them.
"""

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distbranch.engine.checkpoint import list_checkpoints
from distbranch.engine.run_directory import SCOUT, RunDirectory, read_lines

# What each is, and its labels beside `run` and `sweep`.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "distbranch_iteration": ("Optimiser steps that are done.", ()),
    "distbranch_iterations": ("Optimiser steps in all (train.iterations).", ()),
    "distbranch_loss": ("Loss per image since the last logged step.", ()),
    "distbranch_samples_per_second": ("Images per second over all ranks.", ()),
    "distbranch_data_wait_ratio": ("Part of the time in which rank 0 waits for data.", ()),
    "distbranch_slowest_rank_seconds": (
        "Seconds of a step that the slowest rank spends before it meets the others.",
        ("rank", "host"),
    ),
    "distbranch_median_rank_seconds": ("The same of the median rank.", ()),
    "distbranch_branches": ("Branches of a layer.", ("layer",)),
    "distbranch_score": ("Mean over tasks at the last evaluation.", ("split", "metric")),
    "distbranch_resumes": ("How often the run was resumed.", ()),
    "distbranch_checkpoint_timestamp_seconds": ("When the last checkpoint was written.", ()),
    "distbranch_logged_timestamp_seconds": ("When these values were written.", ()),
}


@dataclass(frozen=True)
class Gauge:
    """One value of a gauge, with all its labels."""

    name: str
    labels: Mapping[str, str]
    value: float


class RunGauges:
    """The gauges of a run as its lines come in.

    Args:
        directory: of the run; the lines that are in it are taken in.
        iterations: its steps in all.
    """

    def __init__(self, directory: RunDirectory, iterations: int) -> None:
        self.directory = directory
        self._labels = {"run": name_run(directory.path), "sweep": find_sweep(directory.path) or ""}
        self._by_kind: dict[str, list[Gauge]] = {}
        self._num_resumed = 0
        self._add("iterations", [self._make("iterations", iterations)])
        for line in read_lines(directory.metrics):
            self.take_line(line)

    def take_line(self, line: Mapping[str, Any]) -> bool:
        """Take in a line of metrics.jsonl; whether it changes any value."""
        if line["kind"] == "train":
            self._add("train", self._list_training(line))
        elif line["kind"] == "evaluation":
            self._add(f"scores on {line['split']}", self._list_scores(line))
        elif line["kind"] == "resumed":
            self._num_resumed += 1
        else:
            return False
        return True

    def list_all(self) -> list[Gauge]:
        """All values as they are now, in the order of `GAUGES`."""
        found = [gauge for gauges in self._by_kind.values() for gauge in gauges]
        found.append(self._make("resumes", self._num_resumed))
        saved = list_checkpoints(self.directory.checkpoints)
        if saved:
            found.append(self._make("checkpoint_timestamp_seconds", saved[-1].stat().st_mtime))
        found.append(self._make("logged_timestamp_seconds", time.time()))
        order = list(GAUGES)
        return sorted(found, key=lambda gauge: order.index(gauge.name))

    def _add(self, kind: str, gauges: Iterable[Gauge | None]) -> None:
        self._by_kind[kind] = [gauge for gauge in gauges if gauge is not None]

    def _make(self, name: str, value: float, **labels: str) -> Gauge:
        return Gauge(f"distbranch_{name}", {**self._labels, **labels}, float(value))

    def _list_training(self, line: Mapping[str, Any]) -> Iterable[Gauge]:
        yield self._make("iteration", line["iteration"])
        yield self._make("loss", line["loss"])
        yield self._make("samples_per_second", line["samples_per_second"])
        yield self._make("data_wait_ratio", line["data_wait"])
        alone = line.get("seconds_alone")
        if alone:
            slowest = {"rank": str(alone["rank"]), "host": alone["host"]}
            yield self._make("slowest_rank_seconds", alone["slowest"], **slowest)
            yield self._make("median_rank_seconds", alone["median"])
        for layer, num_branches in line["branches"].items():
            yield self._make("branches", num_branches, layer=layer)

    def _list_scores(self, line: Mapping[str, Any]) -> Iterable[Gauge]:
        for metric, value in line["mean"].items():
            if value is not None:
                yield self._make("score", value, split=line["split"], metric=metric)


def describe_slowest(seconds: list[float], hosts: list[str]) -> dict[str, Any]:
    """The median over ranks and the slowest of them, of the seconds of every rank."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return {
        "median": statistics.median(seconds),
        "slowest": seconds[slowest],
        "rank": slowest,
        "host": hosts[slowest],
    }


def format_gauges(gauges: Iterable[Gauge]) -> str:
    r"""The text that Prometheus reads; gauges of one name follow each other.

    Example:
        >>> print(format_gauges([Gauge("distbranch_loss", {"run": "a"}, 0.5)]), end="")
        # HELP distbranch_loss Loss per image since the last logged step.
        # TYPE distbranch_loss gauge
        distbranch_loss{run="a"} 0.5
    """
    lines = []
    named = ""
    for gauge in gauges:
        if gauge.name != named:
            named = gauge.name
            lines += [f"# HELP {named} {GAUGES[named][0]}", f"# TYPE {named} gauge"]
        labels = ",".join(f'{key}="{_escape(value)}"' for key, value in gauge.labels.items())
        lines.append(f"{named}{{{labels}}} {gauge.value!r}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def name_run(path: Path) -> str:
    """The name of a run as it is shown elsewhere; that of a scout says whose it is."""
    return f"{path.parent.name}/{SCOUT}" if path.name == SCOUT else path.name


def find_sweep(path: Path) -> str | None:
    """The name of the sweep of which the run directory is a trial; None of another run."""
    beside = path.parent
    folder = beside.parent if beside.name == "trials" else beside
    return folder.name if (folder / "sweep.yaml").exists() else None
