"""The batches of one rank, fetched one ahead, and what the ranks tell each other about the one that comes next.

A rank that cannot go on (a bad sample, a loader that failed) says so a step before anybody needs the batch, so that all
ranks stop together; the message costs one small sum behind the backward pass.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from distbranch.data.loader import Batch
from distbranch.data.shards import BAD_KINDS
from distbranch.engine.distributed import Pending, Ranks
from distbranch.engine.waiting import NotAwaitedError, awaited
from distbranch.errors import UserError


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of the next batch: whether to stop before it, whether some rank cannot use its share, and what is left out."""

    stop: bool
    failed: bool
    num_bad: Counter[str]


class Feed:
    """Hands out batches that every rank can use.

    Args:
        batches: this rank's endless batches.
        ranks: this process among the others.
        should_stop: asked once per batch on every rank.
    """

    def __init__(self, batches: Iterator[Batch], ranks: Ranks, should_stop: Callable[[], bool]) -> None:
        self.ranks, self.should_stop = ranks, should_stop
        self._batches = batches
        self.next, self.problem = self._fetch()
        self._flags = self._start_flags()

    def agree(self) -> Agreement:
        """Await what the ranks said about the next batch."""
        stop, failed, *bad = self._flags.wait().tolist()
        return Agreement(bool(stop), bool(failed), +Counter(dict(zip(BAD_KINDS, map(int, bad), strict=True))))

    def take(self) -> tuple[Batch, float]:
        """The next batch, and the seconds that fetching the one after it took."""
        batch, began = self.next, time.perf_counter()
        self.next, self.problem = self._fetch()
        waited = time.perf_counter() - began
        self._flags = self._start_flags()
        return batch, waited

    def _fetch(self) -> tuple[Batch, str | None]:
        try:
            batch = awaited(lambda: next(self._batches), self.should_stop)
        except NotAwaitedError:  # all ranks will stop before they use it
            return _nothing(), None
        except UserError as error:  # the loader itself: a process of it died
            return _nothing(), str(error)
        return batch, batch.error

    def _start_flags(self) -> Pending:
        flags = [float(self.should_stop()), float(self.problem is not None)]
        flags += [float(self.next.num_bad.get(kind, 0)) for kind in BAD_KINDS]
        return self.ranks.start_sum(torch.tensor(flags, dtype=torch.float64), on_host=True)


def _nothing() -> Batch:
    empty = torch.empty(0)
    return Batch(empty, empty, {}, None, empty)
