"""One branch of one layer, and the branches of a layer, each with an input of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from distbranch.models.backbones import LayerShape
from distbranch.models.norm import BatchNorm, NormGroups, normalise_with_team


class ConvBranch(nn.Module):
    """Convolution 3x3 without bias, batch norm, the max-pooling that follows, if any, and ReLU."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.conv: nn.Conv2d = skip_init(nn.Conv2d, shape.num_inputs, shape.width, 3, padding=1, bias=False)  # type: ignore[no-untyped-call]
        self.norm = BatchNorm(shape.width)
        self.pool_after = shape.layer.pool_after

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        """[B, C, h, w] to [B, C', h', w']."""
        return self.activate(self.norm(self.multiply(x), groups))

    def multiply(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C', h, w], before normalisation."""
        product: Tensor = self.conv(x)
        return product

    def activate(self, x: Tensor) -> Tensor:
        """[B, C', h, w] to [B, C', h', w']: pooling before ReLU gives what the paper's order gives, and ReLU sees a quarter."""
        return functional.relu(functional.max_pool2d(x, 2) if self.pool_after else x, inplace=True)


class LinearBranch(nn.Module):
    """Fully connected layer without bias, batch norm and ReLU over the flattened input."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.linear: nn.Linear = skip_init(nn.Linear, shape.num_inputs, shape.width, bias=False)  # type: ignore[no-untyped-call]
        self.norm = BatchNorm(shape.width)

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        """[B, ...] to [B, F]."""
        return self.activate(self.norm(self.multiply(x), groups))

    def multiply(self, x: Tensor) -> Tensor:
        """[B, ...] to [B, F], before normalisation."""
        product: Tensor = self.linear(x.flatten(1))
        return product

    def activate(self, x: Tensor) -> Tensor:
        """[B, F] to [B, F]."""
        return functional.relu(x, inplace=True)


Branch = ConvBranch | LinearBranch


def branch_of(shape: LayerShape) -> Branch:
    """A branch of the layer, with weights that are not set yet."""
    return ConvBranch(shape) if shape.layer.kind == "conv" else LinearBranch(shape)


def run_branches(branches: Sequence[Branch], inputs: Sequence[Tensor], groups: NormGroups | None) -> list[Tensor]:
    """The outputs of a layer's branches, each with its own input [B, C, h, w].

    They are run one by one: a grouped call over all of them wins little, and gives other bits on some processors.
    """
    if groups is None or groups.are_whole or not branches[0].training:
        return [branch(x, groups) for branch, x in zip(branches, inputs, strict=True)]
    products = [branch.multiply(x) for branch, x in zip(branches, inputs, strict=True)]
    normalised = normalise_with_team([branch.norm for branch in branches], products, groups)
    return [branch.activate(x) for branch, x in zip(branches, normalised, strict=True)]
