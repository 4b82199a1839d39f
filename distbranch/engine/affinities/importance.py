"""Importance: how much every channel matters to every task (branching/importance.py), after pooling and ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from distbranch.branching.grouping import Matrix
from distbranch.branching.importance import choose_layers, compute_importance_affinity
from distbranch.engine.affinities.kind import MEASURED, MeasuredKind, Sums
from distbranch.maps import AnyLabels
from distbranch.models.network import Network


def sum_importance(
    network: Network, units: Sequence[int], images: Tensor, labels: AnyLabels
) -> dict[str, Tensor]:
    """Of every unit [T, C] the sum over samples of (f dL/df)^2 per task and channel: a backward pass per task to the lowest unit.

    Of a task whose way leads through a branch of the unit, f is what that branch gives.
    """
    outputs, features = network.run_with_features(images, units)
    losses = network.tasks.compute_losses(outputs, labels).sum(dim=0)
    nodes = [node for layer in features for node in layer]
    rows: list[list[Tensor]] = []
    for task, loss in enumerate(losses):
        is_last = task == len(losses) - 1
        gradients = torch.autograd.grad(loss, nodes, retain_graph=not is_last, allow_unused=True)
        rows.append(_sum_squares(features, gradients))
    names = [network.routing.units[unit] for unit in units]
    layers = zip(*rows, strict=True)
    return {name: torch.stack(layer) for name, layer in zip(names, layers, strict=True)}


def _compute(sums: Sums) -> Matrix:
    return compute_importance_affinity(list(sums.values()))


MEASURED.register("importance")(MeasuredKind(sum_importance, _compute, choose_layers))


def _sum_squares(
    features: Sequence[Sequence[Tensor]], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """Of every layer [C] in float64, for one task, whose way leads through one branch of each."""
    waiting = iter(gradients)
    found = []
    for layer in features:
        pairs = zip(layer, islice(waiting, len(layer)), strict=True)
        own = [node.detach() * gradient for node, gradient in pairs if gradient is not None]
        effects = _sum_positions(sum(own, start=torch.zeros_like(layer[0])))
        found.append(effects.double().square().sum(dim=0))
    return found


def _sum_positions(values: Tensor) -> Tensor:
    """[B, C] of [B, C, h, w], of tokens [B, N, C], or of what has no positions."""
    if values.ndim == 4:
        return values.sum(dim=(2, 3))
    return values.sum(dim=1) if values.ndim == 3 else values
