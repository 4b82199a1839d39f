"""A tree grows down to a lowest unit, below which all tasks share every layer."""

from typing import Any

import pytest
import torch

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.tree import Split
from distbranch.config import MethodConfig, load_config
from distbranch.engine.initialisation import find_lowest_layer
from distbranch.engine.round_decision import decide_round
from distbranch.engine.scout import list_lowest_layers
from distbranch.errors import UsageError, UserError
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.tasks import Task

SCALAR = tuple(Task(f"task {number}") for number in range(4))
DENSE = tuple(Task(f"task{number}", "heat") for number in range(4))


def make_thin(tasks: tuple[Task, ...] = SCALAR, source: str = "resnet18") -> Architecture:
    return Architecture(Backbone(source, (64, 64), 4), tasks)


def grow_all(architecture: Architecture, method: MethodConfig) -> Architecture:
    """The network after rounds that split wherever they may."""
    draw = torch.Generator().manual_seed(2)
    stats = AffinityStats(4)
    for _ in range(3):
        stats.update(torch.rand(40, 4, generator=draw))
    while True:
        (decision,) = decide_round(stats, architecture, [method], seed=0)
        split = decision.split or Split(
            architecture.tree.active_layer,
            (tuple(range(architecture.tree.num_branches(architecture.tree.active_layer + 1))),),
        )
        architecture = architecture.with_tree(architecture.tree.split(split))
        if not decision.grows:
            return architecture


def find_last_layer(tasks: tuple[Task, ...], **method: Any) -> str:
    """The unit of the last decision."""
    settings = {"alpha": 100.0, "when_no_split": "retry"} | method
    tree = grow_all(make_thin(tasks), MethodConfig(**settings)).tree
    return tree.layers[tree.splits[-1].layer - 1]


def test_growth_ends_at_the_lowest_unit() -> None:
    assert find_last_layer(SCALAR) == "stem"
    assert find_last_layer(SCALAR, lowest="block3_2") == "block3_2"


def test_the_stem_of_a_resnet_for_dense_tasks_is_never_widened_unless_it_is_asked_for() -> None:
    assert find_last_layer(DENSE) == "block1_1"
    assert find_last_layer(DENSE, lowest="stem") == "stem"


def test_a_scout_splits_from_no_lower_layer() -> None:
    anew = {"method.name": "branching", "method.begin": "anew", "model.backbone": "resnet18"}
    for tasks, lowest, expected in (
        (SCALAR, None, 2),
        (DENSE, None, 2),
        (SCALAR, "block3_1", 6),
    ):
        config = load_config({}, anew | {"method.lowest": lowest})
        assert list_lowest_layers(config, make_thin(tasks)) == list(range(expected, 10))


def test_a_lowest_unit_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.lowest should be a unit of .* found conv1"):
        find_lowest_layer(MethodConfig(lowest="conv1"), make_thin())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.name=fixed"], "use method.name=branching with it, found fixed"),
        (["method.begin=anew", "method.split_from=fc6"], "leave one of them out"),
    ],
)
def test_a_lowest_unit_that_nobody_reads_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config({}, ["method.lowest=fc6", *overrides])
