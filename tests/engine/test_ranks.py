"""Ranks do not matter: the same batches give the same affinities and decisions on any number of them."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_server import RankServer
from tiny_runs import config_of, lines_of, train_tiny

from distbranch.config import DataConfig, load_config
from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.engine.distributed import Ranks, verify_equal
from distbranch.engine.loaders import open_training
from distbranch.engine.process_group import join_ranks
from distbranch.errors import UserError


def train_a_network_that_reads_pixels(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: train with outputs that are whole numbers read from the picture.

    The rounding of matrix products makes real outputs differ between numbers of ranks; these do not, so all that is left to
    differ are the statistics.
    """
    from distbranch.models.network import Network

    def forward(
        self: Network, images: torch.Tensor, *, flat: bool = False, groups: object = None
    ) -> torch.Tensor:
        pixels = images.float().flatten(1)[:, :: 3 * 32 * 32 // self.heads.out_features][
            :, : self.heads.out_features
        ]
        nothing = sum((parameter.sum() for parameter in self.parameters()), torch.zeros(())) * 0
        return (pixels - 128) / 32 + nothing

    Network.forward = forward  # type: ignore[assignment,method-assign]
    return train_tiny(config)


@pytest.mark.parametrize("kind", ["agreement", "phi"])
def test_affinities_and_decisions_are_the_same_from_one_two_and_three_ranks(
    kind: str, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    runs = {}
    for world_size in (1, 2, 3):
        changes = {
            "launch.workers": world_size,
            "method.affinity": kind,
            "train.iterations": 30,
            "train.batch_size": 13,
        }
        config = config_of(tiny_data, tmp_path / str(world_size), **changes)
        ended = ranks.call_all(train_a_network_that_reads_pixels, world_size, config=config)
        assert all(one["end"] == "done" for one in ended), ended
        runs[world_size] = tmp_path / str(world_size) / "tiny"
    alone = lines_of(runs[1] / "decisions.jsonl")
    assert len(alone) == 4
    for world_size in (2, 3):
        together = lines_of(runs[world_size] / "decisions.jsonl")
        assert [line["groups"] for line in together] == [line["groups"] for line in alone]
        for line in alone:
            one = np.load(runs[1] / line["affinity_file"], allow_pickle=False)
            many = np.load(runs[world_size] / line["affinity_file"], allow_pickle=False)
            for name in ("agreement", "phi", "branch_affinity"):
                assert one[name].min() < 0.9  # something is there to be compared
                np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-9)


def train_and_fingerprint(config: Mapping[str, Any]) -> list[str]:
    """A job: the fingerprints that this rank finds by itself after each decision."""
    from distbranch.engine.growth import Growth

    found, real = [], Growth.end_round

    def grow(self: Growth) -> None:
        real(self)
        found.append(self.net.fingerprint())

    Growth.end_round = grow  # type: ignore[method-assign]
    assert train_tiny(config)["end"] == "done"
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_holds_the_same_bits_after_each_decision(
    world_size: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(
        tiny_data, tmp_path, **{"launch.workers": world_size, "train.iterations": 30}
    )
    found = ranks.call_all(train_and_fingerprint, world_size, config=config)
    recorded = [line["tree_hash"] for line in lines_of(tmp_path / "tiny" / "decisions.jsonl")]
    assert len(set(recorded)) == 4
    assert found == [recorded] * world_size


def train_with_one_rank_that_differs(config: Mapping[str, Any], different: int) -> dict[str, Any]:
    """A job: train, but on one rank the last bit of one weight is another one after the second widening."""
    from distbranch.engine.trained_network import TrainedNetwork

    real, widened = TrainedNetwork.widen, []

    def widen(self: TrainedNetwork, split: Any) -> None:
        real(self, split)
        widened.append(split)
        if len(widened) == 2 and self.ranks.rank == different:
            weight = self.network.state_dict()["heads.weight"]
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))

    TrainedNetwork.widen = widen  # type: ignore[method-assign]
    return train_tiny(config)


@pytest.mark.parametrize(("world_size", "different"), [(2, 1), (3, 2)])
def test_a_rank_that_differs_in_one_bit_stops_the_run_and_is_named(
    world_size: int, different: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"launch.workers": world_size})
    ended = ranks.call_all(
        train_with_one_rank_that_differs, world_size, config=config, different=different
    )
    for one in ended:
        assert one["end"] == "failed"
        assert f"but rank {different} on " in one["message"]
        assert "decision 2" in one["message"]
        assert "Nothing was saved since the last checkpoint" in one["message"]
    newest = sorted((tmp_path / "tiny" / "checkpoints").iterdir())[-1]
    assert newest.name == "step-00000010"


def train_with_another_pack_on_one_rank(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: train, but the last rank finds a data set with one more sample in its first shard under the same path."""
    from distbranch.engine import session

    real = session.read_data

    def read(data: DataConfig) -> DatasetInfo:
        info = real(data)
        if int(os.environ["RANK"]) < int(os.environ["WORLD_SIZE"]) - 1:
            return info
        first, *others = info.splits["train"].shards
        shards = (replace(first, num_samples=first.num_samples + 1), *others)
        return replace(
            info, splits={**info.splits, "train": replace(info.splits["train"], shards=shards)}
        )

    session.read_data = read  # type: ignore[attr-defined]
    return train_tiny(config)


def test_a_node_with_another_pack_of_the_data_stops_all_ranks_and_is_named(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"launch.workers": 2})
    for one in ranks.call_all(train_with_another_pack_on_one_rank, 2, config=config):
        assert one["end"] == "failed"
        assert f"{tiny_data} should hold the same data set for every rank" in one["message"]
        assert f"(rank 1 on {os.uname().nodename})" in one["message"]


def test_one_rank_is_always_equal_to_itself() -> None:
    assert verify_equal(Ranks(0, 1, torch.device("cpu")), "nothing", "abc") == "abc"


def collect_indices(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: train, and return the training samples that were used, by position in the stream."""
    from distbranch.engine.trainer import Trainer

    used: list[int] = []
    real = Trainer._train_step

    def step(self: Trainer) -> None:
        indices = self._feed.upcoming.indices.tolist()
        real(self)
        used.extend(indices)

    Trainer._train_step = step  # type: ignore[method-assign]
    return {**train_tiny(config), "used": used}


def test_a_run_continued_on_other_numbers_of_ranks_uses_every_sample_once(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    used: list[int] = []
    for world_size, iterations in ((2, 10), (3, 17), (1, 30)):
        # The length of a run is not free to change, so the run is stopped by the stop word of its directory instead.
        config = config_of(
            tiny_data, tmp_path, **{"launch.workers": world_size, "train.iterations": 30}
        )
        ended = ranks.call_all(collect_until, world_size, config=config, last=iterations)
        assert {one["end"] for one in ended} == {"done" if iterations == 30 else "stopped"}, ended
        used += [index for one in ended for index in one["used"]]
    assert sorted(used) == list(range(30 * 12))
    assert len(lines_of(tmp_path / "tiny" / "decisions.jsonl")) == 4


def collect_until(config: Mapping[str, Any], last: int) -> dict[str, Any]:
    """A job: like `collect_indices`, but SIGTERM arrives during step `last`."""
    import signal

    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def step(self: TrainingStep, *batch: Any) -> None:
        if self.progress.iteration + 1 == last:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    return collect_indices(config)


def sums_of_ranks(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: the collectives that training uses, on values that say which rank they are from."""
    with join_ranks(load_config(config).launch) as here:
        total = here.sum(torch.tensor([10.0**here.rank], dtype=torch.float64))
        pending = here.start_sum(torch.ones(2), on_host=True)
        tensors = [
            torch.full((2,), float(here.rank)),
            torch.tensor(here.rank),
            torch.full((3, 1), here.rank + 0.5),
        ]
        here.broadcast_tensors(tensors)
        try:
            here.raise_on_all_ranks("it failed" if here.rank == 1 else None)
            message = ""
        except UserError as error:
            message = str(error)
        return {
            "sum": total.item(),
            "ones": pending.wait().tolist(),
            "gathered": here.gather(here.rank),
            "word": here.broadcast(f"from {here.rank}"),
            "tensors": [tensor.flatten().tolist() for tensor in tensors],
            "message": message,
        }


def test_collectives_of_three_ranks_give_every_rank_the_same(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = ranks.call_all(sums_of_ranks, 3, config=config_of(tiny_data, tmp_path))
    assert found[0] == found[1] == found[2]
    assert found[0]["sum"] == 111
    assert found[0]["ones"] == [3, 3]
    assert found[0]["gathered"] == [0, 1, 2]
    assert found[0]["word"] == "from 0"
    assert found[0]["tensors"] == [[0, 0], [0], [0.5, 0.5, 0.5]]
    assert found[0]["message"].startswith("it failed (rank 1 on ")


def shares(config: Mapping[str, Any], num_batches: int) -> list[list[int]]:
    """A job: the samples of this rank's first batches."""
    resolved = load_config(config)
    with join_ranks(resolved.launch) as here:
        info = read_dataset(str(resolved.data.path))
        batches = open_training(info, resolved, here, image_size=(32, 32), start=0)
        return [next(batches).indices.tolist() for _ in range(num_batches)]


def test_the_shares_of_three_ranks_are_the_global_batches(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"train.batch_size": 13})
    found = ranks.call_all(shares, 3, config=config, num_batches=3)
    for number in range(3):
        together = [index for one in found for index in one[number]]
        assert together == list(range(number * 13, number * 13 + 13))
