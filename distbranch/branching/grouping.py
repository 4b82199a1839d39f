"""Grouping branches by affinity: Eq. 7-8 (affinity between branches), Eq. 10-11 (what a grouping costs) and spectral clustering.

The k-means of the clustering is our own, for one decision needs hundreds of runs: all runs share one table of distances, and only
the groups that changed are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]
ROUNDING = 1e-12  # costs nearer than this are a tie
Groups = tuple[tuple[int, ...], ...]


def branch_affinity(affinity: Matrix, branches: Sequence[Sequence[int]]) -> Matrix:
    """A_b [c, c] (Eq. 7, 8) from the affinity of tasks [T, T] and the tasks of every branch."""
    lowest = np.stack([affinity[:, list(tasks)].min(axis=1) for tasks in branches], axis=1)  # [T, c]
    one_way = np.stack([lowest[list(tasks)].mean(axis=0) for tasks in branches])
    both_ways: Matrix = (one_way + one_way.T) / 2
    return both_ways


def separation_cost(branch_affinity: Matrix, groups: Sequence[Sequence[int]]) -> float:
    """L_s (Eq. 10, 11): how far apart the branches of the same group are, mean over groups; 0 if every branch stands alone."""
    label = np.empty(len(branch_affinity), dtype=np.intp)
    for number, group in enumerate(groups):
        label[list(group)] = number
    together = label[:, None] == label
    lowest = np.where(together, branch_affinity, np.inf).min(axis=1)  # the least affinity within the own group
    spreads = 1 - np.bincount(label, lowest) / np.bincount(label)
    return float(spreads.mean())


def spectral_embedding(branch_affinity: Matrix) -> Matrix:
    """Coordinates [c, c] of the branches: eigenvectors of the normalised Laplacian, smallest eigenvalue first, divided by sqrt(degree).

    The first d columns, column 0 too, are those for d groups, so one decomposition serves all d. The same as scikit-learn's
    `spectral_embedding(..., drop_first=False)` with all components and its dense solver.
    """
    weights = branch_affinity - np.diag(np.diag(branch_affinity))
    degrees = weights.sum(axis=0)
    alone = degrees == 0
    scale = np.where(alone, 1.0, np.sqrt(degrees))
    laplacian = np.diag(1.0 - alone) - weights / np.outer(scale, scale)
    _, vectors = np.linalg.eigh(laplacian)
    coordinates: Matrix = vectors / scale[:, None]
    return coordinates


def cluster_branches(
    branch_affinity: Matrix, max_groups: int, *, seed: int, restarts: int = 5
) -> Iterator[tuple[int, Groups]]:
    """For every d from 1 to `max_groups` the grouping into d groups with the lowest separation cost of `restarts` k-means runs.

    Groups are sorted by their first member. A labelling that leaves a group empty does not count; a d without any is left out.
    """
    count = len(branch_affinity)
    coordinates = spectral_embedding(branch_affinity) if count > 2 else np.eye(count)
    for num_groups in range(1, min(max_groups, count) + 1):
        if num_groups == 1:
            yield 1, (tuple(range(count)),)
        elif num_groups == count:
            yield count, tuple((branch,) for branch in range(count))
        else:
            # The least cost of several runs, for k-means ends in local optima.
            labellings = run_k_means(coordinates[:, :num_groups], num_groups, seeds=range(seed, seed + restarts))
            candidates = [groups for groups in map(group_by_label, labellings) if len(groups) == num_groups]
            if candidates:
                yield num_groups, min(candidates, key=lambda groups: separation_cost(branch_affinity, groups))


def group_by_label(labels: Sequence[int] | NDArray[np.integer]) -> Groups:
    """The members of every label that occurs, sorted by first member."""
    members: dict[int, list[int]] = {}
    for branch, label in enumerate(labels):
        members.setdefault(int(label), []).append(branch)
    return tuple(tuple(group) for group in members.values())


# ---- k-means for a few hundred points


def run_k_means(
    points: Matrix, num_groups: int, *, seeds: Iterable[int], max_iterations: int = 100
) -> Iterator[Labels]:
    """One labelling [n] in 0..num_groups-1 per seed, of points [n, D]; a label may remain empty.

    Greedy k-means++ (Arthur and Vassilvitskii 2007, several candidates per step), then Lloyd's iterations until nothing changes.
    """
    lengths = (points**2).sum(axis=1)
    distances = np.maximum(lengths[:, None] + lengths - 2 * (points @ points.T), 0.0)
    generators = [np.random.default_rng(seed) for seed in seeds]
    for first in select_first_centres(distances, num_groups, generators):
        to_centres = distances[:, first]
        labels = to_centres.argmin(axis=1)
        changed = np.unique(labels)
        for _ in range(max_iterations):
            # New centres of the groups that changed; an empty group keeps its centre.
            members = labels == changed[:, None]  # [groups changed, n]
            has_members = members.any(axis=1)
            changed = changed[has_members]
            members = members[has_members]
            centres = members @ points / members.sum(axis=1, keepdims=True)
            to_centres[:, changed] = lengths[:, None] + (centres**2).sum(axis=1) - 2 * (points @ centres.T)

            # Every point goes to its nearest centre.
            nearest = to_centres.argmin(axis=1)
            moved = nearest != labels
            if not moved.any():
                break
            changed = np.unique(np.concatenate([labels[moved], nearest[moved]]))
            labels = nearest
        yield labels


def select_first_centres(distances: Matrix, num_groups: int, rngs: list[np.random.Generator]) -> Labels:
    """The first centres of every run [R, num_groups]; each is the best of a few drawn in proportion to the squared distance."""
    count, runs = len(distances), np.arange(len(rngs))
    chosen = np.array([[rng.integers(count) for rng in rngs]])
    draws = np.stack([rng.random((num_groups - 1, 2 + int(math.log(num_groups)))) for rng in rngs], axis=1)
    nearest = distances[chosen[0]]  # [R, n]
    for draw in draws:
        cumulative = nearest.cumsum(axis=1)
        targets = draw * cumulative[:, -1:]
        candidates = (cumulative[:, None, :] <= targets[:, :, None]).sum(axis=2).clip(max=count - 1)
        reached = np.minimum(nearest[:, None, :], distances[candidates])
        best = reached.sum(axis=2).argmin(axis=1)
        chosen = np.concatenate([chosen, candidates[runs, best][None]])
        nearest = reached[runs, best]
    return chosen.T
