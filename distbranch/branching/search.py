"""Better groupings than clustering finds: all partitions of a few branches are tried, and of many single branches move.

Where all partitions can be tried, the best grouping into d groups is found and not searched for. Else single branches move from
group to group while the separation cost (Eq. 11) falls.

The number of groups stays: the least cost of all groupings is often that of a few single branches beside one group of all the
others, which is no grouping by affinity, and moves that open groups lead there. So do single moves where affinities are weak, for
Eq. 11 is a mean over groups of whatever size: of the eight regions of the quickstart's faces seven became single tasks beside one
group of 33. So a move must not lower the closeness of the branches to their groups either, every branch counted alike.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from distbranch.branching.grouping import ROUNDING, Groups, Labels, Matrix, group_by_label

MOST_BRANCHES = 8  # Bell(8) = 4,140 partitions take 2 ms; Bell(12) = 4,213,597

Vector = NDArray[np.float64]


def find_best_partitions(branch_affinity: Matrix, max_groups: int) -> dict[int, Groups]:
    """For every d from 1 to `max_groups` the grouping into d groups with the least separation cost (Eq. 11).

    Of several the first one in lexicographic order, with groups sorted by their first member.
    """
    count = len(branch_affinity)
    partitions, masks = _list_partitions(count)
    num_groups = (masks > 0).sum(axis=1)
    spreads = compute_group_spreads(branch_affinity)
    costs = spreads[masks].sum(axis=1) / num_groups
    found = {}
    for d in range(1, min(max_groups, count) + 1):
        among = np.flatnonzero(num_groups == d)
        limit = costs[among].min() + ROUNDING
        first = (costs[among] <= limit).argmax()
        found[d] = partitions[among[first]]
    return found


def compute_group_spreads(branch_affinity: Matrix) -> Vector:
    """The cost of every group of branches (Eq. 10), by its bits [2^c]; 0 of the empty one."""
    count = len(branch_affinity)
    spreads = np.zeros(2**count)
    for mask in range(1, 2**count):
        group = [branch for branch in range(count) if mask >> branch & 1]
        inside = branch_affinity[np.ix_(group, group)]
        spreads[mask] = 1 - inside.min(axis=1).mean()
    return spreads


@cache
def _list_partitions(count: int) -> tuple[list[Groups], Labels]:
    """Every partition of 0..count-1 in lexicographic order, and the bits of its groups [P, count], padded with 0."""
    partitions = sorted(_grow_partitions(count))
    masks = np.zeros((len(partitions), count), dtype=np.intp)
    for row, groups in zip(masks, partitions, strict=True):
        for number, group in enumerate(groups):
            row[number] = sum(1 << branch for branch in group)
    return partitions, masks


def _grow_partitions(count: int) -> list[Groups]:
    found: list[Groups] = [()]
    for branch in range(count):
        grown = []
        for groups in found:
            # The branch alone, or in one of the groups so far: no partition comes up twice.
            grown.append((*groups, (branch,)))
            for number, group in enumerate(groups):
                before = groups[:number]
                after = groups[number + 1 :]
                grown.append((*before, (*group, branch), *after))
        found = grown
    return found


# ---- moves of single branches


def move_branches(branch_affinity: Matrix, groups: Groups) -> tuple[Groups, int]:
    """The grouping from which no single move lowers the separation cost without lowering closeness, and the number of moves.

    Every move is the best of all, on ties the first one by branch and group; as each lowers the cost, there is an end.
    """
    moves = Moves(branch_affinity, groups)
    num_moves = 0
    while True:
        # A move that takes branches from what is close to them is none, see above.
        costs = moves.costs_after()
        loses = moves.closeness_after() < moves.closeness - ROUNDING
        costs[loses] = np.inf

        # Below by more than rounding, or two equal groupings would take turns for ever.
        least = costs.min()
        if not least < moves.cost - ROUNDING:
            return group_by_label(moves.labels), num_moves

        first = (costs <= least + ROUNDING).argmax()
        branch, group = divmod(int(first), len(groups))
        moves.move(branch, group)
        num_moves += 1


class Moves:
    """A grouping, and what it would cost after every single move: one table, of which a move changes two groups.

    The least affinities of a group's members within it are summed (Eq. 10): as it is (`sums` [d]), with every branch added
    (`sums_with` [d, c]), and of the group of every branch without it (`sums_without` [c]).
    """

    def __init__(self, branch_affinity: Matrix, groups: Groups) -> None:
        count = len(branch_affinity)
        self.affinity = branch_affinity
        self.members = [np.array(group, dtype=np.intp) for group in groups]
        self.labels = np.empty(count, dtype=np.intp)
        self.sums = np.zeros(len(groups))
        self.sums_with = np.zeros((len(groups), count))
        self.sums_without = np.zeros(count)
        for group in range(len(groups)):
            self._compute_group(group)

    @property
    def cost(self) -> float:
        """Eq. 11 of the grouping as it is."""
        return float(self._compute_spreads().mean())

    @property
    def closeness(self) -> float:
        """The sum over the branches of their least affinity within their group."""
        return float(self.sums.sum())

    def closeness_after(self) -> Matrix:
        """`closeness` after the move of every branch to every other group [c, d]."""
        own = self.sums[self.labels]
        left = self.closeness - own + self.sums_without  # [c]: without the branch
        joined = self.sums_with - self.sums[:, None]  # [d, c]: what joining adds
        after: Matrix = left[:, None] + joined.T
        return after

    def costs_after(self) -> Matrix:
        """Eq. 11 after the move of every branch to every group [c, d]; inf where it is or leaves its group empty."""
        sizes = self._count_members()
        spreads = self._compute_spreads()
        own_sizes = sizes[self.labels]  # [c]: of every branch's own group

        # All groups without the branch [c]; of its own group the rest is left.
        own_spreads = spreads[self.labels]
        rest = 1 - self.sums_without / np.maximum(own_sizes - 1, 1)
        others = spreads.sum() - own_spreads + rest

        # What joining adds to a group's spread [d, c].
        spreads_with = 1 - self.sums_with / (sizes + 1)[:, None]
        joined = spreads_with - spreads[:, None]

        costs: Matrix = (others + joined).T / len(sizes)
        np.put_along_axis(costs, self.labels[:, None], np.inf, axis=1)
        costs[own_sizes == 1] = np.inf
        return costs

    def move(self, branch: int, group: int) -> None:
        """Move a branch to another group."""
        old = int(self.labels[branch])
        left = self.members[old]
        self.members[old] = left[left != branch]
        self.members[group] = np.append(self.members[group], branch)
        self._compute_group(group)
        self._compute_group(old)

    def _compute_group(self, group: int) -> None:
        """All that is known of one group, from its members."""
        members = self.members[group]
        inside = self.affinity[np.ix_(members, members)]
        least = inside.min(axis=1)
        self.labels[members] = group
        self.sums[group] = least.sum()

        # With a branch: the members' least affinities, to it or as before, and its own one to them.
        to_members = self.affinity[:, members].min(axis=1)
        own = np.minimum(to_members, np.diag(self.affinity))
        theirs = np.minimum(self.affinity[members], least[:, None])
        self.sums_with[group] = theirs.sum(axis=0) + own

        if len(members) == 1:
            self.sums_without[members] = 0.0
            return

        # Without a member the others fall back on their second least affinity where it had given the least one.
        nearest = inside.argmin(axis=1)
        second = np.partition(inside, 1, axis=1)[:, 1]
        gained = second - least
        is_own = nearest == np.arange(len(members))
        gained[is_own] = 0.0  # which is gone with them
        regained = np.bincount(nearest, gained, minlength=len(members))
        self.sums_without[members] = least.sum() - least + regained

    def _count_members(self) -> Labels:
        return np.bincount(self.labels)

    def _compute_spreads(self) -> Vector:
        """Eq. 10 of every group [d]."""
        return 1 - self.sums / self._count_members()
