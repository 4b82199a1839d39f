"""Two parts of a data set read in turns: disjoint, whole, and any range by arithmetic alone."""

import numpy as np
import pytest

from distbranch.data.plan import AlternatingPlan, MixedPlan, Plan, Turns

SIZES = [13, 1, 40, 7, 0, 29, 10]  # 100 samples


@pytest.mark.parametrize("share", [0.8, 0.5, 0.013, 0.999])
def test_two_parts_share_no_sample_and_together_have_all(share: float) -> None:
    first, second = (Plan(SIZES, 3, 2, part) for part in ((0.0, share), (share, 1.0)))
    assert first.num_samples == int(100 * share)
    seen = [
        {place[:2] for place in plan.list_places(0, plan.num_samples)}
        if plan.num_samples
        else set()
        for plan in (first, second)
    ]
    assert [len(places) for places in seen] == [first.num_samples, second.num_samples]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {place[:2] for place in Plan(SIZES, 0).list_places(0, 100)}


def test_a_part_stays_the_same_in_all_epochs_and_differs_with_the_seed() -> None:
    plan = Plan(SIZES, 3, 2, (0.8, 1.0))
    epochs = [plan.list_places(20 * epoch, 20 * (epoch + 1)) for epoch in range(3)]
    assert len({frozenset(place[:2] for place in places) for places in epochs}) == 1
    assert len({tuple(place[:2] for place in places) for places in epochs}) == 3
    other = {place[:2] for place in Plan(SIZES, 4, 2, (0.8, 1.0)).list_places(0, 20)}
    assert other != {place[:2] for place in epochs[0]}


def test_every_shard_gives_its_share_to_either_part() -> None:
    sizes = Plan(SIZES, 0, part=(0.8, 1.0)).shard_sizes
    assert np.abs(sizes - 0.2 * np.array(SIZES)).max() < 1


def test_the_whole_is_the_plan_without_parts() -> None:
    assert Plan(SIZES, 5, 3, (0.0, 1.0)).list_places(0, 300) == Plan(SIZES, 5, 3).list_places(
        0, 300
    )


@pytest.mark.parametrize("mix", [False, True])
def test_any_range_equals_the_same_range_of_the_whole_alternating_stream(mix: bool) -> None:
    def plan_of(part: tuple[float, float]) -> Plan | MixedPlan:
        plans = [Plan(SIZES, 1, 2, part), Plan([20, 20], 1, 2, part)]
        return MixedPlan(plans, [3, 1], 1) if mix else plans[0]

    def plan() -> AlternatingPlan:
        return AlternatingPlan(
            (plan_of((0.0, 0.8)), plan_of((0.8, 1.0))), Turns(0.8, before=24, first=16, second=8)
        )

    stream = plan().list_places(0, 500)
    whose = [0] * 24 + ([0] * 16 + [1] * 8) * 20
    for number, part in enumerate(((0.0, 0.8), (0.8, 1.0))):
        own = [place for place, turn in zip(stream, whose, strict=False) if turn == number]
        assert own == plan_of(part).list_places(0, len(own))
    generator, other = np.random.default_rng(0), plan()
    for _ in range(100):
        start, stop = sorted(generator.integers(0, 501, 2).tolist())
        assert other.list_places(start, stop) == stream[start:stop]
        assert {shard for shard, *_ in stream[start : start + 2]} <= set(
            other.list_shards_ahead(start)
        )
