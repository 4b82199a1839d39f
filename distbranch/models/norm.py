"""Batch normalisation over groups of images whose size is a setting and not a result of how many ranks share the work.

A group that lies in one pass of one rank is normalised by itself ("ghost batch normalisation", Hoffer et al. 2017). Of a group
that is spread over neighbouring ranks, the statistics are summed over them, with one message for all branches of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

MOMENTUM = 0.1  # of the running statistics: torch's


@dataclass(frozen=True)
class NormGroups:
    """The groups to which the images of one pass belong, in the order of the images.

    sizes: how many of this rank's images are of each group; 0 where only neighbouring ranks have some.
    sum_over_team: adds a tensor in place over the ranks that share these groups; None if no other rank has part in them.
    """

    sizes: tuple[int, ...]
    sum_over_team: Callable[[Tensor], Tensor] | None = None

    @property
    def are_whole(self) -> bool:
        """Whether every group lies on this rank, with the two images that a variance needs."""
        return self.sum_over_team is None and all(size > 1 for size in self.sizes)


class BatchNorm(_BatchNorm):
    """Batch normalisation of [B, C] or [B, C, h, w]; without `NormGroups` that of torch.

    With groups the running statistics stay as they are: `step_sums` [2, C] gathers mean and unbiased variance of every group,
    times its images on this rank, until `update_running_statistics` is given the sums of all ranks.
    """

    step_sums: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps, momentum=MOMENTUM)
        self.register_buffer("step_sums", torch.zeros(2, num_features), persistent=False)

    def forward(self, x: Tensor, groups: NormGroups | None = None, *, num_ways: int = 1) -> Tensor:
        """The images [num_ways * B, C, ...], normalised.

        num_ways: how often the images of the pass stand in `x`, one after the other; all of them belong to their group.
        """
        if groups is None or not self.training:
            return super().forward(x)
        if groups.are_whole:
            return _normalise_alone(self, x, groups.sizes, num_ways)
        return normalise_with_team([self], [x], groups, num_ways=num_ways)[0]

    def _check_input_dim(self, input: Tensor) -> None:  # the name is torch's
        if input.ndim not in (2, 4):
            raise ValueError(f"expected [B, C] or [B, C, h, w], found {input.ndim} dimensions")


def update_running_statistics(
    norms: Sequence[BatchNorm], step_sums: Tensor, num_images: Tensor
) -> None:
    """One update for one optimiser step, whatever the number of its groups, from sums over all ranks.

    Norms may differ in momentum.

    step_sums: [sum of 2 * C over the norms], as `take_step_sums` gives them; num_images: of all ranks, scalar.
    """
    running: list[Tensor] = []
    momenta: list[float] = []
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.momentum is not None
        running += [norm.running_mean, norm.running_var]
        momenta += [norm.momentum] * 2
    seen = (step_sums / num_images).to(running[0].dtype)
    parts = torch.split(seen, [len(tensor) for tensor in running])
    for momentum in sorted(set(momenta)):
        alike = [number for number, own in enumerate(momenta) if own == momentum]
        torch._foreach_lerp_(
            [running[number] for number in alike], [parts[number] for number in alike], momentum
        )
    torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], 1)


def take_step_sums(norms: Sequence[BatchNorm]) -> Tensor:
    """What this rank gathered since the last call, float64 [sum of 2 * C over the norms]."""
    sums = [norm.step_sums for norm in norms]
    taken = torch.cat([one.flatten() for one in sums]).double()
    torch._foreach_zero_(sums)
    return taken


# ---- groups of one rank


def _normalise_alone(norm: BatchNorm, x: Tensor, sizes: Sequence[int], num_ways: int) -> Tensor:
    outputs = []
    for size, part in zip(sizes, _split_groups(x, sizes, num_ways), strict=True):
        # With a momentum of 1 what torch calls running statistics are those of the group.
        mean, variance = torch.zeros_like(norm.step_sums).unbind()
        outputs.append(
            functional.batch_norm(
                part,
                mean,
                variance,
                norm.weight,
                norm.bias,
                training=True,
                momentum=1.0,
                eps=norm.eps,
            )
        )
        norm.step_sums.add_(torch.stack([mean, variance]), alpha=size)
    return _join_groups(outputs, num_ways)


def _split_groups(x: Tensor, sizes: Sequence[int], num_ways: int) -> list[Tensor]:
    """The images [num_ways * size, C, ...] of every group."""
    if len(sizes) == 1:
        return [x]
    if num_ways == 1:
        return list(torch.split(x, list(sizes)))
    by_way = torch.unflatten(x, 0, (num_ways, sum(sizes)))
    return [part.flatten(0, 1) for part in torch.split(by_way, list(sizes), dim=1)]


def _join_groups(parts: Sequence[Tensor], num_ways: int) -> Tensor:
    """The inverse of `_split_groups`."""
    if len(parts) == 1:
        return parts[0]
    if num_ways == 1:
        return torch.cat(list(parts))
    by_way = [torch.unflatten(part, 0, (num_ways, len(part) // num_ways)) for part in parts]
    joined = torch.cat(by_way, dim=1).flatten(0, 1)
    return joined.contiguous(memory_format=torch.channels_last) if joined.ndim == 4 else joined


# ---- groups of several ranks


def normalise_with_team(
    norms: Sequence[BatchNorm], inputs: Sequence[Tensor], groups: NormGroups, *, num_ways: int = 1
) -> list[Tensor]:
    """The inputs [num_ways * B, C, ...] of a layer's branches, of groups that several ranks have part in."""
    parts = [part for x in inputs for part in _split_groups(x, groups.sizes, num_ways)]
    weights = [norm.weight for norm in norms]
    biases = [norm.bias for norm in norms]
    call = _TeamCall(groups, len(norms), num_ways, norms[0].eps)
    normalise: Callable[..., tuple[Tensor, ...]] = _TeamNorm.apply
    *outputs, seen = normalise(call, *parts, *weights, *biases)
    positions = inputs[0][0, 0].numel() if len(inputs[0]) else 1
    torch._foreach_add_(
        [norm.step_sums for norm in norms], list(seen.unbind()), alpha=1 / (positions * num_ways)
    )
    count = len(groups.sizes)
    return [
        _join_groups(outputs[first : first + count], num_ways)
        for first in range(0, count * len(norms), count)
    ]


@dataclass(frozen=True)
class _TeamCall:
    """One layer's normalisation: `num_norms` branches, `eps` of their norms."""

    groups: NormGroups
    num_norms: int
    num_ways: int
    eps: float

    def sum_over_team(self, sums: Tensor) -> Tensor:
        """`sums`, added over the ranks that share these groups."""
        return sums if self.groups.sum_over_team is None else self.groups.sum_over_team(sums)


class _TeamNorm(torch.autograd.Function):
    """Normalises parts [b, C, ...] of all groups of all branches, one message in either direction.

    Besides the outputs it gives [d, 2, C], the mean and the unbiased variance of every group times its values on this rank.

    Forward: count, sum and sum of squares of every group (the latter two from the mean and the variance of this rank's part in
    float64, so that nothing cancels). Backward: the sums of the gradient and of its product with the normalised images.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, call: _TeamCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        num_groups, num_norms = len(call.groups.sizes), call.num_norms
        parts = tensors[: num_groups * num_norms]
        weights = tensors[num_groups * num_norms :][:num_norms]
        biases = tensors[num_groups * num_norms :][num_norms:]
        width = len(weights[0])

        sums = torch.empty(
            num_groups, num_norms, 2 * width + 1, dtype=torch.float64, device=weights[0].device
        )
        for number, part in enumerate(parts):
            norm, group = divmod(number, num_groups)
            sums[group, norm] = _count_and_moments(part)
        own_counts = sums[:, :, :1].clone()
        sums = call.sum_over_team(sums)

        counts = sums[:, :, :1].clamp_min(1)
        means = sums[:, :, 1 : width + 1] / counts
        variances = (sums[:, :, width + 1 :] / counts - means.square()).clamp_min(0)
        unbiased = variances * (counts / (counts - 1).clamp_min(1))
        seen = torch.stack(
            [(means * own_counts).sum(dim=0), (unbiased * own_counts).sum(dim=0)], dim=1
        )
        means = means.to(weights[0].dtype)
        variances = variances.to(weights[0].dtype)

        outputs = []
        for number, part in enumerate(parts):
            norm, group = divmod(number, num_groups)
            mean, variance = means[group, norm], variances[group, norm]
            outputs.append(
                functional.batch_norm(
                    part, mean, variance, weights[norm], biases[norm], training=False, eps=call.eps
                )
            )
        ctx.call = call  # type: ignore[attr-defined]
        ctx.save_for_backward(*parts, *weights, means, variances, counts)
        seen = seen.to(weights[0].dtype)
        ctx.mark_non_differentiable(seen)
        return (*outputs, seen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        call: _TeamCall = ctx.call
        num_groups, num_norms = len(call.groups.sizes), call.num_norms
        *saved, means, variances, counts = ctx.saved_tensors
        parts, weights = saved[: num_groups * num_norms], saved[num_groups * num_norms :]
        width = len(weights[0])

        # As with fixed statistics: what reaches the images, and the sums over them, which are the gradients of weight and bias.
        direct = []
        sums = torch.zeros(
            num_groups, num_norms, 2, width, dtype=torch.float64, device=means.device
        )
        for number, part in enumerate(parts):
            norm, group = divmod(number, num_groups)
            if not len(part):  # torch's kernel cannot do nothing
                direct.append(torch.zeros_like(part))
                continue
            gradient, products, plain = torch.ops.aten.native_batch_norm_backward(
                gradients[number].contiguous(memory_format=_layout_of(part)),
                part,
                weights[norm],
                means[group, norm],
                variances[group, norm],
                None,
                None,
                False,
                call.eps,
                [True, True, True],
            )
            direct.append(gradient)
            sums[group, norm] = torch.stack([products, plain])
        own = sums.sum(dim=0).to(weights[0].dtype)

        # What the statistics themselves contribute, over all images of the group on whichever rank.
        sums = call.sum_over_team(sums) / counts.unsqueeze(2)
        inverse = (variances + call.eps).rsqrt()
        scales = torch.stack(list(weights)) * inverse
        slopes = -scales * inverse * sums[:, :, 0].to(scales.dtype)
        shifts = -scales * sums[:, :, 1].to(scales.dtype) - slopes * means
        for number, part in enumerate(parts):
            norm, group = divmod(number, num_groups)
            shape = (1, -1) + (1,) * (part.ndim - 2)
            slope, shift = slopes[group, norm].view(shape), shifts[group, norm].view(shape)
            direct[number].addcmul_(part.to(direct[number].dtype), slope.to(direct[number].dtype))
            direct[number].add_(shift.to(direct[number].dtype))
        return (None, *direct, *own[:, 0].unbind(), *own[:, 1].unbind())


def _count_and_moments(part: Tensor) -> Tensor:
    """[2 * C + 1] in float64: number of values per channel, their sum, and the sum of their squares."""
    values = part.movedim(1, -1).flatten(0, -2)
    values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    count = len(values)
    mean = values.sum(dim=0) / max(1, count)
    squares = (
        (values - mean).square_().sum(dim=0).double()
    )  # about the mean of this part: exact in single precision too
    mean = mean.double()
    return torch.cat([mean.new_full((1,), count), mean * count, squares + mean.square() * count])


def _layout_of(part: Tensor) -> torch.memory_format:
    return torch.channels_last if part.ndim == 4 else torch.contiguous_format
