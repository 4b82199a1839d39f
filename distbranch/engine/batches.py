"""The feed of one rank: it fetches one batch ahead and agrees with the other ranks on it.

A rank that cannot use its next batch (a bad sample, a loader that failed) says so a step before anybody needs it, so that
all ranks stop together. The message is one small sum behind the backward pass and costs no wait.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distbranch.data.shards import BAD_KINDS
from distbranch.engine.distributed import NotAwaitedError, Pending, Ranks, wait_for_result
from distbranch.errors import UserError


class Batch(Protocol):
    """Some samples of one rank, as `data.loader.Batch` has them."""

    @property
    def images(self) -> Tensor:
        """uint8 [b, 3, H, W]."""

    @property
    def labels(self) -> Tensor:
        """[b, T], NaN where unlabelled."""

    @property
    def maps(self) -> Mapping[str, Tensor]:
        """The codes of dense tasks by name."""

    @property
    def mixed(self) -> Sequence[Tensor]:
        """The labels [b, T] of the images that these are mixed with, and their own shares [b]; empty where nothing is mixed."""

    @property
    def indices(self) -> Tensor:
        """Positions in the stream of samples, int64 [b]."""

    @property
    def num_bad(self) -> Mapping[str, int]:
        """Samples left out, by kind."""

    @property
    def error(self) -> str | None:
        """One sentence that must end the run."""


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of the next batch: whether to stop before it, whether some rank cannot go past it, what it lacks."""

    stop: bool
    failed: bool
    num_bad: Counter[str]


class BatchFeed:
    """Hands out batches that every rank can use.

    Args:
        batches: this rank's endless batches.
        ranks: this process among the others.
        should_stop: asked once per batch on every rank.
        has_failed: likewise; whether something else than a batch must end the run.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        ranks: Ranks,
        should_stop: Callable[[], bool],
        has_failed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ranks = ranks
        self.should_stop = should_stop
        self.has_failed = has_failed
        self._batches = batches
        self._fetch_batch()

    def agree_on_next_batch(self) -> Agreement:
        """Await what the ranks said about the next batch."""
        stop, failed, *counts = self._flags.wait().tolist()
        num_bad = Counter({kind: int(count) for kind, count in zip(BAD_KINDS, counts, strict=True)})
        return Agreement(
            bool(stop), bool(failed), +num_bad
        )  # `+` leaves kinds without a sample out

    def next_batch(self) -> tuple[Batch, float]:
        """The next batch, and the seconds that fetching the one after it took."""
        batch = self.upcoming
        assert batch is not None
        return batch, self._fetch_batch()

    def _fetch_batch(self) -> float:
        """Fetch one batch, begin to tell the other ranks about it, and return the seconds that it took to come."""
        began = time.perf_counter()
        self.upcoming: Batch | None = None
        self.problem: str | None = None
        try:
            self.upcoming = wait_for_result(lambda: next(self._batches), self.should_stop)
            self.problem = self.upcoming.error
        except NotAwaitedError:
            pass  # all ranks stop before they use it
        except UserError as error:  # the loader itself: a process of it died
            self.problem = str(error)
        waited = time.perf_counter() - began
        self._flags = self._start_flags()
        return waited

    def _start_flags(self) -> Pending:
        num_bad: Mapping[str, int] = {} if self.upcoming is None else self.upcoming.num_bad
        flags = [
            self.should_stop(),
            self.problem is not None or self.has_failed(),
            *(num_bad.get(kind, 0) for kind in BAD_KINDS),
        ]
        return self.ranks.start_sum(torch.tensor(flags, dtype=torch.float64), on_host=True)
