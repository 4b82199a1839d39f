"""What a kind of affinity brings that is measured on a network as it stands, and what a measurement found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distbranch.branching.grouping import Matrix
from distbranch.maps import AnyLabels
from distbranch.models.network import Network
from distbranch.registry import Registry

Sums = Mapping[str, NDArray[np.float64]]


def choose_trunk(names: Sequence[str], lowest: int) -> list[int]:
    """All units (0..L-1) up to the lowest that is to be split, which is shared as long as it is not."""
    return list(range(min(lowest + 1, len(names))))


@dataclass(frozen=True)
class MeasuredKind:
    """A kind of affinity: what is added up over the sample, and what the sums say.

    sum_chunk: from the network (in eval mode and float32), the units that are looked at (0..L-1), images uint8 [B, 3, H, W] and
        labels [B, T] (NaN where unlabelled): float64 tensors by name. A chunk is the same for any number of ranks.
    compute_affinity: from the sums over all chunks A [T, T] in 0..1, symmetric, 0.5 where tasks are independent. What it gives of a
        task with itself is replaced by 1.
    choose_units: from the names of all units and the lowest that is to be split (0..L-1), those that are looked at.
    """

    sum_chunk: Callable[[Network, Sequence[int], Tensor, AnyLabels], dict[str, Tensor]]
    compute_affinity: Callable[[Sums], Matrix]
    choose_units: Callable[[Sequence[str], int], list[int]] = choose_trunk


# Their names are kinds of affinity as those computed from sums of pairs (`branching.affinity.AFFINITIES`), each taken once.
MEASURED: Registry[MeasuredKind] = Registry("kind of affinity")


@dataclass(frozen=True)
class MeasuredAffinity:
    """What was measured, and from what: A [T, T], the units that were looked at, the sums by name, and the seconds it took."""

    matrix: Matrix
    layers: tuple[str, ...]
    sums: Sums
    num_samples: int
    seconds: float

    def describe(self) -> dict[str, Any]:
        """What a record says of it, beside the sums."""
        return {
            "layers": list(self.layers),
            "num_samples": self.num_samples,
            "seconds": self.seconds,
        }
