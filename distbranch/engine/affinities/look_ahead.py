"""Look-ahead: tasks are alike whose losses fall when shared weights take a step for the other (TAG, Fifty et al. 2021, Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from distbranch.branching.grouping import Matrix
from distbranch.engine.affinities.gradient_cosine import compute_task_gradients, list_weights
from distbranch.engine.affinities.kind import MEASURED, MeasuredKind, Sums
from distbranch.maps import AnyLabels
from distbranch.models.network import Network

# How long a step is, as a share of the weights' length. All tasks take the same: the rates of a configuration are made for its
# optimiser, at the end of a schedule they are 0, and with a plain gradient step no task of small loss would ever help another.
STEP = 0.01


def sum_look_ahead(
    network: Network, units: Sequence[int], images: Tensor, labels: AnyLabels
) -> dict[str, Tensor]:
    """The losses of all tasks as they stand [T], and in row i after a step for task i [T, T]."""
    weights = list_weights(network, units)
    gradients = compute_task_gradients(network, units, images, labels)
    with torch.no_grad():
        length = torch.cat([weight.flatten() for weight in weights.values()]).norm()
        steps = STEP * length * functional.normalize(gradients, dim=1)
        before = _sum_losses(network, {}, images, labels)
        after = []
        for step in steps:
            parts = step.split([weight.numel() for weight in weights.values()])
            pairs = zip(weights.items(), parts, strict=True)
            moved = {name: weight - part.view_as(weight) for (name, weight), part in pairs}
            after.append(_sum_losses(network, moved, images, labels))
    return {"before": before, "after": torch.stack(after)}


def compute_look_ahead(sums: Sums) -> Matrix:
    """The logistic function of Z_ij = 1 - L_j after / L_j before, the mean of both directions, in units of its median size.

    0.5 is a step that changes nothing, and the order of pairs stays. Z has no lower bound, so one task whose loss is nearly 0
    would make all others pale beside the mean of squares.
    """
    before = np.maximum(sums["before"], np.finfo(np.float64).tiny)
    gain = np.where(sums["before"] > 0, 1 - sums["after"] / before, 0.0)
    mutual = (gain + gain.T) / 2
    pairs = np.triu_indices(len(mutual), 1)
    scale = np.median(np.abs(mutual[pairs])) if len(mutual) > 1 else 0.0
    in_units = np.divide(mutual, scale, out=np.zeros_like(mutual), where=scale > 0)
    affinity: Matrix = (
        1 + np.tanh(in_units / 2)
    ) / 2  # the logistic function, which cannot overflow
    return affinity


MEASURED.register("look-ahead")(MeasuredKind(sum_look_ahead, compute_look_ahead))


def _sum_losses(
    network: Network, weights: dict[str, Tensor], images: Tensor, labels: AnyLabels
) -> Tensor:
    """The sum over the chunk of the losses of every task [T], with these weights in place of the network's."""
    outputs = functional_call(network, weights, (images,), {"flat": True})
    return network.tasks.compute_losses(outputs, labels).sum(dim=0, dtype=torch.float64)
