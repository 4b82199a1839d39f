"""Every method over every backbone: a tree over residual blocks, a policy over a timm model, what a branch costs, first weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rank_server import RankServer
from safetensors.torch import load_file, save_file
from test_kill_and_continue import train_and_die
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.tree import Tree
from distbranch.config import MethodConfig, load_config
from distbranch.data.mixture import read_data
from distbranch.data.shard_writer import file_sha256
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.round_decision import decide_round, price_branch
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture, num_weights
from distbranch.tasks import Task

# Thin, and with a cap, so that it branches at each of its few decisions.
RESIDUAL = {"model": {"backbone": "resnet18", "width": 8}, "train.iterations": 23}
BY_SHARE = {"method.price": "multiply-adds"}


def trained(config: dict[str, Any]) -> Path:
    ended = train_tiny(config)
    assert ended["end"] == "done", ended["message"]
    return Path(config["run"]["directory"]) / config["run"]["name"]


def tree_of(run: Path) -> Tree:
    return Tree.from_json(json.loads((run / "tree.json").read_text())["tree"])


@pytest.fixture(scope="module")
def grown(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tree over residual blocks."""
    folder = tmp_path_factory.mktemp("grown")
    return trained(config_of(tiny_data, folder, **RESIDUAL, **BY_SHARE))


def test_a_tree_over_residual_blocks_splits_them(grown: Path) -> None:
    tree = tree_of(grown)
    assert [split.layer for split in tree.splits][:2] == [9, 8]
    names = set(load_file(grown / "model" / "model.safetensors"))
    assert "units.block4_2.1.first.product.weight" in names
    assert not (grown / "policy.json").exists()


def test_a_tree_over_residual_blocks_that_was_killed_ends_with_the_same_bits(
    grown: Path, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **RESIDUAL, **BY_SHARE)
    ranks.run(train_and_die, world_size=1, config=config, kill=("step", 17), rank=0)
    trained(config)
    assert_same_content(tmp_path / "tiny", grown)


def test_the_record_of_a_decision_says_what_a_branch_cost(grown: Path) -> None:
    record = lines_of(grown / "decisions.jsonl")[0]
    config = load_config(grown / "config.yaml")
    shared = first_architecture(config, read_data(config.data))
    assert record["priced_by"] == "multiply-adds"
    assert record["price"] == price_branch(config.method, shared, 9)
    costs, separation = record["costs"], record["separation"]
    assert costs["2"] - record["alpha"] * separation["2"] == pytest.approx(record["price"])


def test_a_given_tree_over_residual_blocks_is_trained_as_it_is(
    grown: Path, tiny_data: Path, tmp_path: Path
) -> None:
    given = {"method.name": "fixed", "method.groups": str(grown), "train.iterations": 2}
    run = trained(config_of(tiny_data, tmp_path, **RESIDUAL | given))
    assert tree_of(run) == tree_of(grown)


def test_independent_residual_networks_cost_as_much_as_their_number(tiny_data: Path) -> None:
    config = load_config(config_of(tiny_data, "runs", **RESIDUAL | {"method.name": "independent"}))
    info = read_data(config.data)
    apart = first_architecture(config, info)
    alone = Architecture.thin("resnet18", 8, info.image_size, info.tasks[:1])
    heads = 8 * apart.num_outputs
    assert num_weights(apart) - heads == len(info.tasks) * (num_weights(alone) - 8)


def test_hard_sharing_over_residual_blocks_is_the_policy_that_skips_none(tiny_data: Path) -> None:
    config = load_config(config_of(tiny_data, "runs", **RESIDUAL | {"method.name": "fixed"}))
    policy = first_architecture(config, read_data(config.data)).policy
    assert policy == ((True,) * 8,) * 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.name": "adashare"}, "none of model.backbone=vgg9 can be skipped"),
        (
            RESIDUAL | {"method": {"name": "fixed", "groups": {"block4_3": [["cell-0"]]}}},
            "found block4_3; the nearest are block4_",
        ),
    ],
)
def test_what_a_backbone_cannot_do_is_told_in_one_sentence(
    tiny_data: Path, changes: dict[str, Any], words: str
) -> None:
    config = load_config(config_of(tiny_data, "runs", **changes))
    with pytest.raises(UserError) as refused:
        first_architecture(config, read_data(config.data))
    assert words in str(refused.value)


# ---- the price of a branch


def test_a_fully_connected_layer_of_vgg_costs_a_64th_by_its_share_as_by_its_pools() -> None:
    full = Architecture.thin("vgg16", None, (224, 224), (Task("a"), Task("b")))
    by_share, by_pools = MethodConfig(price="multiply-adds"), MethodConfig()
    found = [price_branch(by_share, full, layer) for layer in (14, 15)]
    assert sum(found) / 2 == pytest.approx(1 / 64)
    assert [price_branch(by_pools, full, layer) for layer in (14, 15)] == [1 / 64] * 2
    # The other end of the paper's prices, a half, too.
    assert price_branch(by_share, full, 2) == pytest.approx(
        price_branch(by_pools, full, 2), rel=0.05
    )
    assert price_branch(MethodConfig(price="multiply-adds", unit_cost=1 / 32), full, 2) == (
        2 * price_branch(by_share, full, 2)
    )


def test_how_a_branch_is_priced_can_decide_how_many_there_are() -> None:
    full = Architecture.thin("resnet18", None, (32, 32), tuple(Task(f"{n}") for n in range(6)))
    stats = AffinityStats(6)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        stats.update(torch.rand(64, 2, generator=draw).repeat_interleave(3, dim=1))
    methods = [
        MethodConfig(alpha=0.2, max_branches=None, price=price)
        for price in ("pools", "multiply-adds")
    ]
    by_pools, by_share = decide_round(stats, full, methods, seed=0)
    assert by_pools.record["num_groups"] == 2
    assert by_share.record["num_groups"] == 1
    assert by_share.record["separation"] == by_pools.record["separation"]


# ---- models of timm

TIMM = {
    "model": {"backbone": "timm:resnet18", "arguments": {"channels": [8, 8, 8, 8]}},
    "train.iterations": 12,
    "train.evaluate_every": 0,
}
SEARCH = TIMM | {
    "method": {"name": "adashare"},
    "adashare": {"warmup_iterations": 2, "cycles_per_block": 1, "policy_lr": 0.1},
    "train.iterations": 24,
}


@pytest.fixture(scope="module")
def searched(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search over a model of timm."""
    return trained(config_of(tiny_data, tmp_path_factory.mktemp("searched"), **SEARCH))


def test_a_policy_is_searched_for_over_a_timm_model_and_trained_with(
    searched: Path, tiny_data: Path, tmp_path: Path
) -> None:
    found = json.loads((searched / "policy.json").read_text())
    assert found["blocks"][-1] == "layer4_1"
    assert len(found["execute_probability"][0]) == len(found["blocks"]) == 8
    policy = {"adashare": {"policy": str(searched)}, "train.iterations": 2}
    run = trained(config_of(tiny_data, tmp_path, **SEARCH | policy))
    assert json.loads((run / "policy.json").read_text())["policy"] == found["policy"]


def test_a_tree_over_a_timm_model_that_was_killed_on_two_ranks_ends_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    tree = TIMM | {"train.iterations": 16, "launch.workers": 2}
    whole, killed = (config_of(tiny_data, tmp_path / part, **tree) for part in ("whole", "killed"))
    ranks.call_all(train_tiny, 2, config=whole)
    ranks.run(train_and_die, world_size=2, config=killed, kill=("step", 12), rank=1)
    assert not (tmp_path / "killed" / "tiny" / "result.json").exists()
    ranks.call_all(train_tiny, 2, config=killed)
    assert tree_of(tmp_path / "whole" / "tiny").splits
    assert_same_content(tmp_path / "killed" / "tiny", tmp_path / "whole" / "tiny")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("name", ["fixed", "independent"])
def test_every_copy_of_a_unit_begins_from_the_pretrained_one(
    name: str, tiny_data: Path, tmp_path: Path
) -> None:
    channels = TIMM["model"]["arguments"]
    model = timm.create_model("resnet18", **channels)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    begun = TIMM["model"] | {"pretrained": str(tmp_path / "own.safetensors")}
    still = {"model": begun, "method": {"name": name}, "train.iterations": 2, "optim.lr": 1e-12}
    run = trained(config_of(tiny_data, tmp_path, **TIMM | still))
    found, key = weights_of(run), "layer4.1.conv2.weight"
    own = [
        value
        for name, value in found.items()
        if name.endswith("1.conv2.weight") and "layer4_1" in name
    ]
    assert len(own) == (8 if name == "independent" else 1)
    for value in own:
        torch.testing.assert_close(value, model.state_dict()[key])
    environment = json.loads((run / "environment.json").read_text())
    assert environment["pretrained_sha256"] == file_sha256(tmp_path / "own.safetensors")


def test_a_linear_probe_of_a_pretrained_network_leaves_units_and_statistics_as_the_file_has_them(
    tiny_data: Path, tmp_path: Path
) -> None:
    model = timm.create_model("resnet18", **TIMM["model"]["arguments"])
    model.train()(torch.rand(4, 3, 32, 32))  # so that no statistic is that of a new network
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    begun = TIMM["model"] | {"pretrained": str(tmp_path / "own.safetensors")}
    changes = {"model": begun, "method": {"name": "fixed"}, "train.iterations": 3}
    run = trained(config_of(tiny_data, tmp_path, **TIMM | changes, **{"train.only": "heads"}))
    found, held = weights_of(run), model.state_dict()
    own = [name for name in found if "layer4_1" in name and name.endswith("weight")]
    of_file = [held[name] for name in held if "layer4.1" in name and name.endswith("weight")]
    assert len(own) == len(of_file) == 4
    for name in own:
        assert any(
            torch.equal(found[name], value) for value in of_file if value.shape == found[name].shape
        )
    means = [found[name] for name in found if "layer4_1" in name and "running_mean" in name]
    for mean in means:
        assert any(
            torch.equal(mean, held[f"layer4.1.bn{number}.running_mean"]) for number in (1, 2)
        )


def test_a_run_takes_the_policy_of_an_earlier_one(
    searched: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = TIMM["model"] | {"from_run": str(searched)}
    changes = {
        "model": model,
        "method": {"name": "fixed"},
        "train.iterations": 1,
        "optim.lr": 1e-12,
    }
    run = trained(config_of(tiny_data, tmp_path, **TIMM | changes))
    before, after = (json.loads((one / "policy.json").read_text()) for one in (searched, run))
    assert after["policy"] == before["policy"]
    found, held = weights_of(run), weights_of(searched)
    assert found.keys() == held.keys()
    torch.testing.assert_close(found["heads.weight"], held["heads.weight"], rtol=0, atol=1e-6)


def test_a_run_that_was_begun_needs_its_pretrained_file_no_more(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    file = tmp_path / "own.safetensors"
    save_file(timm.create_model("resnet18", **TIMM["model"]["arguments"]).state_dict(), file)
    begun = TIMM | {"model": TIMM["model"] | {"pretrained": str(file)}}
    config = config_of(tiny_data, tmp_path, **begun)
    sha256 = file_sha256(file)
    ranks.run(train_and_die, world_size=1, config=config, kill=("step", 9), rank=0)
    file.unlink()
    run = trained(config)
    assert json.loads((run / "environment.json").read_text())["pretrained_sha256"] == sha256


def test_a_timm_model_branches_without_a_cap_and_is_priced_by_its_multiply_adds(
    tiny_data: Path, tmp_path: Path
) -> None:
    method = {"round_iterations": 7, "alpha": 9.0, "unit_cost": 1e-6}
    values = config_of(tiny_data, tmp_path, **TIMM)
    record = lines_of(trained(values | {"method": method}) / "decisions.jsonl")[0]
    assert record["max_groups"] is None
    assert record["priced_by"] == "multiply-adds"
    assert record["num_groups"] > 1
