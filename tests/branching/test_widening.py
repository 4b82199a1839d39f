"""Widening copies, and the function of the network does not change."""

import pytest
import torch

from distbranch.branching.routing import copy_units, route_tree
from distbranch.branching.tree import Split, Tree
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.tasks import Task

COLOUR = Task("colour", "categorical", ("red", "green", "blue"))
TASKS = (*(Task(f"task {number}") for number in range(6)), COLOUR)
SPLITS = (
    Split(15, ((0, 2), (1, 5), (3, 4), (6,))),
    Split(14, ((0, 3), (1,), (2,))),
    Split(13, ((0, 2), (1,))),
    Split(12, ((0,), (1,))),
)


def trained(architecture: Architecture) -> Network:
    """A network with running statistics and norms that are not those of the start."""
    network = Network(architecture)
    generator = torch.Generator().manual_seed(1)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.add_(torch.rand(value.shape, generator=generator) * 0.3)
    network.mean.fill_(0.4)
    return network.double()


def rebuilt(network: Network, tree: Tree) -> Network:
    wider = Network(network.architecture.with_tree(tree)).double()
    wider.load_state_dict(copy_units(network.state_dict(), network.routing, route_tree(tree)))
    return wider


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (32, 32), (96, 96)])
def test_outputs_before_and_after_four_widenings_are_equal(
    size: tuple[int, int], training: bool
) -> None:
    """In double precision, to its rounding: a processor may add up in another order what it computes in other parts."""
    network = trained(Architecture.thin("vgg16", 8, size, TASKS)).train(training)
    images = torch.randint(
        0, 256, (5, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    tree = network.architecture.tree
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(images, flat=True)
    for split in SPLITS:
        network.load_state_dict(state)
        wider_tree = tree.split(split)
        network = rebuilt(network, wider_tree).train(training)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        tree = wider_tree
        with torch.no_grad():
            torch.testing.assert_close(network(images, flat=True), expected, rtol=0, atol=1e-12)


def test_every_copy_starts_with_the_momentum_of_its_origin() -> None:
    tree = Tree(("conv1", "fc1"), 4)
    wider = tree.split(Split(2, ((0, 3), (1, 2))))
    momentum = {
        "units.conv1.0.product.weight": torch.rand(2, 2),
        "units.fc1.0.product.weight": torch.rand(3),
        "heads.bias": torch.rand(4),
    }
    copied = copy_units(momentum, route_tree(tree), route_tree(wider))
    assert set(copied) == {
        "units.conv1.0.product.weight",
        "units.fc1.0.product.weight",
        "units.fc1.1.product.weight",
        "heads.bias",
    }
    assert torch.equal(copied["units.fc1.1.product.weight"], momentum["units.fc1.0.product.weight"])
    copied["units.fc1.1.product.weight"].zero_()
    assert copied["units.fc1.0.product.weight"].abs().sum() > 0, "copies must not share memory"


def test_several_splits_at_once_are_the_same_as_one_after_another() -> None:
    first = Architecture.thin("vgg16", 8, (32, 32), TASKS)
    network, tree = trained(first), first.tree
    state = network.state_dict()
    for split in SPLITS:
        state = copy_units(state, route_tree(tree), route_tree(tree.split(split)))
        tree = tree.split(split)
    at_once = copy_units(network.state_dict(), network.routing, route_tree(tree))
    assert state.keys() == at_once.keys()
    assert all(torch.equal(state[name], at_once[name]) for name in state)


def test_a_step_of_the_widened_network_equals_that_of_the_old_one_for_a_copy_whose_group_is_everything() -> (
    None
):
    architecture = Architecture.thin("vgg16", 8, (32, 32), TASKS[:4])
    images = torch.randint(
        0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    labels = torch.randint(0, 2, (6, 4), generator=torch.Generator().manual_seed(4)).float()
    labels[:, 3] = float("nan")  # task 3 alone forms the other group and gets no gradient
    network = trained(architecture)
    wider = rebuilt(network, architecture.tree.split(Split(15, ((0, 1, 2), (3,)))))
    for net in (network, wider):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        net.tasks.compute_losses(net(images, flat=True), labels).sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = wider.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)


def test_a_tree_that_joins_what_was_apart_is_refused() -> None:
    tree = Tree(("fc1",), 3)
    one, other = tree.split(Split(1, ((0, 1), (2,)))), tree.split(Split(1, ((0,), (1, 2))))
    with pytest.raises(ValueError, match="only divides branches"):
        copy_units({}, route_tree(one), route_tree(other))
