"""Trouble on one of several ranks is told with its name and host by whoever is left, under every launcher."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import config_of, train_tiny

STEP = 9


def train_with_trouble(config: Mapping[str, Any], trouble: str) -> dict[str, Any]:
    """A job: train, but in one step rank 1 raises, dies or sleeps for longer than the others wait."""
    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def step(self: TrainingStep, *batch: Any) -> None:
        if self.progress.iteration + 1 == STEP and self.ranks.rank == 1:
            if trouble == "raise":
                raise IndexError("the rank met what nobody foresaw")
            if trouble == "die":
                os._exit(3)
            time.sleep(6)
            os._exit(3)
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    return train_tiny(config)


@pytest.mark.parametrize(
    ("trouble", "world_size", "words"),
    [
        ("raise", 2, "A rank is gone, says rank 0 on"),
        ("die", 2, "A rank is gone, says rank 0 on"),
        ("sleep", 3, "did not answer for 0.05 minutes (launch.timeout_min)"),
    ],
)
def test_a_rank_in_trouble_is_named_by_those_who_are_left(
    trouble: str, world_size: int, words: str, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = {"launch.workers": world_size, "launch.timeout_min": 0.05}
    config = config_of(tiny_data, tmp_path, **changes)
    began = time.monotonic()
    ended = ranks.run(train_with_trouble, world_size=world_size, config=config, trouble=trouble)
    assert time.monotonic() - began < 30
    told = ended[0].value
    assert told["end"] == "failed", ended[0].output
    assert words in told["message"]
    host = os.uname().nodename
    if trouble == "sleep":
        assert told["message"].startswith(f"Rank 1 on {host} did not answer")
    if trouble == "raise":
        own = ended[1].value["message"]
        assert own.startswith(
            f"Rank 1 on {host} raised IndexError: the rank met what nobody foresaw."
        )
        assert "in step" in (tmp_path / "tiny" / "traceback-rank-1.txt").read_text()
