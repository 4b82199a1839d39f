"""Delta branches: those of a unit share every large weight W, and each adds a difference U V of low rank; all else is its own.

A weight is large if U and V together are fewer numbers. W is seen as a matrix [C', n], that of a convolution with its positions
before its channels, which is how its numbers lie in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distbranch.branching.routing import SHARED, copy_units
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import WeightShape
from distbranch.models.units import Unit

# Of V at birth. U is zero, so that no output changes; were V zero too, neither would ever have a gradient.
DEVIATION = 0.35


class DeltaBranches(nn.Module):
    """The branches of a unit, whose parameters are `shared.<weight>`, `<copy>.delta.<weight>.up|down`, and `<copy>.<rest>`.

    Args:
        branches: whole units, which lose their large weights.
        shapes: of these weights.
        rank: of the differences.
    """

    def __init__(self, branches: Sequence[Unit], shapes: Sequence[WeightShape], rank: int) -> None:
        super().__init__()
        self.names = [shape.name for shape in shapes]
        self.num_branches = len(branches)
        self.shared = nn.Module()
        for name in self.names:
            _set_parameter(self.shared, name, branches[0].get_parameter(name))
        for number, branch in enumerate(branches):
            branch.delta = nn.Module()
            for shape in shapes:
                holder, last = _find_holder(branch, shape.name)
                delattr(holder, last)
                setattr(holder, last, None)  # no parameter any longer: see `whole_weights`
                up, down = torch.zeros(shape.rows, rank), torch.zeros(rank, shape.columns)
                _set_parameter(branch.delta, f"{shape.name}.up", nn.Parameter(up))
                _set_parameter(branch.delta, f"{shape.name}.down", nn.Parameter(down))
            self.add_module(str(number), branch)

    @property
    def branches(self) -> list[Any]:
        """The units, which run only within `whole_weights`."""
        return [self.get_submodule(str(number)) for number in range(self.num_branches)]

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Every branch has its W + U V, of which gradients go to W, U and V."""
        places = []
        for name in self.names:
            deltas = [branch.delta.get_submodule(name) for branch in self.branches]
            ups = [delta.up for delta in deltas]
            downs = [delta.down for delta in deltas]
            whole = add_deltas(self.shared.get_parameter(name), ups, downs)
            for branch, weight in zip(self.branches, whole, strict=True):
                places.append(_find_holder(branch, name))
                setattr(*places[-1], weight)
        try:
            yield
        finally:
            for holder, last in places:
                setattr(holder, last, None)


def add_deltas(shared: Tensor, ups: Sequence[Tensor], downs: Sequence[Tensor]) -> list[Tensor]:
    """W + U V of every branch, in the shape and layout of W, in full precision whatever the autocast.

    Args:
        shared: W [C', ...].
        ups: U [C', r] of every branch.
        downs: V [r, n] of every branch.
    """
    last = shared.movedim(1, -1)
    matrix = last.flatten(1).expand(len(ups), -1, -1)
    with torch.autocast(shared.device.type, enabled=False):
        matrices = torch.baddbmm(matrix, torch.stack(list(ups)), torch.stack(list(downs)))
    return list(torch.unflatten(matrices, 2, last.shape[1:]).movedim(-1, 2).unbind())


# ---- states by name


def copy_state(
    state: Mapping[str, Tensor],
    old: Architecture,
    new: Architecture,
    tasks: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """The state of the network of `new`, by name, from that of `old` (see `copy_units`), whichever of them has delta branches.

    Where branches are born the weight of the old unit is the shared one, and the differences (`draw_deltas`) are left out; where
    no difference is left, of a single branch or of copies, it is added to the weight.
    """
    copies = copy_units(state, old.routing, new.routing, tasks)
    for number, unit in enumerate(new.routing.units):
        before, after = old.deltas(number), new.deltas(number)
        if after and not before:
            assert len(old.routing.copies(number)) == 1
            _share_weights(copies, unit, {shape.name for shape in after})
        elif before and not after:
            names = [shape.name for shape in before]
            _fold_deltas(copies, unit, names, len(new.routing.copies(number)))
    return copies


def draw_deltas(old: Architecture, new: Architecture, seed: int) -> dict[str, Tensor]:
    """The differences of the branches that `new` has and `old` has not: U = 0 and V at random, from the seed and the layer."""
    drawn = {}
    for number, unit in enumerate(new.routing.units):
        shapes = new.deltas(number)
        if not shapes or old.deltas(number):
            continue
        (layer_seed,) = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(layer_seed))
        rank = new.delta_rank or 0
        for copy in range(len(new.routing.copies(number))):
            for shape in shapes:
                name = f"units.{unit}.{copy}.delta.{shape.name}"
                down = torch.randn(rank, shape.columns, generator=generator) * DEVIATION
                drawn[f"{name}.up"] = torch.zeros(shape.rows, rank)
                drawn[f"{name}.down"] = down
    return drawn


def _share_weights(state: dict[str, Tensor], unit: str, names: Iterable[str]) -> None:
    """Make the weight of the first branch that of all, which have the same; likewise the slots of an optimiser."""
    for key in [key for key in state if key.startswith(f"units.{unit}.")]:
        _, _, copy, rest = key.split(".", 3)
        name, _, _ = rest.partition(":")
        if name in names:
            value = state.pop(key)
            if copy == "0":
                state[f"units.{unit}.{SHARED}.{rest}"] = value


def _fold_deltas(
    state: dict[str, Tensor], unit: str, names: Iterable[str], num_branches: int
) -> None:
    for name in names:
        deltas = [f"units.{unit}.{copy}.delta.{name}" for copy in range(num_branches)]
        ups = [state.pop(f"{delta}.up") for delta in deltas]
        downs = [state.pop(f"{delta}.down") for delta in deltas]
        whole = add_deltas(state.pop(f"units.{unit}.{SHARED}.{name}"), ups, downs)
        for copy, weight in enumerate(whole):
            state[f"units.{unit}.{copy}.{name}"] = weight


# ---- modules by name


def _find_holder(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return module.get_submodule(path), last


def _set_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter, and modules on the way to it where there are none."""
    *path, last = name.split(".")
    for step in path:
        if step not in dict(module.named_children()):
            module.add_module(step, nn.Module())
        module = module.get_submodule(step)
    module.register_parameter(last, parameter)
