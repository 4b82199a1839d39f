"""The network of a tree: one small module per branch of every layer, named by layer and branch.

It is always built anew from an architecture and a state; nothing is ever grafted onto a living network.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from distbranch.models.backbones import Architecture
from distbranch.models.branches import Branch, branch_of, run_branches
from distbranch.models.norm import BatchNorm, NormGroups
from distbranch.models.serving import Serving
from distbranch.tasks import TaskSet


class TreeNet(nn.Module):
    """A multi-task network whose layers are shared as the architecture's tree says.

    Parameters are named `layers.<layer>.<branch>.<conv|linear|norm>...`, `heads.weight` [O, F] and `heads.bias` [O].

    Args:
        architecture: what to build.
        mean: of every colour channel of images in 0..1, to normalise uint8 images.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, architecture: Architecture, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.25,) * 3
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.tasks = TaskSet(architecture.tasks)
        tree = architecture.tree
        self.parents = [tree.parents(layer) for layer in range(1, tree.num_layers + 1)]
        self.layers = nn.ModuleDict(
            {
                shape.layer.name: nn.ModuleList(branch_of(shape) for _ in parents)
                for shape, parents in zip(architecture.shapes, self.parents, strict=True)
            }
        )
        self.heads = skip_init(nn.Linear, architecture.shapes[-1].width, architecture.num_outputs)  # type: ignore[no-untyped-call]
        top = tree.parents(tree.num_layers + 1)
        outputs = [
            branch for branch, task in zip(top, architecture.tasks, strict=True) for _ in range(task.num_outputs)
        ]
        self.serving = Serving(outputs)
        register_normalisation(self, mean, std)
        self.init(torch.Generator().manual_seed(0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def init(self, generator: torch.Generator) -> None:
        """Draw all weights anew, on the CPU so that every device gets the same."""
        draw_weights(self, generator, linear=(self.heads,))

    def forward(
        self, images: Tensor, *, flat: bool = False, groups: NormGroups | None = None
    ) -> dict[str, Tensor] | Tensor:
        """Logits of every task by name, or all of them as one tensor [B, O] if `flat`.

        images: [B, 3, H, W]; uint8 is normalised here, float is taken as normalised already.
        groups: of images that are normalised together in training; None: all of them.
        """
        features = [normalise(images, self.mean, self.std)]
        for branches, parents in zip(self.layers.values(), self.parents, strict=True):
            assert isinstance(branches, nn.ModuleList)
            inputs = [features[parent] for parent in parents]
            features = run_branches(cast(Sequence[Branch], branches), inputs, groups)
        outputs = self.serving(self.heads, features)
        return outputs if flat else self.tasks.split_by_task(outputs)


@torch.no_grad()
def draw_weights(network: nn.Module, generator: torch.Generator, *, linear: Collection[nn.Module]) -> None:
    """All weights of a network anew (He et al. 2015, fan-in); no ReLU follows the modules in `linear`."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = 1.0 if module in linear else 2.0
            deviation = math.sqrt(gain / module.weight[0].numel())
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * deviation)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, BatchNorm):
            module.reset_parameters()


def register_normalisation(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Buffers `mean` and `std` [3, 1, 1] for `normalise`, of values in 0..1."""
    for name, values in (("mean", mean), ("std", std)):
        network.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images [B, 3, H, W] as normalised floats; float ones are taken as normalised already."""
    if images.dtype == torch.uint8:
        images = images.to(mean.dtype).div_(255).sub_(mean).div_(std)
    return images.contiguous(memory_format=torch.channels_last)
