"""Gradient cosine: tasks are alike whose losses pull the weights they share in the same direction (Du et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distbranch.branching.grouping import Matrix
from distbranch.engine.affinities.kind import MEASURED, MeasuredKind, Sums
from distbranch.maps import AnyLabels
from distbranch.models.network import Network


def sum_cosines(
    network: Network, units: Sequence[int], images: Tensor, labels: AnyLabels
) -> dict[str, Tensor]:
    """The cosine of the gradients of every two tasks, and 1 where both have one: [T, T]."""
    gradients = compute_task_gradients(network, units, images, labels)
    directions = functional.normalize(gradients, dim=1)
    has_gradient = gradients.any(dim=1).double()
    return {
        "cosines": (directions @ directions.T).double(),
        "chunks": torch.outer(has_gradient, has_gradient),
    }


def compute_gradient_cosine(sums: Sums) -> Matrix:
    """(1 + c) / 2 with the mean cosine c over the chunks in which both tasks have a gradient; 0.5 if there is none."""
    mean = sums["cosines"] / np.maximum(sums["chunks"], 1)
    affinity: Matrix = ((1 + mean) / 2).clip(0.0, 1.0)
    return affinity


MEASURED.register("gradient-cosine")(MeasuredKind(sum_cosines, compute_gradient_cosine))


def list_weights(network: Network, units: Sequence[int]) -> dict[str, nn.Parameter]:
    """The parameters of these units, by their names in the network."""
    prefixes = tuple(f"units.{network.routing.units[unit]}." for unit in units)
    return {name: one for name, one in network.named_parameters() if name.startswith(prefixes)}


def compute_task_gradients(
    network: Network, units: Sequence[int], images: Tensor, labels: AnyLabels
) -> Tensor:
    """Of every task the gradient of the sum of its losses in all weights of these units, [T, W]: a backward pass per task."""
    weights = list(list_weights(network, units).values())
    outputs = network(images, flat=True)
    losses = network.tasks.compute_losses(outputs, labels).sum(dim=0)
    rows = []
    for task, loss in enumerate(losses):
        is_last = task == len(losses) - 1
        gradients = torch.autograd.grad(
            loss, weights, retain_graph=not is_last, materialize_grads=True
        )
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)
