"""The course of AdaShare's search, step by step."""

import pytest

from distbranch.adashare.policy import Curriculum

CURRICULUM = Curriculum(warmup=10, weight_steps=4, policy_steps=1, num_blocks=8, speed=3)


def test_weights_and_policy_take_turns_after_the_warm_up() -> None:
    phases = [CURRICULUM.phase(step) for step in range(20)]
    assert phases == ["warm-up"] * 10 + (["weights"] * 4 + ["policy"]) * 2


def test_one_more_block_is_released_every_three_cycles_until_all_are() -> None:
    released = [CURRICULUM.num_released(10 + 5 * cycle) for cycle in range(30)]
    assert released == [min(8, cycle // 3 + 1) for cycle in range(30)]
    assert CURRICULUM.num_released(9) == 0
    assert [CURRICULUM.num_released(CURRICULUM.first_step_with_all + shift) for shift in (-1, 0)] == [7, 8]
    at_once = Curriculum(0, 4, 1, 8, speed=1)
    assert [at_once.num_released(5 * cycle) for cycle in range(10)] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


def test_it_cools_by_3_5_percent_per_completed_cycle() -> None:
    assert CURRICULUM.temperature(0) == CURRICULUM.temperature(14) == 5
    assert CURRICULUM.temperature(15) == pytest.approx(5 * 0.965)
    assert CURRICULUM.temperature(10 + 5 * 20) == pytest.approx(5 * 0.965**20)
