"""k-means for a few hundred points, quick enough for the hundreds of runs of one decision.

Runs share one table of distances, and only the groups that changed are computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]


def k_means(points: Matrix, num_groups: int, *, seeds: Iterable[int], max_iterations: int = 100) -> Iterator[Labels]:
    """One labelling [n] in 0..num_groups-1 per seed, of points [n, D]; a label may remain empty.

    Greedy k-means++ (Arthur and Vassilvitskii 2007, several candidates per step), then Lloyd's iterations until nothing changes.
    """
    lengths = (points**2).sum(axis=1)
    distances = np.maximum(lengths[:, None] + lengths - 2 * (points @ points.T), 0.0)
    for first in _first_centres(distances, num_groups, [np.random.default_rng(seed) for seed in seeds]):
        to_centres = distances[:, first]
        labels = to_centres.argmin(axis=1)
        changed = np.unique(labels)
        for _ in range(max_iterations):
            members = labels == changed[:, None]  # [groups changed, n]; an empty group keeps its centre
            changed, members = changed[members.any(axis=1)], members[members.any(axis=1)]
            centres = members @ points / members.sum(axis=1, keepdims=True)
            to_centres[:, changed] = lengths[:, None] + (centres**2).sum(axis=1) - 2 * (points @ centres.T)
            nearest = to_centres.argmin(axis=1)
            moved = nearest != labels
            if not moved.any():
                break
            changed, labels = np.unique(np.concatenate([labels[moved], nearest[moved]])), nearest
        yield labels


def _first_centres(distances: Matrix, num_groups: int, rngs: list[np.random.Generator]) -> Labels:
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
