"""Grouping branches by affinity: Eq. 7-8 (affinity between branches), Eq. 10-11 (what a grouping costs) and spectral clustering.

The k-means of the clustering is our own, for one decision needs hundreds of runs, which share one table of distances; scikit-learn's
spends more time on checking its input than on so few points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Labels = NDArray[np.intp]
Groups = tuple[tuple[int, ...], ...]

ROUNDING = 1e-12  # costs nearer than this are a tie
RESTARTS = 5  # the algorithm's number; k-means ends in local optima, and moves of single branches mend the rest
MAX_ITERATIONS = 100  # of Lloyd, which ends by itself after far fewer


def branch_affinity(affinity: Matrix, branches: Sequence[Sequence[int]]) -> Matrix:
    """The affinity A_b [c, c] of branches.

    Args:
        affinity: A [T, T] of tasks.
        branches: the tasks of each of the c branches.
    """
    members = [list(tasks) for tasks in branches]
    # [T, c]: of every task i and branch l the min over the tasks j of l of A(i, j).
    columns = [affinity[:, tasks].min(axis=1) for tasks in members]
    lowest = np.stack(columns, axis=1)

    # Eq. 7: the mean of that over the tasks i of branch k.
    rows = [lowest[tasks].mean(axis=0) for tasks in members]
    one_way = np.stack(rows)
    both_ways: Matrix = (one_way + one_way.T) / 2  # Eq. 8
    return both_ways


def separation_cost(branch_affinity: Matrix, groups: Sequence[Sequence[int]]) -> float:
    """L_s: how far apart the branches of the same group are, mean over groups; 0 if every branch stands alone.

    Args:
        branch_affinity: A_b [c, c].
        groups: a partition of 0..c-1.
    """
    labels = label_branches(groups)
    together = labels[:, None] == labels
    # [c]: of every branch the least affinity within its own group.
    lowest = np.where(together, branch_affinity, np.inf).min(axis=1)
    sizes = np.bincount(labels)
    closeness = np.bincount(labels, lowest) / sizes
    spreads = 1 - closeness  # Eq. 10
    return float(spreads.mean())  # Eq. 11


def spectral_embedding(branch_affinity: Matrix) -> Matrix:
    """Coordinates [c, c] of the branches: eigenvectors of the normalised Laplacian, smallest eigenvalue first, divided by sqrt(degree).

    The first d columns, column 0 too, are those for d groups, so one decomposition serves all d. The same as scikit-learn's
    `spectral_embedding(..., drop_first=False)` with all components and its dense solver.
    """
    weights = branch_affinity - np.diag(np.diag(branch_affinity))
    degrees = weights.sum(axis=0)
    # A branch with no affinity to any other has degree 0, by which nothing can be divided.
    alone = degrees == 0
    scale = np.where(alone, 1.0, np.sqrt(degrees))
    normalised = weights / np.outer(scale, scale)
    laplacian = np.diag(1.0 - alone) - normalised
    _, vectors = np.linalg.eigh(laplacian)
    coordinates: Matrix = vectors / scale[:, None]
    return coordinates


def cluster_branches(
    branch_affinity: Matrix, max_groups: int, *, seed: int
) -> Iterator[tuple[int, Groups]]:
    """For every d from 1 to `max_groups` the grouping into d groups with the lowest separation cost of a few k-means runs.

    Groups are sorted by their first member. A labelling that leaves a group empty does not count; a d without any is left out.

    Args:
        branch_affinity: A_b [c, c].
        max_groups: the largest d; no more than c are found.
        seed: of the first of the runs, the others have the seeds after it.

    Yields:
        d and the groups.
    """
    count = len(branch_affinity)
    seeds = range(seed, seed + RESTARTS)
    yield 1, (tuple(range(count)),)
    coordinates = spectral_embedding(branch_affinity)
    for num_groups in range(2, min(max_groups, count - 1) + 1):
        points = coordinates[:, :num_groups]
        best = None
        least = np.inf
        for labels in run_k_means(points, num_groups, seeds=seeds):
            groups = group_by_label(labels)
            cost = separation_cost(branch_affinity, groups)
            if len(groups) == num_groups and cost < least:
                best = groups
                least = cost
        if best is not None:
            yield num_groups, best
    # As many groups as branches need no clustering.
    if 1 < count <= max_groups:
        yield count, group_by_label(range(count))


def label_branches(groups: Sequence[Sequence[int]]) -> Labels:
    """The number of the group of every branch [c]."""
    labels = np.empty(sum(map(len, groups)), dtype=np.intp)
    for number, group in enumerate(groups):
        labels[list(group)] = number
    return labels


def group_by_label(labels: Iterable[int] | Labels) -> Groups:
    """The members of every label that occurs, sorted by first member."""
    members: dict[int, list[int]] = {}
    for branch, label in enumerate(labels):
        members.setdefault(int(label), []).append(branch)
    return tuple(map(tuple, members.values()))


# ---- k-means for a few hundred points


def run_k_means(points: Matrix, num_groups: int, *, seeds: Iterable[int]) -> Iterator[Labels]:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, several candidates per step), then Lloyd's iterations until nothing changes.

    Args:
        points: [n, D].
        num_groups: k.
        seeds: one per run.

    Yields:
        A labelling [n] in 0..k-1 per seed; a label may remain empty.
    """
    squares = (points**2).sum(axis=1)
    products = points @ points.T
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y; rounding may make that of equal points negative.
    distances = np.maximum(squares[:, None] + squares - 2 * products, 0.0)
    for seed in seeds:
        first = select_first_centres(distances, num_groups, np.random.default_rng(seed))
        centres = points[first]
        labels = distances[:, first].argmin(axis=1)
        for _ in range(MAX_ITERATIONS):
            # New centres; an empty group keeps its own.
            members = labels == np.arange(num_groups)[:, None]
            sizes = members.sum(axis=1, keepdims=True)
            means = members @ points / np.maximum(sizes, 1)
            centres = np.where(sizes > 0, means, centres)

            # Every point goes to its nearest centre; its own |x|^2 is the same for all of them.
            lengths = (centres**2).sum(axis=1)
            products = points @ centres.T
            nearest = (lengths - 2 * products).argmin(axis=1)
            if (nearest == labels).all():
                break
            labels = nearest
        yield labels


def select_first_centres(distances: Matrix, num_groups: int, rng: np.random.Generator) -> list[int]:
    """Points to begin from; each after the first is the best of a few drawn in proportion to the squared distance.

    Args:
        distances: squared, [n, n], of all points.
        num_groups: how many to choose.
        rng: what is drawn from.
    """
    count = len(distances)
    num_candidates = 2 + int(
        math.log(num_groups)
    )  # as many as k-means++ was measured with, and as scikit-learn draws
    first = int(rng.integers(count))
    chosen = [first]
    nearest = distances[first]  # [n]: of every point to the nearest centre
    for draw in rng.random((num_groups - 1, num_candidates)):
        # Candidates: where the drawn part of the sum of all distances is reached.
        cumulative = nearest.cumsum()
        targets = draw * cumulative[-1]
        below = cumulative <= targets[:, None]
        candidates = below.sum(axis=1).clip(max=count - 1)

        # The one that brings the points nearest to a centre.
        reached = np.minimum(nearest, distances[candidates])
        best = reached.sum(axis=1).argmin()
        chosen.append(int(candidates[best]))
        nearest = reached[best]
    return chosen
