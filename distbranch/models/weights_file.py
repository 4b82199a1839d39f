"""Pretrained weights of a whole backbone: files with the names of timm or torchvision, or what timm itself fetches.

They become the state of the units of a network that all tasks share. Images normalised for the data are brought to the mean and
deviation that the weights were trained with by the network itself (`match_colours`), so that nothing changes at padded borders.
"""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distbranch.config.network import HUB, OF_TIMM, TIMM, is_fetched
from distbranch.errors import UserError, reason_of
from distbranch.extras import require
from distbranch.models import timm_chain
from distbranch.models.backbone import BLOCKS, Backbone
from distbranch.permissions import make_denied_error
from distbranch.tensor_files import load_tensors

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the weights
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of torchvision's
NUM_NAMED = 3  # names of tensors in a message

# ResNet: the modules of a file and ours.
STEM_NAMES = {"conv1": "product", "bn1": "norm"}
BLOCK_NAMES = {
    "conv1": "first.product",
    "bn1": "first.norm",
    "conv2": "second.product",
    "bn2": "second.norm",
    "conv3": "third.product",
    "bn3": "third.norm",
    "downsample.0": "projection.product",
    "downsample.1": "projection.norm",
}


def read_pretrained(backbone: Backbone, place: str) -> dict[str, Tensor]:
    """The state `units.<unit>.0.<rest>` of a network whose tasks share every unit.

    Args:
        backbone: a model of timm, or a ResNet of full width.
        place: a `.safetensors` or `.pth` file with the names of the model of timm (for a ResNet those of torchvision, which are
            the same), `timm` for that model's own weights, or `hf-hub:OWNER/NAME`. No code in a file is ever run.

    Raises:
        UserError: absent, not reachable, damaged, not readable without running code, or of another network.
    """
    name = backbone.source.removeprefix(TIMM)
    how_to_get = f"Give a .safetensors or .pth file of {name} with the names of timm."
    if backbone.is_of_timm:
        return _read_for_timm(backbone, place, how_to_get)
    if backbone.source not in BLOCKS:
        raise UserError(
            f"model.pretrained is for a ResNet or a model of timm, found model.backbone={backbone.source}. VGG begins from a "
            "weights file by method.init=somp and method.pretrained=FILE."
        )
    if not backbone.is_full_size:
        raise UserError(
            f"A weights file is of the full width, but the {name} of this run is thinner. Leave model.width empty."
        )
    if is_fetched(place):
        raise UserError(
            f"Weights are fetched for models of timm alone, found {place} for {name}. Choose model.backbone=timm:{name}, "
            "or give a file."
        )
    state = read_named_tensors(Path(place), how_to_get)
    renamed = {_rename_resnet(name): value for name, value in state.items()}
    return _select(_expect(backbone), renamed, place, how_to_get, ("fc",))


def _read_for_timm(backbone: Backbone, place: str, how_to_get: str) -> dict[str, Tensor]:
    model = timm_chain.make_model(backbone, seed=0)
    state: Mapping[str, Tensor]
    if is_fetched(place):
        state = _download_state(backbone, place)
    else:
        file = Path(place)
        state = read_named_tensors(file, how_to_get)
    state = _adapt_state(model, state, place, how_to_get)
    own = _list_classifiers(model)
    state = _select(model.state_dict(), state, place, how_to_get, own)
    named: dict[str, Tensor] = {}
    for unit, tensors in timm_chain.unit_states(backbone, state).items():
        named |= {f"units.{unit}.0.{name}": value for name, value in tensors.items()}
    return named


def match_colours(backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> Backbone:
    """The backbone for pretrained weights: with an affine of its input where they were trained with another mean or deviation.

    Args:
        backbone: see `read_pretrained`.
        mean: by which the images of the data are normalised, per colour channel, in 0..1.
        std: likewise.
    """
    trained = read_trained_colours(backbone) if backbone.is_of_timm else IMAGENET
    if trained == (tuple(mean), tuple(std)):
        return replace(backbone, input_affine=None)
    scale = tuple(own / theirs for own, theirs in zip(std, trained[1], strict=True))
    shift = tuple(
        (own - theirs) / deviation
        for own, theirs, deviation in zip(mean, trained[0], trained[1], strict=True)
    )
    return replace(backbone, input_affine=(scale, shift))


def _expect(backbone: Backbone) -> dict[str, Tensor]:
    """The state of one copy of every unit, without numbers."""
    with torch.device("meta"):
        units = {plan.name: plan.build() for plan in backbone.plans}
    return {
        f"units.{unit}.0.{name}": value
        for unit, module in units.items()
        for name, value in module.state_dict().items()
    }


def _rename_resnet(name: str) -> str:
    module, _, rest = name.rpartition(".")
    if module in STEM_NAMES:
        return f"units.stem.0.{STEM_NAMES[module]}.{rest}"
    found = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", module)
    if found is None or found[3] not in BLOCK_NAMES:
        return name
    return f"units.block{found[1]}_{int(found[2]) + 1}.0.{BLOCK_NAMES[found[3]]}.{rest}"


def _select(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    place: str,
    how_to_get: str,
    classifiers: Sequence[str],
) -> dict[str, Tensor]:
    """The expected tensors of a state, of which only the classifier may be left over."""
    missing = [name for name in expected if name not in state and "num_batches" not in name]
    unknown = [
        name
        for name in state
        if name not in expected and not name.startswith(tuple(f"{own}." for own in classifiers))
    ]
    found = {
        name: state.get(name, torch.zeros_like(value, device="cpu"))
        for name, value in expected.items()
    }
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if found[name].shape != value.shape
    ]
    for names, what in (
        (missing, "lack"),
        (unknown, "hold besides"),
        (shapes, "hold other shapes"),
    ):
        if names:
            raise UserError(
                f"The weights of {place} are of another network: they {what} {_name_first(names)}. {how_to_get}"
            )
    infinite = [name for name, value in found.items() if not bool(value.isfinite().all())]
    if infinite:
        raise UserError(
            f"The weights of {place} hold numbers that are not finite ({_name_first(infinite)}). Give another file."
        )
    return {
        name: value.to(expected[name].dtype).contiguous().clone() for name, value in found.items()
    }


def _name_first(names: Sequence[str]) -> str:
    rest = len(names) - NUM_NAMED
    named = ", ".join(names[:NUM_NAMED])
    return f"{named} and {rest} more" if rest > 0 else named


# ---- of timm


def read_trained_colours(backbone: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every colour channel, in 0..1, that the weights of a model were trained with."""
    config = require("timm", "timm", "A backbone of timm").get_pretrained_cfg(
        backbone.source.removeprefix(TIMM)
    )
    if config is None:
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        return tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
    return tuple(config.mean), tuple(config.std)


def _list_classifiers(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules of a model that give its own classes."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _adapt_state(
    model: nn.Module, state: Mapping[str, Tensor], place: str, how_to_get: str
) -> dict[str, Tensor]:
    """A state as timm itself would load it: older names, and position embeddings of another image size, are brought to the model's."""
    module = sys.modules[type(model).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return dict(state)
    try:
        converted: dict[str, Tensor] = convert(dict(state), model)
    except Exception as error:  # converters of whatever models, given a file of any other
        raise UserError(
            f"The weights of {place} are of another network ({type(error).__name__}: {reason_of(error)[:200]}). {how_to_get}"
        ) from None
    return converted


def _download_state(backbone: Backbone, place: str) -> dict[str, Tensor]:
    """The weights of `hf-hub:OWNER/NAME`, or with `timm` the model's own.

    Raises:
        UserError: they do not exist or cannot be reached.
    """
    timm = require("timm", "timm", "A backbone of timm")
    from timm.models import load_state_dict_from_hf

    name = backbone.source.removeprefix(TIMM)
    try:
        if place == OF_TIMM:
            with torch.random.fork_rng(devices=[]):  # it draws weights first
                model = timm.create_model(name, pretrained=True, **backbone.keywords)
            return dict(model.state_dict())
        return dict(load_state_dict_from_hf(place.removeprefix(HUB), weights_only=True))
    except Exception as error:  # of the network, of the hub, of timm
        raise UserError(
            f"The weights {place} of {name} cannot be fetched ({reason_of(error)[:200]}). Fetch them on a machine that reaches "
            "huggingface.co, and give the .safetensors file."
        ) from None


# ---- files


def read_named_tensors(path: Path, how_to_get: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or PyTorch file by name, also of one that a training script wrapped.

    Raises:
        UserError: absent, damaged, not readable without running code, or of other things; `how_to_get` ends the sentence.
    """
    if not path.is_file():
        raise UserError(f"There is no weights file {path}. {how_to_get}")
    state: Any = _load(path, how_to_get)
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise UserError(
            f"The weights file {path} should hold named tensors, found a {type(state).__name__}. {how_to_get}"
        )
    return {
        name.removeprefix("module."): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _load(path: Path, how_to_get: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)
        # A zip file is mapped, so that looking at the shapes reads nothing else; older files are one pickle.
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(
            r"(?:global:?|class) `?([\w.]+\.\w+)`?", str(error)
        )
        if named is None:
            raise UserError(
                f"The weights file {path} is damaged or no PyTorch file. {how_to_get}"
            ) from None
        raise UserError(
            f"The weights file {path} should hold only tensors, but its pickle asks to run code ({named[1]}), which is never done. "
            "Save the weights alone, with `torch.save(model.state_dict(), FILE)`, or as .safetensors."
        ) from None
    except PermissionError as error:
        raise make_denied_error(error) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"The weights file {path} is damaged or cannot be read ({reason_of(error)[:200]}). {how_to_get}"
        ) from None
