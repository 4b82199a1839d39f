"""The low-rank baseline: every layer of a wide network factorised by truncated SVD.

A layer W [d, n] becomes a basis [k, n], a 3x3 convolution or a linear layer of k units, and a 1x1 convolution or linear layer
[d, k] over it. Batch norm stays behind the second one. The outputs are factorised likewise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from distbranch.errors import UserError
from distbranch.models.backbones import Architecture, LayerShape, in_eights
from distbranch.models.norm import BatchNorm, NormGroups
from distbranch.models.pretrained import WideLayer, WideNetwork, check_backbone, check_finite, map_size, with_map_size
from distbranch.models.tree_net import draw_weights, normalise, register_normalisation
from distbranch.tasks import Task, TaskSet

# The paper's basis filters, by the stage of the layers (conv4 is conv4_1 .. conv4_3), and of the outputs.
BASIS = {"conv1": 8, "conv2": 16, "conv3": 32, "conv4": 64, "conv5": 64, "fc6": 64, "fc7": 64, "output": 16}


def basis_size(shape: LayerShape) -> int:
    """The number of basis filters of a layer: the paper's for the full VGG-16.

    Of a narrower layer the same share of its width, in eights and at least eight; never more than its rank.
    """
    stage = re.sub(r"_\d+$", "", shape.layer.name)
    if stage not in BASIS:
        raise UserError(
            f"The low-rank baseline has basis sizes for the layers of vgg16, found the layer {shape.layer.name}."
        )
    own = in_eights(BASIS[stage] * shape.width / shape.layer.width)
    return min(own, _inputs(shape), shape.width)


def output_basis_size(architecture: Architecture) -> int:
    """The number of basis units of the outputs, 16; never more than their rank."""
    return min(BASIS["output"], architecture.shapes[-1].width, architecture.num_outputs)


class LowRankLayer(nn.Module):
    """Basis, combination, batch norm, the max-pooling that follows, if any, and ReLU."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.pool_after = shape.layer.pool_after
        size = basis_size(shape)
        self.basis: nn.Conv2d | nn.Linear
        self.combination: nn.Conv2d | nn.Linear
        if shape.layer.kind == "conv":
            self.basis = skip_init(nn.Conv2d, shape.num_inputs, size, 3, padding=1, bias=False)  # type: ignore[no-untyped-call]
            self.combination = skip_init(nn.Conv2d, size, shape.width, 1, bias=False)  # type: ignore[no-untyped-call]
        else:
            self.basis = skip_init(nn.Linear, shape.num_inputs, size, bias=False)  # type: ignore[no-untyped-call]
            self.combination = skip_init(nn.Linear, size, shape.width, bias=False)  # type: ignore[no-untyped-call]
        self.norm = BatchNorm(shape.width)

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        """[B, C, h, w] or [B, n] to [B, d, h', w'] or [B, d]."""
        x = x.flatten(1) if isinstance(self.basis, nn.Linear) else x
        x = self.norm(self.combination(self.basis(x)), groups)
        return functional.relu(functional.max_pool2d(x, 2) if self.pool_after else x, inplace=True)


class LowRankNet(nn.Module):
    """VGG-16 with factorised layers; `architecture` is that of the wide network, and says that it is low-rank.

    Parameters are named `layers.<layer>.<basis|combination|norm>...`, `head_basis.weight`, `heads.weight` and `heads.bias`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, architecture: Architecture, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.25,) * 3
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.tasks = TaskSet(architecture.tasks)
        self.layers = nn.ModuleDict({shape.layer.name: LowRankLayer(shape) for shape in architecture.shapes})
        size = output_basis_size(architecture)
        self.head_basis = skip_init(nn.Linear, architecture.shapes[-1].width, size, bias=False)  # type: ignore[no-untyped-call]
        self.heads = skip_init(nn.Linear, size, architecture.num_outputs)  # type: ignore[no-untyped-call]
        register_normalisation(self, mean, std)
        self.init(torch.Generator().manual_seed(0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def init(self, generator: torch.Generator) -> None:
        """Draw all weights anew, on the CPU so that every device gets the same."""
        bases = [layer.basis for layer in self.layers.values() if isinstance(layer, LowRankLayer)]
        draw_weights(self, generator, linear=(*bases, self.head_basis, self.heads))

    def forward(
        self, images: Tensor, *, flat: bool = False, groups: NormGroups | None = None
    ) -> dict[str, Tensor] | Tensor:
        """As `TreeNet.forward`: logits by task, or [B, O] if `flat`; uint8 images are normalised here."""
        x = normalise(images, self.mean, self.std)
        for layer in self.layers.values():
            x = layer(x, groups)
        outputs: Tensor = self.heads(self.head_basis(x))
        return outputs if flat else self.tasks.split_by_task(outputs)


@torch.no_grad()
def factors(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best [d, k] and [k, n] for a weight [d, n] (Eckart and Young); the singular values are shared evenly.

    The left singular vectors are the eigenvectors of W W^T, which for the fc6 of VGG-16 is a fortieth of W itself.
    """
    matrix = weight.double()
    left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :k]
    right = left.T @ matrix
    root = right.norm(dim=1).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return (left * root).to(weight.dtype), (right / root[:, None]).to(weight.dtype)


def low_rank_beginning(wide: WideNetwork, architecture: Architecture) -> dict[str, Tensor]:
    """Tensors of a LowRankNet by name: the factors of every layer of a wide network, its batch norms, its heads if it has any.

    Raises:
        UserError: see `check_same`; or not all its numbers are finite.
    """
    check_same(wide, architecture)
    state: dict[str, Tensor] = {}
    convolved = True
    for layer, shape in zip(wide.layers, architecture.shapes, strict=True):
        is_conv = shape.layer.kind == "conv"
        is_first_fc, convolved = convolved and not is_conv, is_conv
        sized = with_map_size(layer, wide.map_size, map_size(architecture)) if is_first_fc else layer
        check_finite(sized, wide.source, shape.layer.name)
        state |= _factorised(f"layers.{shape.layer.name}", sized, basis_size(shape))
    if wide.heads is not None:
        left, right = factors(wide.heads.weight, output_basis_size(architecture))
        state |= {"head_basis.weight": right, "heads.weight": left, "heads.bias": wide.heads.bias.clone()}
    return state


def check_same(wide: WideNetwork, architecture: Architecture) -> None:
    """Whether the low-rank network is one of the wide network, layer by layer.

    Raises:
        UserError: another backbone, another width, or heads of other tasks.
    """
    check_backbone(wide, architecture)
    for layer, shape in zip(wide.layers, architecture.shapes, strict=True):
        if len(layer.weight) != shape.width:
            raise UserError(
                f"A low-rank network is as wide as the network that it is factorised from, but {shape.layer.name} of "
                f"{wide.source} has {len(layer.weight)} units and this one's {shape.width}. Give model.width (or "
                "model.width_fraction) of that network; for a VGG-16 file both are empty."
            )
    if wide.heads is not None and _outputs(wide.heads.tasks) != _outputs(architecture.tasks):
        theirs, own = ({task.name for task in tasks} for tasks in (wide.heads.tasks, architecture.tasks))
        named = sorted(theirs ^ own) or [task.name for task in architecture.tasks]
        raise UserError(
            f"The pretrained run {wide.source} should have been trained for the same tasks in the same order as those of the "
            f"data set, but it has {len(theirs)} and the data set {len(own)}, which differ in {', '.join(named[:5])}. Train a wide "
            "network on this data set."
        )


def _outputs(tasks: Sequence[Task]) -> list[tuple[str, tuple[str, ...]]]:
    return [(task.name, task.classes) for task in tasks]


def _factorised(prefix: str, layer: WideLayer, k: int) -> dict[str, Tensor]:
    weight = layer.weight
    left, right = factors(weight.flatten(1).float(), k)
    return {
        f"{prefix}.basis.weight": right.view(k, *weight.shape[1:]),
        f"{prefix}.combination.weight": left.view(*left.shape, *[1] * (weight.ndim - 2)),
        f"{prefix}.norm.weight": layer.scale.float(),
        f"{prefix}.norm.bias": layer.shift.float(),
        f"{prefix}.norm.running_mean": layer.mean.float(),
        f"{prefix}.norm.running_var": layer.variance.float(),
    }


def _inputs(shape: LayerShape) -> int:
    return shape.num_inputs * (9 if shape.layer.kind == "conv" else 1)
