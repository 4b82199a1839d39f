"""The low-rank baseline: every layer of a wide network factorised by truncated SVD.

A layer W [d, n] becomes a basis [k, n], a 3x3 convolution or a linear layer of k units, and a 1x1 convolution or linear layer
[d, k] over it. Batch norm stays behind the second one. The outputs are factorised likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import basis_size
from distbranch.models.pretrained import (
    LAYER_KEYS,
    WideNetwork,
    check_backbone,
    check_finite,
    is_linear,
    map_size,
    with_map_size,
)
from distbranch.tasks import Task


@torch.no_grad()
def factorise_weight(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best [d, k] and [k, n] for a weight [d, n] (Eckart and Young); the singular values are shared evenly.

    The left singular vectors are the eigenvectors of W W^T, which for the fc6 of VGG-16 is a fortieth of W itself.
    """
    matrix = weight.double()
    left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :k]
    right = left.T @ matrix
    root = right.norm(dim=1).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return (left * root).to(weight.dtype), (right / root[:, None]).to(weight.dtype)


def low_rank_beginning(wide: WideNetwork, architecture: Architecture) -> dict[str, Tensor]:
    """Tensors of a low-rank network by name: the factors of every layer of a wide one, its batch norms, its heads if it has any.

    Raises:
        UserError: see `check_same`; or not all its numbers are finite.
    """
    check_same(wide, architecture)
    state: dict[str, Tensor] = {}
    was_linear = False
    for layer, plan in zip(wide.layers, architecture.backbone.plans, strict=True):
        is_first_fc = is_linear(plan.name) and not was_linear
        was_linear = is_linear(plan.name)
        sized = (
            with_map_size(layer, wide.map_size, map_size(architecture)) if is_first_fc else layer
        )
        check_finite(sized, wide.source, plan.name)
        weight = sized.weight
        k = basis_size(plan.name, weight.shape[1], plan.width, plan.full_width or plan.width)
        left, right = factorise_weight(weight.flatten(1).float(), k)
        unit = f"units.{plan.name}.0"
        state[f"{unit}.product.basis.weight"] = right.view(k, *weight.shape[1:])
        state[f"{unit}.product.combination.weight"] = left.view(
            *left.shape, *[1] * (weight.ndim - 2)
        )
        _, *norm = vars(sized).values()
        for key, value in zip(LAYER_KEYS[1:], norm, strict=True):
            state[f"{unit}.{key}"] = value.float()
    if wide.heads is not None:
        assert architecture.output_basis is not None
        left, right = factorise_weight(wide.heads.weight, architecture.output_basis)
        state |= {
            "head_basis.weight": right,
            "heads.weight": left,
            "heads.bias": wide.heads.bias.clone(),
        }
    return state


def check_same(wide: WideNetwork, architecture: Architecture) -> None:
    """Whether the low-rank network is one of the wide network, layer by layer.

    Raises:
        UserError: another backbone, another width, or heads of other tasks.
    """
    check_backbone(wide, architecture)
    for layer, plan in zip(wide.layers, architecture.backbone.plans, strict=True):
        if len(layer.weight) != plan.width:
            raise UserError(
                f"A low-rank network is as wide as the network that it is factorised from, but {plan.name} of "
                f"{wide.source} has {len(layer.weight)} units and this one's {plan.width}. Give model.width (or "
                "model.width_fraction) of that network; for a VGG-16 file both are empty."
            )
    if wide.heads is not None and _list_outputs(wide.heads.tasks) != _list_outputs(
        architecture.tasks
    ):
        theirs, own = (
            {task.name for task in tasks} for tasks in (wide.heads.tasks, architecture.tasks)
        )
        named = sorted(theirs ^ own) or [task.name for task in architecture.tasks]
        raise UserError(
            f"The pretrained run {wide.source} should have been trained for the same tasks in the same order as those of the "
            f"data set, but it has {len(theirs)} and the data set {len(own)}, which differ in {', '.join(named[:5])}. Train a wide "
            "network on this data set."
        )


def _list_outputs(tasks: Sequence[Task]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(task.name, task.kind, task.classes) for task in tasks]
