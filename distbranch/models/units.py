"""Units, of which backbones are chains: a layer of VGG, the stem of a ResNet, a residual block; and how one is run over ways.

A unit computes `execute(x, shortcut(x))`. One that a task may skip is replaced by its shortcut alone; where that is a projection,
it runs once over all ways that come to it, executed or not, for its batch norm should see what its running statistics describe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from distbranch.branching.routing import Node
from distbranch.models.norm import BatchNorm, NormGroups, normalise_with_team

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Unit(nn.Module):
    """A part of a chain, by default one that nobody skips, as its shortcut is its input.

    halvings: how often it halves height and width.
    has_one_norm: whether it is `activate(norm(multiply(x)))`, so that its copies can be normalised together.
    """

    halvings = 0
    has_one_norm = False

    def forward(self, x: Tensor, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """[num_ways * B, ...] to [num_ways * B, ...]; `groups` are normalised together in training, None: all images."""
        return self.execute(x, self.shortcut(x, groups, num_ways), groups, num_ways)

    def shortcut(self, x: Tensor, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:  # noqa: ARG002
        """What stands in for the unit where it is skipped."""
        return x

    def execute(
        self, x: Tensor, shortcut: Tensor, groups: NormGroups | None = None, num_ways: int = 1
    ) -> Tensor:
        """The unit itself."""
        raise NotImplementedError


@dataclass(frozen=True)
class UnitPlan:
    """How a unit is made: its width and that at full size (None: it has one size), and whether tasks may skip it.

    `build(is_executed=False)` gives one of which only the shortcut is needed.
    """

    name: str
    width: int
    full_width: int | None
    build: Callable[..., Unit]
    may_skip: bool = False


def make_unset(kind: type[nn.Module], *arguments: Any, **options: Any) -> Any:
    """A module whose weights are not set yet, on the device of the context, which may be `meta`."""
    device = torch.get_default_device()
    return skip_init(kind, *arguments, device=device, **options)  # type: ignore[no-untyped-call]


def set_memory_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay the weights of `module` out in `memory_format`."""
    move: Any = module.to  # the types of torch know this keyword since 2.14
    move(memory_format=memory_format)


def make_convolution(
    num_inputs: int, width: int, size: int, stride: int = 1, *, dilation: int = 1
) -> nn.Module:
    """A convolution without bias that keeps height and width but for its stride."""
    convolution: nn.Module = make_unset(
        nn.Conv2d,
        num_inputs,
        width,
        size,
        stride=stride,
        padding=size // 2 * dilation,
        dilation=dilation,
        bias=False,
    )
    return convolution


class LowRank(nn.Module):
    """A product that is factorised: `basis`, then `combination`."""

    def __init__(self, basis: nn.Module, combination: nn.Module) -> None:
        super().__init__()
        self.basis = basis
        self.combination = combination

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] to [B, C', ...]."""
        product: Tensor = self.combination(self.basis(x))
        return product


class NormedProduct(nn.Module):
    """A convolution or a matrix product, without bias, and batch norm."""

    def __init__(self, product: nn.Module, width: int) -> None:
        super().__init__()
        self.product = product
        self.norm = BatchNorm(width)

    def forward(self, x: Tensor, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """[num_ways * B, C, ...] to [num_ways * B, C', ...]."""
        normed: Tensor = self.norm(self.product(x), groups, num_ways=num_ways)
        return normed


class Layer(Unit):
    """A product, batch norm, the max-pooling that follows, if any, and ReLU.

    Args:
        product: a convolution without bias, or a matrix product, which sees flattened features.
        width: its outputs.
        pool: (size, stride, padding) of the max-pooling.
        halvings: see `Unit`.
    """

    has_one_norm = True

    def __init__(
        self,
        product: nn.Module,
        width: int,
        *,
        pool: tuple[int, int, int] | None = None,
        halvings: int = 0,
    ) -> None:
        super().__init__()
        self.product = product
        self.norm = BatchNorm(width)
        self.pool = pool
        self.halvings = halvings
        self.is_flat = not any(isinstance(module, nn.Conv2d) for module in product.modules())

    def execute(
        self,
        x: Tensor,
        shortcut: Tensor,  # noqa: ARG002
        groups: NormGroups | None = None,
        num_ways: int = 1,
    ) -> Tensor:
        """[num_ways * B, C, h, w] to [num_ways * B, C', h', w']."""
        return self.activate(self.norm(self.multiply(x), groups, num_ways=num_ways))

    def multiply(self, x: Tensor) -> Tensor:
        """The product, before normalisation."""
        product: Tensor = self.product(x.flatten(1) if self.is_flat else x)
        return product

    def activate(self, x: Tensor) -> Tensor:
        """Pooling before ReLU gives what the paper's order gives, and ReLU sees a quarter."""
        x = x if self.pool is None else functional.max_pool2d(x, *self.pool)
        return functional.relu(x, inplace=True)


class Block(Unit):
    """A basic residual block: two convolutions 3x3, the first with `stride`, and a projection where the shape changes.

    Its residual function is absent where no task executes it, the projection where the shortcut is the identity.

    Args:
        num_inputs: channels before it.
        width: channels inside.
        stride: of its first convolution 3x3.
        dilation: of every convolution 3x3.
        projects: whether its shortcut is a projection even where the shape stays.
        is_executed: whether any task needs more of it than the shortcut.
    """

    expansion = 1  # of the width, outside of the block
    sizes: tuple[int, ...] = (3, 3)  # of its convolutions, in order
    first: NormedProduct | None
    second: NormedProduct | None

    def __init__(
        self,
        num_inputs: int,
        width: int,
        stride: int,
        *,
        dilation: int = 1,
        projects: bool = False,
        is_executed: bool = True,
    ) -> None:
        super().__init__()
        outer = width * self.expansion
        self.halvings = stride // 2
        self.names = ("first", "second", "third")[: len(self.sizes)]
        widths = [num_inputs, *[width] * (len(self.sizes) - 1), outer]
        strided = self.sizes.index(3)
        for number, name in enumerate(self.names):
            layer = None
            if is_executed:
                own = stride if number == strided else 1
                inputs, outputs = widths[number : number + 2]
                size = self.sizes[number]
                apart = dilation if size > 1 else 1
                convolution = make_convolution(inputs, outputs, size, own, dilation=apart)
                layer = NormedProduct(convolution, outputs)
            setattr(self, name, layer)
        self.projection: NormedProduct | None = None
        if projects or stride != 1 or num_inputs != outer:
            self.projection = NormedProduct(make_convolution(num_inputs, outer, 1, stride), outer)

    @property
    def last_convolution(self) -> nn.Conv2d:
        """That whose output is added to the shortcut."""
        convolution: nn.Conv2d = getattr(self, self.names[-1]).product
        return convolution

    def shortcut(self, x: Tensor, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """[num_ways * B, C, h, w] to [num_ways * B, C', h', w']."""
        if self.projection is None:
            return x
        projected: Tensor = self.projection(x, groups, num_ways)
        return projected

    def execute(
        self, x: Tensor, shortcut: Tensor, groups: NormGroups | None = None, num_ways: int = 1
    ) -> Tensor:
        """relu(shortcut + f(x))."""
        *inner, last = (getattr(self, name) for name in self.names)
        for layer in inner:
            x = functional.relu(layer(x, groups, num_ways), inplace=True)
        return functional.relu(shortcut + last(x, groups, num_ways), inplace=True)


class Bottleneck(Block):
    """A residual block of `width` channels inside and four times as many outside: convolutions 1x1, 3x3 with `stride`, and 1x1."""

    expansion = 4
    sizes = (1, 3, 1)


# ---- over copies and over ways


def run_unit(
    copies: Sequence[Unit],
    nodes: Sequence[Node],
    features: Sequence[Tensor],
    groups: NormGroups | None,
) -> list[Tensor]:
    """The features [B, ...] after a unit, one tensor per node, from those before it.

    Copies are run one by one: a grouped call over all of them wins little, and gives other bits on some processors.
    """
    # In a tree every copy has one input of its own, and the copies may be normalised with one message.
    if [node.copy for node in nodes] == list(range(len(copies))) and all(
        node.executes for node in nodes
    ):
        inputs = [features[node.parent] for node in nodes]
        if (
            groups is None
            or groups.are_whole
            or not all(copy.training for copy in copies)
            or not copies[0].has_one_norm
        ):
            return [copy(x, groups) for copy, x in zip(copies, inputs, strict=True)]
        return _run_with_team(copies, inputs, groups)

    found: dict[Node, Tensor] = {}
    for number, copy in enumerate(copies):
        own = [node for node in nodes if node.copy == number]
        coming = {node.parent for node in own}
        running = {node.parent for node in own if node.executes}
        shortcuts, done = run_over_ways(copy, sorted(coming), sorted(running), features, groups)
        for node in own:
            found[node] = (done if node.executes else shortcuts)[node.parent]
    return [found[node] for node in nodes]


def run_over_ways(
    copy: Unit,
    coming: Iterable[int],
    running: Iterable[int],
    features: Sequence[Tensor],
    groups: NormGroups | None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """By number of the features: the shortcuts of a copy over the ways that come to it, and itself over those that run it."""
    shortcuts = _call_over_ways(
        copy.shortcut, {way: (features[way],) for way in coming}, groups, copy.training
    )
    inputs = {way: (features[way], shortcuts[way]) for way in running}
    return shortcuts, _call_over_ways(copy.execute, inputs, groups, copy.training)


def _call_over_ways(
    function: Callable[..., Tensor],
    inputs: Mapping[int, tuple[Tensor, ...]],
    groups: NormGroups | None,
    is_training: bool,
) -> dict[int, Tensor]:
    """A part of a unit over several ways, each with its own inputs [B, ...]; in training as one batch."""
    count = len(inputs)
    if not is_training or count < 2:
        return {way: function(*own, groups) for way, own in inputs.items()}
    joined = [torch.cat(list(tensors)) for tensors in zip(*inputs.values(), strict=True)]
    together = function(*joined, groups, count)
    parts = torch.unflatten(together, 0, (count, len(together) // count)).unbind()
    return dict(zip(inputs, parts, strict=True))


def _run_with_team(
    copies: Sequence[Any], inputs: Sequence[Tensor], groups: NormGroups
) -> list[Tensor]:
    """Units of one norm each, of images that several ranks share: one message for all of them."""
    products = [copy.multiply(x) for copy, x in zip(copies, inputs, strict=True)]
    normalised = normalise_with_team([copy.norm for copy in copies], products, groups)
    return [copy.activate(x) for copy, x in zip(copies, normalised, strict=True)]


# ---- for serving


class FoldedNorm(nn.Module):
    """Stands where batch norm was before the product in front of it took it over."""

    def forward(self, x: Tensor, groups: NormGroups | None = None, *, num_ways: int = 1) -> Tensor:  # noqa: ARG002
        """The input."""
        return x


@torch.no_grad()
def fold_norms(network: AnyModule) -> AnyModule:
    """A copy whose products have taken over the batch norms behind them: the same logits in eval mode, but for rounding.

    ONNX Runtime does so by itself; a program of torch took 38 ms for what takes 29 folded (thin VGG-16 at 224x224).
    """
    folded = deepcopy(network).eval()
    for module in list(folded.modules()):
        if isinstance(module, Layer | NormedProduct):
            # Of a factorised product it is the second factor that batch norm follows.
            holder: nn.Module = module
            name = "product"
            if isinstance(module.product, LowRank):
                holder = module.product
                name = "combination"
            product: Any = getattr(holder, name)
            fuse: Any = fuse_conv_bn_eval if isinstance(product, nn.Conv2d) else fuse_linear_bn_eval
            setattr(holder, name, fuse(product, module.norm))
            module.register_module("norm", FoldedNorm())
    return folded
