"""The policy of AdaShare: what is drawn from it, its two losses against loops that follow the equations, and its curriculum."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distbranch.adashare.policy import (
    Curriculum,
    compute_execute_probabilities,
    compute_sharing_loss,
    compute_sparsity_loss,
    get_default_loss_weights,
    sample_gumbel_noise,
    sample_policy,
    sample_soft_decisions,
)


def some_logits(num_tasks: int = 3, num_blocks: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        num_tasks, num_blocks, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_noise_is_that_of_a_standard_gumbel_and_belongs_to_seed_and_step() -> None:
    noise = sample_gumbel_noise(100, 1000, seed=3, step=7)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert torch.equal(noise, sample_gumbel_noise(100, 1000, seed=3, step=7))
    for seed, step in [(3, 8), (4, 7), (7, 3)]:
        assert not torch.equal(noise[:2, :2], sample_gumbel_noise(2, 2, seed=seed, step=step))


def test_cold_decisions_execute_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([math.log(0.7), math.log(0.3)]).repeat(50, 400, 1)
    drawn = sample_soft_decisions(
        logits, sample_gumbel_noise(50, 400, seed=0, step=0), temperature=1e-4, num_released=400
    )
    assert torch.allclose(drawn.sum(dim=2), torch.ones(50, 400))
    assert drawn[:, :, 0].mean().item() == pytest.approx(0.7, abs=0.01)
    warm = sample_soft_decisions(
        logits, sample_gumbel_noise(50, 400, seed=0, step=0), temperature=1e4, num_released=400
    )
    assert (warm - 0.5).abs().max() < 0.01


def test_decisions_are_of_the_last_blocks_and_pass_no_gradient_to_others() -> None:
    logits, noise = some_logits().requires_grad_(), sample_gumbel_noise(3, 8, seed=0, step=0)
    drawn = sample_soft_decisions(logits, noise, temperature=5, num_released=3)
    assert torch.equal(drawn, ((logits + noise) / 5).softmax(dim=2)[:, 5:])
    drawn[:, :, 0].sum().backward()
    assert logits.grad is not None
    assert not logits.grad[:, :5].any()
    assert logits.grad[:, 5:].all()
    assert sample_soft_decisions(logits, noise, temperature=5, num_released=0).shape == (3, 0, 2)


@pytest.mark.parametrize("num_released", [1, 3, 8])
def test_sparsity_is_the_sum_over_tasks_of_the_mean_over_released_blocks(num_released: int) -> None:
    logits = some_logits()
    expected = 0.0
    for task in range(3):
        costs = [
            math.log(1 + math.exp(execute - skip))
            for execute, skip in logits[task, 8 - num_released :].tolist()
        ]  # -log p(skip)
        expected += sum(costs) / num_released
    assert compute_sparsity_loss(logits, num_released=num_released).item() == pytest.approx(
        expected
    )
    assert compute_sparsity_loss(logits, num_released=0).item() == 0


def test_sharing_compares_every_pair_of_tasks_with_the_weights_of_its_preset() -> None:
    logits = some_logits(num_tasks=4, num_blocks=5)
    paper = experiments = 0.0
    for (one, other), block in itertools.product(itertools.combinations(range(4), 2), range(5)):
        p, q = (
            1 / (1 + math.exp(skip - execute))
            for execute, skip in logits[[one, other], block].tolist()
        )
        paper += (5 - block) / 5 * abs(p - q)
        experiments += (block + 1) / 5 * abs(float(logits[one, block, 0] - logits[other, block, 0]))
    assert compute_sharing_loss(logits, preset="paper").item() == pytest.approx(paper)
    assert compute_sharing_loss(logits, preset="experiments").item() == pytest.approx(experiments)


def test_a_single_task_shares_with_nobody_at_no_cost() -> None:
    assert compute_sharing_loss(some_logits(num_tasks=1), preset="paper").item() == 0


def test_sampled_policies_follow_the_probabilities_and_are_numbered() -> None:
    logits = some_logits(num_tasks=2, num_blocks=4)
    probabilities = compute_execute_probabilities(logits).numpy()
    assert probabilities[1, 2] == pytest.approx(
        1 / (1 + math.exp(float(logits[1, 2, 1] - logits[1, 2, 0])))
    )
    many = np.stack([sample_policy(probabilities, number=number) for number in range(4000)])
    assert np.abs(many.mean(axis=0) - probabilities).max() < 0.03
    assert np.array_equal(many[17], sample_policy(probabilities, number=17))
    sure = np.array([[0.0, 1.0]])
    assert sample_policy(sure, number=0).tolist() == [[False, True]]


def test_loss_weights_are_those_of_the_published_experiments() -> None:
    assert [get_default_loss_weights(num_tasks) for num_tasks in (2, 3, 5)] == [
        (0.05, 0.05),
        (0.001, 0.05),
        (0.001, 0.005),
    ]


# ---- the curriculum of a search, step by step

CURRICULUM = Curriculum(warmup=10, weight_steps=4, policy_steps=1, num_blocks=8, speed=3)


def test_weights_and_policy_take_turns_after_the_warm_up() -> None:
    phases = [CURRICULUM.phase(step) for step in range(20)]
    assert phases == ["warm-up"] * 10 + (["weights"] * 4 + ["policy"]) * 2


def test_one_more_block_is_released_every_three_cycles_until_all_are() -> None:
    released = [CURRICULUM.num_released(10 + 5 * cycle) for cycle in range(30)]
    assert released == [min(8, cycle // 3 + 1) for cycle in range(30)]
    assert CURRICULUM.num_released(9) == 0
    assert [
        CURRICULUM.num_released(CURRICULUM.first_step_with_all + shift) for shift in (-1, 0)
    ] == [7, 8]
    at_once = Curriculum(0, 4, 1, 8, speed=1)
    assert [at_once.num_released(5 * cycle) for cycle in range(10)] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        8,
        8,
    ]


def test_it_cools_by_3_5_percent_per_completed_cycle() -> None:
    assert CURRICULUM.temperature(0) == CURRICULUM.temperature(14) == 5
    assert CURRICULUM.temperature(15) == pytest.approx(5 * 0.965)
    assert CURRICULUM.temperature(10 + 5 * 20) == pytest.approx(5 * 0.965**20)


def test_it_cools_as_fast_as_is_said() -> None:
    fast = replace(CURRICULUM, cooling=0.5)
    assert [fast.temperature(10 + 5 * cycle) for cycle in range(4)] == [5, 2.5, 1.25, 0.625]
