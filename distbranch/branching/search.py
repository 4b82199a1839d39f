"""Better groupings than clustering finds: all partitions of a few branches are tried, and of many single branches move.

Where all partitions can be tried, the best grouping into d groups is found and not searched for. Else single branches move from
group to group while the separation cost (Eq. 11) falls.

The number of groups stays: the least cost of all groupings is often that of a few single branches beside one group of all the
others, which is no grouping by affinity, and moves that open groups lead there. So do single moves where affinities are weak, for
Eq. 11 is a mean over groups of whatever size: of the eight regions of the quickstart's faces seven became single tasks beside one
group of 33. So a move must not lower the closeness of the branches to their groups either, every branch counted alike.
"""

from __future__ import annotations

import numpy as np

from distbranch.branching.grouping import (
    ROUNDING,
    Groups,
    Labels,
    Matrix,
    group_by_label,
    label_branches,
    separation_cost,
)

MOST_BRANCHES = 8  # Bell(8) = 4,140 partitions take a tenth of a second; Bell(12) = 4,213,597


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

        # Without a member the others fall back on their second least affinity where it had given the least one.
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
