"""The sums of the affinity equal the equations, whatever way the samples are divided."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from distbranch.branching.affinity import AffinityStats

DECAY = 0.9


def batches(
    num_tasks: int, *, gaps: bool, num_steps: int = 12, batch_size: int = 12
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Margins with ties (multiples of 1/8), tasks 0 and 1 alike, and some labels missing; the last task appears late."""
    generator = torch.Generator().manual_seed(num_tasks)
    for step in range(num_steps):
        margins = torch.randint(0, 9, (batch_size, num_tasks), generator=generator) / 8
        if num_tasks > 1:
            margins[:, 1] = margins[:, 0]
        observed = torch.rand(batch_size, num_tasks, generator=generator) > 0.3
        observed[:, -1] &= step >= 3
        yield margins, observed if gaps else None


def naive(
    steps: list[tuple[Tensor, Tensor | None]], num_tasks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Section 3 of the algorithm, sample by sample: agreement and phi."""
    total, count = np.zeros(num_tasks), np.zeros(num_tasks)
    agree, pairs, signs = np.zeros((3, num_tasks, num_tasks))
    for margins, observed in steps:
        agree, pairs, signs = DECAY * agree, DECAY * pairs, DECAY * signs
        own_total, own_count = np.zeros(num_tasks), np.zeros(num_tasks)
        for n in range(len(margins)):
            s = np.zeros(num_tasks)
            for i in range(num_tasks):
                if observed is not None and not observed[n, i]:
                    continue
                own_total[i] += float(margins[n, i])
                own_count[i] += 1
                if count[i] > 0:
                    s[i] = 1 if float(margins[n, i]) >= total[i] / count[i] else -1
            for i in range(num_tasks):
                for j in range(num_tasks):
                    agree[i, j] += s[i] * s[j]
                    pairs[i, j] += abs(s[i] * s[j])
                    signs[i, j] += s[i] * abs(s[j])
        total, count = DECAY * total + own_total, DECAY * count + own_count
    agreement, phi = np.full((2, num_tasks, num_tasks), 0.5)
    for i in range(num_tasks):
        for j in range(num_tasks):
            if pairs[i, j]:
                agreement[i, j] = (1 + agree[i, j] / pairs[i, j]) / 2
                mean_i, mean_j = signs[i, j] / pairs[i, j], signs[j, i] / pairs[i, j]
                spread = (1 - mean_i**2) * (1 - mean_j**2)
                if spread > 1e-10:
                    phi[i, j] = (
                        1 + (agree[i, j] / pairs[i, j] - mean_i * mean_j) / np.sqrt(spread)
                    ) / 2
    np.fill_diagonal(agreement, 1)
    np.fill_diagonal(phi, 1)
    return agreement, phi


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("num_tasks", [1, 2, 7])
def test_affinity_equals_the_equations_sample_by_sample(num_tasks: int, gaps: bool) -> None:
    steps = list(batches(num_tasks, gaps=gaps))
    stats = AffinityStats(num_tasks, DECAY)
    for margins, observed in steps:
        stats.update(margins, observed)
    agreement, phi = naive(steps, num_tasks)
    np.testing.assert_allclose(stats.affinity("agreement"), agreement, atol=1e-12)
    np.testing.assert_allclose(stats.affinity("phi"), phi, atol=1e-9)


def test_affinity_of_200_tasks_equals_one_vectorised_reference() -> None:
    stats, steps = (
        AffinityStats(200, DECAY),
        list(batches(200, gaps=False, num_steps=4, batch_size=32)),
    )
    for margins, _ in steps:
        stats.update(margins)
    total, weight, agree = np.zeros(200), 0.0, np.zeros((200, 200))
    for step, (margins, _) in enumerate(steps):
        m = margins.double().numpy()
        if step:
            s = np.where(m >= total / weight, 1.0, -1.0)
            agree = DECAY * agree + s.T @ s
        total, weight = DECAY * total + m.sum(axis=0), DECAY * weight + 32
    pairs = 32 * (1 + DECAY + DECAY**2)
    np.testing.assert_allclose(stats.affinity(), (1 + agree / pairs) / 2, atol=1e-12)


def test_the_first_labelled_batch_of_a_task_only_seeds_its_mean() -> None:
    stats = AffinityStats(2)
    margins = torch.tensor([[0.1, 0.2], [0.9, 0.8]])
    stats.update(margins, torch.tensor([[True, False], [True, False]]))
    stats.update(margins, None)
    assert stats.pairs_never_seen() == [(0, 1)]
    stats.update(margins, None)
    assert stats.pairs_never_seen() == []
    assert stats.affinity()[0, 1] == 1.0


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 4])
def test_shards_with_global_margin_sums_give_the_affinity_of_one_process(
    num_shards: int, gaps: bool
) -> None:
    one, shards = AffinityStats(7, DECAY), [AffinityStats(7, DECAY) for _ in range(num_shards)]
    for margins, observed in batches(7, gaps=gaps):
        one.update(margins, observed)
        parts = list(
            zip(
                margins.chunk(num_shards),
                [None] * num_shards if observed is None else observed.chunk(num_shards),
                strict=True,
            )
        )
        for shard, part in zip(shards, parts, strict=True):
            shard.add_pairs(*part)
        sums = sum(shard.margin_sums(*part) for shard, part in zip(shards, parts, strict=True))
        for shard in shards:
            shard.add_margins(sums)  # type: ignore[arg-type]
    flat = torch.stack([shard.pair_sums() for shard in shards]).sum(dim=0)
    before = {name: value.clone() for name, value in shards[0].state_dict().items()}
    together = shards[0].with_pair_sums(flat)
    for kind in ("agreement", "phi"):
        np.testing.assert_allclose(together.affinity(kind), one.affinity(kind), atol=1e-9, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in shards[0].state_dict().items())


def test_the_sum_of_two_statistics_is_that_of_both_samples() -> None:
    first, second = AffinityStats(5), AffinityStats(5)
    for step, (margins, observed) in enumerate(batches(5, gaps=True)):
        (first if step % 2 else second).update(margins, observed)
    together = first + second
    assert torch.allclose(together.pair_sums(), first.pair_sums() + second.pair_sums(), rtol=1e-15)
    with pytest.raises(ValueError, match="same tasks and decay"):
        first + AffinityStats(6)


def test_statistics_that_were_saved_continue_bit_for_bit() -> None:
    steps = [*batches(6, gaps=False, num_steps=5), *batches(6, gaps=True)]
    straight, first, second = AffinityStats(6), AffinityStats(6), AffinityStats(6)
    for margins, observed in steps:
        straight.update(margins, observed)
    for margins, observed in steps[:9]:
        first.update(margins, observed)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for margins, observed in steps[9:]:
        second.update(margins, observed)
    assert all(
        torch.equal(value, second.state_dict()[name])
        for name, value in straight.state_dict().items()
    )


def test_phi_of_a_task_that_is_always_simple_is_one_half() -> None:
    stats = AffinityStats(3)
    stats.update(torch.tensor([[0.9, 0.5, 0.2], [0.9, 0.5, 0.4]]))
    for _ in range(5):
        stats.update(torch.tensor([[0.1, 0.7, 0.1], [0.1, 0.1, 0.7]]))
    phi = stats.affinity("phi")
    assert phi[0, 1] == phi[0, 2] == 0.5
    assert phi[1, 2] == pytest.approx(0.0)
    assert np.all(np.diag(phi) == 1)
    assert stats.affinity("agreement")[0, 1] == pytest.approx(0.5)


def test_unlabelled_margins_are_never_read() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, poisoned = AffinityStats(4), AffinityStats(4)
    for _ in range(5):
        margins = torch.rand(8, 4, generator=generator)
        observed = torch.rand(8, 4, generator=generator) > 0.4
        plain.update(margins, observed)
        poisoned.update(margins.masked_fill(~observed, float("nan")), observed)
    assert torch.equal(plain.pair_sums(), poisoned.pair_sums())


def test_a_pair_never_labelled_together_is_independent_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stats = AffinityStats(3)
    observed = torch.tensor([[True, True, False], [False, True, True]]).repeat(4, 1)
    for _ in range(3):
        stats.update(torch.rand(8, 3), observed)
    with caplog.at_level(logging.WARNING, logger="distbranch"):
        assert stats.affinity()[0, 2] == 0.5
    assert "1 pairs of tasks were never labelled together" in caplog.text
    with pytest.raises(ValueError, match="nearest are agreement, phi"):
        stats.affinity("cosine")
