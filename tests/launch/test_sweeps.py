"""Whole sweeps through Ray Tune as a person starts them: stopped early, killed, failed, with several workers per trial."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_server import RankServer
from sweep_files import write_sweep
from tiny_runs import assert_same_content, train_tiny

from distbranch.config import load_config
from distbranch.report.sweep_files import read_sweep

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"train.iterations": 16, "train.evaluate_every": 4, "method.round_iterations": 5}
TIMEOUT_S = 400


def start(file: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start `distbranch sweep`; its output goes to a file beside the sweep's."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    with (file.parent / "output.txt").open("w") as output:
        command = [sys.executable, "-m", "distbranch", "sweep", str(file), *overrides]
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment
        )


def run_sweep(file: Path, *overrides: str) -> tuple[int, str]:
    """The exit code and the output of `distbranch sweep`."""
    process = start(file, *overrides)
    try:
        code = process.wait(TIMEOUT_S)
    finally:
        process.kill()
    return code, (file.parent / "output.txt").read_text()


def finished(directory: Path) -> dict[str, int]:
    """The trials with a result, and when each was written."""
    return {file.parent.name: file.stat().st_mtime_ns for file in directory.glob("*/result.json")}


def make_rows(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def wait_until(holds: object, process: subprocess.Popen[str]) -> None:
    assert callable(holds)
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert process.poll() is None, "the sweep ended before the test could disturb it"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def write_good_and_poor(folder: Path, data: Path) -> Path:
    """A sweep of two trials of either width; of each the one that learns is first, and the other is judged by it."""
    run = {
        "method.name": "fixed",
        "train.iterations": 120,
        "train.evaluate_every": 40,
        "train.checkpoint_every": 20,
    }
    return write_sweep(
        folder,
        data,
        run=run,
        grid={"model.width": [12, 24], "optim.lr": [1e-2, 1e-6]},
        early_stopping={"grace": 40, "reduction": 2},
        concurrency=1,
    )


def assert_poor_ones_were_stopped(directory: Path) -> None:
    rows = make_rows(directory)
    assert [row["status"] for row in rows.values()] == ["finished", "stopped early"] * 2
    for name, row in rows.items():
        if row["status"] == "stopped early":
            assert not (directory / name / "result.json").exists()
            assert 40 <= int(float(row["iterations"])) < 120
            assert "is not among the best of its size" in row["reason"]
        else:
            assert float(row["latency_ms"]) > 0


def test_trials_after_an_interruption_are_judged_by_those_before_it_and_nothing_is_repeated(
    tiny_data: Path, tmp_path: Path
) -> None:
    file, directory = write_good_and_poor(tmp_path, tiny_data), tmp_path / "runs" / "tiny"
    process = start(file)
    wait_until(lambda: (directory / "width12-lr1e-06-seed3" / "environment.json").exists(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 130, (tmp_path / "output.txt").read_text()
    before = finished(directory)
    assert list(before) == ["width12-lr0.01-seed3"]
    statuses = [row["status"] for row in make_rows(directory).values()]
    assert statuses[0] == "finished"
    assert statuses[1] in (
        "unfinished",
        "stopped early",
    )  # it may have come to the first rung before the signal
    assert statuses[2:] == ["unfinished"] * 2
    assert not (directory / "latency.json").exists(), "who stops a sweep does not wait for that"

    code, output = run_sweep(file)
    assert code == 0, output
    assert finished(directory).items() >= before.items()
    assert_poor_ones_were_stopped(directory)
    commands = {
        json.loads(record.read_text())["command"] for record in directory.glob("*/environment.json")
    }
    assert commands == {f"python -m distbranch sweep {file}"}

    code, output = run_sweep(file)
    assert code == 0
    assert "4 trials, 4 of them done before" in output
    assert "begun" not in output


@pytest.mark.cluster
def test_a_sweep_whose_driver_is_killed_resumes_and_repeats_no_finished_trial(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    file = write_sweep(
        tmp_path,
        tiny_data,
        run=SHORT | {"track": ["tensorboard"]},
        grid={"model.width": [2, 3], "method.alpha": [0.0, 50.0]},
        seeds=[0, 1],
        concurrency=2,
    )
    directory = tmp_path / "runs" / "tiny"
    process = start(file)
    wait_until(lambda: len(finished(directory)) >= 3, process)
    process.kill()
    process.wait()
    before = finished(directory)
    assert 3 <= len(before) < 8
    times = {name: (directory / name / "metrics.jsonl").read_bytes() for name in before}

    code, output = run_sweep(file)
    assert code == 0, output
    assert f"8 trials, {len(before)} of them done before" in output
    after = finished(directory)
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    assert {name: (directory / name / "metrics.jsonl").read_bytes() for name in before} == times
    rows = make_rows(directory)
    assert [row["status"] for row in rows.values()] == ["finished"] * 8
    assert "Shared beginnings of 8 trials" in output
    sweep = read_sweep(directory)
    assert list(sweep.points["seeds"]) == [2] * 4
    assert (directory / "pareto.png").exists()
    assert (directory / "results.parquet").stat().st_size > 1000
    assert list((directory / "tensorboard").rglob("events.*"))

    for name in (
        "width2-alpha0-seed0",
        "width3-alpha50-seed1",
    ):  # a trial is what the same run is by itself, bit for bit
        config = load_config(
            directory / name / "config.yaml", {"run.directory": str(tmp_path / "alone")}
        )
        ended = ranks.call(train_tiny, config=config.model_dump())
        assert ended["end"] == "done", ended
        assert_same_content(directory / name, tmp_path / "alone" / name)


@pytest.mark.cluster
def test_trials_of_two_workers_run_two_at_a_time_and_one_that_fails_is_told(
    tiny_data: Path, tmp_path: Path
) -> None:
    file = write_sweep(
        tmp_path,
        tiny_data,
        run={**SHORT, "train.iterations": 8, "train.checkpoint_every": 50},
        grid={"optim.lr": [0.01, 1e18, 0.02]},
        workers_per_trial=2,
        concurrency=2,
        early_stopping={"grace": 4, "reduction": 2},
        metric="accuracy",
    )
    directory = tmp_path / "runs" / "tiny"
    code, output = run_sweep(file)
    assert code == 1, output
    rows = make_rows(directory)
    failed = rows.pop("lr1e18-seed3")
    assert failed["status"] == "failed"
    assert "is not finite" in failed["reason"]
    assert failed["reason"] in output
    assert {row["status"] for row in rows.values()} <= {"finished", "stopped early"}
    assert sum(row["status"] == "finished" for row in rows.values()) >= 1
    for name, row in rows.items():
        if row["status"] == "finished":
            assert json.loads((directory / name / "result.json").read_text())["world_size"] == 2
    running = [0]
    for line in output.splitlines():
        running.append(running[-1] + line.startswith("begun: ") - bool(re.match(r"[1-3]/3 ", line)))
    assert max(running) == 2, output
