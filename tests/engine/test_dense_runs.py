"""Whole runs with dense tasks beside one that is not: killed and continued, on several ranks, decided by a scout, from two data sets."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_server import RankServer
from test_kill_and_continue import train_and_die
from tiny_rooms import TASKS, pack_tiny_rooms, rooms_config
from tiny_runs import assert_same_content, lines_of, train_tiny

import distbranch
from distbranch.branching.tree import Split
from distbranch.config import load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.affinities.measure import measure_affinity
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.process_group import join_ranks
from distbranch.export import export, load_predictor
from distbranch.losses import build_task_set
from distbranch.models.network import Network

TREE = {
    "model.output_stride": 8,
    "train.batch_size": 8,
    "train.iterations": 12,
    "train.checkpoint_every": 3,
    "train.evaluate_every": 6,
    "method": {"name": "branching", "affinity": "phi", "round_iterations": 4, "unit_cost": 1e-5},
    "method.max_branches": 3,
}
# 19 images train the weights and 5 the policy: after 4 steps of warm-up cycles of 3 and 1 steps.
SEARCH = TREE | {
    "method": {"name": "adashare"},
    "adashare": {"warmup_iterations": 4, "cycles_per_block": 1, "policy_lr": 0.1},
}
SEARCH.pop("method.max_branches")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms") / "data"
    pack_tiny_rooms(folder)
    return folder


def train(ranks: RankServer, config: Mapping[str, Any], world_size: int = 1) -> Path:
    for ended in ranks.call_all(train_tiny, world_size, config=config):
        assert ended["end"] == "done", ended["message"]
    return Path(config["run"]["directory"]) / config["run"]["name"]


# In a step before the first decision, while a branch is copied, in an evaluation, half way through a checkpoint, in the last steps;
# in the warm-up, in steps of weights and of the policy.
KILLS = {
    "tree": [
        ("step", 3),
        ("copy state", 1),
        ("evaluate", 1),
        ("half a tensor file", 2),
        ("step", 3),
    ],
    "search": [("step", 2), ("step", 4), ("evaluate", 1), ("step", 4)],
}


@pytest.fixture(scope="module")
def search(rooms: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on one rank."""
    return train(ranks, rooms_config(rooms, tmp_path_factory.mktemp("search"), **SEARCH))


@pytest.mark.parametrize(("name", "world_size"), [("tree", 1), ("tree", 2), ("search", 2)])
def test_a_dense_run_killed_in_every_phase_ends_with_the_same_bits(
    name: str,
    world_size: int,
    rooms: Path,
    ranks: RankServer,
    tmp_path: Path,
) -> None:
    changes = {"tree": TREE, "search": SEARCH}[name] | {"launch.workers": world_size}
    whole = train(ranks, rooms_config(rooms, tmp_path / "whole", **changes), world_size)
    config = rooms_config(rooms, tmp_path / "killed", **changes)
    for kill in KILLS[name]:
        ended = ranks.run(train_and_die, world_size=world_size, config=config, kill=kill, rank=0)
        assert ended[0].exit_code == -signal.SIGKILL, kill
    assert_same_content(train(ranks, config, world_size), whole)


KINDS = ("importance", "gradient-cosine", "look-ahead", "agreement", "phi")


def measure_affinities(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: the matrix of every kind, of a tree with random weights."""
    resolved = load_config(config)
    info = read_dataset(str(resolved.data.path))
    thin = first_architecture(resolved, info)
    tree = thin.tree.split(Split(thin.tree.active_layer, ((0, 1), (2, 3, 4))))
    network = Network(thin.with_tree(tree))
    network.tasks = build_task_set(info.tasks, resolved.loss)
    network.init(torch.Generator().manual_seed(4))
    with join_ranks(resolved.launch) as here:
        lowest = tree.active_layer
        measured = {
            kind: measure_affinity(kind, network, lowest, info, resolved, here) for kind in KINDS
        }
    return {kind: one.matrix for kind, one in measured.items()}


def test_affinities_of_dense_tasks_are_the_same_from_one_two_and_three_ranks(
    rooms: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = rooms_config(rooms, tmp_path, **TREE)
    alone = ranks.call(measure_affinities, config=config)
    assert all(np.ptp(matrix) > 0.1 for matrix in alone.values())
    for world_size in (2, 3):
        for here in ranks.call_all(measure_affinities, world_size, config=config):
            for kind, matrix in alone.items():
                np.testing.assert_allclose(here[kind], matrix, rtol=0, atol=1e-9)


def test_two_ranks_decide_on_dense_tasks_as_one_does(
    rooms: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = []
    for world_size in (1, 2):
        config = rooms_config(rooms, tmp_path / str(world_size), **TREE)
        config["launch"]["workers"] = world_size
        run = train(ranks, config, world_size)
        first, *_ = lines_of(run / "decisions.jsonl")
        with np.load(run / first["affinity_file"], allow_pickle=False) as arrays:
            found.append((first["tasks"], arrays["phi"]))
    (groups, alone), (groups_of_two, together) = found
    assert groups_of_two == groups
    np.testing.assert_allclose(together, alone, atol=1e-4)  # of fp32 steps that round differently


def test_a_scout_decides_on_dense_tasks_and_a_run_killed_in_it_ends_with_the_same_bits(
    rooms: Path, ranks: RankServer, tmp_path: Path
) -> None:
    method = {"begin": "anew", "affinity": "importance", "unit_cost": 1e-5, "max_branches": 3}
    changes = TREE | {"method": method, "train.iterations": 4, "train.evaluate_every": 0}
    changes["method.max_branches"] = 3
    whole, config = (
        rooms_config(rooms, tmp_path / name, **changes) for name in ("whole", "killed")
    )
    expected = train(ranks, whole)
    (decision,) = lines_of(expected / "decisions.jsonl")
    assert decision["num_groups"] > 1
    ended = ranks.run(train_and_die, config=config, kill=("step", 4), rank=0)
    assert ended[0].exit_code == -signal.SIGKILL
    found = train(ranks, config)
    assert_same_content(found / "scout", expected / "scout")
    assert_same_content(found, expected)


def test_a_dense_set_and_one_without_maps_are_trained_together_and_each_scored_on_its_own_tasks(
    rooms: Path, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = TREE | {"data.path": [str(rooms), str(tiny_data)], "data.proportions": [1, 1]}
    whole, config = (rooms_config("", tmp_path / name, **changes) for name in ("whole", "killed"))
    expected = train(ranks, whole)
    ended = ranks.run(train_and_die, config=config, kill=("step", 8), rank=0)
    assert ended[0].exit_code == -signal.SIGKILL
    assert_same_content(train(ranks, config), expected)
    scores = json.loads((expected / "result.json").read_text())["metrics"]["val"]
    (own,) = (part for name, part in scores["datasets"].items() if name.startswith("rooms"))
    assert list(own["tasks"]) == [task.name for task in TASKS]


def test_training_with_a_policy_that_is_killed_ends_with_the_same_bits(
    rooms: Path, search: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = SEARCH | {"adashare": {"policy": str(search)}, "train.iterations": 8}
    whole, config = (
        rooms_config(rooms, tmp_path / name, **changes) for name in ("whole", "killed")
    )
    for kill in (("step", 5), ("evaluate", 1)):
        ended = ranks.run(train_and_die, config=config, kill=kill, rank=0)
        assert ended[0].exit_code == -signal.SIGKILL, kill
    assert_same_content(train(ranks, config), train(ranks, whole))


def test_exported_trees_and_policies_give_the_maps_of_the_network(
    rooms: Path, search: Path, ranks: RankServer, tmp_path: Path
) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    tree = train(ranks, rooms_config(rooms, tmp_path, **TREE))
    for name, run in {"tree": tree, "search": search}.items():
        export(run, file_format="onnx", tasks=None, out=tmp_path / f"{name}.onnx")
        predictor, _ = load_predictor(tmp_path / f"{name}.onnx")
        found = predictor(images)
        for task, expected in distbranch.load(run)(images).items():
            assert expected.shape[2:] == (32, 48) or task == "bright"
            torch.testing.assert_close(found[task], expected.detach(), rtol=1e-4, atol=1e-4)
