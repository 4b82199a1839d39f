"""Bad input that lies outside the files a person gives: a full disk, a run in use, a cluster that is not there.

Some of it through a real process, as a person starts it.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from small_disk import small_disk
from tiny_world import Ended, assert_one_sentence, contents, nothing_overwritten, run_command

PROJECT = Path(__file__).resolve().parents[2]


def run_process(*arguments: str) -> Ended:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "distbranch", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@contextmanager
def readable_only(folder: Path) -> Iterator[None]:
    """`folder` as those see it who may not write there, whoever has files of it open."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@cache
def measure_tiny_run(folder: Path) -> int:
    """KiB that a whole run leaves on a disk; another machine lists other packages and needs other room."""
    with small_disk(folder, 4096):
        assert run_command(["train", "tiny.yaml", f"run.directory={folder.name}"]).code == 0
        disk = os.statvfs(folder)
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024


@pytest.mark.parametrize("part", [0.03, 0.09, 0.12, 0.2, 0.3, 0.7, 0.9])
def test_training_on_a_full_disk_ends_in_one_sentence(world: Path, part: float) -> None:
    kibibytes = int(part * measure_tiny_run(world / "small"))
    with small_disk(world / "small", kibibytes), nothing_overwritten(world, ("small/*",)):
        ended = run_command(["train", "tiny.yaml", "run.directory=small"])
        assert_one_sentence(ended, 1, ("No space left", "ake room", "same command"))
        halves = [
            path
            for path in contents(world / "small")
            if "/." in path and not path.endswith(("/.lock", "/.alive"))
        ]
        assert not halves


def test_training_continues_when_there_is_room_again(world: Path) -> None:
    kibibytes = int(0.7 * measure_tiny_run(world / "small"))
    with small_disk(world / "small", kibibytes):
        assert_one_sentence(
            run_command(["train", "tiny.yaml", "run.directory=small"]), 1, ("No space left",)
        )
        subprocess.run(["mount", "-o", "remount,size=1m", str(world / "small")], check=True)
        assert run_command(["train", "tiny.yaml", "run.directory=small"]).code == 0
        assert (world / "small/tiny/result.json").exists()


def test_packing_onto_a_full_disk_leaves_nothing(world: Path) -> None:
    with small_disk(world / "small", 16), nothing_overwritten(world, ()):
        ended = run_command(
            ["data", "pack", "csv", "small/new", "--images", "images", "--table", "table.csv"]
        )
        assert_one_sentence(
            ended, 1, ("small/new", "No space left", "enough room", "nothing was left")
        )


def test_a_full_disk_in_a_process_of_its_own_shows_no_traceback(world: Path) -> None:
    with small_disk(world / "small", 40):
        ended = run_process("train", "tiny.yaml", "run.directory=small")
    assert_one_sentence(ended, 1, ("No space left", "ake room"))


def test_a_run_in_use_is_left_alone(world: Path) -> None:
    (world / "runs/tiny/result.json").unlink()
    with FileLock(world / "runs/tiny/.lock"), nothing_overwritten(world, ()):
        ended = run_process("train", "tiny.yaml")
    assert_one_sentence(ended, 1, ("runs/tiny", "another process", "run.name"))


def test_a_run_that_may_only_be_read_has_a_status_and_cannot_be_cancelled(world: Path) -> None:
    with small_disk(world / "small", 4096):
        shutil.copytree("runs/tiny", "small/tiny")
        (world / "small/tiny/result.json").unlink()
        lock = FileLock(world / "small/tiny/.lock")
        with lock:  # which makes its file
            pass
        with readable_only(world / "small"):
            assert "nobody now" in run_command(["status", "small/tiny"]).out
        lock.acquire()
        with readable_only(world / "small"):
            assert "a process of" in run_command(["status", "small/tiny"]).out
            ended = run_command(["cancel", "small/tiny"])
        lock.release()
    assert_one_sentence(
        ended, 1, ("small/tiny", "cannot be asked to stop", "Read-only", "Whoever started it")
    )


def test_a_config_error_in_a_process_of_its_own(world: Path) -> None:
    with nothing_overwritten(world, ()):
        ended = run_process("train", "tiny.yaml", "train.iteratons=3")
    assert_one_sentence(ended, 2, ("train.iteratons", "did you mean train.iterations"))


def test_a_data_error_in_a_process_of_its_own(world: Path) -> None:
    (world / "data/train-000001.tar").unlink()
    with nothing_overwritten(world, ("runs/new/*",)):
        ended = run_process("train", "tiny.yaml", "run.name=new")
    assert_one_sentence(ended, 1, ("train-000001.tar", "absent"))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"])
def test_an_absent_cluster_is_noticed_within_seconds(world: Path, address: str) -> None:
    began = time.monotonic()
    with nothing_overwritten(world, ("runs/new/*",)):
        ended = run_command(["train", "tiny.yaml", "run.name=new", f"launch.address={address}"])
    assert_one_sentence(ended, 1, (address, "launch.address"))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("left", "reason"),
    [("127.0.0.1:9", "Connection refused"), ("", "Could not find any running Ray instance")],
)
def test_whoever_asks_for_the_cluster_of_a_machine_that_has_none_is_told(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, reason: str
) -> None:
    # Ray looks for processes, and would find the clusters of other tests; then for the address that `ray start` left.
    monkeypatch.setattr("ray._private.services._cached_find_gcs_addresses", cache(frozenset))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if left:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(left)
    with nothing_overwritten(world, ("runs/new/*",)):
        ended = run_command(["train", "tiny.yaml", "run.name=new", "launch.address=auto"])
    assert_one_sentence(ended, 1, ("auto", "launch.address", reason))


def test_a_damaged_newest_checkpoint_costs_a_warning_and_the_steps_since_the_one_before(
    world: Path,
) -> None:
    before = (world / "runs/tiny/model/model.safetensors").read_bytes()
    for file in ("result.json", "model/model.json"):
        (world / "runs/tiny" / file).unlink()
    os.truncate(world / "runs/tiny/checkpoints/step-00000004/model.safetensors", 500)
    ended = run_command(["train", "tiny.yaml"])
    assert ended.code == 0, ended.err
    assert "step-00000004" in "".join(ended.err.split())
    assert "damaged" in ended.err
    assert (world / "runs/tiny/model/model.safetensors").read_bytes() == before
