"""The network of AdaShare against one pass per task, and the tree of its ways."""

import itertools
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distbranch.branching.routing import Policy
from distbranch.models.architecture import Architecture, multiply_adds, num_parameters, num_weights
from distbranch.models.backbone import BLOCKS
from distbranch.models.network import Network, restrict
from distbranch.models.norm import BatchNorm
from distbranch.models.units import Block
from distbranch.tasks import Task

TASKS = (Task("a"), Task("b", "categorical", ("x", "y", "z")), Task("c"))


def some_policy(num_blocks: int = 8, seed: int = 0) -> Policy:
    drawn = torch.rand(len(TASKS), num_blocks, generator=torch.Generator().manual_seed(seed)) < 0.5
    return tuple(map(tuple, drawn.tolist()))


def architecture(
    policy: Policy | None = None, width: int | None = 8, backbone: str = "resnet18"
) -> Architecture:
    """Of a policy, or of a search for one."""
    thin = Architecture.thin(backbone, width, (48, 40), TASKS)
    return replace(thin, searches=True) if policy is None else thin.with_policy(policy)


def blocks_of(network: Network) -> list[Block]:
    found = [network.copies(name)[0] for name in network.architecture.backbone.blocks]
    return cast(list[Block], found)


def warmed(network: Network) -> Network:
    """With running statistics and scales that are not those of the beginning, in eval mode."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            for tensor in (
                module.running_mean,
                module.running_var,
                module.weight.data,
                module.bias.data,
            ):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    return network.eval()


def one_by_one(network: Network, images: Tensor, shares: Tensor) -> Tensor:
    """The definition: the whole network once per task; shares [T, L, 2]."""
    outputs = []
    for task, columns in enumerate(network.tasks.columns.values()):
        (stem,) = network.copies("stem")
        x = stem(images)
        for block, (execute, skip) in zip(blocks_of(network), shares[task], strict=True):
            shortcut = block.shortcut(x)
            x = (execute * block.execute(x, shortcut) if block.first else 0) + skip * shortcut
        outputs.append(
            functional.linear(
                x.mean((2, 3)), network.heads.weight[columns], network.heads.bias[columns]
            )
        )
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("seed", range(4))
def test_a_hard_policy_gives_what_one_pass_per_task_gives(seed: int) -> None:
    policy = some_policy(seed=seed)
    network, images = warmed(Network(architecture(policy))), torch.randn(3, 3, 48, 40)
    executes = torch.tensor(policy, dtype=torch.float32)
    expected = one_by_one(network, images, torch.stack([executes, 1 - executes], dim=2))
    torch.testing.assert_close(network(images, flat=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_released", [0, 1, 5, 8])
def test_soft_decisions_on_the_last_blocks_give_what_one_pass_per_task_gives(
    num_released: int,
) -> None:
    network, images = warmed(Network(architecture())), torch.randn(2, 3, 48, 40)
    shares = torch.tensor([1.0, 0.0]).repeat(3, 8, 1)
    shares[:, 8 - num_released :] = torch.rand(3, num_released, 2).softmax(dim=2)
    expected = one_by_one(network, images, shares)
    found = network(images, shares[:, 8 - num_released :], flat=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_decisions_get_a_gradient_and_every_weight_does() -> None:
    network = Network(architecture())
    decisions = torch.rand(3, 8, 2, requires_grad=True)
    network(torch.randn(4, 3, 48, 40), decisions, flat=True).square().sum().backward()
    assert decisions.grad is not None
    assert decisions.grad.ne(0).all()
    assert all(
        parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad
    )


def test_with_a_policy_every_weight_that_there_is_gets_a_gradient() -> None:
    nobody = tuple((True, *row[1:5], False, False, True) for row in some_policy())
    network = Network(architecture(nobody))
    assert blocks_of(network)[5].first is None
    network(torch.randn(4, 3, 48, 40), flat=True).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_tasks_that_decided_alike_run_once() -> None:
    policy = ((True,) * 8, (True,) * 8, (*(True,) * 6, False, True))
    network = Network(architecture(policy))
    seen = []
    for block in blocks_of(network):
        assert block.first is not None
        block.first.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    network(torch.randn(5, 3, 48, 40))
    assert seen == [5, 5, 5, 5, 5, 5, 5, 10]


def test_the_tree_of_a_policy_joins_tasks_as_long_as_they_decided_alike() -> None:
    for seed in range(5):
        policy = some_policy(seed=seed)
        tree = architecture(policy).tree
        for block in range(1, 9):
            branches = tree.branches(block)
            together = {(i, j) for branch in branches for i, j in itertools.combinations(branch, 2)}
            alike = {
                (i, j)
                for i, j in itertools.combinations(range(3), 2)
                if policy[i][:block] == policy[j][:block]
            }
            assert together == alike


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [("resnet18", 11_166_912), ("resnet34", 21_267_648), ("resnet50", 23_454_912)],
)
def test_full_width_is_that_of_the_published_networks(backbone: str, weights: int) -> None:
    network = Network(architecture(None, width=None, backbone=backbone))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert sum(module.weight.numel() for module in convolutions) == weights
    assert len(blocks_of(network)) == sum(BLOCKS[backbone]) == (8 if backbone == "resnet18" else 16)


def test_widths_are_those_of_the_features() -> None:
    design = replace(Architecture.thin("resnet34", 16, (75, 53), TASKS), searches=True)
    network, sizes = Network(design).eval(), []
    for block in blocks_of(network):
        assert block.second is not None
        block.second.register_forward_hook(lambda _, __, output: sizes.append(output.shape[1]))
    network(torch.randn(1, 3, 75, 53))
    assert sizes == [spec.width for spec in design.specs if spec.may_skip]
    assert Architecture.from_json(design.to_json()) == design
    ruled = design.with_policy(some_policy(16))
    assert Architecture.from_json(ruled.to_json()) == ruled


def test_a_search_answers_by_its_most_probable_decisions() -> None:
    policy, images = some_policy(seed=1), torch.randn(2, 3, 48, 40)
    network = warmed(Network(architecture()))
    execute = torch.tensor(policy, dtype=torch.float32)
    network.policy_logits.copy_(torch.stack([execute, 1 - execute], dim=2))
    assert network.policy == policy
    ruled = network.as_served()
    assert ruled.architecture.policy == policy
    assert torch.equal(network(images, flat=True), ruled(images, flat=True))


@pytest.mark.parametrize("seed", range(3))
def test_costs_are_those_of_the_convolutions_that_are_there_and_run(seed: int) -> None:
    design = Architecture.thin("resnet18", 8, (75, 53), TASKS).with_policy(some_policy(seed=seed))
    network, counted = Network(design), []

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        counted.append(len(output) * output[0, 0].numel() * module.weight.numel())  # type: ignore[operator, union-attr]

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network.eval()(torch.rand(1, 3, 75, 53))
    assert sum(counted) + network.heads.weight.numel() == multiply_adds(design)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters(design)
    weights = sum(
        m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    )
    assert weights == num_weights(design)


@pytest.mark.parametrize("names", [["c"], ["c", "a"]])
@torch.inference_mode()
def test_a_network_of_some_tasks_has_their_blocks_and_their_logits(names: list[str]) -> None:
    network, images = warmed(Network(architecture(some_policy(seed=1)))), torch.randn(2, 3, 48, 40)
    smaller = restrict(network, names)
    assert num_parameters(smaller.architecture) < num_parameters(network.architecture)
    expected, found = network(images), smaller(images)
    assert list(found) == sorted(names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
