"""A whole Optuna search with two objectives, whose driver is killed, through Ray Tune as a person starts it."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sweep_files import write_sweep

pytestmark = pytest.mark.cluster
TIMEOUT_S = 400
NUM_SETTINGS = 5


def test_a_search_for_a_front_whose_driver_is_killed_resumes_and_its_journal_is_in_step(
    tiny_data: Path, tmp_path: Path
) -> None:
    file = write_sweep(
        tmp_path,
        tiny_data,
        run={"method.name": "fixed", "train.iterations": 4, "train.evaluate_every": 2},
        search="optuna",
        num_trials=NUM_SETTINGS,
        metric="accuracy",
        cost="latency_ms",
        space={
            "model.width": {"low": 2, "high": 12, "int": True},
            "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        concurrency=1,
    )
    directory = tmp_path / "runs" / "tiny"
    command = [sys.executable, "-m", "distbranch", "sweep", str(file)]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    # The first driver dies when two settings have ended, of which its study has heard of one at least.
    output = tmp_path / "output.txt"
    with output.open("w") as stream:
        killed = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while len(list(directory.glob("*/result.json"))) < 2:
            assert killed.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.wait()
    proposed = (directory / "proposals.jsonl").read_text()

    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (directory / "proposals.jsonl").read_text().startswith(proposed)
    with (directory / "results.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["status"] for row in rows] == ["finished"] * NUM_SETTINGS
    storage = JournalStorage(JournalFileBackend(str(directory / "optuna-journal.log")))
    study = optuna.load_study(study_name="tiny", storage=storage)
    assert study.metric_names == ["accuracy", "latency_ms"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.user_attrs["runs"] for trial in study.trials] == [[row["trial"]] for row in rows]
    searched = json.loads((directory / "latency-of-search.json").read_text())["latency_ms"]
    for trial, row in zip(study.trials, rows, strict=True):
        assert trial.state.name == "COMPLETE"
        assert trial.values[0] == pytest.approx(float(row["val_accuracy"]))
        assert trial.values[1] in searched.values()
        assert float(row["latency_low_ms"]) <= float(row["latency_ms"])
        assert float(row["latency_ms"]) <= float(row["latency_high_ms"])
        assert row["folded_weights"] == row["weights"]
    page = (directory / "report.html").read_text()
    assert '<section id="curves">' in page
    assert '<section id="keys">' in page
