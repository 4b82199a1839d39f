"""The low-rank baseline has the paper's size and is the best approximation of its rank."""

import pytest
import torch
from torch import nn

from distbranch.branching.tree import Split
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture, multiply_adds, num_parameters, num_weights
from distbranch.models.low_rank import factorise_weight, low_rank_beginning
from distbranch.models.network import Network, restrict
from distbranch.models.pretrained import WideLayer, WideNetwork, wide_network
from distbranch.tasks import Task

COLOUR = Task("colour", "categorical", ("red", "green", "blue"))
TASKS = (*(Task(f"task {number}") for number in range(4)), COLOUR)


def wide_of(width: int | None, num_tasks: int, size: tuple[int, int] = (64, 48)) -> Architecture:
    return Architecture.thin(
        "vgg16", width, size, tuple(Task(f"task {number}") for number in range(num_tasks))
    )


def trained(wide: Architecture) -> Network:
    network, draw = (
        Network(wide, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        torch.Generator().manual_seed(1),
    )
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.add_(torch.rand(value.shape, generator=draw) * 0.5)
    return network.eval()


def low_rank_of(network: Network) -> Network:
    architecture = network.architecture.factorised()
    result = Network(architecture, network.mean.flatten().tolist(), network.std.flatten().tolist())
    state = low_rank_beginning(wide_network(network, "wide"), architecture)
    result.load_state_dict(result.state_dict() | state)
    return result.eval()


def pixels(count: int = 3, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


def test_the_papers_number_of_weights() -> None:
    assert num_weights(wide_of(None, 40, (224, 224)).factorised()) == 4_523_352


def test_a_narrower_network_has_the_same_share_of_its_width_in_eights() -> None:
    half = Architecture.thin("vgg16", None, (64, 64), TASKS, width_fraction=0.5)
    state = Network(half.factorised()).state_dict()
    sizes = {
        name: len(state[f"units.{name}.0.product.basis.weight"]) for name in half.backbone.names
    }
    assert sizes == {
        **dict.fromkeys(("conv1_1", "conv1_2", "conv2_1", "conv2_2"), 8),
        **dict.fromkeys(("conv3_1", "conv3_2", "conv3_3"), 16),
        **{f"conv{stage}_{number}": 32 for stage in (4, 5) for number in (1, 2, 3)},
        "fc6": 32,
        "fc7": 32,
    }


@pytest.mark.parametrize("width", [4, 96])
def test_weights_and_multiply_adds_are_those_of_the_network(width: int) -> None:
    architecture = wide_of(width, 20).factorised()
    network, counted = Network(architecture).eval(), []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        counted.append((output[0, 0].numel() if output.ndim == 4 else 1) * module.weight.numel())  # type: ignore[operator, union-attr]

    weights = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in weights:
        module.register_forward_hook(count)
    network(torch.zeros(1, 3, 64, 48))
    assert sum(module.weight.numel() for module in weights) == num_weights(architecture)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters(
        architecture
    )
    assert sum(counted) + network.heads.weight.numel() == multiply_adds(architecture)


def test_factors_are_the_best_of_their_rank() -> None:
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    left, right = factorise_weight(weight, 7)
    assert left.shape == (30, 7)
    assert right.shape == (7, 50)
    lost = torch.linalg.svdvals(weight)[7:].square().sum().sqrt()
    torch.testing.assert_close((weight - left @ right).norm(), lost)


def test_factors_of_a_weight_of_lower_rank_are_finite() -> None:
    left, right = factorise_weight(torch.ones(6, 9), 4)
    torch.testing.assert_close(left @ right, torch.ones(6, 9))


@torch.no_grad()
def test_a_network_whose_layers_have_the_rank_of_the_basis_stays_as_it_is() -> None:
    network = trained(
        Architecture.thin("vgg16", 4, (64, 48), TASKS)
    )  # 4 filters, fc 8: no basis is smaller
    expected, found = network(pixels()), low_rank_of(network)(pixels())
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_images_of_another_size_see_the_pooled_first_linear_layer() -> None:
    network = trained(Architecture.thin("vgg16", 4, (64, 64), TASKS))
    larger = Architecture.thin("vgg16", 4, (128, 128), TASKS).factorised()
    state = low_rank_beginning(wide_network(network, "wide"), larger)
    pooled = (
        state["units.fc6.0.product.combination.weight"] @ state["units.fc6.0.product.basis.weight"]
    )  # [8, 4 * 4 * 4]
    expected = network.get_parameter("units.fc6.0.product.weight").view(8, 4, 2, 2) / 4
    expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1)
    torch.testing.assert_close(pooled, expected, rtol=1e-3, atol=1e-4)


def test_all_factors_of_a_wider_network_are_trained() -> None:
    network = low_rank_of(trained(wide_of(40, 6, (32, 32)))).train()
    assert network.get_parameter("units.conv1_2.0.product.basis.weight").shape == (8, 40, 3, 3)
    network(torch.randn(4, 3, 32, 32), flat=True).square().sum().backward()  # type: ignore[union-attr]
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in network.parameters()
    )


def test_what_has_no_low_rank_form_is_refused() -> None:
    wide = wide_of(8, 3)
    branched = wide.with_tree(wide.tree.split(Split(15, ((0,), (1, 2)))))
    with pytest.raises(UserError, match="has branched"):
        branched.factorised()
    with pytest.raises(UserError, match="layers of vgg16, found the layer fc5"):
        Network(Architecture.thin("vgg9", 8, (32, 32), wide.tasks).factorised())
    with pytest.raises(
        UserError,
        match=r"as wide as .* conv1_1 of wide has 8 units and this one's 16\. Give model\.width",
    ):
        low_rank_beginning(wide_network(Network(wide), "wide"), wide_of(16, 3).factorised())
    with pytest.raises(
        UserError, match=r"the same tasks .* it has 3 and the data set 4, which differ in task 3"
    ):
        low_rank_beginning(wide_network(Network(wide), "wide"), wide_of(8, 4).factorised())
    with pytest.raises(UserError, match="Leave out --tasks"):
        restrict(Network(wide.factorised()), ["task 0"])


def test_numbers_that_are_not_finite_are_refused_by_layer() -> None:
    wide = wide_network(Network(wide_of(8, 3)), "wide")
    last = WideLayer(*(part * torch.nan for part in vars(wide.layers[-1]).values()))
    spoiled = WideNetwork("wide", "vgg16", (*wide.layers[:-1], last), wide.map_size, wide.heads)
    with pytest.raises(UserError, match=r"not finite \(first in fc7\)"):
        low_rank_beginning(spoiled, wide_of(8, 3).factorised())
