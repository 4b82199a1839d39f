"""Ranks that torchrun started: their number is the run's, and one that the configuration contradicts is refused by all of them."""

from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer, launcher_environment
from tiny_runs import config_of, train_tiny

from distbranch.config import load_config
from distbranch.errors import UsageError
from distbranch.launch import with_started_ranks


def started(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    for name, value in launcher_environment(0, world_size).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")


@pytest.mark.parametrize(
    ("workers", "world_size"), [(1, 4), (4, 4), ([2, 6], 4), (1, 1), ([1, 2], 1)]
)
def test_the_run_has_as_many_ranks_as_torchrun_started(
    workers: Any, world_size: int, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_of(tiny_data, "runs", **{"launch.workers": workers}))
    assert with_started_ranks(config) is config  # by nobody: as it says
    started(monkeypatch, world_size)
    assert with_started_ranks(config).launch.workers == world_size


@pytest.mark.parametrize(
    ("workers", "world_size"), [(2, 4), (4, 2), (2, 1), ([2, 3], 4), ([3, 6], 2)]
)
def test_another_number_than_the_configuration_says_is_refused(
    workers: Any, world_size: int, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_of(tiny_data, "runs", **{"launch.workers": workers}))
    started(monkeypatch, world_size)
    with pytest.raises(UsageError) as refused:
        with_started_ranks(config)
    told = str(refused.value)
    assert (
        f"as many ranks as launch.workers={workers} says, found {world_size} (WORLD_SIZE)" in told
    )
    assert f"Give launch.workers={world_size}, or" in told


def test_a_batch_too_small_for_the_ranks_that_were_started_is_refused(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        config_of(tiny_data, "runs", **{"train.accumulate": 2, "train.norm_batch": 6})
    )
    started(monkeypatch, 7)
    with pytest.raises(
        UsageError, match=r"12 images over launch.workers=7 and train.accumulate=2 do not"
    ):
        with_started_ranks(config)


def test_every_rank_is_told_and_nothing_is_written(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"launch.workers": 3})
    for one in ranks.call_all(train_tiny, 2, config=config):
        assert one["end"] == "failed"
        assert "launch.workers=3 says, found 2" in one["message"]
    assert not any(tmp_path.iterdir())
