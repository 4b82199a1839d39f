"""Runs on real photographs that balance, change and mix them: killed, resumed, on one, two and three ranks."""

import csv
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny
from tiny_world import run_command

NUM_PHOTOGRAPHS = 150
EVERYTHING: dict[str, Any] = {
    "data.balance": {"category": 1.0, "kids": 0.5},
    "data.augment": "randaugment",
    "data.crop_area": [0.4, 1.0],
    "data.jitter": 0.3,
    "data.mixup": 0.4,
    "data.cutmix": 1.0,
    "train.iterations": 10,
    "train.batch_size": 14,  # whose shares end within pairs, on two ranks and on three
    "train.checkpoint_every": 3,
    "train.evaluate_every": 0,
    "train.log_every": 1,
    "method.round_iterations": 4,
}


@pytest.fixture(scope="module")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of a few of the photographs of clothes, in shards of which a window holds some."""
    folder = tmp_path_factory.mktemp("photographs")
    source = shared_data / "clothing"
    with (source / "attributes.csv").open() as file:
        lines = list(csv.reader(file))
    with (folder / "table.csv").open("w") as file:
        csv.writer(file).writerows(lines[: NUM_PHOTOGRAPHS + 1])
    command = f"data pack csv {folder / 'data'} --images {source / 'images.zip'} --table {folder / 'table.csv'} --image-size 48x48"
    ended = run_command([*command.split(), "--shard-samples", "20"])
    assert ended.code == 0, ended.err
    return folder / "data"


def train_and_die(config: Mapping[str, Any], step: int) -> dict[str, Any]:
    """A job: train, and be killed as so many steps are made."""
    from distbranch.engine import trainer

    real = trainer.Trainer._train_step

    def dying(self: Any) -> None:
        if self.progress.iteration == step:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self)

    trainer.Trainer._train_step = dying  # type: ignore[method-assign]
    return train_tiny(config)


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(
    photographs: Path, ranks: RankServer, tmp_path: Path
) -> None:
    for name in ("whole", "killed"):
        config = config_of(photographs, tmp_path / name, **EVERYTHING, **{"launch.workers": 2})
        if name == "killed":
            ended = ranks.run(train_and_die, world_size=2, config=config, step=5)
            assert ended[0].exit_code == -signal.SIGKILL
        for one in ranks.call_all(train_tiny, 2, config=config):
            assert one["end"] == "done", one["message"]
    assert lines_of(tmp_path / "killed" / "tiny" / "metrics.jsonl", "resumed")
    assert_same_content(tmp_path / "killed" / "tiny", tmp_path / "whole" / "tiny")


def test_one_rank_and_three_that_are_killed_and_resumed_as_two_train_on_the_same_samples(
    photographs: Path, ranks: RankServer, tmp_path: Path
) -> None:
    losses = {}
    # So small a rate that rounding, which differs, does not grow.
    slow = EVERYTHING | {"optim": {"name": "sgd", "lr": 1e-3}, "method": {"name": "fixed"}}
    del slow["method.round_iterations"]
    for name, worlds in {"alone": [1], "several": [3, 2]}.items():
        for world_size in worlds:
            given = slow | {"run.name": name, "launch.workers": world_size}
            config = config_of(photographs, tmp_path, **given)
            if world_size == 3:
                ranks.run(train_and_die, world_size=3, config=config, step=7)
                continue
            for one in ranks.call_all(train_tiny, world_size, config=config):
                assert one["end"] == "done", one["message"]
        lines = lines_of(tmp_path / name / "metrics.jsonl", "train")
        losses[name] = {line["iteration"]: line["loss"] for line in lines}
    assert lines_of(tmp_path / "several" / "metrics.jsonl", "resumed")
    assert losses["several"] == pytest.approx(losses["alone"], rel=1e-3)
    assert len(losses["alone"]) == 10


@pytest.fixture
def dry_run(photographs: Path, tmp_path: Path) -> Callable[..., str]:
    def plan(**given: Any) -> str:
        config = config_of(photographs, tmp_path, **given)
        file = tmp_path / "photographs.yaml"
        file.write_text(json.dumps(config))
        ended = run_command(["train", str(file), "--dry-run"])
        return ended.err or " ".join(ended.out.split())

    return plan


def test_of_photographs_a_dry_run_tells_what_is_balanced_and_what_cannot_be(
    dry_run: Callable[..., str],
) -> None:
    told = dry_run(**{"data.balance": {"kids": 1.0, "category": 1.0}})
    assert "-> 50.0 %" in told
    assert "balance of 'category'" in told
    assert "nearest of its 2 are: kids" in dry_run(**{"data.balance": {"kid": 1.0}})
    told = dry_run(**{"data.crop_area": [0.3, 1], "data.scale": [0.5, 1.5]})
    assert "two ways to show a part of an image" in told
