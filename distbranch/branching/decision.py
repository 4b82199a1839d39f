"""How many branches a layer gets, and which go together: the least sum of complexity and separation (Eq. 9).

Few branches: every partition is tried. Else one grouping per number of groups d is found by spectral clustering, for as many d
as can win, and single branches of the cheapest one move from group to group while its cost falls. A grouping into d groups costs
at least (d - 1) L0 2^p and the least spread of a branch alone, so from some d on none can win.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

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
    """
    candidates = Candidates(branch_affinity, seed=seed)
    return candidates.choose(alpha=alpha, pools_above=pools_above, unit_cost=unit_cost, max_groups=max_groups)


class Candidates:
    """The groupings among which decisions choose that differ in nothing but prices and caps; found when one first needs them.

    Args:
        branch_affinity: A_b [c, c].
        seed: of the clustering.

    Raises:
        ValueError: the affinity is not a square matrix.
    """

    def __init__(self, branch_affinity: Matrix, *, seed: int = 0) -> None:
        self.affinity = np.asarray(branch_affinity, dtype=np.float64)
        shape = self.affinity.shape
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
            raise ValueError(f"The affinity of branches must be a square matrix [c, c], found shape {list(shape)}.")
        self._tries_all = len(self.affinity) <= MOST_BRANCHES
        # The spread of a group is at least that of its members alone, so no grouping costs less.
        spreads_alone = 1 - np.diag(self.affinity)
        self._least_separation = float(spreads_alone.min())
        self._found: list[tuple[Groups, float]] = []
        self._others = self._search_groupings(seed)

    def choose(
        self,
        *,
        alpha: float,
        pools_above: int,
        unit_cost: float = UNIT_COST,
        max_groups: int | None = None,
    ) -> Decision:
        """The choice of `choose_groups`, with the same arguments."""
        price = unit_cost * 2**pools_above
        limit = len(self.affinity) if max_groups is None else max(1, max_groups)
        costs: dict[int, float] = {}
        separation: dict[int, float] = {}
        found: dict[int, Groups] = {}
        for groups, cost in self:
            d = len(groups)
            if d > limit:
                break

            # From here on complexity alone costs more than the best so far, whatever the grouping.
            complexity = (d - 1) * price
            bound = complexity + alpha * self._least_separation
            if not self._tries_all and costs and bound > min(costs.values()) + ROUNDING:
                break

            # Eq. 9
            costs[d] = complexity + alpha * cost
            separation[d] = cost
            found[d] = groups

        # On ties the fewest groups: a branch that gains nothing is not worth its weights.
        best = min(costs.values()) + ROUNDING
        tied = [d for d, cost in costs.items() if cost <= best]
        chosen = found[min(tied)]
        if self._tries_all:
            return Decision(chosen, costs, separation)

        # Only the chosen grouping is mended, for moves keep the number of groups and cost more than clustering.
        moved, num_moves = move_branches(self.affinity, chosen)
        d = len(moved)
        separation[d] = separation_cost(self.affinity, moved)
        costs[d] = (d - 1) * price + alpha * separation[d]
        return Decision(moved, costs, separation, WITH_MOVES, num_moves)

    def __iter__(self) -> Iterator[tuple[Groups, float]]:
        """The grouping into d groups and its separation cost, from d = 1 on; those found once are kept."""
        for place in count():
            if place == len(self._found):
                found = next(self._others, None)
                if found is None:
                    return
                self._found.append(found)
            yield self._found[place]

    def _search_groupings(self, seed: int) -> Iterator[tuple[Groups, float]]:
        most = len(self.affinity)
        found = cluster_branches(self.affinity, most, seed=seed)
        if self._tries_all:
            found = iter(find_best_partitions(self.affinity, most).items())
        for _, groups in found:
            yield groups, separation_cost(self.affinity, groups)
