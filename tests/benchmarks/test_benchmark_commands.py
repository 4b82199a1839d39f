"""Every benchmark of our own figures is a command that says what it measures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_runs import FOLDER, run_benchmark

COMMANDS = sorted(file.name for file in FOLDER.glob("bench_*.py"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_has_a_help_page(name: str) -> None:
    ended = run_benchmark(name, "--help")
    assert ended.code == 0, ended.err
    assert "Usage" in ended.out


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [
        ("bench_memory.py", "absent/x", "No such file"),
        ("bench_sweep.py", "table.csv", "Not a directory"),
    ],
)
def test_a_work_folder_that_cannot_be_made_is_refused(
    world: Path, name: str, folder: str, reason: str
) -> None:
    ended = run_benchmark(name, "--folder", folder)
    assert ended.code == 2
    assert folder in ended.err
    assert reason in ended.err


def test_packing_and_reading_generated_samples_prints_its_peak_memory(tmp_path: Path) -> None:
    ended = run_benchmark("bench_memory.py", "--samples", "300", "--folder", str(tmp_path))
    assert ended.code == 0, ended.err
    assert "peak_mib" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_losses_that_nobody_knows_are_refused_with_those_that_there_are() -> None:
    ended = run_benchmark("bench_recovery.py", "--losses", "worker,cat")
    assert ended.code == 2
    assert "process, worker, node, host, driver, found cat" in ended.err


def test_the_bench_of_trackers_takes_turns_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--width", "4", "--image-size", "32x32", "--batch-size", "4", "--log-every", "2"]
    ended = run_benchmark("bench_track.py", *small, "--blocks", "1", "--folder", str(tmp_path))
    assert ended.code == 0, ended.err
    assert "a step that is watched" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_the_bench_of_checkpoints_writes_both_kinds_and_leaves_nothing(tmp_path: Path) -> None:
    options = ("--weights", "0.6", "--repeats", "1", "--folder", str(tmp_path))
    ended = run_benchmark("bench_checkpoint.py", *options)
    assert ended.code == 0, ended.err
    assert "written by a thread" in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cluster
def test_the_bench_of_sweeps_resumes_after_a_kill_and_repeats_nothing(tmp_path: Path) -> None:
    # As a script: workers of Ray cannot import the main file of their driver.
    command = [sys.executable, str(FOLDER / "bench_sweep.py"), "--trials", "8"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    numbers = dict(re.findall(r"^ *(\w+)  +(\S+)", ended.stdout, re.MULTILINE))
    assert numbers["finished"] == "8"
    assert numbers["finished_and_repeated"] == "0"
