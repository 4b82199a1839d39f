"""The one place where an architecture becomes a network: that of its tree, or its low-rank form."""

from __future__ import annotations

from collections.abc import Sequence

from distbranch.models.backbones import Architecture
from distbranch.models.low_rank import LowRankNet
from distbranch.models.tree_net import TreeNet

Network = TreeNet | LowRankNet


def network_of(
    architecture: Architecture, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.25,) * 3
) -> Network:
    """The network of an architecture, with random weights; `mean` and `std` per colour channel normalise uint8 images."""
    kind: type[Network] = LowRankNet if architecture.low_rank else TreeNet
    return kind(architecture, mean, std)
