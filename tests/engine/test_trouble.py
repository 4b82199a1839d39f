"""What goes wrong in the middle of training stops all ranks together, with one sentence, and leaves a good checkpoint."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rank_server import RankServer
from test_stopping import command_line
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny

from distbranch.data.shards import read_dataset
from distbranch.engine.checkpoint import load_newest


def train_with_a_nan(config: Mapping[str, Any], step: int, rank: int) -> dict[str, Any]:
    """A job: train, but in one step the loss of task cell-4 of one rank is NaN."""
    from distbranch.engine.training_step import TrainingStep
    from distbranch.tasks import TaskSet

    real_losses, real_step = TaskSet.compute_losses, TrainingStep._forward_and_backward
    now = {"step": 0}

    def remember(self: TrainingStep, *batch: Any) -> None:
        now["step"] = self.progress.iteration + 1
        real_step(self, *batch)

    def losses(self: TaskSet, *values: torch.Tensor) -> torch.Tensor:
        found = real_losses(self, *values)
        here = now["step"] == step and int(os.environ.get("RANK", "0")) == rank
        return found * torch.where(torch.arange(8) == 4, torch.nan, 1.0) if here else found

    TrainingStep._forward_and_backward, TaskSet.compute_losses = remember, losses  # type: ignore[method-assign]
    return train_tiny(config)


@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (2, 1)])
def test_a_loss_that_is_not_finite_names_step_and_task_and_leaves_the_last_good_checkpoint(
    world_size: int, rank: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    # Step 15 would end with a checkpoint: it must not be written.
    config = config_of(tiny_data, tmp_path, **{"launch.workers": world_size})
    for ended in ranks.call_all(train_with_a_nan, world_size, config=config, step=15, rank=rank):
        assert ended["end"] == "failed"
        where = f" (rank {rank} on {os.uname().nodename})." if world_size > 1 else "."
        assert f"The loss of task 'cell-4' is not finite at step 15{where}" in ended["message"]
        assert (
            f"The last good checkpoint is {tmp_path / 'tiny' / 'checkpoints' / 'step-00000014'}."
            in ended["message"]
        )
    found = load_newest(tmp_path / "tiny" / "checkpoints")
    assert found is not None
    assert found.state["progress"]["iteration"] == 14
    assert all(value.isfinite().all() for value in found.tensors["model"].values())


def test_a_learning_rate_out_of_all_proportion_ends_in_a_sentence(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    ended = ranks.call(
        train_tiny, config=config_of(tiny_data, tmp_path, **{"optim.lr": 1e30, "optim.name": "sgd"})
    )
    assert ended["end"] == "failed"
    assert "not finite" in ended["message"]
    assert "Lower optim.lr" in ended["message"]


def _damaged(data: Path, folder: Path, samples: list[int]) -> Path:
    """A copy of the data set in which the images of these samples of the first training shard are overwritten."""
    shutil.copytree(data, folder)
    shard = read_dataset(folder).splits["train"].shards[0]
    index = np.load(folder / shard.index, allow_pickle=False)
    with (folder / shard.file).open("r+b") as file:
        for sample in samples:
            file.seek(int(index[sample, 0]) + 100)
            file.write(b"\0" * 20)
    return folder


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_bad_sample_stops_all_ranks_with_one_sentence_that_names_it_and_leaves_a_checkpoint(
    world_size: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    data = _damaged(tiny_data, tmp_path / "data", [7])
    config = config_of(data, tmp_path, **{"launch.workers": world_size})
    ended = ranks.call_all(train_tiny, world_size, config=config)
    assert {one["end"] for one in ended} == {"failed"}
    assert len({one["message"] for one in ended}) == 1
    shard = read_dataset(data).splits["train"].shards[0].file
    assert (
        f"Shard {shard}, sample train-007" in ended[0]["message"]
        or f"Shard {shard}, sample 7" in ended[0]["message"]
    )
    assert load_newest(tmp_path / "tiny" / "checkpoints") is not None
    # The repaired data set is gone on with, and the run ends.
    shutil.copytree(tiny_data, data, dirs_exist_ok=True)
    assert {one["end"] for one in ranks.call_all(train_tiny, world_size, config=config)} == {"done"}


def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(
    tiny_data: Path, undisturbed: Callable[[int], Path], ranks: RankServer, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    shard = data / read_dataset(data).splits["val"].shards[0].file
    shard.rename(tmp_path / "val.tar")
    config = config_of(data, tmp_path, **{"launch.workers": 2})
    for ended in ranks.call_all(train_tiny, 2, config=config):
        assert ended["end"] == "failed"
        assert shard.name in ended["message"]
    found = load_newest(tmp_path / "tiny" / "checkpoints")
    assert found is not None
    assert found.state["progress"]["iteration"] == config["train"]["evaluate_every"]
    (tmp_path / "val.tar").rename(shard)
    assert {one["end"] for one in ranks.call_all(train_tiny, 2, config=config)} == {"done"}
    assert_same_content(tmp_path / "tiny", undisturbed(2))
    assert [
        line["iteration"] for line in lines_of(tmp_path / "tiny" / "metrics.jsonl", "evaluation")
    ] == [
        16,
        32,
        48,
        48,
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_skipped_samples_are_counted_once_by_kind_also_when_the_run_is_interrupted(
    world_size: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    data = _damaged(tiny_data, tmp_path / "data", [3, 7, 11])
    changes = {
        "data.on_bad_sample": "skip",
        "launch.workers": world_size,
        "train.iterations": 2 * 201 // 12,
    }
    once = config_of(data, tmp_path / "once", **changes)
    assert {one["end"] for one in ranks.call_all(train_tiny, world_size, config=once)} == {"done"}
    counted = lines_of(tmp_path / "once" / "tiny" / "metrics.jsonl", "bad_samples")[-1]["counts"]
    assert 3 <= counted["corrupt"] <= 6  # the 33 batches are a little less than two epochs
    assert set(counted) == {"corrupt"}

    many = config_of(data, tmp_path / "many", **changes)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(many))
    for asked_in in (2, 5, 9, 14, 20):
        arguments = {"arguments": ["train", str(file)], "stop_at": asked_in, "stop_signal": 15}
        assert {
            one.exit_code for one in ranks.run(command_line, world_size=world_size, **arguments)
        } == {75}
    assert {one["end"] for one in ranks.call_all(train_tiny, world_size, config=many)} == {"done"}
    assert (
        lines_of(tmp_path / "many" / "tiny" / "metrics.jsonl", "bad_samples")[-1]["counts"]
        == counted
    )


def test_beyond_the_limit_of_skipped_samples_the_run_stops(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    data = _damaged(tiny_data, tmp_path / "data", list(range(0, 40, 4)))
    config = config_of(data, tmp_path, **{"data.on_bad_sample": "skip", "data.max_bad_samples": 4})
    ended = ranks.call(train_tiny, config=config)
    assert ended["end"] == "failed"
    assert "more than data.max_bad_samples=4" in ended["message"]
    assert load_newest(tmp_path / "tiny" / "checkpoints") is not None
