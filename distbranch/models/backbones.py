"""The ordered layers of the backbones, their thin widths, and the architecture value from which a network is built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from distbranch.branching.tree import Tree
from distbranch.errors import UserError
from distbranch.tasks import Task

SMALLEST_IMAGE = 32  # pixels: VGG-16 halves its input five times


@dataclass(frozen=True)
class Layer:
    """One convolution 3x3 or fully connected layer of a backbone; `width` counts its units at full size."""

    name: str
    kind: Literal["conv", "fc"]
    width: int
    pool_after: bool = False


@dataclass(frozen=True)
class LayerShape:
    """A layer of a thin network: `num_inputs` channels (fc: features) to `width`, at `height` x `length` positions."""

    layer: Layer
    num_inputs: int
    width: int
    height: int
    length: int


def _layers(plan: str) -> tuple[Layer, ...]:
    """`name:width` items; `|` is a pooling layer after the item before it."""
    layers: list[Layer] = []
    for item in plan.split():
        if item == "|":
            layers[-1] = Layer(layers[-1].name, layers[-1].kind, layers[-1].width, pool_after=True)
            continue
        name, width = item.split(":")
        layers.append(Layer(name, "fc" if name.startswith("fc") else "conv", int(width)))
    return tuple(layers)


BACKBONES: dict[str, tuple[Layer, ...]] = {
    "vgg16": _layers(
        "conv1_1:64 conv1_2:64 | conv2_1:128 conv2_2:128 | conv3_1:256 conv3_2:256 conv3_3:256 | "
        "conv4_1:512 conv4_2:512 conv4_3:512 | conv5_1:512 conv5_2:512 conv5_3:512 | fc6:4096 fc7:4096"
    ),
    "vgg9": _layers("conv1:64 | conv2:128 | conv3_1:256 conv3_2:256 | conv4_1:512 conv4_2:512 | fc5:512 fc6:512"),
}


def in_eights(units: float) -> int:
    """The nearest multiple of 8, at least 8: whole vectors of channels."""
    return max(8, 8 * int(units / 8 + 0.5))


def thin_widths(layers: tuple[Layer, ...], omega: int | None, fraction: float | None = None) -> tuple[int, ...]:
    """The width of every layer (paper section 3.1): min(omega, full width), fc 2 * omega.

    Without omega it is the full width, or a fraction of it in 0..1 (a multiple of 8, at least 8).
    """
    if omega is not None:
        return tuple(min(2 * omega if layer.kind == "fc" else omega, layer.width) for layer in layers)
    if fraction is not None:
        return tuple(min(in_eights(fraction * layer.width), layer.width) for layer in layers)
    return tuple(layer.width for layer in layers)


def pools_above(layers: tuple[Layer, ...], layer: int) -> int:
    """Pooling layers between layer `layer` (1..L) and the heads, p of Eq. 9; the one right after it counts."""
    return sum(above.pool_after for above in layers[layer - 1 :])


def branch_caps(layers: tuple[Layer, ...], widths: tuple[int, ...]) -> tuple[int, ...]:
    """The most branches of every layer, one being so wide, that together are no wider than the full backbone."""
    return tuple(layer.width // width for layer, width in zip(layers, widths, strict=True))


def layer_shapes(
    layers: tuple[Layer, ...], widths: tuple[int, ...], image_size: tuple[int, int]
) -> tuple[LayerShape, ...]:
    """Every layer's inputs, outputs and positions before pooling, for images of (height, width)."""
    height, length = image_size
    channels, shapes = 3, []
    for layer, width in zip(layers, widths, strict=True):
        if layer.kind == "fc":  # the first one sees every channel at every position left
            channels, height, length = channels * height * length, 1, 1
        shapes.append(LayerShape(layer, channels, width, height, length))
        channels = width
        if layer.pool_after:
            height, length = height // 2, length // 2
    return tuple(shapes)


@dataclass(frozen=True)
class Architecture:
    """All that makes a network but its numbers.

    backbone: one of `BACKBONES`.
    width: omega; None: full, or the fraction of it.
    image_size: (height, width) in pixels.
    tasks: what it predicts.
    tree: which of them share which branch of a layer.
    width_fraction: of the full width, in 0..1.
    low_rank: whether every layer is factorised (models/low_rank.py).
    """

    backbone: str
    width: int | None
    image_size: tuple[int, int]
    tasks: tuple[Task, ...]
    tree: Tree
    width_fraction: float | None = None
    low_rank: bool = False

    def __post_init__(self) -> None:
        if self.tree.layers != tuple(layer.name for layer in self.layers):
            raise UserError(
                f"The tree is of other layers than those of {self.backbone}: found {', '.join(self.tree.layers)}."
            )
        if self.tree.num_tasks != len(self.tasks):
            raise UserError(f"The tree is of {self.tree.num_tasks} tasks, but {len(self.tasks)} tasks were given.")
        if self.width is not None and self.width < 1:
            raise UserError(f"The width of a thin network is at least 1, found {self.width}.")
        if self.low_rank and self.tree.splits:
            raise UserError("The low-rank baseline is made of a network without branches, but this one has branched.")
        if min(self.image_size) < SMALLEST_IMAGE:
            raise UserError(
                f"Images must be at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels (height x width), found "
                f"{self.image_size[0]}x{self.image_size[1]}. Give a larger image size."
            )

    @classmethod
    def thin(
        cls,
        backbone: str,
        width: int | None,
        image_size: tuple[int, int],
        tasks: tuple[Task, ...],
        *,
        width_fraction: float | None = None,
    ) -> Architecture:
        """The architecture before any split: every task shares every layer."""
        names = tuple(layer.name for layer in _backbone(backbone))
        return cls(backbone, width, image_size, tasks, Tree(names, len(tasks)), width_fraction)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The backbone's layers, input first."""
        return _backbone(self.backbone)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of one branch of every layer, input first."""
        return thin_widths(self.layers, self.width, self.width_fraction)

    @cached_property
    def shapes(self) -> tuple[LayerShape, ...]:
        """The shape of every layer, input first."""
        return layer_shapes(self.layers, self.widths, self.image_size)

    @property
    def num_outputs(self) -> int:
        """O, the number of outputs of all tasks."""
        return sum(task.num_outputs for task in self.tasks)

    def with_tree(self, tree: Tree) -> Architecture:
        """The same network with another tree."""
        return replace(self, tree=tree)

    def factorised(self) -> Architecture:
        """The same network with every layer of low rank."""
        return replace(self, low_rank=True)

    def thin_of(self, tasks: tuple[Task, ...]) -> Architecture:
        """The thin network of the same widths and images for these tasks, whole layers and no branches."""
        return replace(self, tasks=tasks, tree=Tree(self.tree.layers, len(tasks)), low_rank=False)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "backbone": self.backbone,
            "width": self.width,
            "width_fraction": self.width_fraction,
            "low_rank": self.low_rank,
            "image_size": list(self.image_size),
            "tasks": [task.to_json() for task in self.tasks],
            "tree": self.tree.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Architecture:
        """The inverse of `to_json`; older files know neither fractions nor low rank."""
        height, length = data["image_size"]
        tasks = tuple(Task.from_json(task) for task in data["tasks"])
        return cls(
            data["backbone"],
            data["width"],
            (int(height), int(length)),
            tasks,
            Tree.from_json(data["tree"]),
            data.get("width_fraction"),
            bool(data.get("low_rank", False)),
        )


def _backbone(name: str) -> tuple[Layer, ...]:
    if name not in BACKBONES:
        raise UserError(f"The backbone must be one of {', '.join(BACKBONES)}, found {name!r}.")
    return BACKBONES[name]
