"""The low-rank baseline: every layer of a wide network factorised by truncated SVD.

A layer W [d, n] becomes a basis [k, n], a 3x3 convolution or a linear layer of k units, and a 1x1 convolution or linear layer
[d, k] over it. Batch norm stays behind the second one. The outputs are factorised likewise.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from distbranch.errors import UserError
from distbranch.models.backbones import Architecture, LayerShape
from distbranch.models.branches import ConvBranch
from distbranch.models.tree_net import TreeNet
from distbranch.tasks import TaskSet

# The paper's basis filters, by the stage of the layers (conv4 is conv4_1 .. conv4_3), and of the outputs.
BASIS = {"conv1": 8, "conv2": 16, "conv3": 32, "conv4": 64, "conv5": 64, "fc6": 64, "fc7": 64, "output": 16}


def basis_size(layer_name: str, num_inputs: int, width: int) -> int:
    """The number of basis filters of a layer of VGG-16; never more than its rank."""
    stage = re.sub(r"_\d+$", "", layer_name)
    if stage not in BASIS:
        raise UserError(f"The low-rank baseline has basis sizes for the layers of vgg16, found the layer {layer_name}.")
    return min(BASIS[stage], num_inputs, width)


def num_low_rank_weights(architecture: Architecture) -> int:
    """Weights with batch norm folded and biases not counted, outputs included; 4,523,352 for VGG-16 and 40 tasks at 224x224."""
    total = 0
    for shape in architecture.shapes:
        inputs = _inputs(shape)
        total += basis_size(shape.layer.name, inputs, shape.width) * (inputs + shape.width)
    top = architecture.shapes[-1].width
    return total + basis_size("output", top, architecture.num_outputs) * (top + architecture.num_outputs)


def low_rank_multiply_adds(architecture: Architecture) -> int:
    """Multiply-adds of one image; batch norm folded."""
    total = 0
    for shape in architecture.shapes:
        inputs = _inputs(shape)
        total += (
            basis_size(shape.layer.name, inputs, shape.width) * (inputs + shape.width) * shape.height * shape.length
        )
    top = architecture.shapes[-1].width
    return total + basis_size("output", top, architecture.num_outputs) * (top + architecture.num_outputs)


def factors(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best [d, k] and [k, n] for a weight [d, n] (Eckart and Young); the singular values are shared evenly."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values[:k].sqrt()
    return (left[:, :k] * root).to(weight.dtype), (root[:, None] * right[:k]).to(weight.dtype)


class LowRankLayer(nn.Module):
    """Basis, combination, batch norm, the max-pooling that follows, if any, and ReLU."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.pool_after = shape.layer.pool_after
        size = basis_size(shape.layer.name, _inputs(shape), shape.width)
        self.basis: nn.Module
        self.combination: nn.Module
        self.norm: nn.BatchNorm2d | nn.BatchNorm1d
        if shape.layer.kind == "conv":
            self.basis = skip_init(nn.Conv2d, shape.num_inputs, size, 3, padding=1, bias=False)  # type: ignore[no-untyped-call]
            self.combination = skip_init(nn.Conv2d, size, shape.width, 1, bias=False)  # type: ignore[no-untyped-call]
            self.norm = nn.BatchNorm2d(shape.width)
        else:
            self.basis = skip_init(nn.Linear, shape.num_inputs, size, bias=False)  # type: ignore[no-untyped-call]
            self.combination = skip_init(nn.Linear, size, shape.width, bias=False)  # type: ignore[no-untyped-call]
            self.norm = nn.BatchNorm1d(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] or [B, n] to [B, d, h', w'] or [B, d]."""
        x = x.flatten(1) if isinstance(self.basis, nn.Linear) else x
        x = self.norm(self.combination(self.basis(x)))
        return functional.relu(functional.max_pool2d(x, 2) if self.pool_after else x, inplace=True)


class LowRankNet(nn.Module):
    """VGG-16 with factorised layers; `architecture` is that of the wide network, without branches."""

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        if architecture.tree.splits:
            raise UserError("The low-rank baseline is made of a network without branches, but this one has branched.")
        self.architecture = architecture
        self.tasks = TaskSet(architecture.tasks)
        self.layers = nn.ModuleDict({shape.layer.name: LowRankLayer(shape) for shape in architecture.shapes})
        top, outputs = architecture.shapes[-1].width, architecture.num_outputs
        size = basis_size("output", top, outputs)
        self.head_basis = skip_init(nn.Linear, top, size, bias=False)  # type: ignore[no-untyped-call]
        self.heads = skip_init(nn.Linear, size, outputs)  # type: ignore[no-untyped-call]
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((3, 1, 1), 0.25))

    def forward(self, images: Tensor, *, flat: bool = False) -> dict[str, Tensor] | Tensor:
        """As `TreeNet.forward`: logits by task, or [B, O] if `flat`; uint8 images are normalised here."""
        x = images
        if x.dtype == torch.uint8:
            x = x.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)
        for layer in self.layers.values():
            x = layer(x)
        outputs: Tensor = self.heads(self.head_basis(x))
        return outputs if flat else self.tasks.split(outputs)


@torch.no_grad()
def low_rank(network: TreeNet) -> LowRankNet:
    """Every layer of a trained wide network replaced by its best factors; batch norms and biases are copied.

    Raises:
        UserError: it has branched, or is of another backbone than VGG-16.
    """
    result = LowRankNet(network.architecture)
    result.mean.copy_(network.mean)
    result.std.copy_(network.std)
    for name, branches in network.layers.items():
        branch = cast(nn.ModuleList, branches)[0]
        target = cast(LowRankLayer, result.layers[name])
        weight = cast(nn.Module, branch.conv if isinstance(branch, ConvBranch) else branch.linear).weight
        _factorise(cast(Tensor, weight), target.basis, target.combination)
        target.norm.load_state_dict(cast(nn.Module, branch.norm).state_dict())
    _factorise(network.heads.weight, result.head_basis, result.heads)
    result.heads.bias.copy_(network.heads.bias)
    return result.train(network.training)


def _factorise(weight: Tensor, basis: nn.Module, combination: nn.Module) -> None:
    first, second = cast(Tensor, basis.weight), cast(Tensor, combination.weight)
    left, right = factors(weight.flatten(1), len(first))
    first.copy_(right.view_as(first))
    second.copy_(left.view_as(second))


def _inputs(shape: LayerShape) -> int:
    return shape.num_inputs * (9 if shape.layer.kind == "conv" else 1)
