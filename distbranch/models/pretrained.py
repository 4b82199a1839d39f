"""Wide networks to begin from: VGG-16 weight files of torchvision and timm, and wide networks of this program.

All become one value: per layer a weight without bias and a batch norm, as our own layers have. A layer that came without batch
norm gets one that, in evaluation, leaves W x + b as it is: the bias stands where that of a layer before a batch norm stands, in
the mean. Training takes the statistics of the batch in its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.models.network import Network
from distbranch.models.weights_file import read_named_tensors
from distbranch.tasks import Task

EPS = 1e-5  # of every batch norm here, in torchvision and in timm
HOW_TO_GET = (
    "Give the path of a VGG-16 file: save torchvision's with `torch.save(torchvision.models.vgg16(weights='DEFAULT')"
    ".state_dict(), 'vgg16.pth')` where there is a network, or give the run directory of a wide network trained by "
    "`distbranch train configs/fps-vgg-wide.yaml`."
)
FULL_VGG = Backbone("vgg16", (224, 224))
# The tensors of a layer of ours, in the order of a WideLayer.
LAYER_KEYS = ("product.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
FULLY_CONNECTED = (
    ("classifier.0", "classifier.3"),
    ("pre_logits.fc1", "pre_logits.fc2"),
)  # torchvision, timm


@dataclass(frozen=True)
class WideLayer:
    """A hidden layer: weight [d, c, 3, 3] or [d, n], and its batch norm, four vectors [d]."""

    weight: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor

    def folded(self) -> Tensor:
        """The weight with batch norm folded in, float64: what the layer's filters really are."""
        factor = self.scale.double() / (self.variance.double() + EPS).sqrt()
        return self.weight.double() * factor.view(-1, *[1] * (self.weight.ndim - 1))


@dataclass(frozen=True)
class WideHeads:
    """The outputs of a wide network: its tasks, a weight [O, F] and a bias [O]."""

    tasks: tuple[Task, ...]
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class WideNetwork:
    """The hidden layers of a wide network, input first; `map_size` is the (height, width) that its first fc layer sees.

    A file of pretrained weights has outputs of its own tasks, which are left out.
    """

    source: str
    backbone: str
    layers: tuple[WideLayer, ...]
    map_size: tuple[int, int]
    heads: WideHeads | None = None


def map_size(architecture: Architecture) -> tuple[int, int]:
    """(height, width) of the feature maps that the first fc layer sees."""
    height, width = architecture.image_size
    times = 2 ** architecture.specs[0].halvings_above
    return height // times, width // times


def is_linear(layer: str) -> bool:
    """Whether a layer of VGG is fully connected."""
    return layer.startswith("fc")


def with_map_size(layer: WideLayer, old: tuple[int, int], new: tuple[int, int]) -> WideLayer:
    """The first fc layer [d, c * h * w] for feature maps of another size.

    Maps of the new size are brought to the old one by adaptive average pooling, as torchvision's VGG does before fc6. That is
    linear, so the weights take it over.
    """
    if old == new:
        return layer
    positions = new[0] * new[1]
    pooling = functional.adaptive_avg_pool2d(
        torch.eye(positions).view(positions, 1, *new), old
    ).flatten(1)  # [new, old]
    by_channel = layer.weight.float().view(len(layer.weight), -1, old[0] * old[1])
    weight = torch.einsum("dcq,pq->dcp", by_channel, pooling).flatten(1)
    return WideLayer(weight, layer.scale, layer.shift, layer.mean, layer.variance)


def wide_network(network: Network, source: str) -> WideNetwork:
    """A network of VGG's layers trained by this program, before any branching.

    Raises:
        UserError: it has branched.
    """
    architecture = network.architecture
    if architecture.tree.splits:
        raise UserError(
            f"The network to begin from should have no branches, but {source} has branched. Give a run with method.name=fixed."
        )
    state = {name: value.detach() for name, value in network.state_dict().items()}
    layers = tuple(
        WideLayer(*(state[f"units.{name}.0.{key}"] for key in LAYER_KEYS))
        for name in architecture.backbone.names
    )
    heads = WideHeads(architecture.tasks, state["heads.weight"], state["heads.bias"])
    return WideNetwork(source, architecture.backbone.source, layers, map_size(architecture), heads)


def check_backbone(wide: WideNetwork, architecture: Architecture) -> None:
    """Raise UserError if the wide network is of another backbone."""
    if wide.backbone != architecture.backbone.source:
        raise UserError(
            f"The pretrained network {wide.source} is a {wide.backbone}, but model.backbone={architecture.backbone.source}. "
            "Give one of the same backbone."
        )


def check_finite(layer: WideLayer, source: str, name: str) -> None:
    """Raise UserError if a number of the layer is none."""
    if not all(bool(part.isfinite().all()) for part in vars(layer).values()):
        raise UserError(
            f"The pretrained network {source} holds numbers that are not finite (first in {name})."
        )


def read_weights(path: Path, *, bgr: bool = False) -> WideNetwork:
    """A VGG-16 file (`.pth` or `.safetensors`, of torchvision or timm, with or without batch norm); no code in it is run.

    Args:
        path: of the file.
        bgr: whether the network was trained on images with blue first; ours have red first, so conv1_1 is turned round.

    Raises:
        UserError: absent, not readable without running code, damaged, or of another network.
    """
    state = read_named_tensors(path, HOW_TO_GET)
    layers = tuple(
        _as_wide(path, parts)
        for parts in (*_list_convolutions(path, state), *_list_fully_connected(path, state))
    )
    _check_shapes(path, layers)
    if bgr:
        first = layers[0]
        turned = WideLayer(
            first.weight.flip(1), first.scale, first.shift, first.mean, first.variance
        )
        layers = (turned, *layers[1:])
    return WideNetwork(str(path), "vgg16", layers, (7, 7))


def _list_convolutions(path: Path, state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors of every convolution, with those of the batch norm that follows it as `norm.weight` and so on."""
    numbers = sorted(
        {int(name.split(".")[1]) for name in state if re.fullmatch(r"features\.\d+\.\w+", name)}
    )
    modules = [_select_module(state, f"features.{number}") for number in numbers]
    found: list[dict[str, Tensor]] = []
    for module in modules:
        if "running_mean" in module and found:
            found[-1] |= {f"norm.{name}": value for name, value in module.items()}
        else:
            found.append(module)
    wanted = sum(not is_linear(plan.name) for plan in FULL_VGG.plans)
    if len(found) != wanted:
        raise UserError(
            f"The weights file {path} should hold the {wanted} convolutions of VGG-16 as features.N.weight, found {len(found)}. "
            f"{HOW_TO_GET}"
        )
    yield from found


def _list_fully_connected(path: Path, state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    names = next((pair for pair in FULLY_CONNECTED if f"{pair[0]}.weight" in state), None)
    if names is None:
        raise UserError(
            f"The weights file {path} should hold fc6 and fc7 of VGG-16 as classifier.0 and classifier.3 (torchvision) or "
            f"pre_logits.fc1 and pre_logits.fc2 (timm), found neither. {HOW_TO_GET}"
        )
    for name in names:
        module = _select_module(state, name)
        yield {key: value.flatten(1) if key == "weight" else value for key, value in module.items()}


def _select_module(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        key.rpartition(".")[2]: value
        for key, value in state.items()
        if key.rpartition(".")[0] == name
    }


def _as_wide(path: Path, parts: Mapping[str, Tensor]) -> WideLayer:
    try:
        weight = parts["weight"].float()
        bias = parts["bias"].float() if "bias" in parts else weight.new_zeros(len(weight))
        if "norm.running_mean" in parts:
            norm = [
                parts[f"norm.{name}"].float()
                for name in ("weight", "bias", "running_mean", "running_var")
            ]
            return WideLayer(weight, norm[0], norm[1], norm[2] - bias, norm[3])
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"The weights file {path} is not complete ({error}). {HOW_TO_GET}"
        ) from None
    ones = torch.ones_like(bias)
    return WideLayer(weight, ones * (1 + EPS) ** 0.5, torch.zeros_like(bias), -bias, ones)


def _check_shapes(path: Path, layers: tuple[WideLayer, ...]) -> None:
    with torch.device("meta"):
        units = [plan.build() for plan in FULL_VGG.plans]
    for plan, unit, layer in zip(FULL_VGG.plans, units, layers, strict=True):
        expected = tuple(unit.get_parameter("product.weight").shape)
        found = tuple(layer.weight.shape)
        vectors = {
            tuple(part.shape) for part in (layer.scale, layer.shift, layer.mean, layer.variance)
        }
        if found != expected or vectors != {(plan.width,)}:
            raise UserError(
                f"The weights file {path} is not of VGG-16: {plan.name} should be {'x'.join(map(str, expected))}, "
                f"found {'x'.join(map(str, found))}. {HOW_TO_GET}"
            )
