"""Storage that is full or read-only when a checkpoint is due: both ranks stop, and what was saved is intact."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from small_disk import fill
from tiny_runs import assert_same_content, config_of, train_tiny

from distbranch.engine.checkpoint import load_newest

pytestmark = pytest.mark.cluster


def train_until_the_storage_fails(
    config: Mapping[str, Any], step: int, folder: str, how: str
) -> dict[str, Any]:
    """A job: train; before the end of a step the storage becomes full or read-only."""
    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def forward_and_backward(self: TrainingStep, *batch: Any) -> None:
        real(self, *batch)
        if self.progress.iteration + 1 != step or self.ranks.rank != 0:
            return
        if how == "read-only":
            checkpoints = str(self.config.run_directory / "checkpoints")
            subprocess.run(["mount", "--bind", checkpoints, checkpoints], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", checkpoints], check=True)
            return
        fill(Path(folder) / "filler")

    TrainingStep._forward_and_backward = forward_and_backward  # type: ignore[method-assign]
    return train_tiny(config)


@pytest.mark.parametrize(
    ("how", "words"), [("full", "No space left"), ("read-only", "Read-only file system")]
)
def test_storage_that_fails_at_a_checkpoint_stops_both_ranks_and_the_newest_good_checkpoint_is_gone_on_from(
    how: str,
    words: str,
    small_storage: Path,
    tiny_data: Path,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
) -> None:
    config = config_of(tiny_data, small_storage, **{"launch.workers": 2})
    arguments = {"config": config, "step": 25, "folder": str(small_storage), "how": how}
    ended = ranks.call_all(train_until_the_storage_fails, 2, **arguments)
    assert [one["end"] for one in ended] == ["failed", "failed"]
    assert words in ended[0]["message"]
    assert f"(rank 0 on {os.uname().nodename})" in ended[0]["message"]
    assert ended[0]["message"] == ended[1]["message"]
    found = load_newest(small_storage / "tiny" / "checkpoints")
    assert found is not None
    assert found.state["progress"]["iteration"] == 21

    if how == "read-only":
        subprocess.run(
            ["umount", "--lazy", str(small_storage / "tiny" / "checkpoints")], check=True
        )
    else:
        (small_storage / "filler").unlink()
    assert {one["end"] for one in ranks.call_all(train_tiny, 2, config=config)} == {"done"}
    assert_same_content(small_storage / "tiny", undisturbed(2))
