"""All partitions of a few branches: where they can all be tried, the best grouping into d groups is found and not searched for."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from distbranch.branching.grouping import ROUNDING, Groups, Matrix

MOST_BRANCHES = 8  # Bell(8) = 4,140 partitions take 2 ms; Bell(12) = 4,213,597


def best_partitions(branch_affinity: Matrix, max_groups: int) -> dict[int, Groups]:
    """For every d from 1 to `max_groups` the grouping into d groups with the least separation cost (Eq. 11).

    Of several the first one in lexicographic order, with groups sorted by their first member.
    """
    partitions, masks = _all_partitions(len(branch_affinity))
    num_groups = (masks > 0).sum(axis=1)
    costs = _spreads(branch_affinity)[masks].sum(axis=1) / num_groups
    found = {}
    for d in range(1, min(max_groups, len(branch_affinity)) + 1):
        among = np.flatnonzero(num_groups == d)
        nearly_least = costs[among] <= costs[among].min() + ROUNDING
        found[d] = partitions[among[nearly_least.argmax()]]
    return found


def _spreads(branch_affinity: Matrix) -> NDArray[np.float64]:
    """The cost of every group of branches (Eq. 10), by its bits [2^c]; 0 of the empty one."""
    count = len(branch_affinity)
    spreads = np.zeros(2**count)
    for mask in range(1, 2**count):
        group = [branch for branch in range(count) if mask >> branch & 1]
        spreads[mask] = 1 - branch_affinity[np.ix_(group, group)].min(axis=1).mean()
    return spreads


@cache
def _all_partitions(count: int) -> tuple[list[Groups], NDArray[np.intp]]:
    """Every partition of 0..count-1 in lexicographic order, and the bits of its groups [P, count], padded with 0."""
    partitions = sorted(_partitions(count))
    masks = np.zeros((len(partitions), count), dtype=np.intp)
    for row, groups in zip(masks, partitions, strict=True):
        row[: len(groups)] = [sum(1 << branch for branch in group) for group in groups]
    return partitions, masks


def _partitions(count: int) -> list[Groups]:
    found: list[Groups] = [()]
    for branch in range(count):
        grown = []
        for groups in found:
            grown.append((*groups, (branch,)))
            for number, group in enumerate(groups):
                grown.append((*groups[:number], (*group, branch), *groups[number + 1 :]))
        found = grown
    return found
