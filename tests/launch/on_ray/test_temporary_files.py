"""Ray's folder for temporary files on a disk that is full, which Ray takes for a lack of memory."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from small_disk import fill, small_disk

from distbranch.launch.ray_folder import explain_full_folder


def test_a_full_disk_is_told_with_its_folder_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 32 * 1024) as disk:
        monkeypatch.setenv("RAY_TMPDIR", str(disk))
        assert explain_full_folder() == ""
        fill(disk / "filler")
        told = explain_full_folder()
        monkeypatch.setenv("RAY_TMPDIR", str(disk / "session-that-could-not-be-made"))
        assert explain_full_folder() == told
    assert str(disk) in told
    assert "RAY_TMPDIR" in told
    assert "memory" not in told


@pytest.mark.cluster
def test_a_run_whose_ray_has_no_room_says_so(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_world import assert_one_sentence, run_command

    with TemporaryDirectory(prefix="db") as short, small_disk(Path(short), 64) as disk:
        monkeypatch.setenv("TMPDIR", str(disk))
        monkeypatch.setenv("RAY_TMPDIR", str(disk))
        monkeypatch.setattr("tempfile.tempdir", None)
        ended = run_command(["train", "tiny.yaml", "run.name=new", "launch.workers=2"])
        assert_one_sentence(ended, 1, (str(disk), "without room", "RAY_TMPDIR"))
