"""The order in which samples are seen: an endless seeded stream of (shard, sample, epoch), computed window by window.

The order knows nothing of ranks or loader workers: whoever wants positions 3,000 to 3,063 asks for exactly those. So a
run resumes at any sample on any number of ranks, and batches may straddle epochs without losing or repeating a sample.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, int, int]  # (shard, sample in the shard, epoch)

_T = TypeVar("_T")
_EPOCHS_KEPT = 2
_WINDOWS_KEPT = 3


@dataclass(frozen=True)
class _Epoch:
    """One epoch's order of shards, cut into windows; `starts` [num_windows + 1]: samples before each window."""

    shards: NDArray[np.int64]
    starts: list[int]


class Plan:
    """The seeded order over shards of the given sizes.

    In every epoch the shards are permuted, cut into windows of `window` shards, and the samples of a window permuted
    together. Epoch e depends on (seed, e, shard_sizes, window) alone. Memory: O(num_shards + samples of a few windows).
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, window: int = 8) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.seed = seed
        self.window = window
        self.num_samples = int(self.shard_sizes.sum())
        self._epochs: OrderedDict[Hashable, _Epoch] = OrderedDict()
        self._windows: OrderedDict[Hashable, NDArray[np.int64]] = OrderedDict()

    def samples(self, start: int, stop: int) -> list[Place]:
        """The places at stream positions start..stop-1; position = epoch * num_samples + offset in that epoch."""
        if self.num_samples == 0:
            raise ValueError("The plan needs at least one sample, but all shards are empty.")
        places: list[Place] = []
        while start < stop:
            number, offset = divmod(start, self.num_samples)
            starts = self._epoch(number).starts
            window = bisect_right(starts, offset) - 1
            end = min(starts[window + 1], offset + stop - start)
            chosen = self._window(number, window)[offset - starts[window] : end - starts[window]]
            places.extend((shard, sample, number) for shard, sample in chosen.tolist())
            start += end - offset
        return places

    def shards_ahead(self, position: int) -> list[int]:
        """The shards of the window that holds this stream position, and those of the window after it."""
        shards: list[int] = []
        for _ in range(2):
            number, offset = divmod(position, self.num_samples)
            epoch = self._epoch(number)
            window = bisect_right(epoch.starts, offset) - 1
            shards += epoch.shards[window * self.window : (window + 1) * self.window].tolist()
            position += epoch.starts[window + 1] - offset
        return shards

    def _epoch(self, number: int) -> _Epoch:
        def make() -> _Epoch:
            shards = _permutation(len(self.shard_sizes), self.seed, number, 0)
            sizes = np.add.reduceat(self.shard_sizes[shards], np.arange(0, len(shards), self.window))
            return _Epoch(shards, [0, *np.cumsum(sizes).tolist()])

        return _remembered(self._epochs, number, make, _EPOCHS_KEPT)

    def _window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """All (shard, sample) of a window in their order: [n, 2]."""

        def make() -> NDArray[np.int64]:
            shards = self._epoch(epoch).shards[window * self.window : (window + 1) * self.window]
            sizes = self.shard_sizes[shards]
            pairs = np.empty((int(sizes.sum()), 2), dtype=np.int64)
            pairs[:, 0] = np.repeat(shards, sizes)
            pairs[:, 1] = np.concatenate([np.arange(size) for size in sizes])
            # window + 1: a seed sequence cannot tell (seed, epoch) from (seed, epoch, 0), which orders the shards.
            return pairs[_permutation(len(pairs), self.seed, epoch, window + 1)]

        return _remembered(self._windows, (epoch, window), make, _WINDOWS_KEPT)


def _permutation(length: int, *seed: int) -> NDArray[np.int64]:
    """A seeded permutation of 0..length-1, by sorting raw Philox numbers, which no release of numpy changes."""
    raw = np.random.Philox(np.random.SeedSequence(seed)).random_raw(length)
    return np.argsort(raw, kind="stable")


def _remembered(kept: OrderedDict[Hashable, _T], key: Hashable, make: Callable[[], _T], limit: int) -> _T:
    """kept[key], made if absent; the entry used longest ago goes when more than `limit` are kept."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > limit:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
