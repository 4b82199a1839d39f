"""The network as it is served: batch norm folded into the layer before it, and only the branches that the wanted tasks need.

In eval mode batch norm is a scale and a shift per channel, which the weights and a bias of the layer take over (in float64).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from distbranch.errors import UserError
from distbranch.models.adashare_net import AdaShareNet, Convolution
from distbranch.models.backbones import Architecture, LayerShape
from distbranch.models.branches import ConvBranch, LinearBranch
from distbranch.models.low_rank import LowRankLayer, LowRankNet, basis_size, output_basis_size
from distbranch.models.networks import Network
from distbranch.models.norm import BatchNorm
from distbranch.models.tree_net import TreeNet
from distbranch.tasks import Task, TaskSet


class FoldedNet(nn.Module):
    """A tree of convolutions and linear layers with biases; for inference only.

    `layers.<layer>.<branch>` are convolutions or linear layers, `heads.<branch>` the outputs of the tasks that a branch of the
    top layer serves, branch by branch; `order` [O] says where among them each output of the network stands. In a low-rank network
    each of them is a sequence of two, the basis and its combination.
    """

    mean: Tensor
    std: Tensor
    order: Tensor

    def __init__(self, architecture: Architecture, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.architecture = architecture
        self.tasks = TaskSet(architecture.tasks)
        tree = architecture.tree
        self.parents = [tree.parents(layer) for layer in range(1, tree.num_layers + 1)]
        self.layers = nn.ModuleDict(
            {
                shape.layer.name: nn.ModuleList(_empty_layer(architecture, shape) for _ in parents)
                for shape, parents in zip(architecture.shapes, self.parents, strict=True)
            }
        )
        columns = [list(range(part.start, part.stop)) for part in self.tasks.columns.values()]
        self.served = [
            [column for task in branch for column in columns[task]] for branch in tree.branches(tree.num_layers)
        ]
        self.heads = nn.ModuleList(_empty_heads(architecture, len(outputs)) for outputs in self.served)
        order = torch.tensor([column for outputs in self.served for column in outputs]).argsort()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every task by name: [B] if binary, [B, K] if categorical.

        images: [B, 3, H, W]; uint8 is normalised here, float is taken as normalised already.
        """
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype).div(255).sub(self.mean).div(self.std)
        features = [images.contiguous(memory_format=torch.channels_last)]
        layers = zip(self.architecture.layers, self.layers.values(), self.parents, strict=True)
        for layer, branches, parents in layers:
            assert isinstance(branches, nn.ModuleList)
            if layer.kind == "fc":
                features = [x.flatten(1) for x in features]
            features = [branch(features[parent]) for branch, parent in zip(branches, parents, strict=True)]
            features = [functional.relu(functional.max_pool2d(x, 2) if layer.pool_after else x) for x in features]
        outputs = torch.cat([head(x) for head, x in zip(self.heads, features, strict=True)], dim=1)
        return self.tasks.split_by_task(outputs[:, self.order])


@torch.no_grad()
def fold(network: Network) -> FoldedNet | AdaShareNet:
    """The network with every batch norm folded: the same logits as in eval mode, but for rounding."""
    if isinstance(network, AdaShareNet):
        return _folded_residual(network)
    folded = FoldedNet(network.architecture, network.mean, network.std)
    if isinstance(network, LowRankNet):
        _fold_low_rank(network, folded)
    else:
        _fold_tree(network, folded)
    return folded.to(memory_format=torch.channels_last).requires_grad_(False).eval()  # type: ignore[call-overload, no-any-return]


def _folded_residual(network: AdaShareNet) -> AdaShareNet:
    """A copy in which every convolution has a bias and no batch norm follows it."""
    folded = network.with_most_probable_policy().eval().requires_grad_(False)
    for module in folded.modules():
        if isinstance(module, Convolution):
            conv, norm = module.conv, module.norm
            assert isinstance(norm, BatchNorm)
            conv.bias = nn.Parameter(torch.empty_like(norm.bias), requires_grad=False)
            _fold_into(conv, conv.weight, norm)
            module.norm = None
    return folded


def _fold_tree(network: TreeNet, folded: FoldedNet) -> None:
    for name, branches in network.layers.items():
        assert isinstance(branches, nn.ModuleList)
        for branch, target in zip(branches, _list(folded.layers[name]), strict=True):
            assert isinstance(branch, ConvBranch | LinearBranch)
            weight = (branch.conv if isinstance(branch, ConvBranch) else branch.linear).weight
            _fold_into(target, weight, branch.norm)
    for outputs, head in zip(folded.served, folded.heads, strict=True):
        assert isinstance(head, nn.Linear)
        head.weight.copy_(network.heads.weight[outputs])
        head.bias.copy_(network.heads.bias[outputs])


def _fold_low_rank(network: LowRankNet, folded: FoldedNet) -> None:
    for name, layer in network.layers.items():
        assert isinstance(layer, LowRankLayer)
        basis, combination = _pair(_list(folded.layers[name])[0])
        basis.weight.copy_(layer.basis.weight)
        _fold_into(combination, layer.combination.weight, layer.norm)
    basis, combination = _pair(folded.heads[0])
    basis.weight.copy_(network.head_basis.weight)
    combination.load_state_dict(network.heads.state_dict())


@torch.no_grad()
def restrict(network: Network, names: Sequence[str]) -> TreeNet | AdaShareNet:
    """The network of some of its tasks, in the network's order, with the branches or blocks that these need.

    Raises:
        UserError: a task that the network does not have, with the nearest names; or it is low-rank.
    """
    if isinstance(network, LowRankNet):
        raise UserError(
            "A low-rank network shares every layer and the basis of its outputs among all tasks, so no part of it serves some of "
            "them alone. Leave out --tasks."
        )
    known = network.tasks.names
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:8]
            raise UserError(
                f"The network has no task {name!r}. The nearest of its {len(known)} are: {', '.join(near)}."
            )
    kept = [number for number, name in enumerate(known) if name in names]
    if not kept:
        raise UserError(f"At least one task must be given. The network has {len(known)}: {', '.join(known[:8])} ...")
    parts = list(network.tasks.columns.values())
    columns = [column for number in kept for column in range(parts[number].start, parts[number].stop)]
    tasks = tuple(network.tasks.tasks[number] for number in kept)
    heads = {f"heads.{key}": value[columns] for key, value in network.heads.state_dict().items()}
    if isinstance(network, AdaShareNet):
        return _restricted_residual(network, tasks, kept, heads)
    old = network.architecture
    new = replace(old, tasks=tasks, tree=old.tree.restricted(kept))
    state = {"mean": network.mean, "std": network.std}
    for layer, name in enumerate(old.tree.layers, start=1):
        needed = [number for number, served in enumerate(old.tree.branches(layer)) if not set(served).isdisjoint(kept)]
        for number, origin in enumerate(needed):
            branch = _list(network.layers[name])[origin].state_dict()
            state |= {f"layers.{name}.{number}.{key}": value for key, value in branch.items()}
    smaller = TreeNet(new)
    smaller.load_state_dict(state | heads)
    return smaller.eval()


def _restricted_residual(
    network: AdaShareNet, tasks: tuple[Task, ...], kept: Sequence[int], heads: dict[str, Tensor]
) -> AdaShareNet:
    policy = tuple(network.policy[number] for number in kept)
    smaller = AdaShareNet(replace(network.architecture, tasks=tasks, policy=policy))
    state = network.state_dict() | heads
    smaller.load_state_dict({name: state[name] for name in smaller.state_dict()})
    return smaller.eval()


def _list(module: nn.Module) -> nn.ModuleList:
    assert isinstance(module, nn.ModuleList)
    return module


def _empty_layer(architecture: Architecture, shape: LayerShape) -> nn.Module:
    if not architecture.low_rank:
        return _empty(shape.layer.kind, shape.num_inputs, shape.width)
    size = basis_size(shape)
    basis = _empty(shape.layer.kind, shape.num_inputs, size, bias=False)
    return nn.Sequential(basis, _empty(shape.layer.kind, size, shape.width, kernel=1))


def _empty_heads(architecture: Architecture, num_outputs: int) -> nn.Module:
    width = architecture.shapes[-1].width
    if not architecture.low_rank:
        return _empty("fc", width, num_outputs)
    size = output_basis_size(architecture)
    return nn.Sequential(_empty("fc", width, size, bias=False), _empty("fc", size, num_outputs))


def _empty(kind: str, num_inputs: int, width: int, *, kernel: int = 3, bias: bool = True) -> nn.Module:
    """A convolution or linear layer with weights that are not set yet."""
    if kind == "conv":
        module: nn.Module = skip_init(nn.Conv2d, num_inputs, width, kernel, padding=kernel // 2, bias=bias)  # type: ignore[no-untyped-call]
    else:
        module = skip_init(nn.Linear, num_inputs, width, bias=bias)  # type: ignore[no-untyped-call]
    return module


def _pair(module: nn.Module) -> tuple[nn.Conv2d | nn.Linear, nn.Conv2d | nn.Linear]:
    assert isinstance(module, nn.Sequential)
    basis, combination = module
    assert isinstance(basis, nn.Conv2d | nn.Linear)
    assert isinstance(combination, nn.Conv2d | nn.Linear)
    return basis, combination


def _fold_into(target: nn.Module, weight: Tensor, norm: BatchNorm) -> None:
    assert isinstance(target, nn.Conv2d | nn.Linear)
    assert target.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # [C']
    target.weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.ndim - 1)))
    target.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
