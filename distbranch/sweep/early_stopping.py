"""Asynchronous successive halving within size classes (Li et al. 2018): who may go on past a rung.

A small network is worse than a large one at every moment of training, and may still be the best that its size can do. So a trial
is judged only against trials of its own size class, and the sweep keeps good networks of every size.
"""

import math
from collections import defaultdict
from collections.abc import Hashable

import numpy as np


class SizeClassHalving:
    """Remembers what every trial had reached at each rung.

    Args:
        grace: optimiser steps to the first rung; the next ones are `reduction` times as far each.
        reduction: one of so many trials of a class passes a rung.
    """

    def __init__(self, grace: int, reduction: float) -> None:
        self.grace, self.reduction = grace, reduction
        self._seen: defaultdict[tuple[Hashable, int], dict[str, tuple[int, float]]] = defaultdict(dict)

    def passes(self, trial: str, size_class: Hashable, iteration: int, value: float) -> bool:
        """Whether a trial that has reached `value` (larger is better) after `iteration` steps should go on.

        A trial is judged once per rung, at its first evaluation there, and never by what others reached with more steps. The
        first ones of a class always pass: with fewer than `reduction` of them nothing is known yet.
        """
        rung = self.rung(iteration)
        if rung is None:
            return True
        seen = self._seen[size_class, rung]
        if trial in seen:
            return True
        seen[trial] = iteration, value
        values = [reached for steps, reached in seen.values() if steps <= iteration]
        if len(values) < self.reduction:
            return True
        return value >= float(np.quantile(values, 1 - 1 / self.reduction))

    def rung(self, iteration: int) -> int | None:
        """The number of the last rung at or before `iteration`, None before the first."""
        if iteration < self.grace:
            return None
        return math.floor(math.log(iteration / self.grace, self.reduction) + 1e-9)
