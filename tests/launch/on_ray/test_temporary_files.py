"""Ray's folder for temporary files on a disk that is full, which Ray takes for a lack of memory."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from small_disk import fill, small_disk

from distbranch.launch import ray_folder
from distbranch.launch.ray_folder import explain_full_folder

MIB = 2**20


def session(folder: Path, **logs: str) -> Path:
    (folder / "logs").mkdir(parents=True)
    for name, text in logs.items():
        (folder / f"logs/{name}.err").write_text(text)
    return folder


def test_a_disk_with_room_says_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32 * 1024) as disk:
        assert explain_full_folder(session(disk / "ray", worker="killed: out of memory, says Ray")) == ""


def test_a_full_disk_is_told_with_its_folder_and_what_to_do(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32 * 1024) as disk:
        folder = session(disk / "ray")
        fill(disk / "filler")
        told = explain_full_folder(folder)
        assert explain_full_folder(folder / "session-that-could-not-be-made") == told
    assert str(folder) in told
    assert "RAY_TMPDIR" in told
    assert "memory" not in told


def test_a_disk_that_was_full_when_processes_died_is_told_from_their_logs(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32 * 1024) as disk:
        last_words = f"{'x' * 10 * ray_folder.TAIL}\nOSError: [Errno 28] {os.strerror(errno.ENOSPC)}: '/x'\n"
        assert "without room" in explain_full_folder(session(disk / "ray", raylet="all well", worker=last_words))
        long_ago = f"{os.strerror(errno.ENOSPC)}\n{'x' * 10 * ray_folder.TAIL}"
        assert explain_full_folder(session(disk / "later", worker=long_ago)) == ""


@pytest.mark.cluster
def test_a_run_whose_ray_has_no_room_says_so(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_world import assert_one_sentence, run_command

    with TemporaryDirectory(prefix="db") as short, small_disk(Path(short), 64) as disk:
        monkeypatch.setenv("TMPDIR", str(disk))
        monkeypatch.setenv("RAY_TMPDIR", str(disk))
        monkeypatch.setattr("tempfile.tempdir", None)
        ended = run_command(["train", "tiny.yaml", "run.name=new", "launch.workers=2"])
        assert_one_sentence(ended, 1, (str(disk), "without room", "RAY_TMPDIR"))
