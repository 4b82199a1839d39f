"""Sluice networks (Ruder et al., AAAI 2019), carried over to residual networks, for they were made for recurrent ones.

A network per task, whose channels are two halves: after every stage halves of all tasks are mixed, x'_p = sum_q a_pq x_q, and a
head reads a mixture of what the blocks of the last stage give. A penalty keeps the halves of a task different.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distbranch.errors import UserError
from distbranch.models.backbone import Backbone
from distbranch.models.baselines.baseline import Baseline, RunUnits, make_mixing
from distbranch.models.norm import NormGroups
from distbranch.models.units import Block

OWN = 0.9  # of what a half keeps at first; the rest comes from all others in equal parts
PENALTY = 0.1


class Sluice(Baseline):
    """`mixing` [2T, 2T] of every stage, and `choice` [T, blocks of the last stage], whose softmax mixes these."""

    def __init__(self, backbone: Backbone, num_tasks: int) -> None:
        super().__init__(backbone, num_tasks)
        odd = [width for width in self.widths if width % 2]
        if odd:
            raise UserError(
                f"method.name=sluice halves the channels of every stage, so that model.width should be even, found {odd[0]}."
            )
        self.mixing = nn.ParameterList(
            make_mixing(2 * num_tasks, 2 * num_tasks) for _ in self.stages
        )
        self.choice = make_mixing(num_tasks, len(self.stages[-1]))

    def reset(self) -> None:
        """Most of the own half, a little of all others; all blocks alike."""
        for matrix in self.mixing:
            matrix.fill_((1 - OWN) / (2 * self.num_tasks - 1))
            matrix.fill_diagonal_(OWN)
        self.choice.zero_()

    def list_mixing(self) -> list[nn.Parameter]:
        """All matrices and the choice."""
        return [*self.mixing, self.choice]

    def penalise(self, blocks: Sequence[Sequence[Block]]) -> Tensor:
        """How far the filters of the two halves are from orthogonal, in the last convolution of every stage and task."""
        total = self.choice.new_zeros(())
        for stage in blocks:
            for block in stage:
                one, other = block.last_convolution.weight.flatten(1).chunk(2)
                total = total + (one @ other.T).square().sum()
        return PENALTY * total

    def forward(
        self,
        run_units: RunUnits,
        x: Tensor,
        groups: NormGroups | None = None,  # noqa: ARG002
    ) -> list[Tensor]:
        """[B, C, h, w] of every task."""
        features = run_units([x], range(self.stages[0].start))
        *stages, last = self.stages
        for units, matrix in zip(stages, self.mixing[:-1], strict=True):
            features = _mix(run_units(features, units), matrix)
        answers = []
        for unit in last:
            features = run_units(features, [unit])
            if unit == last[-1]:
                features = _mix(features, self.mixing[-1])
            answers.append(torch.stack(features))
        shares = torch.softmax(self.choice, dim=1)
        return list(torch.einsum("tl,ltbchw->tbchw", shares, torch.stack(answers)).unbind())


def _mix(features: Sequence[Tensor], matrix: Tensor) -> list[Tensor]:
    halves = torch.stack([half for x in features for half in x.chunk(2, dim=1)])
    mixed = torch.einsum("pq,qbchw->pbchw", matrix, halves).unbind()
    pairs = zip(mixed[::2], mixed[1::2], strict=True)
    return [torch.cat(pair, dim=1) for pair in pairs]
