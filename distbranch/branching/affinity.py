"""Affinity between tasks (Eq. 6): how often two tasks find the same samples difficult, or the same samples simple.

All statistics are decayed sums, so those of two samples (or of all ranks) are added, and no process group is ever seen here.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger("distbranch")

# Shares of samples below this are rounding: sums of another order must not make a task that was always simple seem to vary.
SMALLEST_VARIANCE = 1e-12


class AffinityStats:
    """Decayed sums over the samples of all steps so far, in float64.

    With s = +1 where a sample is difficult for a task (margin >= the task's mean margin), -1 where it is simple and 0 where it is
    not labelled, three matrices [T, T] are needed: the sum of s_i s_j, the number of samples with both labelled, and the sum of
    s_i over those. Batches without a gap in the labels give all three by one product of [s, 1] with itself, summed in `full`
    [T+1, T+1]; only batches with a gap need `gap` [3, T, T]. `margins` [2T] are the sums of margins and the numbers of labels.
    """

    def __init__(self, num_tasks: int, decay: float = 0.99, device: torch.device | str = "cpu") -> None:
        self.num_tasks, self.decay = num_tasks, decay
        self.margins = torch.zeros(2 * num_tasks, dtype=torch.float64, device=device)
        self.full = torch.zeros(num_tasks + 1, num_tasks + 1, dtype=torch.float64, device=device)
        self.gap = torch.zeros(3, num_tasks, num_tasks, dtype=torch.float64, device=device)
        self._all_seeded = self._any_gap = False  # known to the host: a look at the device would make it wait
        self._seeds_all = False  # whether the step of the last pairs labels every task

    def update(self, margins: Tensor, observed: Tensor | None = None) -> None:
        """One step of one process. margins: [B, T]; observed: bool [B, T], None if every sample has every label."""
        self.add_pairs(margins, observed)
        self.add_margins(self.margin_sums(margins, observed))

    def add_pairs(self, margins: Tensor, observed: Tensor | None = None) -> None:
        """Decay the pair sums and add this rank's share of a step, difficult and simple by the mean margins as they stand.

        A task without any margin so far takes no part: its first labelled batch only seeds its mean.
        """
        sums, counts = self.margins[: self.num_tasks], self.margins[self.num_tasks :]
        # +-1 in float32: a product sums at most 2^24 of them, so it is exact.
        signs = torch.where(margins >= sums / counts, 1.0, -1.0)
        self._seeds_all = observed is None
        self.full.mul_(self.decay)
        if self._any_gap:
            self.gap.mul_(self.decay)
        if observed is None and self._is_seeded():
            signs = functional.pad(signs, (0, 1), value=1.0)
            self.full.add_(signs.T @ signs)
            return
        labelled = (counts > 0).expand_as(margins)
        labelled = (labelled if observed is None else labelled & observed).float()
        signs.mul_(labelled)
        self.gap.add_(torch.stack([signs.T @ signs, labelled.T @ labelled, signs.T @ labelled]))
        self._any_gap = True

    def margin_sums(self, margins: Tensor, observed: Tensor | None = None) -> Tensor:
        """This rank's sums of margins and numbers of labels [2T], to be summed over all ranks."""
        sums = torch.full((2, self.num_tasks), len(margins), dtype=torch.float64, device=margins.device)
        if observed is not None:
            margins = margins.masked_fill(~observed, 0.0)
            torch.sum(observed, dim=0, dtype=torch.float64, out=sums[1])
        torch.sum(margins.detach(), dim=0, dtype=torch.float64, out=sums[0])
        return sums.view(-1)

    def add_margins(self, sums: Tensor) -> None:
        """Decay the margin sums and add those [2T] of the whole global batch."""
        self.margins.mul_(self.decay).add_(sums)
        self._all_seeded |= self._seeds_all

    def _is_seeded(self) -> bool:
        """Whether every task has had a margin; the device is asked only where batches with and without gaps mix."""
        if not self._all_seeded and self._any_gap:
            self._all_seeded = bool((self.margins[self.num_tasks :] > 0).all())
        return self._all_seeded

    def pair_sums(self) -> Tensor:
        """All pair sums in one flat tensor [3 T T], to be summed over all ranks before a decision."""
        agree, signs, count = self.full[:-1, :-1], self.full[:-1, -1:], self.full[-1, -1]
        return torch.stack([self.gap[0] + agree, self.gap[1] + count, self.gap[2] + signs]).view(-1)

    def with_pair_sums(self, flat: Tensor) -> AffinityStats:
        """Statistics with these pair sums [3 T T] (those of all ranks) and the margins of this one, which stays as it is."""
        stats = AffinityStats(self.num_tasks, self.decay, self.full.device)
        gap = flat.to(self.gap).view_as(self.gap)
        stats.load_state_dict({"margins": self.margins, "full": torch.zeros_like(self.full), "gap": gap})
        return stats

    def __add__(self, other: AffinityStats) -> AffinityStats:
        """The statistics of both samples."""
        if (self.num_tasks, self.decay) != (other.num_tasks, other.decay):
            raise ValueError(
                f"Only statistics of the same tasks and decay can be added, found {self.num_tasks} tasks at {self.decay} "
                f"and {other.num_tasks} tasks at {other.decay}."
            )
        stats = AffinityStats(self.num_tasks, self.decay, self.full.device)
        theirs = other.state_dict()
        stats.load_state_dict({name: value + theirs[name].to(value) for name, value in self.state_dict().items()})
        return stats

    def affinity(self, kind: str = "agreement") -> NDArray[np.float64]:
        """A [T, T] in 0..1: 0.5 is independent; the diagonal is 1.

        Args:
            kind: "agreement", the probability of Eq. 6; or "phi", (1 + r) / 2 with the correlation r of the two signs, so that
                tasks which are simple most of the time are not similar merely for that. It is 0.5 if one of the two never varied.

        A pair that was never labelled together gets 0.5, with a warning in the log.
        """
        if kind not in ("agreement", "phi"):
            raise ValueError(f"The kind of affinity must be agreement or phi, found {kind!r}.")
        agree, pairs, signs = self.pair_sums().cpu().numpy().reshape(3, self.num_tasks, self.num_tasks)
        num_unseen = len(self.pairs_never_seen())
        if num_unseen:
            logger.warning(
                "%d pairs of tasks were never labelled together; their affinity is taken as 0.5.", num_unseen
            )
        seen = np.maximum(pairs, np.finfo(np.float64).tiny)
        correlation = agree / seen if kind == "agreement" else _compute_correlation(agree / seen, signs / seen)
        affinity = np.where(pairs > 0, (1 + correlation) / 2, 0.5)
        np.fill_diagonal(affinity, 1.0)
        return affinity

    def pairs_never_seen(self) -> list[tuple[int, int]]:
        """Pairs (i, j), i < j, of tasks for which no sample had both labels."""
        pairs = (self.gap[1] + self.full[-1, -1]).cpu().numpy()
        unseen = np.argwhere(np.triu(pairs == 0, k=1))
        return [(int(i), int(j)) for i, j in unseen]

    def state_dict(self) -> dict[str, Tensor]:
        """All sums by name; with them training resumes bit for bit. The tensors are shared, not copied."""
        return {"margins": self.margins, "full": self.full, "gap": self.gap}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy in what `state_dict` gave."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
        self._all_seeded = bool((self.margins[self.num_tasks :] > 0).all())
        self._any_gap = bool((self.gap[1] > 0).any())


def _compute_correlation(products: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlations [T, T] from E[s_i s_j] and E[s_i], both over the samples with i and j labelled; 0 where a sign never varied."""
    variances = 1 - means**2
    varied = (variances > SMALLEST_VARIANCE) & (variances.T > SMALLEST_VARIANCE)
    scale = np.sqrt(np.where(varied, variances * variances.T, 1.0))
    correlation: NDArray[np.float64] = np.where(varied, (products - means * means.T) / scale, 0.0).clip(-1.0, 1.0)
    return correlation
