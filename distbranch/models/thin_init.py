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
from distbranch.models.backbones import Architecture
from distbranch.models.pretrained import WideLayer, WideNetwork, check_backbone, check_finite, map_size, with_map_size

Choice = Literal["somp", "largest-norm", "random-rows"]


@dataclass(frozen=True)
class ThinBeginning:
    """Tensors of a TreeNet's hidden layers by name, the rows chosen for every layer, and how many of them SOMP filled in."""

    state: dict[str, Tensor]
    rows: dict[str, tuple[int, ...]]
    num_filled: dict[str, int]

    @property
    def warning(self) -> str | None:
        """One sentence on the layers whose rank was exhausted, if any."""
        filled = [f"{name} ({count} of {len(self.rows[name])})" for name, count in self.num_filled.items() if count]
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
    convolved = True
    for layer, shape in zip(wide.layers, architecture.shapes, strict=True):
        name, is_conv = shape.layer.name, shape.layer.kind == "conv"
        is_first_fc, convolved = convolved and not is_conv, is_conv
        if is_first_fc:
            positions = wide.map_size[0] * wide.map_size[1]
            kept = [channel * positions + position for channel in kept for position in range(positions)]
        reduced = WideLayer(layer.weight[:, kept], layer.scale, layer.shift, layer.mean, layer.variance)
        if is_first_fc:
            reduced = with_map_size(reduced, wide.map_size, map_size(architecture))
        check_finite(reduced, wide.source, name)
        selection = _choose(reduced, shape.width, choice, draw)
        kept = list(selection.rows)
        rows[name], num_filled[name] = selection.rows, selection.num_filled
        state |= _copied(f"layers.{name}.0", reduced, kept, is_conv=is_conv)
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


def _copied(prefix: str, layer: WideLayer, rows: list[int], *, is_conv: bool) -> dict[str, Tensor]:
    return {
        f"{prefix}.{'conv' if is_conv else 'linear'}.weight": layer.weight[rows].float(),
        f"{prefix}.norm.weight": layer.scale[rows].float(),
        f"{prefix}.norm.bias": layer.shift[rows].float(),
        f"{prefix}.norm.running_mean": layer.mean[rows].float(),
        f"{prefix}.norm.running_var": layer.variance[rows].float(),
    }


def check_fits(wide: WideNetwork, architecture: Architecture) -> None:
    """Whether the thin network can be a part of the wide one.

    Raises:
        UserError: another backbone, or a narrower layer.
    """
    check_backbone(wide, architecture)
    for layer, shape in zip(wide.layers, architecture.shapes, strict=True):
        if len(layer.weight) < shape.width:
            raise UserError(
                f"The pretrained network {wide.source} should be at least as wide as the thin one, but its {shape.layer.name} has "
                f"{len(layer.weight)} units and {shape.width} are wanted. Use a smaller model.width."
            )
