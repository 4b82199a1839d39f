"""Where a new task is placed: on the branch whose channels it needs, which is planted here."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_runs import config_of

from distbranch.branching.tree import build_tree_of_groups
from distbranch.config import load_config
from distbranch.data.loader import Batch
from distbranch.data.mixture import add_tasks
from distbranch.data.shards import DatasetInfo, SplitInfo
from distbranch.engine.affinities import measure
from distbranch.engine.distributed import Ranks
from distbranch.engine.task_placement import place_tasks
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.models.norm import BatchNorm
from distbranch.models.transplant import match_tasks
from distbranch.tasks import Task

OLD = tuple(Task(f"old-{number}") for number in range(4))
NEW = (Task("like-0"), Task("like-3"))
GROUPS = {"conv3_1": [["old-0", "old-1"], ["old-2", "old-3"]]}


def _network(seed: int) -> Network:
    """Two branches with random filters of their own from conv3_1 up, each of which serves two tasks."""
    thin = Architecture.thin("vgg9", 8, (32, 32), OLD)
    names = [task.name for task in OLD]
    network = Network(thin.with_tree(build_tree_of_groups(thin.tree.layers, names, GROUPS)))
    generator = torch.Generator().manual_seed(seed)
    network.init(generator)
    # Features of a size as after training: with the running statistics of a batch.
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
    network.train()(torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator))
    return network.eval()


@pytest.mark.parametrize("seed", range(3))
def test_a_task_is_placed_on_the_branch_from_whose_features_its_labels_are_made(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(seed)

    def open_sample(*_: Any, **__: Any) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(2)
        for _ in range(8):
            images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator)
            with torch.no_grad():
                answers = network(images, flat=True)
            old = (answers > answers.median(dim=0).values).float()
            labels = torch.cat([torch.full_like(old, torch.nan), old[:, [0, 3]]], dim=1)
            yield Batch(images, labels, {}, None, torch.arange(32))

    monkeypatch.setattr(measure, "open_sample", open_sample)
    splits = {"train": SplitInfo(256, {}, ())}
    info = DatasetInfo("nowhere", NEW, {}, splits, (32, 32), {})
    beginning = match_tasks(OLD, NEW, keeps=True)
    found = place_tasks(
        network,
        beginning,
        add_tasks(info, beginning.tasks),
        load_config(config_of("nowhere", "nowhere")),
        Ranks(0, 1, torch.device("cpu")),
    )
    assert found["like-0"].branch == ("old-0", "old-1")
    assert found["like-3"].branch == ("old-2", "old-3")


def test_a_task_of_a_network_without_branches_is_placed_without_any_data() -> None:
    network = Network(Architecture.thin("vgg9", 2, (32, 32), OLD))
    beginning = match_tasks(OLD, NEW, keeps=True)
    info = DatasetInfo("nowhere", beginning.tasks, {}, {}, (32, 32), {})
    config = load_config(config_of("nowhere", "nowhere"))
    found = place_tasks(network, beginning, info, config, Ranks(0, 1, torch.device("cpu")))
    assert [place.origin for place in found.values()] == [0, 0]
