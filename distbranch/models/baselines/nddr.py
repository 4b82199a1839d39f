"""NDDR-CNN (Gao et al., CVPR 2019): a network per task, whose features are joined and reduced after every stage.

x'_t = ReLU(BN(W_t [x_1; ...; x_T])) with a product 1x1, which begins as 0.9 of the own features and 0.1 of everybody else's.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from distbranch.models.backbone import Backbone
from distbranch.models.baselines.baseline import Baseline, RunUnits
from distbranch.models.norm import NormGroups
from distbranch.models.units import NormedProduct, make_convolution

OWN, OTHERS = 0.9, 0.1  # not divided by the number of others: the published program
MOMENTUM = 0.05  # of its batch norms


class Nddr(Baseline):
    """`reductions`, of every stage one per task."""

    decays = True  # part of the method

    def __init__(self, backbone: Backbone, num_tasks: int) -> None:
        super().__init__(backbone, num_tasks)
        self.reductions = nn.ModuleList()
        for width in self.widths:
            layers = [
                NormedProduct(make_convolution(num_tasks * width, width, 1), width)
                for _ in range(num_tasks)
            ]
            for layer in layers:
                layer.norm.momentum = MOMENTUM
            self.reductions.append(nn.ModuleList(layers))

    def reset(self) -> None:
        """Nearly the identity."""
        for layers, width in zip(self._list_layers(), self.widths, strict=True):
            for task, layer in enumerate(layers):
                shares = torch.full((self.num_tasks,), OTHERS)
                shares[task] = OWN
                weight = torch.cat([share * torch.eye(width) for share in shares], dim=1)
                cast(Tensor, layer.product.weight).copy_(weight[:, :, None, None])

    def list_mixing(self) -> list[nn.Parameter]:
        """The weights of all reductions; their batch norms learn as others do."""
        layers = [layer for stage in self._list_layers() for layer in stage]
        return [cast(nn.Parameter, layer.product.weight) for layer in layers]

    def _list_layers(self) -> list[list[NormedProduct]]:
        return [
            cast(list[NormedProduct], list(cast(nn.ModuleList, one))) for one in self.reductions
        ]

    def forward(
        self, run_units: RunUnits, x: Tensor, groups: NormGroups | None = None
    ) -> list[Tensor]:
        """[B, C, h, w] of every task."""
        features = run_units([x], range(self.stages[0].start))
        for units, layers in zip(self.stages, self._list_layers(), strict=True):
            joined = torch.cat(run_units(features, units), dim=1)
            features = [functional.relu(layer(joined, groups), inplace=True) for layer in layers]
        return features
