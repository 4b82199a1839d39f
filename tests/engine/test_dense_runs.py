"""Whole runs with dense tasks beside one that is not: killed and continued, on several ranks, decided by a scout, from two data sets."""

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_server import RankServer
from test_kill_and_continue import train_and_die
from tiny_rooms import TASKS, pack_tiny_rooms, rooms_config
from tiny_runs import assert_same_content, lines_of, train_tiny

from distbranch.branching.tree import Split
from distbranch.config import load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.affinities.measure import measure_affinity
from distbranch.engine.evaluate import evaluate_split
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.process_group import join_ranks
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


# In a step before the first decision, while a branch is copied, in an evaluation, half way through a checkpoint, in the last steps.
@pytest.mark.parametrize(
    ("name", "kills"),
    [
        (
            "tree",
            [("step", 3), ("copy state", 1), ("evaluate", 1), ("half a tensor file", 2), ("step", 3)],
        ),
        ("search", [("step", 2), ("step", 4), ("evaluate", 1), ("step", 4)]),
    ],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_dense_run_killed_in_every_phase_ends_with_the_same_bits(
    name: str,
    kills: list[tuple[str, int]],
    world_size: int,
    rooms: Path,
    ranks: RankServer,
    tmp_path: Path,
) -> None:
    changes = {"tree": TREE, "search": SEARCH}[name] | {"launch.workers": world_size}
    whole = train(ranks, rooms_config(rooms, tmp_path / "whole", **changes), world_size)
    config = rooms_config(rooms, tmp_path / "killed", **changes)
    for kill in kills:
        ended = ranks.run(train_and_die, world_size=world_size, config=config, kill=kill, rank=0)
        assert ended[0].exit_code == -signal.SIGKILL, kill
    assert_same_content(train(ranks, config, world_size), whole)
