"""The one place where an architecture becomes a network: that of its tree, its low-rank form, or that of a policy."""

from __future__ import annotations

from collections.abc import Sequence

from distbranch.models.adashare_net import AdaShareNet
from distbranch.models.low_rank import LowRankNet
from distbranch.models.residual import AnyArchitecture, ResidualArchitecture
from distbranch.models.tree_net import TreeNet

Network = TreeNet | LowRankNet | AdaShareNet


def network_of(
    architecture: AnyArchitecture, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.25,) * 3
) -> Network:
    """The network of an architecture, with random weights; `mean` and `std` per colour channel normalise uint8 images."""
    if isinstance(architecture, ResidualArchitecture):
        return AdaShareNet(architecture, mean, std)
    kind: type[TreeNet] | type[LowRankNet] = LowRankNet if architecture.low_rank else TreeNet
    return kind(architecture, mean, std)


def served(network: Network) -> Network:
    """The network as it answers: of one that searches for a policy that of its most probable decisions; else itself."""
    return network.with_most_probable_policy() if isinstance(network, AdaShareNet) and network.searches else network
