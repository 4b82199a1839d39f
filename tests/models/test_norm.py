"""Batch normalisation over groups: of one rank it is torch's, of several ranks that of one rank that had all their images."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from distbranch.models.norm import (
    BatchNorm,
    NormGroups,
    normalise_with_team,
    take_step_sums,
    update_running_statistics,
)

SHAPES = [(12, 5, 4, 3), (12, 7)]


def norms_of(width: int, count: int = 2) -> list[BatchNorm]:
    generator = torch.Generator().manual_seed(width)
    norms = [BatchNorm(width).double() for _ in range(count)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 2, generator=generator)
        norm.bias.data.uniform_(-1, 1, generator=generator)
    return norms


def inputs_of(shape: Sequence[int], count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(shape[1])
    images = [
        torch.randn(shape, dtype=torch.double, generator=generator) + 3 * number
        for number in range(count)
    ]
    return [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in images]


def results_of(
    run: Callable[[list[Tensor]], list[Tensor]], norms: Sequence[BatchNorm], images: list[Tensor]
) -> list[Tensor]:
    """Outputs, gradients of inputs, weights and biases, and what was gathered for the running statistics."""
    images = [x.clone().requires_grad_() for x in images]
    outputs = run(images)
    loss = sum(
        ((y * torch.arange(y.numel()).view(y.shape).cos()).sum() for y in outputs),
        torch.zeros(()).double(),
    )
    parameters = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
    gradients = torch.autograd.grad(loss, [*images, *parameters])
    return [*(y.detach() for y in outputs), *gradients, take_step_sums(norms)]


def assert_alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", [(12,), (4, 8), (3, 3, 6)])
def test_sums_over_a_team_give_what_torch_gives_for_each_group(
    sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    norms, images = norms_of(shape[1]), inputs_of(shape)
    alone, team = NormGroups(sizes), NormGroups(sizes, lambda sums: sums)
    expected = results_of(
        lambda xs: [norm(x, alone) for norm, x in zip(norms, xs, strict=True)], norms, images
    )
    found = results_of(lambda xs: normalise_with_team(norms, xs, team), norms, images)
    assert_alike(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("add", [None, lambda sums: sums])
def test_images_that_stand_in_a_pass_several_times_belong_to_their_group_each_time(
    add: Callable[[Tensor], Tensor] | None, shape: tuple[int, ...]
) -> None:
    norms, images = norms_of(shape[1], 1), inputs_of(shape, 1)
    first, second = (
        [0, 1, 6, 7],
        [2, 3, 4, 5, 8, 9, 10, 11],
    )  # six images twice: two of one group, four of the other

    def one_by_one(xs: list[Tensor]) -> list[Tensor]:
        parts = [norms[0](xs[0][rows], NormGroups((len(rows),))) for rows in (first, second)]
        return [torch.cat(parts)[torch.tensor([*first, *second]).argsort()]]

    expected = results_of(one_by_one, norms, images)
    expected[-1] = expected[-1] / 2  # every image counts once
    found = results_of(
        lambda xs: [norms[0](xs[0], NormGroups((2, 4), add), num_ways=2)], norms, images
    )
    assert_alike(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_team_that_lacks_images_normalises_those_that_it_has(shape: tuple[int, ...]) -> None:
    norms, images = norms_of(shape[1]), inputs_of(shape)
    groups = NormGroups((0, 11, 1), lambda sums: sums)
    outputs, *_, gathered = results_of(
        lambda xs: normalise_with_team(norms, xs, groups), norms, images
    )
    assert outputs.isfinite().all()
    assert gathered.isfinite().all()
    if len(shape) == 2:  # one image has no variance: what is left is the bias
        torch.testing.assert_close(outputs[11], norms[0].bias.data)
    nothing = [x[:0] for x in images]
    for value in results_of(
        lambda xs: normalise_with_team(norms, xs, NormGroups((0,), lambda sums: sums)),
        norms,
        nothing,
    ):
        assert not value.any()


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4)])
def test_running_statistics_move_once_per_step_towards_the_mean_over_the_groups(
    sizes: tuple[int, ...],
) -> None:
    norms, images = norms_of(5), inputs_of(SHAPES[0])
    groups = NormGroups(sizes)
    for norm, x in zip(norms, images, strict=True):
        norm(x, groups)
    update_running_statistics(norms, take_step_sums(norms), torch.tensor(12.0))
    for norm, x in zip(norms, images, strict=True):
        parts = x.split(list(sizes))
        mean = torch.stack([part.mean(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
        variance = torch.stack([part.var(dim=(0, 2, 3)) for part in parts]).mean(dim=0)
        torch.testing.assert_close(norm.running_mean, 0.1 * mean)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance)
        assert norm.num_batches_tracked == 1
        assert not norm.step_sums.any()


def test_large_means_cost_a_team_no_precision_in_single_precision() -> None:
    norm = BatchNorm(3)
    x = 100 + 0.1 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    found = norm(x, NormGroups((64,), lambda sums: sums))
    expected = (x.double() - x.double().mean(dim=0)) / (
        x.double().var(dim=0, unbiased=False) + norm.eps
    ).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)
