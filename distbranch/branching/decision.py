"""How many branches a layer gets, and which go together: the least sum of complexity and separation (Eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distbranch.branching.grouping import Groups, groupings, separation_cost

UNIT_COST = 1 / 64  # L0 of Eq. 9
ROUNDING = 1e-12  # costs nearer than this are a tie


@dataclass(frozen=True)
class Candidates:
    """One grouping for every number of groups d that is possible, and its separation cost: all of a decision but its prices."""

    groups: dict[int, Groups]
    separation: dict[int, float]


@dataclass(frozen=True)
class Decision:
    """The groups of branches of the layer above that were chosen; total cost and separation cost of every d that was possible."""

    groups: Groups
    costs: dict[int, float]
    separation: dict[int, float]

    @property
    def num_groups(self) -> int:
        """The d that was chosen; 1 means no further branching."""
        return len(self.groups)


def choose_groups(
    branch_affinity: NDArray[np.float64],
    *,
    alpha: float,
    pools_above: int,
    unit_cost: float = UNIT_COST,
    max_groups: int | None = None,
    seed: int = 0,
) -> Decision:
    """The grouping with the least (d - 1) * unit_cost * 2^pools_above + alpha * L_s, the fewest groups on ties.

    Args:
        branch_affinity: A_b [c, c] of the branches above.
        alpha: the branching factor; more makes more branches.
        pools_above: pooling layers between the layer to be widened and the heads.
        unit_cost: of one more branch above all pooling layers.
        max_groups: no more than this many groups; None for no limit.
        seed: of the clustering. The same arguments give the same decision.
    """
    candidates = find_candidates(branch_affinity, max_groups=max_groups, seed=seed)
    return choose_among(candidates, alpha=alpha, pools_above=pools_above, unit_cost=unit_cost)


def find_candidates(
    branch_affinity: NDArray[np.float64], *, max_groups: int | None = None, seed: int = 0
) -> Candidates:
    """The groupings among which `choose_groups` chooses, with the same arguments; this is nearly all of its work."""
    affinity = np.asarray(branch_affinity, dtype=np.float64)
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or not len(affinity):
        raise ValueError(
            f"The affinity of branches must be a square matrix [c, c], found shape {list(affinity.shape)}."
        )
    limit = len(affinity) if max_groups is None else max(1, max_groups)
    candidates = dict(groupings(affinity, limit, seed=seed))
    return Candidates(candidates, {d: separation_cost(affinity, groups) for d, groups in candidates.items()})


def choose_among(candidates: Candidates, *, alpha: float, pools_above: int, unit_cost: float = UNIT_COST) -> Decision:
    """The choice of `choose_groups`, with the same arguments."""
    separation = candidates.separation
    costs = {d: (d - 1) * unit_cost * 2**pools_above + alpha * separation[d] for d in candidates.groups}
    best = min(costs.values())
    chosen = min(d for d, cost in costs.items() if cost <= best + ROUNDING)
    return Decision(candidates.groups[chosen], costs, separation)
