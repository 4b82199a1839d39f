"""Checkpoints are written behind the training: of their own step, one at a time, and an error of theirs reaches all ranks."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_server import RankServer
from tiny_runs import config_of, train_tiny

from distbranch.engine.checkpoint import Checkpoint, list_checkpoints, load_newest, save_checkpoint
from distbranch.engine.checkpoint_writer import CheckpointWriter, copy_to_host
from distbranch.errors import UserError

SECONDS_TO_WAIT = 60  # a fault that hangs fails instead


def test_what_is_written_is_the_state_of_its_step_whatever_training_changes_meanwhile(
    tmp_path: Path,
) -> None:
    weight = torch.arange(60.0).reshape(1, 3, 4, 5).to(memory_format=torch.channels_last)
    expected = weight.clone()
    copied = copy_to_host(Checkpoint({"number": 1}, {"model": {"weight": weight}}))
    changed = threading.Event()

    def write() -> None:
        changed.wait(SECONDS_TO_WAIT)
        save_checkpoint(tmp_path, 1, copied, keep=1)

    writer = CheckpointWriter()
    writer.begin(write)
    weight.zero_()
    changed.set()
    writer.finish()
    found = load_newest(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors["model"]["weight"], expected)


def test_the_next_checkpoint_waits_until_the_one_before_is_written() -> None:
    written = []
    release = threading.Event()

    def write_first() -> None:
        release.wait(SECONDS_TO_WAIT)
        written.append("first")

    writer = CheckpointWriter()
    writer.begin(write_first)
    threading.Timer(0.1, release.set).start()
    writer.begin(lambda: written.append("second"))
    writer.finish()
    assert written == ["first", "second"]


def test_an_error_of_a_write_is_raised_once_in_the_thread_that_waits_for_it() -> None:
    def write() -> None:
        raise UserError("no room")

    writer = CheckpointWriter()
    writer.begin(write)
    with pytest.raises(UserError, match="no room"):
        writer.begin(lambda: None)
    writer.finish()
    assert not writer.has_failed


def train_with_a_held_write(
    config: Mapping[str, Any], until: int, fails: bool = False, nan_in: int = 0
) -> dict[str, Any]:
    """A job: train; the write of step 5 ends when step `until` has begun, the loss of a later step may be NaN."""
    from distbranch.engine import results
    from distbranch.engine.trainer import Trainer
    from distbranch.tasks import TaskSet

    real_step, real_save = Trainer._train_step, results.save_checkpoint
    real_losses = TaskSet.compute_losses
    begun = threading.Event()
    seen: list[str] = []
    now = {"step": 0}

    def save(folder: Path, iteration: int, *rest: Any, **named: Any) -> Path:
        if iteration == 5:
            assert begun.wait(SECONDS_TO_WAIT), "training stands still while it is written"
            if fails:
                raise UserError("The storage has failed.")
        path = real_save(folder, iteration, *rest, **named)
        seen.append(f"written {iteration}")
        return path

    def step(self: Trainer) -> None:
        now["step"] = self.progress.iteration + 1
        if now["step"] == until:
            begun.set()
            if fails and self.ranks.is_first:
                while not self.store.checkpoint_has_failed:  # type: ignore[attr-defined]
                    threading.Event().wait(0.01)
        real_step(self)
        seen.append(f"step {now['step']}")

    def losses(self: TaskSet, *values: Any) -> Any:
        found = real_losses(self, *values)
        return found * torch.nan if now["step"] == nan_in else found

    Trainer._train_step, results.save_checkpoint = step, save  # type: ignore[method-assign]
    TaskSet.compute_losses = losses  # type: ignore[method-assign]
    return train_tiny(config) | {"seen": seen}


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The tiny run without a decision, which would wait for what is being written."""

    def make(**dotted: Any) -> dict[str, Any]:
        short = {"train.iterations": 11, "train.evaluate_every": 0, "method.round_iterations": 40}
        return config_of(tiny_data, tmp_path, **short, **dotted)

    return make


def test_steps_follow_while_a_checkpoint_is_written_and_the_run_ends_with_all_of_them(
    config: Callable[..., dict[str, Any]], ranks: RankServer, tmp_path: Path
) -> None:
    ended = ranks.call(train_with_a_held_write, config=config(), until=9)
    assert ended["end"] == "done", ended["message"]
    assert ended["seen"].index("written 5") > ended["seen"].index("step 8")
    assert [line for line in ended["seen"] if "written" in line] == [
        "written 5",
        "written 10",
        "written 11",
    ]
    kept = [path.name for path in list_checkpoints(tmp_path / "tiny" / "checkpoints")]
    assert kept == ["step-00000005", "step-00000010", "step-00000011"]


def test_a_write_that_fails_stops_both_ranks_before_the_step_after_next(
    config: Callable[..., dict[str, Any]], ranks: RankServer
) -> None:
    both = config(**{"launch.workers": 2})
    ended = ranks.call_all(train_with_a_held_write, 2, config=both, until=6, fails=True)
    assert [one["end"] for one in ended] == ["failed", "failed"]
    assert ended[0]["message"] == ended[1]["message"]
    assert ended[0]["message"].startswith("The storage has failed. (rank 0 on ")
    assert [one["seen"][-1] for one in ended] == ["step 6", "step 6"]


def test_a_loss_that_is_not_finite_is_told_though_a_checkpoint_fails_at_the_same_time(
    config: Callable[..., dict[str, Any]], ranks: RankServer
) -> None:
    ended = ranks.run(train_with_a_held_write, config=config(), until=7, fails=True, nan_in=7)[0]
    assert ended.value["message"].startswith("The loss of task 'cell-0' is not finite at step 7.")
    assert "There is no checkpoint yet." in ended.value["message"]
    assert "A checkpoint could not be written: The storage has failed" in ended.output


def test_a_checkpoint_under_way_is_whole_when_another_error_ends_the_run_and_is_named_as_the_last_good_one(
    config: Callable[..., dict[str, Any]], ranks: RankServer, tmp_path: Path
) -> None:
    ended = ranks.call(train_with_a_held_write, config=config(), until=7, nan_in=7)
    assert ended["end"] == "failed"
    good = tmp_path / "tiny" / "checkpoints" / "step-00000005"
    assert f"The last good checkpoint is {good}." in ended["message"]
    assert list_checkpoints(good.parent) == [good]
    found = load_newest(good.parent)
    assert found is not None
    assert found.state["progress"]["iteration"] == 5
