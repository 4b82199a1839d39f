"""The order of samples: complete, seeded, and blind to ranks and to where a run was interrupted."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from distbranch.data.plan import Place, Plan, _order_shards

SHAPES = [
    [1],
    [5],
    [3, 3, 3],
    [1, 7, 2, 9, 4],
    [0, 4, 0, 2],
    [10] * 17,
    [100, 1, 1, 1, 50],
    [2] * 64,
]


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("window", [1, 2, 8, 100])
def test_an_epoch_visits_every_sample_exactly_once(sizes: list[int], window: int) -> None:
    plan = Plan(sizes, seed=3, window=window)
    everything = sorted(
        (shard, sample) for shard, size in enumerate(sizes) for sample in range(size)
    )
    for epoch in range(3):
        places = plan.list_places(epoch * plan.num_samples, (epoch + 1) * plan.num_samples)
        assert sorted((shard, sample) for shard, sample, *_ in places) == everything
        assert {number for _, _, number, _ in places} == {epoch}


@pytest.mark.parametrize("sizes", SHAPES)
def test_any_range_equals_the_same_range_of_the_whole_stream(sizes: list[int]) -> None:
    stream = Plan(sizes, seed=0, window=3).list_places(0, 5 * sum(sizes))
    generator = np.random.default_rng(0)
    plan = Plan(sizes, seed=0, window=3)
    for _ in range(50):
        start, stop = sorted(generator.integers(0, len(stream) + 1, 2).tolist())
        assert plan.list_places(start, stop) == stream[start:stop]


def test_ranks_together_read_the_stream_and_resume_on_any_number_of_ranks() -> None:
    plan = Plan([7, 5, 11, 2], seed=1, window=2)
    stream = plan.list_places(0, 120)
    for before, after, step in [(1, 3, 4), (4, 2, 1), (3, 5, 7)]:
        seen = _read(plan, 0, step, ranks=before) + _read(plan, step * 10, 12 - step, ranks=after)
        assert seen == stream


def test_epochs_and_seeds_differ_and_samples_mix_across_the_shards_of_a_window() -> None:
    plan = Plan([100] * 8, seed=0, window=4)
    orders = [
        [place[:2] for place in plan.list_places(800 * epoch, 800 * epoch + 800)]
        for epoch in range(3)
    ]
    orders.append([place[:2] for place in Plan([100] * 8, seed=1, window=4).list_places(0, 800)])
    assert len({tuple(order) for order in orders}) == 4
    for order in orders:
        first = Counter(shard for shard, _ in order[:200])
        assert len(first) == 4
        assert min(first.values()) > 25


def test_the_shuffle_of_the_only_window_is_not_that_of_the_shards() -> None:
    plan = Plan([1] * 50, seed=0, window=50)
    assert [shard for shard, *_ in plan.list_places(0, 50)] != _order_shards(plan, 0)[0].tolist()


def test_every_position_is_equally_likely_for_every_sample() -> None:
    counts = np.zeros((6, 6))
    plan = Plan([2, 4], seed=0, window=2)
    for epoch in range(3000):
        for position, (shard, sample, *_) in enumerate(plan.list_places(6 * epoch, 6 * epoch + 6)):
            counts[position, 2 * shard + sample] += 1
    assert abs(counts / 3000 - 1 / 6).max() < 0.03


def test_memory_is_that_of_a_few_windows_however_many_samples_there_are() -> None:
    tracemalloc.start()
    plan = Plan([1000] * 1000, seed=0, window=8)
    for start in range(0, 3_000_000, 9973):
        plan.list_places(start, start + 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_the_shards_ahead_are_those_of_this_window_and_the_next() -> None:
    plan = Plan([4, 4, 4, 4, 4], seed=0, window=2)  # windows of 8, 8 and 4 samples
    for position in (0, 7, 8, 15, 16, 19, 20, 59):
        end = position - position % 20 + {0: 8, 1: 16, 2: 20}[position % 20 // 8]
        following = end + (4 if end % 20 == 16 else 8)
        soon = {shard for shard, *_ in plan.list_places(position, following)}
        assert soon <= set(plan.list_shards_ahead(position))
        assert len(plan.list_shards_ahead(position)) == (3 if position % 20 >= 8 else 4)


def test_a_plan_without_samples_says_so() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Plan([0, 0], seed=0).list_places(0, 1)


def _read(plan: Plan, start: int, steps: int, ranks: int) -> list[Place]:
    """What the ranks read together in global batches of 10, put back in order of rank."""
    places: list[Place] = []
    for step in range(steps):
        position = start + 10 * step
        for rank in range(ranks):
            places += plan.list_places(
                position + rank * 10 // ranks, position + (rank + 1) * 10 // ranks
            )
    return places
