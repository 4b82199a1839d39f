"""Latencies of a sweep: medians with intervals, and those that a search measures one by one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from distbranch.sweep import latencies
from distbranch.sweep.latencies import (
    NUM_TURNS,
    Latency,
    measure_latencies,
    measure_new_latencies,
)

TRUE_MS = {"a": 2.0, "b": 3.0, "c": 5.0}


class Machine:
    """In place of the clock: networks of a known latency, on a machine that is slower at some times than at others."""

    def __init__(self, seed: int = 0) -> None:
        self.slower = 1.0
        self.rng = np.random.default_rng(seed)
        self.asked: list[set[str]] = []

    def measure(self, runs: Mapping[str, Path]) -> dict[str, list[float]]:
        """Seconds of every turn: noise of 5 % that is each network's own, and what slows all."""
        self.asked.append({run.name for run in runs.values()})
        turns = self.slower * self.rng.uniform(1, 1.5, NUM_TURNS)
        return {
            key: list(TRUE_MS[run.name] / 1000 * turns * self.rng.normal(1, 0.05, NUM_TURNS))
            for key, run in runs.items()
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(latencies, "_measure_by_turns", made.measure)
    return made


def make_runs(folder: Path, names: Sequence[str]) -> list[Path]:
    """Run directories with models of different architectures."""
    for name in names:
        file = folder / name / "model" / "model.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"architecture": name}))
    return [folder / name for name in names]


def test_the_interval_holds_the_true_median_about_96_times_of_100(
    tmp_path: Path, machine: Machine
) -> None:
    [run] = make_runs(tmp_path, ["a"])
    true_median = TRUE_MS["a"] * 1.25
    held = 0
    for _ in range(300):
        found = measure_latencies([run], tmp_path / "latency.json")[run]
        (tmp_path / "latency.json").unlink()
        assert found.low_ms <= found.median_ms <= found.high_ms
        held += found.low_ms <= true_median <= found.high_ms
    assert 0.93 < held / 300 < 0.99


def test_what_is_on_record_is_not_measured_again_and_one_new_network_measures_all(
    tmp_path: Path, machine: Machine
) -> None:
    record = tmp_path / "latency.json"
    runs = make_runs(tmp_path, ["a", "b", "c"])
    first = measure_latencies(runs[:2], record)
    assert measure_latencies(runs[:2], record) == first
    assert machine.asked == [{"a", "b"}]
    measure_latencies(runs, record)
    assert machine.asked[-1] == {"a", "b", "c"}

    # The record of an earlier release has no intervals.
    content = json.loads(record.read_text())
    del content["low_ms"], content["high_ms"]
    record.write_text(json.dumps(content))
    assert isinstance(measure_latencies(runs[:1], record)[runs[0]], Latency)
    assert machine.asked[-1] == {"a"}


def test_a_search_measures_each_network_once_and_on_a_busier_machine_as_on_a_quiet_one(
    tmp_path: Path, machine: Machine
) -> None:
    record = tmp_path / "latency-of-search.json"
    a, b, c = make_runs(tmp_path, ["a", "b", "c"])
    first = measure_new_latencies([a], record)
    machine.slower = 4.0  # eight trials train by now
    second = measure_new_latencies([a, b], record)
    machine.slower = 0.5  # another driver goes on, on a faster host
    third = measure_new_latencies([c, a, b], record)
    assert machine.asked[:2] == [{"a"}, {"a", "b"}]
    assert len(machine.asked[2]) == 2, "the new one beside one that is known"
    assert third[a] == second[a] == first[a]
    assert third[b] == second[b]
    for run in (b, c):
        true_ratio = TRUE_MS[run.name] / TRUE_MS["a"]
        assert third[run] / third[a] == pytest.approx(true_ratio, rel=0.1)
    assert measure_new_latencies([a, b, c], record) == third
    assert len(machine.asked) == 3
