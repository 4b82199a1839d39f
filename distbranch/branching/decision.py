"""How many branches a layer gets, and which go together: the least sum of complexity and separation (Eq. 9).

Few branches: every partition is tried. Else one grouping per number of groups d is found by spectral clustering, for as many d
as can win, and single branches of the cheapest one move from group to group while its cost falls. A grouping into d groups costs
at least (d - 1) L0 2^p and the least spread of a branch alone, so from some d on none can win.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from distbranch.branching.grouping import ROUNDING, Groups, Matrix, cluster_branches, separation_cost
from distbranch.branching.search import MOST_BRANCHES, find_best_partitions, move_branches

UNIT_COST = 1 / 64  # L0 of Eq. 9: with 2^p one more branch costs 1/64 in the fc layers and 1/2 in conv1 of VGG-16
ALL_PARTITIONS = "all partitions"
WITH_MOVES = "spectral + moves"


@dataclass(frozen=True)
class Decision:
    """The groups of branches of the layer above that were chosen, and how they were found.

    `costs` and `separation` are total and separation cost of the best grouping found into d; a d that was not tried has none.
    """

    groups: Groups
    costs: dict[int, float]
    separation: dict[int, float]
    search: str = ALL_PARTITIONS
    num_moves: int = 0

    @property
    def num_groups(self) -> int:
        """The d that was chosen; 1 means no further branching."""
        return len(self.groups)


def choose_groups(
    branch_affinity: Matrix,
    *,
    alpha: float,
    pools_above: int,
    unit_cost: float = UNIT_COST,
    max_groups: int | None = None,
    seed: int = 0,
) -> Decision:
    """The grouping found with the least (d - 1) * unit_cost * 2^pools_above + alpha * L_s, the fewest groups on ties.

    Args:
        branch_affinity: A_b [c, c] of the branches above.
        alpha: the branching factor; more makes more branches.
        pools_above: pooling layers between the layer to be widened and the heads.
        unit_cost: of one more branch above all pooling layers.
        max_groups: no more than this many groups; None for no limit.
        seed: of the clustering. The same arguments give the same decision.

    Raises:
        ValueError: the affinity is not a square matrix.
    """
    affinity = np.asarray(branch_affinity, dtype=np.float64)
    count = len(affinity)
    if affinity.shape != (count, count) or count == 0:
        raise ValueError(
            f"The affinity of branches must be a square matrix [c, c], found shape {list(affinity.shape)}."
        )
    limit = count if max_groups is None else max(1, min(max_groups, count))
    tries_all = count <= MOST_BRANCHES
    groupings: Iterable[tuple[int, Groups]] = cluster_branches(affinity, limit, seed=seed)
    if tries_all:
        groupings = find_best_partitions(affinity, limit).items()

    price = unit_cost * 2**pools_above
    # The spread of a group is at least that of its members alone, so no grouping costs less.
    least_separation = float((1 - np.diag(affinity)).min())
    costs: dict[int, float] = {}
    separation: dict[int, float] = {}
    found: dict[int, Groups] = {}
    for d, groups in groupings:
        complexity = (d - 1) * price
        # From here on complexity alone costs more than the best so far, whatever the grouping.
        bound = complexity + alpha * least_separation
        if not tries_all and costs and bound > min(costs.values()) + ROUNDING:
            break
        found[d] = groups
        separation[d] = separation_cost(affinity, groups)
        costs[d] = complexity + alpha * separation[d]  # Eq. 9

    # On ties the fewest groups: a branch that gains nothing is not worth its weights.
    best = min(costs.values()) + ROUNDING
    chosen = min(d for d, cost in costs.items() if cost <= best)
    if tries_all:
        return Decision(found[chosen], costs, separation)

    # Only the chosen grouping is mended, for moves keep the number of groups and cost more than clustering.
    groups, num_moves = move_branches(affinity, found[chosen])
    separation[chosen] = separation_cost(affinity, groups)
    costs[chosen] = (chosen - 1) * price + alpha * separation[chosen]
    return Decision(groups, costs, separation, WITH_MOVES, num_moves)
