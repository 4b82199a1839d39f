"""Importance affinity: how much two tasks need the same filters, where Eq. 6 asks how often they find the same samples difficult.

What a branch gives its tasks is filters of their own. How much a channel matters to a task is how much its loss would change
without it, to first order: (f dL/df)^2, the Taylor criterion of pruning (Molchanov et al. 2017). Tasks are alike whose
channels matter alike, beside what matters to all of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distbranch.branching.grouping import Matrix

logger = logging.getLogger("distbranch")

# Added to shares before the logarithm: channels that hardly matter do not differ by how little they matter.
FLOOR = 1e-6


def choose_layers(names: Sequence[str], lowest: int) -> list[int]:
    """The layers (0..L-1) whose outputs are looked at where layers from `lowest` (0..L-1) on are to be split.

    They are the input of the lowest one (none if it is the image), the end of every stage of convolutions above it (conv4_3 of
    conv4_1 to conv4_3), and the input of the last layer: of VGG-16 from conv4_1 on conv3_3, conv4_3, conv5_3 and fc6.
    """
    last = len(names) - 1
    chosen = {lowest - 1, last - 1}
    stages = [re.sub(r"_\d+$", "", name) for name in names]
    for number in range(lowest, len(names)):
        ends_stage = number == last or stages[number + 1] != stages[number]
        if ends_stage and not names[number].startswith("fc"):
            chosen.add(number)
    return sorted(number for number in chosen if number >= max(0, lowest - 1))


def compute_importance_affinity(importance: Sequence[NDArray[np.float64]]) -> Matrix:
    """A [T, T] in 0..1: 0.5 is independent; the diagonal is 1.

    A task that no channel matters to gets 0.5, with a warning in the log.

    Args:
        importance: of every layer [T, C], the sum over samples of (f dL/df)^2 of every task and channel.

    Example:
        >>> compute_importance_affinity([np.array([[9.0, 1.0, 1.0], [9.0, 1.0, 1.0], [1.0, 9.0, 1.0]])])
    """
    num_tasks = len(importance[0])
    totals = np.stack([layer.sum(axis=1) for layer in importance])  # [P, T]
    is_dead = (totals == 0).all(axis=0)
    if is_dead.any():
        logger.warning(
            "%d of %d tasks had no gradient in any channel; their affinity is taken as 0.5.",
            is_dead.sum(),
            num_tasks,
        )
    alive = np.flatnonzero(~is_dead)
    affinity = np.full((num_tasks, num_tasks), 0.5)
    if len(alive):
        correlations = [_correlate_tasks(layer[alive]) for layer in importance]
        affinity[np.ix_(alive, alive)] = (1 + np.mean(correlations, axis=0)) / 2
    np.fill_diagonal(affinity, 1.0)
    return affinity


def _correlate_tasks(importance: NDArray[np.float64]) -> Matrix:
    """The correlation [T, T] of what matters to two tasks over the channels of a layer [T, C]; 0 of what does not vary."""
    totals = importance.sum(axis=1, keepdims=True)
    shares = importance / np.maximum(totals, np.finfo(np.float64).tiny)
    profiles = np.log(shares + FLOOR)
    profiles -= profiles.mean(axis=0)  # what matters to all tasks tells nothing of two
    profiles -= profiles.mean(axis=1, keepdims=True)
    lengths = np.sqrt((profiles**2).sum(axis=1))
    scale = np.outer(lengths, lengths)
    products = profiles @ profiles.T
    correlation: Matrix = np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0)
    return correlation.clip(-1.0, 1.0)
