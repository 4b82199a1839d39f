"""The order in which samples are seen: an endless seeded stream of (shard, sample, epoch), computed window by window.

Several data sets are mixed into one such stream, in which it is arithmetic, too, whose turn it is and how often it was; and so
are two parts of a data set that are read in turns.

The order knows nothing of ranks or loader workers: whoever wants positions 3,000 to 3,063 asks for exactly those. So a
run resumes at any sample on any number of ranks, and batches may straddle epochs without losing or repeating a sample.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

# (shard, sample in the shard, epoch, how often it came before in this epoch)
Place = tuple[int, int, int, int]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Of all plans together; whatever fell out is computed anew, in a millisecond.
_EPOCHS_KEPT = 16
_WINDOWS_KEPT = 10  # one for each of eight data sets, or for four that are read in turns, and two to straddle into
_STRETCH = 1024  # positions of a mixed stream that are ordered together
_COPIES_KEPT = (
    2  # they are needed when a window is ordered, and are a number for each sample of all shards
)
# From epoch to epoch the offset moves by the golden ratio of the span, so that it falls evenly however many epochs there are.
_OFFSETS = 2**20
_OFFSET_STEP = 648_055


@dataclass(frozen=True, eq=False)
class Balance:
    """How often samples are shown (`data.balance`).

    groups: int [N], of every sample in the order of the shards: those of one group are shown equally often.
    rates: [G], how often a sample of each group comes in an epoch, on average over epochs; the mean over all samples is 1.
    """

    groups: Ints
    rates: Floats


class Plan:
    """The seeded order over shards of the given sizes.

    In every epoch the shards are permuted, cut into windows of `window` shards, and the samples of a window permuted
    together. Epoch e depends on (seed, e, shard_sizes, window, part) alone. Memory: O(num_shards + samples of a few windows).

    Without a seed it is the plain order, shard after shard, as an evaluation reads them.
    `part`: from where to where, in 0..1, every shard is read, in a seeded order of its own: (0, 0.8) and (0.8, 1) have no sample
    in common and together all. Of N samples the part (0, p) has floor(p * N), of every shard nearly as large a share.
    `balance`: how often samples are shown: never, once or several times in an epoch, which has as many positions as without it.
    Then memory is O(samples).
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        seed: int | None,
        window: int = 8,
        part: tuple[float, float] = (0.0, 1.0),
        balance: Balance | None = None,
    ) -> None:
        self.seed = seed
        self.window = window
        self._whole_sizes: Ints = np.asarray(shard_sizes, dtype=np.int64)
        # Rounded in the running sum, not shard by shard, so that the parts of small shards add up to their share.
        ends = np.concatenate([[0], np.cumsum(self._whole_sizes)])
        cuts = np.floor(np.outer(part, ends)).astype(np.int64)
        # How many samples of each shard lie below either bound of the part.
        self._first, self._last = np.diff(cuts)
        self.shard_sizes: Ints = self._last - self._first
        self.num_samples = int(self.shard_sizes.sum())
        self.ends: Ints = ends  # how many samples lie before each shard, and in all
        self.line = None if balance is None else self._lay_out(balance)

    def list_places(self, start: int, stop: int) -> list[Place]:
        """The places at stream positions start..stop-1; position = epoch * num_samples + offset in that epoch."""
        places: list[Place] = []
        while start < stop:
            epoch, window, begin, end = self._find_window(start)
            # As far as the window reaches; what is left comes from the next one.
            rows = _order_samples(self, epoch, window)[start - begin : stop - begin]
            places += [(shard, sample, epoch, copy) for shard, sample, copy in rows.tolist()]
            start = end
        return places

    def list_shards_ahead(self, position: int) -> list[int]:
        """The shards of the window that holds this stream position, and those of the window after it."""
        shards: list[int] = []
        for _ in range(2):
            epoch, window, _, position = self._find_window(position)
            shards += self.shards_of_window(epoch, window).tolist()
        return shards

    def shards_of_window(self, epoch: int, window: int) -> Ints:
        """The shards of one window, in the order of the epoch."""
        shards, _ = _order_shards(self, epoch)
        first = window * self.window
        return shards[first : first + self.window]

    def select_samples(self, shard: int) -> Ints:
        """The samples of a shard that belong to this plan."""
        size = int(self._whole_sizes[shard])
        if self.shard_sizes[shard] == size:
            return np.arange(size)
        # The 2 at the end: no other order is drawn from such a seed sequence.
        order = _draw_permutation(size, self.seed, shard, 0, 2)
        return order[self._first[shard] : self._last[shard]]

    def count_by_shard(self, epoch: int) -> Ints:
        """How many positions of an epoch each shard has."""
        if self.line is None:
            return self.shard_sizes
        before = np.append(0, np.cumsum(count_copies(self, epoch)))
        return np.diff(before[self.ends])

    def _lay_out(self, balance: Balance) -> tuple[Ints, Floats]:
        """A line of length `num_samples` on which every sample has a piece as long as its rate: the samples, and where they end.

        Those of a group lie together, so that in no epoch their number differs from what was asked by a whole one.
        """
        shards = range(len(self.shard_sizes))
        samples = [self.ends[shard] + self.select_samples(shard) for shard in shards]
        own = np.concatenate(samples)
        # The 3 at the end: no other order is drawn from such a seed sequence.
        order = _draw_permutation(len(own), self.seed, 0, 0, 3)
        own = own[order]
        own = own[np.argsort(balance.groups[own], kind="stable")]
        ends = np.cumsum(balance.rates[balance.groups[own]])
        return own, ends / ends[-1] * self.num_samples

    def _find_window(self, position: int) -> tuple[int, int, int, int]:
        """Epoch and number of the window that holds a stream position, and the positions where it begins and ends."""
        if self.num_samples == 0:
            raise ValueError("The plan needs at least one sample, but all shards are empty.")
        epoch, offset = divmod(position, self.num_samples)
        _, starts = _order_shards(self, epoch)
        window = bisect_right(starts, offset) - 1
        epoch_start = position - offset
        return epoch, window, epoch_start + starts[window], epoch_start + starts[window + 1]


@lru_cache(_EPOCHS_KEPT)
def _order_shards(plan: Plan, epoch: int) -> tuple[Ints, list[int]]:
    """One epoch's order of shards, which is cut into windows, and the samples before each window: [num_windows + 1]."""
    shards = _draw_permutation(len(plan.shard_sizes), plan.seed, epoch, 0)
    firsts = np.arange(0, len(shards), plan.window)
    window_sizes = np.add.reduceat(plan.count_by_shard(epoch)[shards], firsts)
    return shards, [0, *np.cumsum(window_sizes).tolist()]


@lru_cache(_WINDOWS_KEPT)
def _order_samples(plan: Plan, epoch: int, window: int) -> NDArray[np.int32]:
    """All (shard, sample, copy) of a window in their order: [n, 3]."""
    shards = plan.shards_of_window(epoch, window)
    samples = np.concatenate([plan.select_samples(shard) for shard in shards.tolist()])
    owners = np.repeat(shards, plan.shard_sizes[shards])
    copies = np.zeros(len(samples), dtype=np.int64)
    if plan.line is not None:
        times = count_copies(plan, epoch)[plan.ends[owners] + samples]
        owners, samples = np.repeat(owners, times), np.repeat(samples, times)
        copies = np.arange(len(samples)) - np.repeat(np.cumsum(times) - times, times)
    # window + 1: a seed sequence cannot tell (seed, epoch) from (seed, epoch, 0), which orders the shards.
    order = _draw_permutation(len(samples), plan.seed, epoch, window + 1)
    # Ten windows are kept, and no number in them needs 64 bits.
    return np.stack([owners, samples, copies], axis=1, dtype=np.int32)[order]


@lru_cache(_COPIES_KEPT)
def count_copies(plan: Plan, epoch: int) -> Ints:
    """How often every sample of all shards comes in an epoch of a balanced plan: [number of samples of all shards].

    Points a step of 1 apart are put on the line of the plan, from an offset on that each epoch has of its own (systematic
    sampling: Madow and Madow, 1944): a sample comes as often as its piece holds points, floor or ceil of its rate.
    """
    assert plan.line is not None
    assert plan.seed is not None
    samples, ends = plan.line
    first = int(_draw_raw(1, plan.seed, 1, 0, 3)[0] % _OFFSETS)
    offset = (first + epoch * _OFFSET_STEP) % _OFFSETS / _OFFSETS
    copies = np.zeros(plan.ends[-1], dtype=np.int64)
    copies[samples] = np.diff(np.floor(ends + offset), prepend=0)
    return copies


def positions_of_rank(
    batch_size: int,
    num_passes: int,
    rank: int,
    world_size: int,
) -> list[range]:
    """The positions in a global batch that a rank takes in each of its passes.

    A pass is a stretch of the batch, and its ranks stand in it one after the other, so that images which are neighbours in the
    batch are together in a pass whatever the number of ranks.
    """
    shares = []
    ends = [number * batch_size // num_passes for number in range(num_passes + 1)]
    for first, end in pairwise(ends):
        length = end - first
        begin = first + rank * length // world_size
        shares.append(range(begin, first + (rank + 1) * length // world_size))
    return shares


class _JoinedPlan:
    """Several plans read as one stream. Shards are numbered through from `first_shards[d]` on for plan d.

    Who derives from it says whose turn it is at every position, and how many samples of each plan came before.
    """

    plans: Sequence["Plan | MixedPlan"]
    first_shards: Sequence[int]

    def _list_turns(self, start: int, stop: int) -> Ints:
        """Whose turn it is at each of the positions."""
        raise NotImplementedError

    def _count_drawn(self, position: int) -> Ints:
        """How many samples of each plan come before a position."""
        raise NotImplementedError

    def list_places(self, start: int, stop: int) -> list[Place]:
        """The places at stream positions start..stop-1; the epoch is that of the sample's own plan."""
        turns = self._list_turns(start, stop)

        # Every plan gives as many samples as it has turns, in its own order.
        firsts = self._count_drawn(start)
        ends = firsts + np.bincount(turns, minlength=len(self.plans))
        streams = []
        for number, plan in enumerate(self.plans):
            drawn = plan.list_places(int(firsts[number]), int(ends[number]))
            streams.append(iter(drawn))

        # They are dealt out turn by turn.
        places = []
        for turn in turns.tolist():
            shard, *rest = next(streams[turn])
            places.append((self.first_shards[turn] + shard, *rest))
        return places

    def list_shards_ahead(self, position: int) -> list[int]:
        """The shards that every plan reads soon after this stream position."""
        ahead: list[int] = []
        drawn = self._count_drawn(position).tolist()
        for plan, count, first in zip(self.plans, drawn, self.first_shards, strict=True):
            ahead += [first + shard for shard in plan.list_shards_ahead(count)]
        return ahead


class MixedPlan(_JoinedPlan):
    """Several plans read as one stream: every `sum(proportions)` positions hold `proportions[d]` samples of plan d.

    The order within such a block is seeded; every plan is read in its own order. Shards are numbered through: those of
    the first plan, then those of the second. A long block is ordered stretch by stretch, so that memory stays small and
    every stretch, too, has its proportions (to one sample).
    """

    def __init__(self, plans: Sequence[Plan], proportions: Sequence[int], seed: int) -> None:
        self.plans = plans
        self.seed = seed
        num_shards = [len(plan.shard_sizes) for plan in plans]
        self.first_shards = [0, *accumulate(num_shards[:-1])]
        self._proportions: Ints = np.asarray(proportions, dtype=np.int64)
        self._length = int(self._proportions.sum())
        self.blocks = max(1, _STRETCH // self._length)  # in a stretch, where they are short
        self._pieces = -(-self._length // _STRETCH)  # stretches in a block, where it is long

    def count_before(self, stretch: int) -> Ints:
        """How many samples of each plan come before a stretch."""
        block, piece = divmod(stretch, self._pieces)
        # Rounded down from the beginning of the block, so that no error adds up over its stretches.
        return block * self.blocks * self._proportions + self._proportions * piece // self._pieces

    def _list_turns(self, start: int, stop: int) -> Ints:
        parts = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            stretch, begin = self._find_stretch(start)
            parts.append(_order_turns(self, stretch)[start - begin : stop - begin])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _count_drawn(self, position: int) -> Ints:
        stretch, begin = self._find_stretch(position)
        turns = _order_turns(self, stretch)[: position - begin]
        return self.count_before(stretch) + np.bincount(turns, minlength=len(self.plans))

    def _find_stretch(self, position: int) -> tuple[int, int]:
        """The stretch that holds a position, and the position where it begins."""
        stretch = position * self._pieces // (self.blocks * self._length)
        # Rounding may have shortened those before it: then it is a later one than it seems.
        while int(self.count_before(stretch + 1).sum()) <= position:
            stretch += 1
        return stretch, int(self.count_before(stretch).sum())


@lru_cache(_WINDOWS_KEPT)
def _order_turns(plan: MixedPlan, stretch: int) -> Ints:
    """Whose turn it is at each position of a stretch; every block in it has an order of its own."""
    in_stretch = plan.count_before(stretch + 1) - plan.count_before(stretch)
    turns = np.repeat(np.arange(len(plan.plans)), in_stretch // plan.blocks)
    # The 1 at the end: no plan draws from such a seed sequence.
    raw = _draw_raw(plan.blocks * len(turns), plan.seed, stretch, 0, 1)
    order = np.argsort(raw.reshape(plan.blocks, -1), axis=1, kind="stable")
    return turns[order].ravel()


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


class AlternatingPlan(_JoinedPlan):
    """Two plans read in turns as one stream: `before` samples of the first, then again and again `first` and `second` of either."""

    first_shards = (0, 0)  # both read the same shards

    def __init__(self, plans: tuple[Plan | MixedPlan, Plan | MixedPlan], turns: Turns) -> None:
        self.plans = plans
        self.turns = turns

    def _list_turns(self, start: int, stop: int) -> Ints:
        since = np.arange(start, stop) - self.turns.before
        place = since % (self.turns.first + self.turns.second)
        is_second = (since >= 0) & (place >= self.turns.first)
        return is_second.astype(np.int64)

    def _count_drawn(self, position: int) -> Ints:
        turns = self.turns
        since = max(0, position - turns.before)
        num_rounds, place = divmod(since, turns.first + turns.second)
        # All of the first part before the turns, then its share of every whole round and of the one that is begun.
        first = min(position, turns.before)
        first += num_rounds * turns.first
        first += min(place, turns.first)
        return np.array([first, position - first])


AnyPlan = Plan | MixedPlan | AlternatingPlan


def _draw_permutation(length: int, seed: int | None, *place: int) -> Ints:
    """A seeded permutation of 0..length-1, by sorting raw Philox numbers, which no release of numpy changes."""
    if seed is None:
        return np.arange(length)
    raw = _draw_raw(length, seed, *place)
    return np.argsort(raw, kind="stable")


def _draw_raw(length: int, *seed: int) -> NDArray[np.uint64]:
    generator = np.random.Philox(np.random.SeedSequence(seed))
    raw: NDArray[np.uint64] = generator.random_raw(length)
    return raw
