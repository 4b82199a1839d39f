"""The low-rank baseline has the paper's size and is the best approximation of its rank."""

import pytest
import torch

from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.models.backbones import Architecture
from distbranch.models.low_rank import LowRankNet, factors, low_rank, low_rank_multiply_adds, num_low_rank_weights
from distbranch.models.tree_net import TreeNet
from distbranch.tasks import Task

COLOUR = Task("colour", "categorical", ("red", "green", "blue"))


def architecture(width: int | None, num_tasks: int, size: tuple[int, int] = (64, 48)) -> Architecture:
    return Architecture.thin("vgg16", width, size, tuple(Task(f"task {number}") for number in range(num_tasks)))


def test_the_papers_number_of_weights() -> None:
    assert num_low_rank_weights(architecture(None, 40, (224, 224))) == 4_523_352


@pytest.mark.parametrize("width", [8, 96])
def test_weights_and_multiply_adds_are_those_of_the_network(width: int) -> None:
    wide = architecture(width, 20)
    network, counted = LowRankNet(wide).eval(), []

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        counted.append((output[0, 0].numel() if output.ndim == 4 else 1) * module.weight.numel())  # type: ignore[operator, union-attr]

    weights = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    for module in weights:
        module.register_forward_hook(count)
    network(torch.zeros(1, 3, 64, 48))
    assert sum(module.weight.numel() for module in weights) == num_low_rank_weights(wide)
    assert sum(counted) == low_rank_multiply_adds(wide)


def test_factors_are_the_best_of_their_rank() -> None:
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    left, right = factors(weight, 7)
    assert left.shape == (30, 7)
    assert right.shape == (7, 50)
    lost = torch.linalg.svdvals(weight)[7:].square().sum().sqrt()
    torch.testing.assert_close((weight - left @ right).norm(), lost)


def trained(wide: Architecture) -> TreeNet:
    network, draw = TreeNet(wide, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.add_(torch.rand(value.shape, generator=draw) * 0.5)
    return network.eval()


def test_a_network_whose_layers_have_the_rank_of_the_basis_stays_as_it_is() -> None:
    tasks = (*(Task(f"task {number}") for number in range(4)), COLOUR)
    network = trained(Architecture.thin("vgg16", 8, (64, 48), tasks))  # at most 8 filters, fc 16: no basis is smaller
    images = torch.randint(0, 256, (3, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = network(images), low_rank(network)(images)
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=1e-3, atol=1e-4)


def test_all_factors_of_a_wider_network_are_trained() -> None:
    network = low_rank(trained(architecture(40, 6, (32, 32)))).train()
    assert network.layers["conv1_2"].basis.weight.shape == (8, 40, 3, 3)  # type: ignore[union-attr]
    network(torch.randn(4, 3, 32, 32), flat=True).square().sum().backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_networks_that_have_branched_or_are_no_vgg16_are_refused() -> None:
    wide = architecture(8, 3)
    with pytest.raises(UserError, match="has branched"):
        LowRankNet(wide.with_tree(wide.tree.split(Split(15, ((0,), (1, 2))))))
    with pytest.raises(UserError, match="layers of vgg16, found the layer fc5"):
        LowRankNet(Architecture.thin("vgg9", 8, (32, 32), wide.tasks))
