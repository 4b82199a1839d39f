"""How many branches a layer gets, and which go together: the least sum of complexity and separation (Eq. 9).

Few branches: every partition is tried. Else one grouping per number of groups d is found by spectral clustering, for as many d
as can win, and single branches of the cheapest one move from group to group while its cost falls. A grouping into d groups costs
at least (d - 1) L0 2^p and the least spread of a branch alone, so from some d on none can win.

Moves keep the number of groups: the least cost of all groupings is often that of a few single branches beside one group of all the
others, which is no grouping by affinity, and moves that open groups lead there. So do single moves where affinities are weak, for
Eq. 11 is a mean over groups of whatever size: of the eight regions of the quickstart's faces seven became single tasks beside one
group of 33. So a move must not lower the closeness of the branches to their groups either, every branch counted alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from distbranch.branching.grouping import (
    ROUNDING,
    Groups,
    Labels,
    Matrix,
    cluster_branches,
    group_by_label,
    label_branches,
    separation_cost,
)

UNIT_COST = (
    1 / 64
)  # L0 of Eq. 9: with 2^p one more branch costs 1/64 in the fc layers and 1/2 in conv1 of VGG-16
# What one fully connected layer takes of the full VGG-16 at 224x224: the mean of fc6 (25,088 x 4,096) and fc7 (4,096 x 4,096), of
# 15,466 M multiply-adds without heads, 0.39 %. Priced by its share, 4.04 times, such a layer costs 1/64 as it does by pools, and
# conv1_2, the dearest there, 0.48 for 1/2.
SHARE_OF_FC = (25_088 + 4_096) * 4_096 / 2 / 15_466_168_320
MOST_BRANCHES = 8  # Bell(8) = 4,140 partitions take a tenth of a second; Bell(12) = 4,213,597
ALL_PARTITIONS = "all partitions"
WITH_MOVES = "spectral + moves"


def price_by_multiply_adds(share: float, unit_cost: float = UNIT_COST) -> float:
    """The price of one more branch from its unit's share of the multiply-adds of the whole backbone, all tasks sharing, heads apart.

    All units of a network together cost 4.04, however many there are, whereas by pools the price grows with every unit (2.2 for
    VGG-16). A share times 1/4, which was proposed for dense tasks, is this with a unit cost of 1/1035: 16 times less.
    """
    return unit_cost * share / SHARE_OF_FC


@dataclass(frozen=True)
class Decision:
    """The groups of branches of the layer above that were chosen, and how they were found.

    `costs` and `separation` are total and separation cost of the best grouping found into d; a d that was not tried has none.
    """

    groups: Groups
    costs: dict[int, float] = field(default_factory=dict)
    separation: dict[int, float] = field(default_factory=dict)
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
    price: float | None = None,
    max_groups: int | None = None,
    seed: int = 0,
) -> Decision:
    """The grouping found with the least (d - 1) * unit_cost * 2^pools_above + alpha * L_s, the fewest groups on ties.

    Args:
        branch_affinity: A_b [c, c] of the branches above.
        alpha: the branching factor; more makes more branches.
        pools_above: pooling layers between the layer to be widened and the heads.
        unit_cost: of one more branch above all pooling layers.
        price: of one more branch, if it is not unit_cost * 2^pools_above.
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
    tries_all = tries_all_partitions(affinity)
    if price is None:
        price = unit_cost * 2**pools_above
    # The spread of a group is at least that of its members alone, so no grouping costs less.
    least_separation = float((1 - np.diag(affinity)).min())
    costs: dict[int, float] = {}
    separation: dict[int, float] = {}
    found: dict[int, Groups] = {}
    for d, groups in list_groupings(affinity, limit, seed=seed):
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


def tries_all_partitions(branch_affinity: Matrix) -> bool:
    """Whether the branches are so few that every partition of them is tried."""
    return len(branch_affinity) <= MOST_BRANCHES


def list_groupings(
    branch_affinity: Matrix, max_groups: int, *, seed: int
) -> Iterable[tuple[int, Groups]]:
    """For every d from 1 to `max_groups` a grouping into d groups with a low separation cost: the least one of few branches."""
    if tries_all_partitions(branch_affinity):
        return find_best_partitions(branch_affinity, max_groups).items()
    return cluster_branches(branch_affinity, max_groups, seed=seed)


# ---- all partitions of a few branches


def find_best_partitions(branch_affinity: Matrix, max_groups: int) -> dict[int, Groups]:
    """For every d from 1 to `max_groups` the grouping into d groups with the least separation cost (Eq. 11).

    Of several the first one in lexicographic order, with groups sorted by their first member.
    """
    found: dict[int, Groups] = {}
    least = dict.fromkeys(range(1, max_groups + 1), np.inf)
    for groups in list_partitions(len(branch_affinity)):
        d = len(groups)
        if d > max_groups:
            continue
        cost = separation_cost(branch_affinity, groups)
        if cost < least[d] - ROUNDING:
            least[d] = cost
            found[d] = groups
    return dict(sorted(found.items()))


def list_partitions(count: int) -> list[Groups]:
    """Every partition of 0..count-1, in lexicographic order."""
    found: list[Groups] = [()]
    for branch in range(count):
        grown: list[Groups] = []
        for groups in found:
            # The branch alone, or in one of the groups so far: no partition comes up twice.
            grown.append((*groups, (branch,)))
            for number, group in enumerate(groups):
                before = groups[:number]
                after = groups[number + 1 :]
                grown.append((*before, (*group, branch), *after))
        found = grown
    return sorted(found)


# ---- moves of single branches of many


def move_branches(branch_affinity: Matrix, groups: Groups) -> tuple[Groups, int]:
    """The grouping from which no single move lowers the separation cost without lowering closeness, and the number of moves.

    Every move is the best of all, on ties the first one by branch and group; as each lowers the cost, there is an end.
    """
    labels = label_branches(groups)
    num_moves = 0
    while True:
        costs, gains = tabulate_moves(branch_affinity, labels)
        # A move that takes branches from what is close to them is none, see above.
        costs[gains < -ROUNDING] = np.inf

        # Below by more than rounding, or two equal groupings would take turns for ever.
        least = costs.min()
        if not least < separation_cost(branch_affinity, group_by_label(labels)) - ROUNDING:
            return group_by_label(labels), num_moves

        first = (costs <= least + ROUNDING).argmax()
        branch, group = divmod(int(first), len(groups))
        labels[branch] = group
        num_moves += 1


def tabulate_moves(branch_affinity: Matrix, labels: Labels) -> tuple[Matrix, Matrix]:
    """What the move of every branch to every group [c, d] would lead to.

    The first table is Eq. 11 after the move, infinite where the branch is in the group or leaves its own one empty. The second
    is the gain of closeness: of the sum over branches of their least affinity within their group.
    """
    count = len(labels)
    sizes = np.bincount(labels)
    own_sizes = sizes[labels]

    # The least affinities of a group's members within it, summed (Eq. 10): as it is, with every branch added, and of the group
    # of every branch without that branch.
    sums = np.zeros(len(sizes))
    sums_with = np.zeros((len(sizes), count))
    sums_without = np.zeros(count)
    for group in range(len(sizes)):
        members = np.flatnonzero(labels == group)
        inside = branch_affinity[np.ix_(members, members)]
        least = inside.min(axis=1)
        sums[group] = least.sum()

        # With a branch: the members' least affinities, to it or as before, and its own one to them.
        theirs = np.minimum(branch_affinity[members], least[:, None])
        own = np.minimum(branch_affinity[:, members].min(axis=1), np.diag(branch_affinity))
        sums_with[group] = theirs.sum(axis=0) + own

        # Without a member the others fall back on their second least affinity where it had given the least one. (One minimum per
        # member over all the others would take seconds per move in a group of 1,000.)
        if len(members) > 1:
            nearest = inside.argmin(axis=1)
            gained = np.partition(inside, 1, axis=1)[:, 1] - least
            gained[nearest == np.arange(len(members))] = 0.0  # which is gone with them
            regained = np.bincount(nearest, gained, minlength=len(members))
            sums_without[members] = sums[group] - least + regained

    # Eq. 10 of every group [d], of that of every branch without it [c], and of every group with every branch added [d, c].
    spreads = 1 - sums / sizes
    spreads_without = 1 - sums_without / np.maximum(own_sizes - 1, 1)
    spreads_with = 1 - sums_with / (sizes + 1)[:, None]

    # Eq. 11: two groups change.
    others = spreads.sum() - spreads[labels] + spreads_without
    joined = spreads_with - spreads[:, None]
    costs: Matrix = (others + joined).T / len(sizes)
    costs[np.arange(count), labels] = np.inf
    costs[own_sizes == 1] = np.inf

    left = sums_without - sums[labels]
    gains: Matrix = left[:, None] + (sums_with - sums[:, None]).T
    return costs, gains
