"""A unit made of parts of a timm model, whose batch norms are ours and normalise the groups that a run asks for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distbranch.models.chain import Part
from distbranch.models.norm import BatchNorm, NormGroups
from distbranch.models.units import Unit


class UnitNorm(BatchNorm):
    """A batch norm inside a unit, which is told its groups before the unit runs; timm's also activate.

    Args:
        norm: the one whose place it takes.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.act = getattr(norm, "act", nn.Identity())
        self.groups: NormGroups | None = None
        self.num_ways = 1

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[num_ways * B, C] or [num_ways * B, C, h, w]; of tokens [num_ways * B * N, C] or [num_ways * B, C, N]."""
        if x.ndim == 3:
            return self.forward(x.unsqueeze(3)).squeeze(3)
        if self.groups is not None and self.training and x.ndim == 2:
            num_images = sum(self.groups.sizes) * self.num_ways
            if len(x) > num_images:  # tokens of an image count as its positions
                tokens = torch.unflatten(x, 0, (num_images, -1)).transpose(1, 2)
                return self.forward(tokens).transpose(1, 2).flatten(0, 1)
        normed = super().forward(x, self.groups, num_ways=self.num_ways)
        activated: Tensor = self.act(normed)
        return activated


class Given(nn.Module):
    """Stands in a block where its projection was, and gives what that gave already."""

    value: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        """The projection [B, C, h, w]."""
        assert self.value is not None
        return self.value


class TimmUnit(Unit):
    """Parts of a model, one after the other.

    `body` is what is skipped where tasks skip it, `tail` (a norm or pooling behind a block) is not. `projection`, where it has
    one, is the shortcut of its block, in whose place stands `given`.
    """

    width: int
    may_skip = False
    changes_input = False

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        last = max(number for number, part in enumerate(parts) if part.kind != "light")
        self.body: nn.Sequential | None = _join_parts(parts[: last + 1])
        self.tail = _join_parts(parts[last + 1 :])
        self.projection: nn.Module | None = None
        self.given: Given | None = None
        self.origins: dict[str, str] = {}  # the name in the model of every tensor of its state
        _replace_norms(self)

    def take_out_projection(self, name: str) -> None:
        """Make the module of this name in the block the shortcut of the unit."""
        assert self.body is not None
        self.projection = self.body[0].get_submodule(name)
        self.given = Given()
        self.body[0].set_submodule(name, self.given)

    def shortcut(self, x: Tensor, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """[num_ways * B, ...] to what the unit gives without its body; of one that nobody skips the input."""
        if self.projection is not None:
            return _run([self.projection], x, groups, num_ways)
        return self.tail(x) if self.may_skip else x

    def execute(
        self, x: Tensor, shortcut: Tensor, groups: NormGroups | None = None, num_ways: int = 1
    ) -> Tensor:
        """[num_ways * B, ...] to [num_ways * B, ...]."""
        assert self.body is not None
        x = x.clone() if self.changes_input else x
        if self.given is None:
            return _run([self.body, self.tail], x, groups, num_ways)
        try:
            self.given.value = shortcut
            return _run([self.body, self.tail], x, groups, num_ways)
        finally:
            self.given.value = None


def _run(
    modules: Sequence[nn.Module], x: Tensor, groups: NormGroups | None, num_ways: int
) -> Tensor:
    """Parts of a unit, whose batch norms see the groups for this call alone."""
    parts = [part for module in modules for part in module.modules()]
    norms = [part for part in parts if isinstance(part, UnitNorm)] if groups is not None else []
    try:
        for norm in norms:
            norm.groups, norm.num_ways = groups, num_ways
        for module in modules:
            x = module(x)
        return x
    finally:
        for norm in norms:
            norm.groups, norm.num_ways = None, 1


def _join_parts(parts: Sequence[Part]) -> nn.Sequential:
    """Named by the last piece of their paths."""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for part in parts:
        name = part.path.rpartition(".")[2]
        while name in named:
            name += "_"
        named[name] = part.module
    return nn.Sequential(named)


def _replace_norms(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, UnitNorm):
                setattr(parent, name, UnitNorm(child))
