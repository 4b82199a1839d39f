"""Cross-stitch networks (Misra et al., CVPR 2016): a network per task, whose features are mixed after every stage.

A matrix per channel says how much of whom: x'_t = sum_u A_tu x_u. It begins near the identity; from all ones, as in a public
program, features grow T-fold with every stage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distbranch.models.backbone import Backbone
from distbranch.models.baselines.baseline import Baseline, RunUnits, make_mixing
from distbranch.models.norm import NormGroups

OWN = 0.9  # of what a task keeps at first; the rest comes from the others in equal parts


class CrossStitch(Baseline):
    """`mixing` [C, T, T] of every stage."""

    def __init__(self, backbone: Backbone, num_tasks: int) -> None:
        super().__init__(backbone, num_tasks)
        self.mixing = nn.ParameterList(
            make_mixing(width, num_tasks, num_tasks) for width in self.widths
        )

    def reset(self) -> None:
        """Most of the own features, a little of the others'."""
        for matrix in self.mixing:
            matrix.fill_((1 - OWN) / (self.num_tasks - 1))
            matrix.diagonal(dim1=1, dim2=2).fill_(OWN)

    def list_mixing(self) -> list[nn.Parameter]:
        """All matrices."""
        return list(self.mixing)

    def forward(
        self,
        run_units: RunUnits,
        x: Tensor,
        groups: NormGroups | None = None,  # noqa: ARG002
    ) -> list[Tensor]:
        """[B, C, h, w] of every task."""
        features = run_units([x], range(self.stages[0].start))
        for units, matrix in zip(self.stages, self.mixing, strict=True):
            stacked = torch.stack(run_units(features, units))
            features = list(torch.einsum("ctu,ubchw->tbchw", matrix, stacked).unbind())
        return features
