"""The order of a joint stream: exact shares, each data set in its own order, and any range by arithmetic alone."""

from collections import Counter

import numpy as np
import pytest

from distbranch.data.plan import MixedPlan, Place, Plan

SIZES = ([3, 5, 2], [4, 4, 4, 4, 4], [1])  # shards of three data sets


def mixed(proportions: list[int], seed: int = 0) -> MixedPlan:
    return MixedPlan(
        [Plan(sizes, seed, 2) for sizes in SIZES[: len(proportions)]], proportions, seed
    )


def own(places: list[Place], proportions: list[int]) -> list[list[Place]]:
    """The places of every data set, with its own numbers of shards."""
    starts = np.cumsum([0, *(len(sizes) for sizes in SIZES)])
    ranges = [range(starts[n], starts[n + 1]) for n in range(len(proportions))]
    return [[(shard - r.start, *rest) for shard, *rest in places if shard in r] for r in ranges]  # type: ignore[misc]


@pytest.mark.parametrize(
    "proportions", [[3, 1], [1, 1, 5], [10, 20, 1], [700, 800], [2000, 501, 7]]
)
def test_every_block_holds_the_stated_numbers_and_every_data_set_comes_in_its_own_order(
    proportions: list[int],
) -> None:
    length, blocks = sum(proportions), 3
    places = mixed(proportions).list_places(0, blocks * length)
    for block in range(blocks):
        shares = own(places[block * length : (block + 1) * length], proportions)
        assert [len(share) for share in shares] == proportions
    for share, sizes in zip(own(places, proportions), SIZES, strict=False):
        assert share == Plan(sizes, 0, 2).list_places(0, len(share))


@pytest.mark.parametrize("proportions", [[3, 1], [700, 800], [2000, 501, 7]])
def test_any_range_equals_the_same_range_of_the_whole_joint_stream(proportions: list[int]) -> None:
    stream = mixed(proportions, seed=5).list_places(0, 6000)
    generator = np.random.default_rng(0)
    plan = mixed(proportions, seed=5)
    for _ in range(60):
        start, stop = sorted(generator.integers(0, len(stream) + 1, 2).tolist())
        stop = min(stop, start + 100)
        assert plan.list_places(start, stop) == stream[start:stop]
        soon = {shard for shard, *_ in stream[start : start + 3]}
        assert soon <= set(plan.list_shards_ahead(start))


def test_turns_are_shuffled_and_a_long_block_keeps_its_proportions_all_along() -> None:
    plan = mixed([9000, 3000])
    assert plan.list_places(0, 12_000) != mixed([9000, 3000], seed=1).list_places(0, 12_000)
    turns = [shard >= len(SIZES[0]) for shard, *_ in plan.list_places(0, 12_000)]
    for start in range(0, 12_000, 1000):
        assert abs(sum(turns[start : start + 1000]) - 250) < 30
    short = mixed([3, 1]).list_places(0, 4000)
    places = Counter(n % 4 for n, (shard, *_) in enumerate(short) if shard >= len(SIZES[0]))
    assert min(places.values()) > 200  # the one of four comes first, second, third and last alike
