"""MTAN (Liu et al., CVPR 2019) in the form for residual networks: one network, of which every task attends to its own part.

After every stage a task multiplies the shared features by a mask in 0..1 that it makes of those before the last block and of
what it has attended to so far: a_t = att_t([b; a'_t]) * u. A block per stage, which all tasks share, takes a_t to the next stage.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from distbranch.models.backbone import Backbone
from distbranch.models.baselines.baseline import Baseline, RunUnits
from distbranch.models.norm import NormGroups
from distbranch.models.units import NormedProduct, make_unset

SQUEEZE = 4  # of the channels inside the attention


class Mtan(Baseline):
    """`attentions`, of every stage one per task, and `refiners` between stages."""

    has_columns = False

    def __init__(self, backbone: Backbone, num_tasks: int) -> None:
        super().__init__(backbone, num_tasks)
        self.attentions = nn.ModuleList()
        for stage, width in enumerate(self.widths):
            seen = width if stage == 0 else 2 * width
            attentions = [Attention(seen, width) for _ in range(num_tasks)]
            self.attentions.append(nn.ModuleList(attentions))
        block = backbone.block
        self.refiners = nn.ModuleList(
            block(width, following // block.expansion, 1)
            for width, following in pairwise(self.widths)
        )
        heights = [backbone.specs[units[-1]].features[1] for units in self.stages]
        self.is_halved = [above < height for height, above in pairwise(heights)]

    def forward(
        self, run_units: RunUnits, x: Tensor, groups: NormGroups | None = None
    ) -> list[Tensor]:
        """[B, C, h, w] of every task."""
        features = run_units([x], range(self.stages[0].start))
        refined: list[Tensor] = []
        attended: list[Tensor] = []
        for stage, (units, attentions) in enumerate(zip(self.stages, self.attentions, strict=True)):
            # What is before the last block of the stage, and what that gives.
            features = run_units(features, units[:-1])
            (before,) = features
            features = run_units(features, units[-1:])
            (last,) = features

            assert isinstance(attentions, nn.ModuleList)
            attended = []
            for task, attention in enumerate(attentions):
                seen = torch.cat([before, refined[task]], dim=1) if refined else before
                attended.append(attention(seen, groups) * last)
            if stage < len(self.refiners):
                refined = self._refine(stage, attended, groups)
        return attended

    def _refine(
        self, stage: int, attended: list[Tensor], groups: NormGroups | None
    ) -> list[Tensor]:
        """What tasks attend to, as wide and as large as the features of the next stage; all tasks in one batch."""
        refined = self.refiners[stage](torch.cat(attended), groups, self.num_tasks)
        if self.is_halved[stage]:
            refined = functional.max_pool2d(refined, 2, ceil_mode=True)
        return list(torch.unflatten(refined, 0, (self.num_tasks, -1)).unbind())


class Attention(nn.Module):
    """Two products per position, with batch norm, and a sigmoid."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        inner = max(1, width // SQUEEZE)
        # Biases before batch norm do nothing, but the published network has them.
        self.squeeze = NormedProduct(make_unset(nn.Conv2d, num_inputs, inner, 1), inner)
        self.expand = NormedProduct(make_unset(nn.Conv2d, inner, width, 1), width)

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        """A mask [B, C, h, w] in 0..1."""
        squeezed = functional.relu(self.squeeze(x, groups), inplace=True)
        return torch.sigmoid(self.expand(squeezed, groups))
