"""Runs whose branches are differences: the optimiser's memory, kills, ranks, and what the result says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_server import RankServer
from test_kill_and_continue import train_and_die
from test_widened_network import ALONE, BELOW, OPTIMISERS, PREPROCESSING, TOP, _batch, _step
from tiny_runs import TASKS, assert_same_content, config_of, lines_of, train_tiny

from distbranch.config import load_config
from distbranch.data.mixture import read_data
from distbranch.engine.artifact import load_model
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.restricted_run import restrict_run
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture, num_weights
from distbranch.models.backbone import Backbone
from distbranch.tensor_files import load_tensors

DELTA = {"method.branches": "delta", "method.delta_rank": 1}  # of layers of width 2


def _trained(optimiser: str, folder: Path, **changes: Any) -> TrainedNetwork:
    values = {"optim.name": optimiser, **DELTA, **changes}
    config = load_config(config_of("unused", folder, **values))
    net = TrainedNetwork(config, ALONE, PREPROCESSING, is_final=False)
    backbone = Backbone("vgg9", (32, 32), 4)
    net.begin(Architecture(backbone, TASKS, delta_rank=1), seed=1)
    for seed in range(3):
        _step(net, *_batch(seed))
    return net


@pytest.mark.parametrize(("optimiser", "slots"), OPTIMISERS)
def test_the_memory_of_a_shared_weight_stays_that_of_a_norm_is_copied_and_a_difference_has_none(
    optimiser: str, slots: list[str], tmp_path: Path
) -> None:
    net = _trained(optimiser, tmp_path)
    before = {name: value.clone() for name, value in net.slots().items()}
    net.widen(TOP)
    after = net.slots()
    for slot in slots:
        shared = after[f"units.fc6.shared.product.weight:{slot}"]
        assert torch.equal(shared, before[f"units.fc6.0.product.weight:{slot}"])
        for branch in range(3):
            scale = after[f"units.fc6.{branch}.norm.weight:{slot}"]
            assert torch.equal(scale, before[f"units.fc6.0.norm.weight:{slot}"])
    assert not any(value.any() for name, value in after.items() if ".delta." in name)

    # The steps that follow move all of them, also after a second birth.
    net.widen(BELOW)
    old = {name: value.clone() for name, value in net.network.named_parameters()}
    for seed in range(3, 5):
        _step(net, *_batch(seed))
    for name, value in net.network.named_parameters():
        assert not torch.equal(value, old[name]), name


def test_a_shared_weight_keeps_its_memory_where_copies_inherit_few_steps(tmp_path: Path) -> None:
    net = _trained("adamw", tmp_path, **{"optim.inherited_steps": 1})
    before = {name: value.clone() for name, value in net.slots().items()}
    net.widen(TOP)
    after = net.slots()
    for slot in ("step", "exp_avg", "exp_avg_sq"):
        shared = after[f"units.fc6.shared.product.weight:{slot}"]
        assert torch.equal(shared, before[f"units.fc6.0.product.weight:{slot}"])
    assert after["units.fc6.0.norm.weight:step"] == 1


def test_a_network_that_is_built_again_between_two_steps_takes_the_same_next_step(
    tmp_path: Path,
) -> None:
    for optimiser in ("sgd", "adamw"):
        net, again = _trained(optimiser, tmp_path), _trained(optimiser, tmp_path)
        for one in (net, again):
            one.widen(TOP)
        again.build(again.network.architecture, again.network.state_dict(), again.slots())
        for one in (net, again):
            _step(one, *_batch(5))
        assert net.fingerprint() == again.fingerprint()


# ---- whole runs


@pytest.fixture(scope="module")
def grown(
    tiny_data: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The undisturbed run on so many ranks."""
    runs: dict[int, Path] = {}

    def run_on(world_size: int) -> Path:
        if world_size not in runs:
            folder = tmp_path_factory.mktemp(f"delta-{world_size}")
            config = config_of(tiny_data, folder, **DELTA, **{"launch.workers": world_size})
            ended = ranks.call_all(train_tiny, world_size, config=config)
            assert {one["end"] for one in ended} == {"done"}, ended
            runs[world_size] = folder / "tiny"
        return runs[world_size]

    return run_on


def test_two_ranks_killed_in_a_birth_and_in_a_step_end_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, grown: Callable[[int], Path], tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **DELTA, **{"launch.workers": 2})
    for kill in (("copy state", 1), ("backward", 9)):
        ended = ranks.run(train_and_die, world_size=2, config=config, kill=kill, rank=1)
        assert ended[1].exit_code < 0, "it was killed"
    for one in ranks.call_all(train_tiny, 2, config=config):
        assert one["end"] == "done", one["message"]
    assert_same_content(tmp_path / "tiny", grown(2))


def test_two_ranks_learn_what_one_learns(grown: Callable[[int], Path]) -> None:
    alone, together = (load_tensors(grown(n) / "model" / "model.safetensors") for n in (1, 2))
    assert alone.keys() == together.keys()
    assert any(".delta." in name for name in alone)
    losses = [
        [line["loss"] for line in lines_of(grown(n) / "metrics.jsonl", "step")] for n in (1, 2)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_the_result_says_what_is_stored_and_what_is_served(grown: Callable[[int], Path]) -> None:
    result = json.loads((grown(1) / "result.json").read_text())
    served, _ = load_model(grown(1))
    assert result["folded_weights"] == num_weights(served.architecture)
    stored = load_tensors(grown(1) / "model" / "model.safetensors")
    trained = [
        value.numel()
        for name, value in stored.items()
        if name.endswith((".up", ".down", "weight", ".bias"))
    ]
    assert result["parameters"] == sum(trained)
    assert result["weights"] < result["parameters"]


def test_a_part_of_a_run_is_stored_as_it_is_served(
    grown: Callable[[int], Path], tmp_path: Path
) -> None:
    restrict_run(grown(1), tmp_path / "part", tasks=["cell-0"])
    result = json.loads((tmp_path / "part" / "result.json").read_text())
    served, _ = load_model(tmp_path / "part")
    assert result["weights"] == num_weights(served.architecture)
    assert "folded_weights" not in result


def test_a_given_tree_is_trained_from_scratch_with_differences(
    tiny_data: Path, ranks: RankServer, grown: Callable[[int], Path], tmp_path: Path
) -> None:
    given = {"method.name": "fixed", "method.groups": str(grown(1)), "train.iterations": 3}
    config = config_of(tiny_data, tmp_path, **DELTA, **given)
    assert ranks.call(train_tiny, config=config)["end"] == "done"
    run = tmp_path / "tiny"
    assert json.loads((run / "tree.json").read_text()) == json.loads(
        (grown(1) / "tree.json").read_text()
    )
    names = load_tensors(run / "model" / "model.safetensors").keys()
    assert names == load_tensors(grown(1) / "model" / "model.safetensors").keys()


# ---- what is refused


@pytest.mark.parametrize(
    "method",
    [
        {"name": "fixed"},
        {"name": "independent"},
        {"name": "low-rank", "pretrained": "wide.pth"},
        {"name": "adashare"},
    ],
)
def test_a_method_without_branches_of_a_tree_is_refused(method: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"branches=delta is for branches of a tree.* found"):
        load_config({"method": {**method, "branches": "delta"}})


def test_a_rank_at_which_every_weight_would_be_copied_is_refused(tiny_data: Path) -> None:
    config = load_config(config_of(tiny_data, "runs", **DELTA | {"method.delta_rank": 9}))
    with pytest.raises(UserError, match="delta_rank=9 should be at most 2"):
        first_architecture(config, read_data(config.data))


def test_a_rank_beside_copies_is_told() -> None:
    (told,) = load_config({}, ["method.delta_rank=3"]).ignored
    assert (
        told
        == "method.delta_rank=3 is that of method.branches=delta, found method.branches=copies."
    )
