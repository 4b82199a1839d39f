"""`distbranch resume`: a run that was left is brought to its end, wherever its folder lies by now."""

import shutil
from pathlib import Path

from tiny_world import assert_one_sentence, run_command

from distbranch.locks import hold_lock


def leave_at_step_2(run: Path) -> None:
    """As if the run had been killed after its second step."""
    for name in ("result.json", "model", "checkpoints/step-00000004"):
        file = run / name
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def test_a_run_that_was_left_is_resumed_in_whatever_folder_it_lies_to_the_same_bits(
    world: Path,
) -> None:
    finished = (world / "runs/tiny/model/model.safetensors").read_bytes()
    moved = world / "moved" / "tiny"
    (world / "moved").mkdir()
    (world / "runs" / "tiny").rename(moved)
    leave_at_step_2(moved)
    ended = run_command(["resume", "moved/tiny"])
    assert ended.code == 0, ended.err
    assert "resumed after step 2" in ended.out
    assert (moved / "model/model.safetensors").read_bytes() == finished
    assert not (world / "runs" / "tiny").exists()


def test_what_is_trained_or_no_run_is_not_resumed(world: Path) -> None:
    leave_at_step_2(world / "runs/tiny")
    with hold_lock(world / "runs/tiny/.lock"):
        ended = run_command(["resume", "runs/tiny"])
    assert_one_sentence(ended, 1, ("being trained by another process", "distbranch cancel"))
    (world / "runs/tiny").rename(world / "runs/other")
    assert_one_sentence(run_command(["resume", "runs/other"]), 1, ("was begun as tiny",))
    assert_one_sentence(run_command(["resume", "images"]), 1, ("neither a run nor a sweep",))
