"""Intervals hold what they should hold: planted differences, drawn again and again."""

import numpy as np
import pytest
from pandas import DataFrame
from scipy.stats import ttest_rel

from distbranch.experiments.intervals import interval_over_seeds, interval_over_seeds_and_tasks
from distbranch.experiments.pairs import describe_pair

TRUTH = 0.02
SEEDS = 5


def draw_differences(rng: np.random.Generator, of_tasks: np.ndarray) -> DataFrame:
    """Differences [tasks, seeds] around those of the tasks, with noise of seeds and of both together."""
    of_seeds = rng.normal(0, 0.006, SEEDS)
    noise = rng.normal(0, 0.02, (len(of_tasks), SEEDS))
    return DataFrame(TRUTH + of_tasks[:, None] + of_seeds + noise)


def test_of_a_hundred_intervals_over_seeds_ninety_five_hold_the_difference_on_these_tasks() -> None:
    rng = np.random.default_rng(0)
    of_tasks = rng.normal(0, 0.03, 20)
    truth = TRUTH + of_tasks.mean()
    held = []
    for _ in range(1000):
        low, high = interval_over_seeds(draw_differences(rng, of_tasks).mean())
        held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_for_other_tasks_of_their_kind_only_the_wider_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(500):
        found = draw_differences(rng, rng.normal(0, 0.03, 20))
        seeds = interval_over_seeds(found.mean())
        wider = interval_over_seeds_and_tasks(found)
        held.append([low <= TRUTH <= high for low, high in (seeds, wider)])
    over_seeds, over_tasks_too = np.mean(held, axis=0)
    assert over_seeds < 0.9
    assert 0.93 <= over_tasks_too <= 0.98


def test_the_interval_over_seeds_is_that_of_the_paired_t_test() -> None:
    one, other = np.random.default_rng(1).normal(0.7, 0.01, (2, SEEDS))
    expected = ttest_rel(one, other).confidence_interval(0.95)
    assert interval_over_seeds(one - other) == pytest.approx((expected.low, expected.high))


def test_one_repetition_has_no_interval() -> None:
    assert np.isnan(interval_over_seeds([0.1])).all()
    assert np.isnan(interval_over_seeds_and_tasks(DataFrame([[0.1], [0.2]]))).all()
    assert np.isnan(interval_over_seeds_and_tasks(DataFrame([[0.1, 0.2]]))).all()


def test_a_difference_is_told_with_its_interval_whatever_its_sign() -> None:
    row = {"network": "anew-4", "against": "thin-32", "repetitions": 5}
    above = describe_pair({**row, "difference": 0.019, "low": 0.008, "high": 0.03}, "accuracy")
    assert above == "anew-4 is 1.9 points above thin-32 (95 %: 0.8 to 3.0, 5 seeds)"
    below = describe_pair({**row, "difference": -0.019, "low": -0.04, "high": 0.002}, "accuracy")
    assert below == "anew-4 is 1.9 points below thin-32 (95 %: -0.2 to 4.0, 5 seeds)"
    once = {**row, "repetitions": 1, "difference": 0.01, "low": np.nan, "high": np.nan}
    assert (
        describe_pair(once, "accuracy")
        == "anew-4 is 1.0 points above thin-32 (1 seed: no interval)"
    )
    assert "no seed and task in common" in describe_pair({**row, "repetitions": 0}, "accuracy")
