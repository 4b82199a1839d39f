"""The order in which samples are seen: an endless seeded stream of (shard, sample, epoch), computed window by window.

Several data sets are mixed into one such stream, in which it is arithmetic, too, whose turn it is and how often it was; and so
are two parts of a data set that are read in turns.

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
_EPOCHS_KEPT = 2  # a batch may straddle the end of an epoch
_WINDOWS_KEPT = 3  # that of the batch, the one it straddles into, and one for a reader a little behind
_STRETCH = 1024  # positions of a mixed stream that are ordered together


@dataclass(frozen=True)
class _Epoch:
    """One epoch's order of shards, cut into windows; `starts` [num_windows + 1]: samples before each window."""

    shards: NDArray[np.int64]
    starts: list[int]


class Plan:
    """The seeded order over shards of the given sizes.

    In every epoch the shards are permuted, cut into windows of `window` shards, and the samples of a window permuted
    together. Epoch e depends on (seed, e, shard_sizes, window, part) alone. Memory: O(num_shards + samples of a few windows).

    `part`: from where to where, in 0..1, every shard is read, in a seeded order of its own: (0, 0.8) and (0.8, 1) have no sample
    in common and together all. Of N samples the part (0, p) has floor(p * N), of every shard nearly as large a share.
    """

    def __init__(
        self, shard_sizes: Sequence[int], seed: int, window: int = 8, part: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self._whole_sizes = np.asarray(shard_sizes, dtype=np.int64)
        ends = np.concatenate([[0], np.cumsum(self._whole_sizes)])
        bounds = [np.floor(ends * bound).astype(np.int64) for bound in part]
        self._first, self._last = (
            bound[1:] - bound[:-1] for bound in bounds
        )  # of every shard's own order, [num_shards]
        self.shard_sizes = self._last - self._first
        self.seed = seed
        self.window = window
        self.num_samples = int(self.shard_sizes.sum())
        self._epochs: OrderedDict[Hashable, _Epoch] = OrderedDict()
        self._windows: OrderedDict[Hashable, NDArray[np.int64]] = OrderedDict()

    def list_places(self, start: int, stop: int) -> list[Place]:
        """The places at stream positions start..stop-1; position = epoch * num_samples + offset in that epoch."""
        if self.num_samples == 0:
            raise ValueError("The plan needs at least one sample, but all shards are empty.")
        places: list[Place] = []
        while start < stop:
            number, offset = divmod(start, self.num_samples)
            starts = self._get_epoch(number).starts
            window = bisect_right(starts, offset) - 1
            end = min(starts[window + 1], offset + stop - start)
            pairs = self._get_window(number, window)[offset - starts[window] : end - starts[window]]
            for shard, sample in pairs.tolist():
                places.append((shard, sample, number))
            start += end - offset
        return places

    def list_shards_ahead(self, position: int) -> list[int]:
        """The shards of the window that holds this stream position, and those of the window after it."""
        shards: list[int] = []
        for _ in range(2):
            number, offset = divmod(position, self.num_samples)
            epoch = self._get_epoch(number)
            window = bisect_right(epoch.starts, offset) - 1
            shards += epoch.shards[window * self.window : (window + 1) * self.window].tolist()
            position += epoch.starts[window + 1] - offset
        return shards

    def _get_epoch(self, number: int) -> _Epoch:
        def make() -> _Epoch:
            shards = _draw_permutation(len(self.shard_sizes), self.seed, number, 0)
            sizes = np.add.reduceat(self.shard_sizes[shards], np.arange(0, len(shards), self.window))
            return _Epoch(shards, [0, *np.cumsum(sizes).tolist()])

        return _get_or_make(self._epochs, number, make, _EPOCHS_KEPT)

    def _get_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """All (shard, sample) of a window in their order: [n, 2]."""

        def make() -> NDArray[np.int64]:
            shards = self._get_epoch(epoch).shards[window * self.window : (window + 1) * self.window]
            sizes = self.shard_sizes[shards]
            pairs = np.empty((int(sizes.sum()), 2), dtype=np.int64)
            pairs[:, 0] = np.repeat(shards, sizes)
            pairs[:, 1] = np.concatenate([self._select_samples(shard) for shard in shards.tolist()])
            # window + 1: a seed sequence cannot tell (seed, epoch) from (seed, epoch, 0), which orders the shards.
            return pairs[_draw_permutation(len(pairs), self.seed, epoch, window + 1)]

        return _get_or_make(self._windows, (epoch, window), make, _WINDOWS_KEPT)

    def _select_samples(self, shard: int) -> NDArray[np.int64]:
        """The samples of a shard that belong to this plan."""
        size = int(self._whole_sizes[shard])
        if self.shard_sizes[shard] == size:
            return np.arange(size)
        # The 2 at the end: no other order is drawn from such a seed sequence.
        order = _draw_permutation(size, self.seed, shard, 0, 2)
        return order[self._first[shard] : self._last[shard]]


def positions_of_rank(batch_size: int, num_passes: int, rank: int, world_size: int) -> list[range]:
    """The positions in a global batch that a rank takes in each of its passes.

    A pass is a stretch of the batch, and its ranks stand in it one after the other, so that images which are neighbours in the
    batch are together in a pass whatever the number of ranks.
    """
    shares = []
    for number in range(num_passes):
        first = number * batch_size // num_passes
        length = (number + 1) * batch_size // num_passes - first
        begin = first + rank * length // world_size
        end = first + (rank + 1) * length // world_size
        shares.append(range(begin, end))
    return shares


class MixedPlan:
    """Several plans read as one stream: every `sum(proportions)` positions hold `proportions[d]` samples of plan d.

    The order within such a block is seeded; every plan is read in its own order. Shards are numbered through: those of
    the first plan, then those of the second. A long block is ordered stretch by stretch, so that memory stays small and
    every stretch, too, has its proportions (to one sample).
    """

    def __init__(self, plans: Sequence[Plan], proportions: Sequence[int], seed: int) -> None:
        self.plans = plans
        self.seed = seed
        self._proportions = np.asarray(proportions, dtype=np.int64)
        self._first_shards = np.cumsum([0, *(len(plan.shard_sizes) for plan in plans)]).tolist()
        length = int(self._proportions.sum())
        self._blocks = max(1, _STRETCH // length)  # blocks in a stretch, where they are short
        self._pieces = -(-length // _STRETCH)  # stretches in a block, where it is long
        self._stretches: OrderedDict[Hashable, NDArray[np.int64]] = OrderedDict()

    def list_places(self, start: int, stop: int) -> list[Place]:
        """The places at stream positions start..stop-1; the epoch is that of the sample's own plan."""
        turns = self._list_turns(start, stop)

        # Every plan gives as many samples as it has turns, in its own order.
        drawn = self._count_drawn(start).tolist()
        counts = np.bincount(turns, minlength=len(self.plans)).tolist()
        streams = []
        for plan, first, count in zip(self.plans, drawn, counts, strict=True):
            streams.append(iter(plan.list_places(first, first + count)))

        # They are dealt out turn by turn.
        places = []
        for turn in turns.tolist():
            shard, sample, epoch = next(streams[turn])
            places.append((self._first_shards[turn] + shard, sample, epoch))
        return places

    def list_shards_ahead(self, position: int) -> list[int]:
        """The shards that every plan reads soon after this stream position."""
        ahead: list[int] = []
        for plan, first, drawn in zip(
            self.plans, self._first_shards[:-1], self._count_drawn(position).tolist(), strict=True
        ):
            ahead += [first + shard for shard in plan.list_shards_ahead(drawn)]
        return ahead

    def _list_turns(self, start: int, stop: int) -> NDArray[np.int64]:
        """Whose turn it is at each of the positions."""
        parts = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            number = self._find_stretch(start)
            begin = int(self._count_before(number).sum())
            parts.append(self._get_stretch(number)[start - begin : stop - begin])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _count_drawn(self, position: int) -> NDArray[np.int64]:
        """How many samples of each plan come before a position."""
        number = self._find_stretch(position)
        before = self._count_before(number)
        inside = self._get_stretch(number)[: position - int(before.sum())]
        drawn: NDArray[np.int64] = before + np.bincount(inside, minlength=len(self.plans))
        return drawn

    def _count_before(self, stretch: int) -> NDArray[np.int64]:
        """How many samples of each plan come before a stretch."""
        block, piece = divmod(stretch, self._pieces)
        before: NDArray[np.int64] = block * self._blocks * self._proportions + self._proportions * piece // self._pieces
        return before

    def _find_stretch(self, position: int) -> int:
        """The stretch that holds a position; where rounding shortened those before it, it is a later one than it seems."""
        number = position * self._pieces // (self._blocks * int(self._proportions.sum()))
        while int(self._count_before(number + 1).sum()) <= position:
            number += 1
        return number

    def _get_stretch(self, number: int) -> NDArray[np.int64]:
        def make() -> NDArray[np.int64]:
            counts = (self._count_before(number + 1) - self._count_before(number)) // self._blocks
            turns = np.repeat(np.arange(len(counts)), counts)
            # The 1 at the end: no plan draws from such a seed sequence.
            raw = _draw_raw(self._blocks * len(turns), self.seed, number, 0, 1).reshape(self._blocks, -1)
            return turns[np.argsort(raw, axis=1, kind="stable")].ravel()

        return _get_or_make(self._stretches, number, make, _WINDOWS_KEPT)


@dataclass(frozen=True)
class Turns:
    """How two parts of the training samples are read in turns, in samples of all ranks together.

    part: the share of the first, in 0..1.
    before: how many of the first come before the turns begin.
    first, second: how many of either every turn has.
    """

    part: float
    before: int
    first: int
    second: int


class AlternatingPlan:
    """Two plans read in turns as one stream: `before` samples of the first, then again and again `first` and `second` of either."""

    def __init__(self, plans: tuple[Plan | MixedPlan, Plan | MixedPlan], turns: Turns) -> None:
        self.plans = plans
        self.turns = turns

    def list_places(self, start: int, stop: int) -> list[Place]:
        """The places at stream positions start..stop-1; the epoch is that of the sample's own plan."""
        places: list[Place] = []
        while start < stop:
            number, left = self._find_turn(start)
            count = min(left, stop - start)
            first = self._count_drawn(start)[number]
            places += self.plans[number].list_places(first, first + count)
            start += count
        return places

    def list_shards_ahead(self, position: int) -> list[int]:
        """The shards that either plan reads soon after this stream position."""
        first, second = self._count_drawn(position)
        ahead = self.plans[0].list_shards_ahead(first) + self.plans[1].list_shards_ahead(second)
        return list(dict.fromkeys(ahead))  # both read the same shards

    def _find_turn(self, position: int) -> tuple[int, int]:
        """Whose turn it is at a position, and for how many samples still."""
        turns = self.turns
        since = position - turns.before
        if since < 0:
            return 0, -since
        place = since % (turns.first + turns.second)
        if place < turns.first:
            return 0, turns.first - place
        return 1, turns.first + turns.second - place

    def _count_drawn(self, position: int) -> tuple[int, int]:
        """How many samples of either plan come before a position."""
        turns = self.turns
        count, place = divmod(max(0, position - turns.before), turns.first + turns.second)
        first = min(position, turns.before) + count * turns.first + min(place, turns.first)
        return first, position - first


def _draw_permutation(length: int, *seed: int) -> NDArray[np.int64]:
    """A seeded permutation of 0..length-1, by sorting raw Philox numbers, which no release of numpy changes."""
    return np.argsort(_draw_raw(length, *seed), kind="stable")


def _draw_raw(length: int, *seed: int) -> NDArray[np.uint64]:
    raw: NDArray[np.uint64] = np.random.Philox(np.random.SeedSequence(seed)).random_raw(length)
    return raw


def _get_or_make(kept: OrderedDict[Hashable, _T], key: Hashable, make: Callable[[], _T], limit: int) -> _T:
    """kept[key], made if absent; the entry used longest ago goes when more than `limit` are kept."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > limit:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
