"""Affinity between tasks (Eq. 6): how often two tasks find the same samples difficult, or the same samples simple.

All statistics are decayed sums, so those of two samples (or of all ranks) are added, and no process group is ever seen here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distbranch.branching.grouping import Matrix
from distbranch.errors import UserError
from distbranch.registry import Registry

logger = logging.getLogger("distbranch")

# Below this a variance is rounding: sums of another order must not make a task that was always simple seem to vary.
SMALLEST_VARIANCE = 1e-12
LARGEST_FAULT = 1e-6  # of an affinity: more than the rounding of long sums, less than any mistake


@dataclass(frozen=True)
class PairSums:
    """What a kind of affinity is computed from: decayed sums over all samples, each [T, T] in float64.

    agree: the sum of s_i s_j, where s is +1 for a difficult sample and -1 for a simple one.
    pairs: the number of samples with both labelled; 0 of a pair that never was.
    signs: in row i the sum of s_i over the samples of pair (i, j).
    """

    agree: Matrix
    pairs: Matrix
    signs: Matrix

    @property
    def product(self) -> Matrix:
        """E[s_i s_j], which is P(alike) - P(unlike); 0 of a pair that was never seen."""
        return self.agree / self._seen

    @property
    def mean(self) -> Matrix:
        """In row i E[s_i] over the samples of pair (i, j)."""
        return self.signs / self._seen

    @property
    def _seen(self) -> Matrix:
        return np.maximum(self.pairs, np.finfo(np.float64).tiny)


# A kind of affinity: from pair sums to A [T, T] in 0..1, symmetric, 0.5 where tasks are independent. What it gives for pairs
# that were never seen, and of a task with itself, is replaced.
AFFINITIES: Registry[Callable[[PairSums], Matrix]] = Registry("kind of affinity")


@AFFINITIES.register("agreement")
def compute_agreement(sums: PairSums) -> Matrix:
    """The probability that a sample is difficult, or simple, for both tasks (Eq. 6)."""
    return (1 + sums.product) / 2


@AFFINITIES.register("phi")
def compute_phi(sums: PairSums) -> Matrix:
    """(1 + r) / 2 with the correlation r of the two signs; 0.5 if one of the two never varied.

    So tasks that are simple most of the time are not similar merely for that.
    """
    return (1 + _compute_correlation(sums.product, sums.mean)) / 2


class AffinityStats:
    """Decayed sums over the samples of all steps so far, in float64.

    With s = +1 where a sample is difficult for a task (margin >= the task's mean margin), -1 where it is simple and 0 where it is
    not labelled, three matrices [T, T] are needed: the sum of s_i s_j, the number of samples with both labelled, and the sum of
    s_i over those. Batches without a gap in the labels give all three by one product of [s, 1] with itself, summed in `full`
    [T+1, T+1]; only batches with a gap need `gap` [3, T, T]. `margins` [2T] are the sums of margins and the numbers of labels.
    """

    def __init__(
        self, num_tasks: int, decay: float = 0.99, device: torch.device | str = "cpu"
    ) -> None:
        self.num_tasks = num_tasks
        self.decay = decay
        # float64, for a mean that differs in its last digits between two numbers of ranks would turn signs.
        self.margins = torch.zeros(2 * num_tasks, dtype=torch.float64, device=device)
        self.full = torch.zeros(num_tasks + 1, num_tasks + 1, dtype=torch.float64, device=device)
        self.gap = torch.zeros(3, num_tasks, num_tasks, dtype=torch.float64, device=device)
        # Known to the host, for a look at the device would make it wait.
        self._all_seeded = False
        self._any_gap = False
        self._seeds_all = False  # whether the step of the last pairs labels every task

    def update(self, margins: Tensor, observed: Tensor | None = None) -> None:
        """One step of one process. margins: [B, T]; observed: bool [B, T], None if every sample has every label."""
        # Pairs first: difficult and simple are told by the mean margins as they stood before this batch.
        self.add_pairs(margins, observed)
        self.add_margins(self.margin_sums(margins, observed))

    def add_pairs(self, margins: Tensor, observed: Tensor | None = None) -> None:
        """Decay the pair sums and add this rank's share of a step, difficult and simple by the mean margins as they stand.

        A task without any margin so far takes no part: its first labelled batch only seeds its mean.
        """
        sums = self.margins[: self.num_tasks]
        counts = self.margins[self.num_tasks :]
        # +-1 in float32: a product sums at most 2^24 of them, so it is exact.
        signs = torch.where(margins >= sums / counts, 1.0, -1.0)

        # Decay.
        self._seeds_all = observed is None
        self.full.mul_(self.decay)
        if self._any_gap:
            self.gap.mul_(self.decay)

        # Without a gap the column of ones gives the numbers of samples and the sums of signs.
        if observed is None and self._is_seeded():
            signs = functional.pad(signs, (0, 1), value=1.0)
            self.full.add_(signs.T @ signs)
            return

        # With gaps every pair has its own samples, so numbers and sums are matrices too.
        labelled = (counts > 0).expand_as(margins)
        if observed is not None:
            labelled = labelled & observed
        weights = labelled.float()
        signs.mul_(weights)
        agree = signs.T @ signs
        pairs = weights.T @ weights
        sums_of_signs = signs.T @ weights
        self.gap.add_(torch.stack([agree, pairs, sums_of_signs]))
        self._any_gap = True

    def margin_sums(self, margins: Tensor, observed: Tensor | None = None) -> Tensor:
        """This rank's sums of margins and numbers of labels [2T], to be summed over all ranks."""
        sums = torch.full(
            (2, self.num_tasks), len(margins), dtype=torch.float64, device=margins.device
        )
        if observed is not None:
            # Filled and not multiplied by 0: what stands at an unlabelled place may be NaN.
            margins = margins.masked_fill(~observed, 0.0)
            torch.sum(observed, dim=0, dtype=torch.float64, out=sums[1])
        torch.sum(margins.detach(), dim=0, dtype=torch.float64, out=sums[0])
        return sums.view(-1)

    def add_margins(self, sums: Tensor) -> None:
        """Decay the margin sums and add those [2T] of the whole global batch."""
        self.margins.mul_(self.decay).add_(sums)
        self._all_seeded |= self._seeds_all

    def pair_sums(self) -> Tensor:
        """All pair sums in one flat tensor [3 T T], to be summed over all ranks before a decision."""
        agree = self.gap[0] + self.full[:-1, :-1]
        pairs = self._count_pairs()
        signs = self.gap[2] + self.full[:-1, -1:]
        return torch.stack([agree, pairs, signs]).view(-1)

    def with_pair_sums(self, flat: Tensor) -> AffinityStats:
        """Statistics with these pair sums [3 T T] (those of all ranks) and the margins of this one, which stays as it is."""
        stats = AffinityStats(self.num_tasks, self.decay, self.full.device)
        stats.margins.copy_(self.margins)
        stats.gap.copy_(flat.view_as(self.gap))
        stats._read_flags()
        return stats

    def __add__(self, other: AffinityStats) -> AffinityStats:
        """The statistics of both samples."""
        if (self.num_tasks, self.decay) != (other.num_tasks, other.decay):
            raise ValueError(
                f"Only statistics of the same tasks and decay can be added, found {self.num_tasks} tasks at {self.decay} "
                f"and {other.num_tasks} tasks at {other.decay}."
            )
        stats = AffinityStats(self.num_tasks, self.decay, self.full.device)
        stats.load_state_dict(self.state_dict())
        for name, value in stats.state_dict().items():
            value.add_(other.state_dict()[name].to(value))
        stats._read_flags()
        return stats

    def affinity(self, kind: str = "agreement") -> Matrix:
        """A [T, T] in 0..1: 0.5 is independent; the diagonal is 1.

        Args:
            kind: one of `AFFINITIES`.

        A pair that was never labelled together gets 0.5, with a warning in the log.

        Raises:
            UserError: no such kind, or one that gives something else.
        """
        compute = AFFINITIES[kind]
        num_unseen = len(self.pairs_never_seen())
        if num_unseen:
            logger.warning(
                "%d pairs of tasks were never labelled together; their affinity is taken as 0.5.",
                num_unseen,
            )
        agree, pairs, signs = self.pair_sums().view_as(self.gap).cpu().numpy()
        return check_affinity(
            compute(PairSums(agree, pairs, signs)), kind, self.num_tasks, unseen=pairs == 0
        )

    def pairs_never_seen(self) -> list[tuple[int, int]]:
        """Pairs (i, j), i < j, of tasks for which no sample had both labels."""
        unseen = self._count_pairs() == 0
        return [(i, j) for i, j in unseen.triu(1).nonzero().tolist()]

    def state_dict(self) -> dict[str, Tensor]:
        """All sums by name; with them training resumes bit for bit. The tensors are shared, not copied."""
        return {"margins": self.margins, "full": self.full, "gap": self.gap}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy in what `state_dict` gave."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
        self._read_flags()

    def _count_pairs(self) -> Tensor:
        """The decayed number of samples in which both tasks were labelled [T, T]."""
        return self.gap[1] + self.full[-1, -1]

    def _is_seeded(self) -> bool:
        """Whether every task has had a margin; the device is asked only where batches with and without gaps mix."""
        if not self._all_seeded and self._any_gap:
            self._all_seeded = self._has_margins_of_all()
        return self._all_seeded

    def _has_margins_of_all(self) -> bool:
        counts = self.margins[self.num_tasks :]
        return bool((counts > 0).all())

    def _read_flags(self) -> None:
        self._all_seeded = self._has_margins_of_all()
        self._any_gap = bool((self.gap[1] > 0).any())


def check_affinity(
    found: Matrix, kind: str, num_tasks: int, *, unseen: NDArray[np.bool_] | None = None
) -> Matrix:
    """What a kind of affinity gave, with 0.5 for pairs that were never seen and 1 of a task with itself.

    Raises:
        UserError: no grouping can work with it.
    """
    affinity = np.array(found, dtype=np.float64)
    if affinity.shape != (num_tasks, num_tasks):
        raise UserError(
            f"The affinity {kind!r} should give a matrix {[num_tasks, num_tasks]}, found the shape {list(affinity.shape)}."
        )
    if unseen is not None:
        affinity[unseen] = 0.5
    np.fill_diagonal(affinity, 1.0)
    least, most = affinity.min(), affinity.max()
    if not (least >= -LARGEST_FAULT and most <= 1 + LARGEST_FAULT):
        raise UserError(
            f"The affinity {kind!r} should lie in 0..1, found numbers from {least:.4g} to {most:.4g}."
        )
    unlike = np.abs(affinity - affinity.T)
    if unlike.max() > LARGEST_FAULT:
        first, second = np.unravel_index(unlike.argmax(), unlike.shape)
        raise UserError(
            f"The affinity {kind!r} should be that of task {first} with {second} whichever comes first, found "
            f"{affinity[first, second]:.4g} and {affinity[second, first]:.4g}."
        )
    return affinity


def _compute_correlation(products: Matrix, means: Matrix) -> Matrix:
    """Correlations [T, T] from E[s_i s_j] and E[s_i], both over the samples with i and j labelled; 0 where a sign never varied."""
    variances = 1 - means**2  # s^2 = 1
    varies = variances > SMALLEST_VARIANCE
    both_vary = varies & varies.T
    covariances = products - means * means.T
    scale = np.sqrt(np.where(both_vary, variances * variances.T, 1.0))
    correlation: Matrix = np.where(both_vary, covariances / scale, 0.0)
    return correlation.clip(-1.0, 1.0)
