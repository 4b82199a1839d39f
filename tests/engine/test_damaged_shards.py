"""Shards that are damaged while two ranks train from them: both stop with the same sentence, or skip and count."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_server import RankServer
from tiny_runs import config_of, lines_of, train_tiny

from distbranch.data.shards import read_dataset
from distbranch.engine.checkpoint import load_newest

STEP, SAMPLE = 10, 20


def train_and_damage(
    config: Mapping[str, Any], file: str, cut: int | None, flip: int | None
) -> dict[str, Any]:
    """A job: train; in step 10 rank 1 cuts the file at a position, flips a bit of a byte, or removes it."""
    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def step(self: TrainingStep, *batch: Any) -> None:
        if self.progress.iteration + 1 == STEP and self.ranks.rank == 1:
            if cut is not None:
                os.truncate(file, cut)
            elif flip is not None:
                with Path(file).open("r+b") as shard:
                    byte = os.pread(shard.fileno(), 1, flip)[0]
                    os.pwrite(shard.fileno(), bytes([byte ^ 1]), flip)
            else:
                Path(file).unlink()
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    return train_tiny(config)


@pytest.fixture
def shard(tiny_data: Path, tmp_path: Path) -> tuple[Path, Any]:
    """The second training shard of a copy of the data, and its index: offset, size, crc of image and label file."""
    shutil.copytree(tiny_data, tmp_path / "data")
    found = read_dataset(tmp_path / "data").splits["train"].shards[1]
    return tmp_path / "data" / found.file, np.load(
        tmp_path / "data" / found.index, allow_pickle=False
    )


# Of image and label file of a sample: offset, size and checksum each; 512 bytes of tar header before either.
CUTS: Mapping[str, Callable[[Any], int]] = {
    "everything": lambda _: 0,
    "at a header": lambda row: row[0] - 512,
    "in a header": lambda row: row[0] - 100,
    "in an image": lambda row: row[0] + row[1] // 2,
    "between image and label": lambda row: row[3] - 512,
    "in a label file": lambda row: row[3] + row[4] // 2,
}


@pytest.mark.parametrize("where", [*CUTS, "vanished", "flipped"])
def test_a_shard_damaged_in_the_middle_of_training_stops_both_ranks_with_the_same_sentence(
    where: str, shard: tuple[Path, Any], ranks: RankServer, tmp_path: Path
) -> None:
    file, index = shard
    damage = {
        "cut": int(CUTS[where](index[SAMPLE])) if where in CUTS else None,
        "flip": int(index[SAMPLE][0] + 200) if where == "flipped" else None,
    }
    config = config_of(tmp_path / "data", tmp_path, **{"launch.workers": 2})
    ended = ranks.call_all(train_and_damage, 2, config=config, file=str(file), **damage)
    assert [one["end"] for one in ended] == ["failed", "failed"]
    assert ended[0]["message"] == ended[1]["message"]
    assert file.name in ended[0]["message"]
    assert f"on {os.uname().nodename})" in ended[0]["message"]
    found = load_newest(tmp_path / "tiny" / "checkpoints")
    assert found is not None
    assert found.state["progress"]["iteration"] >= STEP


def test_a_cut_shard_is_skipped_and_counted_where_that_is_wanted(
    shard: tuple[Path, Any], ranks: RankServer, tmp_path: Path
) -> None:
    file, index = shard
    changes = {"launch.workers": 2, "data.on_bad_sample": "skip"}
    config = config_of(tmp_path / "data", tmp_path, **changes)
    damage = {"cut": int(index[-2][0]), "flip": None}  # the last two samples of the shard
    ended = ranks.call_all(train_and_damage, 2, config=config, file=str(file), **damage)
    assert [one["end"] for one in ended] == ["done", "done"], ended
    counted = lines_of(tmp_path / "tiny" / "metrics.jsonl", "bad_samples")[-1]["counts"]
    assert set(counted) == {"truncated"}
    assert 2 <= counted["truncated"] <= 6  # the 48 batches are a little less than three epochs
