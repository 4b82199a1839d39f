"""How many ranks share a batch, and in how many passes, changes nothing: not the weights, and not the running statistics."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_server import RankServer
from safetensors.torch import load_file
from test_kill_and_continue import train_and_die
from tiny_runs import config_of, lines_of, train_tiny

from distbranch.config import load_config
from distbranch.engine.training_step import find_teams
from distbranch.errors import UserError

STEPS = {
    "train.iterations": 30,
    "train.batch_size": 32,
    "model.width": 6,  # of two filters the dead ones are so many that rounding grows a thousandfold every ten steps
    "optim.name": "sgd",
    "optim.momentum": 0.0,
    "optim.lr": 0.01,
}
WAYS = [(1, 4), (2, 1), (2, 4), (3, 1), (4, 1), (4, 4)]  # ranks, passes


def use_double_precision() -> None:
    """In single precision rounding grows like another seed, so that nothing could be compared."""
    from distbranch.engine import trained_network

    real = trained_network.Network
    trained_network.Network = lambda *arguments: real(*arguments).double()  # type: ignore[attr-defined]


def train_in_double(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job."""
    use_double_precision()
    return train_tiny(config)


def train_in_double_and_die(config: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """A job: a rank is killed in its 19th step."""
    use_double_precision()
    return train_and_die(config, ("step", 19), rank)


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


def assert_same_network(run: Path, reference: Path) -> None:
    found, expected = tensors_of(run), tensors_of(reference)
    assert (
        lines_of(run / "decisions.jsonl")[-1]["groups"]
        == lines_of(reference / "decisions.jsonl")[-1]["groups"]
    )
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def alone(
    tiny_data: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """The run of one rank in one pass, by the number of images normalised together."""
    runs = {}
    for norm_batch in (8, 32):
        folder = tmp_path_factory.mktemp(f"norm-{norm_batch}")
        config = config_of(tiny_data, folder, **STEPS, **{"train.norm_batch": norm_batch})
        (ended,) = ranks.call_all(train_in_double, 1, config=config)
        assert ended["end"] == "done", ended
        runs[norm_batch] = folder / "tiny"
    assert tensors_of(runs[8])["heads.weight"].dtype == torch.float64
    assert lines_of(runs[8] / "decisions.jsonl")[-1]["num_groups"] > 1
    return runs


@pytest.mark.parametrize(("world_size", "passes"), WAYS)
def test_every_number_of_ranks_and_passes_trains_the_same_network(
    world_size: int,
    passes: int,
    alone: dict[int, Path],
    tiny_data: Path,
    ranks: RankServer,
    tmp_path: Path,
) -> None:
    changes = {"launch.workers": world_size, "train.accumulate": passes, "train.norm_batch": 8}
    config = config_of(tiny_data, tmp_path, **STEPS, **changes)
    ended = ranks.call_all(train_in_double, world_size, config=config)
    assert {one["end"] for one in ended} == {"done"}, ended
    assert_same_network(tmp_path / "tiny", alone[8])


def test_how_many_images_are_normalised_together_does_matter(alone: dict[int, Path]) -> None:
    one, other = (tensors_of(run)["units.conv1.0.product.weight"] for run in alone.values())
    assert not torch.allclose(one, other, rtol=0, atol=1e-3)


def test_a_run_killed_on_two_ranks_and_continued_on_four_is_the_run_of_one(
    alone: dict[int, Path], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    two, four = (
        config_of(tiny_data, tmp_path, **STEPS, **{"launch.workers": count, "train.norm_batch": 32})
        for count in (2, 4)
    )
    ended = ranks.run(train_in_double_and_die, world_size=2, config=two, rank=0)
    assert ended[0].exit_code == -signal.SIGKILL
    assert {one["end"] for one in ranks.call_all(train_in_double, 4, config=four)} == {"done"}
    resumed = lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")
    assert [line["iteration"] for line in resumed] == [15]
    assert_same_network(tmp_path / "tiny", alone[32])


@pytest.mark.parametrize(
    ("starts", "group_size", "teams"),
    [
        ([0, 64], 32, [(0, 1)]),
        ([0, 32, 64], 32, [(0, 1), (1, 2)]),
        ([0, 16, 32, 48, 64], 32, [(0, 2), (2, 4)]),
        ([0, 21, 42, 64], 32, [(0, 3)]),
        ([0, 8, 16], 16, [(0, 2)]),
        ([0, 24, 32, 40, 64], 32, [(0, 2), (2, 4)]),
    ],
)
def test_ranks_are_a_team_with_those_alone_that_their_groups_reach(
    starts: list[int], group_size: int, teams: list[tuple[int, int]]
) -> None:
    assert [(team.start, team.stop) for team in find_teams(starts, group_size)] == teams


@pytest.mark.parametrize(
    ("batch_size", "norm_batch", "passes", "words"),
    [
        (48, 32, 1, "the nearest train.batch_size is 32 or 64"),
        (33, 32, 1, "found 33"),
        (64, 32, 4, "is 128"),
        (96, 32, 2, "is 64 or 128"),
        (8, 32, 2, "in each of train.accumulate=2 passes"),
    ],
)
def test_a_batch_without_whole_groups_is_refused_with_the_nearest_that_has(
    batch_size: int, norm_batch: int, passes: int, words: str
) -> None:
    train = {"batch_size": batch_size, "norm_batch": norm_batch, "accumulate": passes}
    with pytest.raises(UserError, match=words):
        load_config({"data": {"path": "x"}, "train": train})


def test_a_batch_smaller_than_a_group_is_one_group() -> None:
    assert load_config({"data": {"path": "x"}, "train": {"batch_size": 13}}).train.norm_batch == 32


def test_the_old_switch_is_told_its_successor_where_it_was_on_and_forgotten_where_it_was_off() -> (
    None
):
    with pytest.raises(
        UserError, match=r"norm_batch, which says how many images are normalised together"
    ):
        load_config({"data": {"path": "x"}, "train": {"sync_batch_norm": True}})
    load_config({"data": {"path": "x"}, "train": {"sync_batch_norm": False}})


def test_a_timm_model_over_two_ranks_is_that_of_one(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    model = {"backbone": "timm:resnet18", "arguments": {"channels": [8, 8, 8, 8]}}
    method = {"round_iterations": 4, "alpha": 9.0, "unit_cost": 1e-6}
    steps = {key: value for key, value in STEPS.items() if key != "model.width"}
    given = steps | {"model": model, "method": method, "train.iterations": 6}
    for world_size, passes in ((1, 1), (2, 2)):
        changes = {"launch.workers": world_size, "train.accumulate": passes}
        folder = tmp_path / str(world_size)
        config = config_of(tiny_data, folder, **given, **changes, **{"train.norm_batch": 16})
        ended = ranks.call_all(train_in_double, world_size, config=config)
        assert {one["end"] for one in ended} == {"done"}, ended
    assert lines_of(tmp_path / "1" / "tiny" / "decisions.jsonl")[-1]["num_groups"] > 1
    assert_same_network(tmp_path / "2" / "tiny", tmp_path / "1" / "tiny")
