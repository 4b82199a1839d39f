"""Evaluation divided over ranks: every sample counts once, and the numbers are those of one process."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_server import RankServer
from tiny_runs import NUM_SAMPLES, TASKS, config_of

from distbranch.config import DataConfig, load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.distributed import Ranks
from distbranch.engine.evaluate import evaluate_split
from distbranch.engine.loaders import open_evaluation
from distbranch.engine.process_group import join_ranks
from distbranch.errors import SharedError
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network


def scores(config: Mapping[str, Any], split: str, batch_size: int) -> dict[str, Any]:
    """A job: evaluate a network with random weights."""
    resolved = load_config(config)
    with join_ranks(resolved.launch) as here:
        info = read_dataset(str(resolved.data.path))
        network = Network(Architecture.thin("vgg9", 4, (32, 32), info.tasks))
        network.init(torch.Generator().manual_seed(4))
        network.train()
        found = evaluate_split(network, info, split, here, resolved.data, batch_size=batch_size)
        assert network.training
        return found


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_are_the_same_on_one_two_and_three_ranks_and_every_sample_counts_once(
    split: str, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    arguments = {"config": config_of(tiny_data, tmp_path), "split": split, "batch_size": 8}
    alone = ranks.call(scores, **arguments)
    assert alone["num_samples"] == NUM_SAMPLES[split]
    num_unlabelled = {"cell-2": -(-NUM_SAMPLES[split] // 5), "kind": -(-NUM_SAMPLES[split] // 7)}
    for task in TASKS:
        expected = NUM_SAMPLES[split] - num_unlabelled.get(task.name, 0)
        assert alone["tasks"][task.name]["num_labelled"] == expected
    for world_size in (2, 3):
        for found in ranks.call_all(scores, world_size, **arguments):
            assert found.pop("loss") == pytest.approx(alone["loss"], rel=1e-6)
            assert found == {key: value for key, value in alone.items() if key != "loss"}


def refusal(config: Mapping[str, Any]) -> str:
    """A job: what is said instead of an evaluation on `test`."""
    with pytest.raises(SharedError) as refused:
        scores(config, "test", 8)
    return str(refused.value)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (29, "No sample of 'test' could be read"),
        (
            28,
            "29 samples of 'test' could not be read (29 missing-shard), more than data.max_bad_samples=28",
        ),
    ],
)
def test_samples_left_out_of_an_evaluation_are_bounded_and_some_must_be_left(
    limit: int, words: str, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    (data / read_dataset(data).splits["test"].shards[0].file).unlink()
    config = config_of(
        data, tmp_path, **{"data.on_bad_sample": "skip", "data.max_bad_samples": limit}
    )
    for told in ranks.call_all(refusal, 2, config=config):
        assert words in told


def test_shards_of_a_url_are_kept_in_the_cache_of_the_user(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    info = read_dataset(f"file://{tiny_data}")
    alone = Ranks(0, 1, torch.device("cpu"))
    batches = open_evaluation(info, "test", DataConfig(), alone, image_size=(32, 32), batch_size=50)
    assert sum(len(batch.images) for batch in batches) == NUM_SAMPLES["test"]
    assert len(list((tmp_path / "distbranch" / "shards").glob("*.tar"))) == 1
