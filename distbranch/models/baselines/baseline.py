"""What a baseline must bring: the way from an image to the features of every task, over the stages of a residual network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from distbranch.errors import UserError
from distbranch.models.backbone import Backbone, Cost, count_cost
from distbranch.models.norm import NormGroups
from distbranch.models.units import Block

# Runs some units, by their numbers, over the features of their copies.
RunUnits = Callable[[Sequence[Tensor], Sequence[int]], list[Tensor]]


class Baseline(nn.Module, ABC):
    """What a network has beside its units and heads; its parameters are `baseline.<rest>`.

    Args:
        backbone: a residual network.
        num_tasks: two or more.
    """

    has_columns: ClassVar[bool] = True
    """Whether every task has units of its own; else all share them."""
    decays: ClassVar[bool] = False
    """Whether weight decay falls on the mixing weights."""

    def __init__(self, backbone: Backbone, num_tasks: int) -> None:
        super().__init__()
        self.stages = backbone.stages
        if not self.stages:
            raise UserError(
                f"What mixes tasks stage by stage needs a ResNet (resnet18, resnet34, resnet50), found {backbone.source}."
            )
        if num_tasks < 2:
            raise UserError("What mixes tasks needs at least two of them, found one.")
        self.num_tasks = num_tasks
        self.widths = [backbone.plans[units[-1]].width for units in self.stages]

    @abstractmethod
    def forward(
        self, run_units: RunUnits, x: Tensor, groups: NormGroups | None = None
    ) -> list[Tensor]:
        """The features [B, C, h, w] that the head of every task reads, of images [B, 3, H, W]."""

    def reset(self) -> None:
        """Set mixing weights to what they begin with; all others were drawn as everywhere."""

    def list_mixing(self) -> list[nn.Parameter]:
        """The weights that mix tasks, which have a learning rate of their own."""
        return []

    def penalise(self, blocks: Sequence[Sequence[Block]]) -> Tensor | None:  # noqa: ARG002
        """What is added to the losses, if anything; `blocks`: the last one of every stage, a copy per task."""
        return None


def make_mixing(*shape: int) -> nn.Parameter:
    """Mixing weights that are not set yet."""
    return nn.Parameter(torch.empty(*shape))


def measure_baseline(baseline: Baseline, backbone: Backbone) -> Cost:
    """What it costs beside units and heads; it is on the device `meta`."""
    from torch.utils.flop_counter import FlopCounterMode  # loads triton where there is one

    specs = backbone.specs
    num_copies = baseline.num_tasks if baseline.has_columns else 1

    def run_units(_: Sequence[Tensor], units: Sequence[int]) -> list[Tensor]:
        shape = specs[units[-1]].features
        return [torch.zeros(1, *shape, device="meta") for _ in range(num_copies)]

    with FlopCounterMode(display=False) as counter:
        baseline.eval()(run_units, torch.zeros(1, 3, *backbone.image_size, device="meta"))
    return count_cost(baseline, counter.get_total_flops())
