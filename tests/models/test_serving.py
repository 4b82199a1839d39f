"""The heads over several branches: what every output is by definition, from one matrix product per branch and nothing larger."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distbranch.branching.tree import Split
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network, Serving
from distbranch.tasks import Task

OWNERS = [[0], [0, 0, 1, 1, 2], [2, 0, 1, 0, 2, 1, 0], [1, 0]]


class Watch(TorchDispatchMode):
    """Counts operations and keeps the size of the largest tensor, in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.largest = Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.counts[str(func.overloadpacket)] += 1
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            self.largest = max(self.largest, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return found


@pytest.mark.parametrize("owners", OWNERS)
def test_outputs_and_gradients_are_those_of_every_output_alone(owners: list[int]) -> None:
    torch.manual_seed(0)
    heads = nn.Linear(6, len(owners)).double()
    features = [
        torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(max(owners) + 1)
    ]
    found = Serving(owners)(heads, features)
    alone = [
        features[owner] @ heads.weight[row] + heads.bias[row] for row, owner in enumerate(owners)
    ]
    torch.testing.assert_close(found, torch.stack(alone, dim=1), rtol=0, atol=1e-12)
    wanted = [*features, heads.weight, heads.bias]
    towards = torch.randn_like(found)
    gradients = torch.autograd.grad(found, wanted, towards)
    expected = torch.autograd.grad(torch.stack(alone, dim=1), wanted, towards)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_thousand_outputs_need_one_product_per_branch_and_no_table_of_all_features() -> None:
    batch, num_outputs, num_features = 16, 1050, 64
    heads = nn.Linear(num_features, num_outputs)
    features = [torch.randn(batch, num_features, requires_grad=True) for _ in range(8)]
    serving = Serving([number % 8 for number in range(num_outputs)])
    with Watch() as watch:
        outputs = serving(heads, features)
        products = watch.counts["aten.mm"]
        outputs.sum().backward()
    assert products == 8
    assert watch.largest == num_outputs * num_features, (
        "the weights are the largest of all, forward and backward"
    )


def test_a_tree_and_a_policy_have_one_product_per_branch_of_the_top_layer() -> None:
    tasks = (
        Task("a"),
        Task("colour", "categorical", ("red", "green", "blue")),
        Task("b"),
        Task("c"),
    )
    design = Architecture.thin("vgg9", 8, (32, 32), tasks)
    tree = Network(design.with_tree(design.tree.split(Split(8, ((0, 2), (1, 3)))))).eval()
    policy = ((True,) * 8, (*(True,) * 7, False), (True,) * 8, (*(True,) * 7, False))
    ways = Network(Architecture.thin("resnet18", 8, (32, 32), tasks).with_policy(policy)).eval()
    for network, linear_layers in ((tree, 3), (ways, 0)):  # fc5 once, fc6 twice
        with Watch() as watch:
            assert network(torch.rand(5, 3, 32, 32), flat=True).shape == (5, 6)
        assert watch.counts["aten.mm"] == 2 + linear_layers


def test_the_heads_keep_their_precision_under_autocast() -> None:
    heads, features = nn.Linear(6, 3), [torch.randn(4, 6).bfloat16() for _ in range(2)]
    serving = Serving([1, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = serving(heads, features)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, serving(heads, [x.float() for x in features]))


def test_the_heads_of_a_grown_tree_are_one_graph() -> None:
    heads, features = nn.Linear(6, 5), [torch.randn(4, 6) for _ in range(3)]
    serving = Serving([2, 0, 1, 0, 2])
    compiled = torch.compile(serving, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(heads, features), serving(heads, features))
