"""Which outputs each branch serves, and the heads over several branches: one matrix product per branch.

A product and a sum over all outputs would hold [B, O, F] values: 541 MiB for 1,050 outputs where this takes 17.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Serving(nn.Module):
    """Applies heads to the features of the branches; it has no weights of its own.

    Args:
        branch_of_output: of every output, the number of the branch that serves it [O].
    """

    order: Tensor | None
    place: Tensor | None

    def __init__(self, branch_of_output: Sequence[int]) -> None:
        super().__init__()
        order = sorted(range(len(branch_of_output)), key=branch_of_output.__getitem__)  # outputs, branch by branch
        self.sizes = [branch_of_output.count(branch) for branch in range(max(branch_of_output) + 1)]
        is_sorted = order == list(range(len(order)))  # then nothing has to be moved
        place = sorted(order, key=order.__getitem__)
        self.register_buffer("order", None if is_sorted else torch.tensor(order), persistent=False)
        self.register_buffer("place", None if is_sorted else torch.tensor(place), persistent=False)

    def forward(self, heads: nn.Linear, features: Sequence[Tensor]) -> Tensor:
        """[B, O] from the features [B, F] of every branch, in the precision of the heads whatever the autocast."""
        with torch.autocast(heads.weight.device.type, enabled=False):
            weight = heads.weight if self.order is None else heads.weight[self.order]
            parts = torch.split(weight, self.sizes)
            products = [x.to(part.dtype) @ part.t() for x, part in zip(features, parts, strict=True)]
            outputs = torch.cat(products, dim=1)
            outputs = outputs if self.place is None else outputs[:, self.place]
            return outputs + heads.bias
