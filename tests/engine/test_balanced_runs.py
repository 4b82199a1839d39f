"""Runs on real photographs that balance, change and mix them: killed, resumed, on one, two and three ranks."""

import csv
import json
import os
import signal
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny
from tiny_world import run_command

from distbranch.config import DataConfig
from distbranch.data.balance import read_balances
from distbranch.data.loader import train_loader
from distbranch.data.shards import read_dataset

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
    # So small a rate that rounding, which differs between numbers of ranks, does not grow.
    "optim": {"name": "sgd", "lr": 1e-3},
    "method": {"name": "fixed"},
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
            self.store.finish_checkpoint()
            os.kill(os.getpid(), signal.SIGKILL)
        real(self)

    trainer.Trainer._train_step = dying  # type: ignore[method-assign]
    return train_tiny(config)


def end_run(ranks: RankServer, world_size: int, config: Mapping[str, Any]) -> dict[int, float]:
    """Train to the end on so many ranks; the loss of every step."""
    for one in ranks.call_all(train_tiny, world_size, config=config):
        assert one["end"] == "done", one["message"]
    lines = lines_of(Path(config["run"]["directory"]) / "tiny" / "metrics.jsonl", "train")
    return {line["iteration"]: line["loss"] for line in lines}


def test_a_killed_run_ends_with_the_same_bits_and_on_other_ranks_with_the_same_samples(
    photographs: Path, ranks: RankServer, tmp_path: Path
) -> None:
    whole = config_of(photographs, tmp_path / "whole", **EVERYTHING)
    expected = end_run(ranks, 1, whole)
    assert len(expected) == 10

    killed = config_of(photographs, tmp_path / "killed", **EVERYTHING)
    ended = ranks.run(train_and_die, config=killed, step=5)
    assert ended[0].exit_code == -signal.SIGKILL
    end_run(ranks, 1, killed)
    assert_same_content(tmp_path / "killed" / "tiny", tmp_path / "whole" / "tiny")

    moved = config_of(photographs, tmp_path / "moved", **EVERYTHING, **{"launch.workers": 3})
    ended = ranks.run(train_and_die, world_size=3, config=moved, step=7)
    assert ended[0].exit_code == -signal.SIGKILL
    moved["launch"]["workers"] = 2
    found = end_run(ranks, 2, moved)
    for run in ("killed", "moved"):
        assert lines_of(tmp_path / run / "tiny" / "metrics.jsonl", "resumed")
    assert found == pytest.approx(expected, rel=1e-3)


def test_photographs_come_as_often_as_their_class_was_asked_for(photographs: Path) -> None:
    info = read_dataset(photographs)
    balances = read_balances(DataConfig(balance={"category": 1.0}), info, None)
    num_samples = info.splits["train"].num_samples
    batches = train_loader(
        info, "train", batch_size=num_samples, image_size=(8, 8), balances=balances
    )
    counts = info.splits["train"].labels["category"]
    present = [name for name, count in counts.items() if count and name != "unlabelled"]
    column = [task.name for task in info.tasks].index("category")
    for batch in islice(batches, 2):  # two epochs
        _, shown = batch.labels[:, column].unique(return_counts=True)
        asked = sum(counts[name] for name in present) / len(present)
        assert len(shown) == len(present)
        assert (shown - asked).abs().max() < 1


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
