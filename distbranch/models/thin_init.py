"""A thin network that begins as a part of a wide one (Algorithm 2).

Layer by layer from the input, the chosen filters are copied with their batch norm, and the next layer keeps only the inputs that
come from them. The heads stay as they are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from distbranch.branching.somp import Selection, orthogonal_matching_pursuit, select_largest_rows
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.pretrained import (
    LAYER_KEYS,
    WideLayer,
    WideNetwork,
    check_backbone,
    check_finite,
    is_linear,
    map_size,
    with_map_size,
)

Choice = Literal["somp", "largest-norm", "random-rows"]


@dataclass(frozen=True)
class ThinBeginning:
    """Tensors of a network's hidden layers by name, the rows chosen for every layer, and how many of them SOMP filled in."""

    state: dict[str, Tensor]
    rows: dict[str, tuple[int, ...]]
    num_filled: dict[str, int]

    @property
    def warning(self) -> str | None:
        """One sentence on the layers whose rank was exhausted, if any."""
        filled = [
            f"{name} ({count} of {len(self.rows[name])})"
            for name, count in self.num_filled.items()
            if count
        ]
        if not filled:
            return None
        return (
            "The wide network has fewer independent filters than the thin one wants, so the unused filters of largest norm "
            f"fill up: {', '.join(filled)}."
        )


def thin_beginning(
    wide: WideNetwork, architecture: Architecture, choice: Choice = "somp", *, seed: int = 0
) -> ThinBeginning:
    """Choose from every layer of the wide network as many filters as the thin one has.

    Args:
        wide: the network to choose from.
        architecture: of the thin network, before any split.
        choice: by SOMP, by norm, or at random. A layer that is not thinner is taken whole, in its order.
        seed: of random rows.

    Raises:
        UserError: the wide network is of another backbone or narrower, or not all its numbers are finite.
    """
    check_fits(wide, architecture)
    draw = np.random.default_rng(seed)
    state: dict[str, Tensor] = {}
    rows: dict[str, tuple[int, ...]] = {}
    num_filled: dict[str, int] = {}
    kept: list[int] = [0, 1, 2]  # colours
    was_linear = False
    for layer, plan in zip(wide.layers, architecture.backbone.plans, strict=True):
        is_first_fc = is_linear(plan.name) and not was_linear
        was_linear = is_linear(plan.name)
        if is_first_fc:
            positions = wide.map_size[0] * wide.map_size[1]
            kept = [
                channel * positions + position for channel in kept for position in range(positions)
            ]
        reduced = WideLayer(
            layer.weight[:, kept], layer.scale, layer.shift, layer.mean, layer.variance
        )
        if is_first_fc:
            reduced = with_map_size(reduced, wide.map_size, map_size(architecture))
        check_finite(reduced, wide.source, plan.name)
        selection = _choose(reduced, plan.width, choice, draw)
        kept = list(selection.rows)
        rows[plan.name], num_filled[plan.name] = selection.rows, selection.num_filled
        for key, value in zip(LAYER_KEYS, vars(reduced).values(), strict=True):
            state[f"units.{plan.name}.0.{key}"] = value[kept].float()
    return ThinBeginning(state, rows, num_filled)


def _choose(layer: WideLayer, width: int, choice: Choice, draw: np.random.Generator) -> Selection:
    if width == len(layer.weight):
        return Selection(tuple(range(width)), 0)
    matrix = layer.folded().flatten(1).numpy()
    if choice == "somp":
        return orthogonal_matching_pursuit(matrix, width)
    if choice == "largest-norm":
        return Selection(tuple(select_largest_rows(matrix, width)), 0)
    return Selection(tuple(map(int, draw.permutation(len(matrix))[:width])), 0)


def check_fits(wide: WideNetwork, architecture: Architecture) -> None:
    """Whether the thin network can be a part of the wide one.

    Raises:
        UserError: another backbone, or a narrower layer.
    """
    check_backbone(wide, architecture)
    for layer, plan in zip(wide.layers, architecture.backbone.plans, strict=True):
        if len(layer.weight) < plan.width:
            raise UserError(
                f"The pretrained network {wide.source} should be at least as wide as the thin one, but its {plan.name} has "
                f"{len(layer.weight)} units and {plan.width} are wanted. Use a smaller model.width."
            )
