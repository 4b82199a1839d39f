"""Heads of dense tasks: from the features that serve a task to the map of its outputs, at the stride of the network.

The published head, `aspp`, outweighs a ResNet-34 (23.1 M weights of 21.3 M), so `light` is what a network has unless it is asked
for. Dropout, which `aspp` was published with, is off as everywhere: ranks compute the same, and a resumed run too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from distbranch.errors import UserError
from distbranch.models.backbone import Cost
from distbranch.models.norm import NormGroups
from distbranch.models.units import NormedProduct, make_convolution, make_unset

ASPP_RATES = (6, 12, 18, 24)  # dilations of DeepLab's "large field of view" (Chen et al. 2018)
HEAD_WIDTHS = {"light": 64, "aspp": 1024}  # the second one is the published one


@dataclass(frozen=True)
class HeadPlan:
    """How the heads of dense tasks are made: one of `HEAD_WIDTHS`, and its channels inside."""

    name: str = "light"
    width: int = HEAD_WIDTHS["light"]

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise UserError(
                f"The head of dense tasks should be one of {', '.join(HEADS)}, found {self.name!r}."
            )

    def build(self, num_inputs: int, num_outputs: int) -> nn.Module:
        """A head from features [B, C, h, w] and groups (see `Unit`) to outputs [B, K, h, w]."""
        return HEADS[self.name](num_inputs, self.width, num_outputs)

    def measure(self, features: tuple[int, ...], num_outputs: int) -> Cost:
        """What a head costs over features of this shape [C, h, w]."""
        return _measure_head(self, features, num_outputs)


class LightHead(nn.Module):
    """A convolution 3x3 of dilation 2 with batch norm, and a product per position."""

    def __init__(self, num_inputs: int, width: int, num_outputs: int) -> None:
        super().__init__()
        self.hidden = NormedProduct(make_convolution(num_inputs, width, 3, dilation=2), width)
        self.output = _make_output(width, num_outputs)

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        """[B, C, h, w] to [B, K, h, w]."""
        return _multiply(self.output, functional.relu(self.hidden(x, groups), inplace=True))


class AsppHead(nn.Module):
    """The sum of four small networks that look at neighbourhoods of different sizes; without batch norm."""

    def __init__(self, num_inputs: int, width: int, num_outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _AsppBranch(num_inputs, width, num_outputs, rate) for rate in ASPP_RATES
        )

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:  # noqa: ARG002
        """[B, C, h, w] to [B, K, h, w]."""
        total: Tensor = sum(branch(x) for branch in self.branches)
        return total


class _AsppBranch(nn.Module):
    def __init__(self, num_inputs: int, width: int, num_outputs: int, rate: int) -> None:
        super().__init__()
        self.first: nn.Module = make_unset(
            nn.Conv2d, num_inputs, width, 3, padding=rate, dilation=rate
        )
        self.second: nn.Module = make_unset(nn.Conv2d, width, width, 1)
        self.output = _make_output(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x), inplace=True)
        x = functional.relu(self.second(x), inplace=True)
        return _multiply(self.output, x)


# By the names that a configuration has for them.
HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {"light": LightHead, "aspp": AsppHead}
DEFAULT_HEADS = HeadPlan()


def is_output(name: str) -> bool:
    """Whether the module of this name in a network gives outputs, behind which comes no ReLU."""
    return name.startswith("dense_heads.") and name.endswith(".output")


def _make_output(width: int, num_outputs: int) -> nn.Conv2d:
    output: nn.Conv2d = make_unset(nn.Conv2d, width, num_outputs, 1)
    return output


def _multiply(output: nn.Conv2d, x: Tensor) -> Tensor:
    """In the precision of the weights whatever the autocast: in bf16 a depth of 4 m would be told to 3 cm."""
    with torch.autocast(output.weight.device.type, enabled=False):
        product: Tensor = output(x.to(output.weight.dtype))
    return product


@cache
def _measure_head(plan: HeadPlan, features: tuple[int, ...], num_outputs: int) -> Cost:
    channels, height, length = features
    with torch.device("meta"):
        parameters = list(plan.build(channels, num_outputs).parameters())
    weights = sum(one.numel() for one in parameters if one.ndim > 1)
    # Every weight is applied at every position.
    return Cost(weights, sum(one.numel() for one in parameters), weights * height * length)
