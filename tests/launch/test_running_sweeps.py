"""A real sweep while it runs: asked about, cancelled by its stop word, and resumed from its directory alone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rank_server import RankServer
from sweep_files import write_sweep
from tiny_runs import assert_same_content, lines_of, train_tiny
from tiny_world import run_command

from distbranch.config import load_config

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 400
PATIENCE = str(TIMEOUT_S)


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not holds():
        assert process.poll() is None, "the sweep ended before it was disturbed"
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.cluster  # for its time
def test_a_sweep_that_runs_is_listed_cancelled_and_resumed_and_repeats_nothing(
    tiny_data: Path, tmp_path: Path
) -> None:
    run = {
        "method.name": "fixed",
        "train.iterations": 40,
        "train.evaluate_every": 20,
        "train.checkpoint_every": 10,
    }
    # The second trial would take an hour.
    grid = {"train.iterations": [40, 100_000]}
    # Relative to the folder of whoever begins it, as most people name data.
    data = os.path.relpath(tiny_data, tmp_path)
    file = write_sweep(tmp_path, data, run=run, grid=grid, concurrency=1)
    sweep, output = tmp_path / "runs" / "tiny", tmp_path / "output.txt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with output.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "distbranch", "sweep", str(file)],
            stdout=written,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=tmp_path,
        )
    try:
        # The first has ended and the second trains.
        long = sweep / "iterations100000-seed3"
        wait_until(lambda: (long / "metrics.jsonl").exists(), process)
        wait_until(lambda: "finished" in (sweep / "results.csv").read_text(), process)
        [row] = json.loads(run_command(["ls", str(sweep.parent), "--json"]).out)
        assert (row["state"], row["done"], row["total"]) == ("running", 1, 2)
        assert row["score"]["metric"] == "average_precision"
        assert "1/2 finished: iterations40-seed3, average precision" in output.read_text()
        assert "iterations40-seed3" in (sweep / "report.html").read_text()
        told = run_command(["status", str(sweep)]).out
        assert "1 of 2 ended" in told
        assert long.name in told

        ended = run_command(["cancel", str(sweep), "--patience", PATIENCE])
        assert ended.code == 0, ended.err
        assert "The sweep has stopped" in ended.out
        assert process.wait(TIMEOUT_S) == 75, output.read_text()
    finally:
        process.kill()
    assert not (sweep / "stop").exists()
    assert list(long.glob("checkpoints/step-*")), "the running trial saved a checkpoint"
    assert run_command(["cancel", str(sweep), "--patience", PATIENCE]).code == 1, (
        "nothing is there to cancel"
    )
    first = (sweep / "iterations40-seed3" / "result.json").stat().st_mtime_ns

    # From its directory alone, in another folder: the sweep file is gone, and its base is not read.
    file.unlink()
    resumed = subprocess.Popen(
        [sys.executable, "-m", "distbranch", "resume", str(sweep)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=sweep,
        start_new_session=True,
    )
    try:
        notes = long / "metrics.jsonl"
        wait_until(lambda: '"resumed"' in notes.read_text(), resumed)
        # A terminal that is closed tells all its processes, also those of the Ray that was started.
        os.killpg(resumed.pid, signal.SIGHUP)
        said, _ = resumed.communicate(timeout=TIMEOUT_S)
    finally:
        resumed.kill()
    assert resumed.returncode == 75, said
    assert "unfinished: iterations100000-seed3" in said, "the running trial saved a checkpoint"
    assert "2 trials, 1 of them done before" in said
    assert (sweep / "iterations40-seed3" / "result.json").stat().st_mtime_ns == first


@pytest.mark.cluster  # for its time
def test_a_signal_to_all_processes_of_a_sweep_saves_its_trials_which_end_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    """As Slurm signals a step, or a shell a process group: Ray hears it too."""
    # So slow that no trial ends before it was interrupted twice, and no checkpoint but by these.
    run = {"method.name": "fixed", "train.iterations": 100, "train.evaluate_every": 0, "track": []}
    run |= {"train.checkpoint_every": 10_000}
    file = write_sweep(tmp_path, tiny_data, run=run, seeds=[0, 1], concurrency=2)
    sweep, names = tmp_path / "runs" / "tiny", ("seed0", "seed1")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "slurm_pace")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def begin(seconds_per_step: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "distbranch", "sweep", str(file)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "TEST_SECONDS_PER_STEP": seconds_per_step},
            start_new_session=True,
        )

    def list_steps(name: str) -> list[int]:
        return [line["iteration"] for line in lines_of(sweep / name / "metrics.jsonl", "train")]

    reached = dict.fromkeys(names, 0)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        process = begin("1")
        try:
            wait_until(
                lambda: all(max(list_steps(name), default=0) > reached[name] for name in names),
                process,
            )
            os.killpg(process.pid, number)
            said, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
        assert process.returncode == 75, said
        left = [one for one in psutil.process_iter() if _is_of_session(one, process.pid)]
        assert not left
        for name in names:
            saved = max((sweep / name / "checkpoints").glob("step-*"))
            before, reached[name] = reached[name], int(saved.name.removeprefix("step-"))
            assert before < reached[name] < 100

    process = begin("0")
    said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said
    assert not (sweep / "tensorboard").exists(), "nobody asked for it"
    for name in names:
        resumed = lines_of(sweep / name / "metrics.jsonl", "resumed")
        assert [line["iteration"] for line in resumed][-1] == reached[name]
        assert len(resumed) == 2
        own = load_config(sweep / name / "config.yaml", {"run.directory": str(tmp_path / "alone")})
        assert ranks.call(train_tiny, config=own.model_dump())["end"] == "done"
        assert_same_content(sweep / name, tmp_path / "alone" / name)


def _is_of_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session
    except OSError:  # it ends at this very moment
        return False
