"""Batch norm folded, and networks of some of their tasks: the same logits from fewer numbers."""

import pytest
import torch
from torch import nn

from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network, restrict
from distbranch.models.norm import BatchNorm
from distbranch.models.units import fold_norms
from distbranch.tasks import Task

TASKS = (
    Task("a"),
    Task("colour", "categorical", ("red", "green", "blue")),
    Task("b"),
    Task("size", "categorical", ("s", "l")),
    Task("c"),
)
GROUPS = (((0, 3), (1,), (2, 4)), ((0, 2), (1,)), ((0,), (1,)))


def architecture_of(backbone: str, width: int | None, num_splits: int) -> Architecture:
    """Splits of the upper layers, of which the third separates branches of convolutions."""
    thin = Architecture.thin(backbone, width, (36, 40), TASKS)
    tree = thin.tree
    for groups in GROUPS[:num_splits]:
        tree = tree.split(Split(tree.active_layer, groups))
    return thin.with_tree(tree)


def trained(architecture: Architecture, seed: int = 0) -> Network:
    """A network whose batch norms have statistics, scales and shifts far from the beginning's."""
    network = Network(architecture, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return network.eval()


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, 36, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def designs() -> dict[str, Architecture]:
    """A tree, a low-rank network and a policy that skips blocks with and without a projection."""
    policy = tuple(
        tuple((task + block) % 3 > 0 for block in range(8)) for task in range(len(TASKS))
    )
    return {
        "tree": architecture_of("vgg9", 5, 3),
        "low-rank": architecture_of("vgg16", 24, 0).factorised(),
        "policy": architecture_of("resnet18", 8, 0).with_policy(policy),
    }


@pytest.mark.parametrize("kind", ["tree", "low-rank", "policy"])
@torch.inference_mode()
def test_the_folded_network_gives_the_same_logits(kind: str) -> None:
    network = trained(designs()[kind])
    folded = fold_norms(network)
    assert not any(isinstance(module, BatchNorm) for module in folded.modules())
    images = pixels()
    expected, found = network(images), folded(images)
    scale = max(1.0, max(float(logits.abs().max()) for logits in expected.values()))
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "names", [["a"], ["size", "a"], ["colour", "c"], ["c", "size", "b"], [t.name for t in TASKS]]
)
@torch.inference_mode()
def test_a_network_of_some_tasks_gives_their_logits_with_the_branches_they_need(
    names: list[str],
) -> None:
    network = trained(architecture_of("vgg9", 8, 3))
    smaller = restrict(network, names)
    images = pixels()
    expected, found = network(images), smaller(images)
    assert list(found) == [task.name for task in TASKS if task.name in names]
    for name, logits in found.items():
        torch.testing.assert_close(logits, expected[name], rtol=0, atol=1e-5)
    kept = {number for number, task in enumerate(TASKS) if task.name in names}
    for layer in range(1, network.architecture.tree.num_layers + 1):
        needed = [
            branch for branch in network.architecture.tree.branches(layer) if kept & set(branch)
        ]
        assert smaller.architecture.tree.num_branches(layer) == len(needed)


def test_a_task_that_is_not_in_the_network_is_refused_with_the_nearest_names() -> None:
    network = Network(architecture_of("vgg9", 4, 1))
    with pytest.raises(UserError, match=r"no task 'color'.*: colour"):
        restrict(network, ["a", "color"])
    with pytest.raises(UserError, match="At least one task"):
        restrict(network, [])
