"""Any model of timm as a chain of units: the one place that knows timm.

A model is made without its classifier and divided (models/chain.py); its batch norms become ours, so that they normalise the
groups that a run asks for. Dropout and drop path inside are off: siblings and ranks compute the same, and so does a resumed run.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from distbranch.errors import UserError
from distbranch.models.chain import Part, divide, group_parts
from distbranch.models.norm import BatchNorm, NormGroups
from distbranch.models.units import Unit

if TYPE_CHECKING:
    from distbranch.models.backbone import Backbone, UnitPlan

PREFIX = "timm:"
FAMILIES = "resnet18, regnety_002, efficientnet_b0, mobilenetv3_small_050, convnext_atto, vit_tiny_patch16_224"
TOLERANCE = 1e-4  # of features, relative to the largest where that is above 1


class UnitNorm(BatchNorm):
    """A batch norm inside a unit, which is told its groups before the unit runs; timm's also activate.

    Args:
        norm: the one whose place it takes.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.act = getattr(norm, "act", nn.Identity())
        self.groups: NormGroups | None = None
        self.num_ways = 1

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """[num_ways * B, C] or [num_ways * B, C, h, w]; of tokens [num_ways * B * N, C] or [num_ways * B, C, N]."""
        if x.ndim == 3:
            return self.forward(x.unsqueeze(3)).squeeze(3)
        if self.groups is not None and self.training and x.ndim == 2:
            num_images = sum(self.groups.sizes) * self.num_ways
            if len(x) > num_images:  # tokens of an image count as its positions
                tokens = torch.unflatten(x, 0, (num_images, -1)).transpose(1, 2).unsqueeze(3)
                return self.forward(tokens).squeeze(3).transpose(1, 2).flatten(0, 1)
        normed = super().forward(x, self.groups, num_ways=self.num_ways)
        activated: Tensor = self.act(normed)
        return activated


class Given(nn.Module):
    """Stands in a block where its projection was, and gives what that gave already."""

    value: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        """The projection [B, C, h, w]."""
        assert self.value is not None
        return self.value


class TimmUnit(Unit):
    """Parts of a model, one after the other.

    `body` is what is skipped where tasks skip it, `tail` (a norm or pooling behind a block) is not. `projection`, where it has
    one, is the shortcut of its block, taken out of it.
    """

    width: int
    positions: tuple[int, int]

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        last = max(number for number, part in enumerate(parts) if part.kind != "light")
        self.body: nn.Sequential | None = _sequence(parts[: last + 1])
        self.tail = _sequence(parts[last + 1 :])
        self.projection: nn.Module | None = None
        self.given: str | None = None
        self.may_skip = False
        self.changes_input = False
        self.origins: dict[str, str] = {}  # the name in the model of every tensor of its state
        _replace_norms(self)

    def shortcut(self, x: Tensor, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """[num_ways * B, ...] to what the unit gives without its body; of one that nobody skips the input."""
        if self.projection is not None:
            return _run(self.projection, x, groups, num_ways)
        return self.tail(x) if self.may_skip else x

    def execute(
        self, x: Tensor, shortcut: Tensor, groups: NormGroups | None = None, num_ways: int = 1
    ) -> Tensor:
        """[num_ways * B, ...] to [num_ways * B, ...]."""
        assert self.body is not None
        x = x.clone() if self.changes_input else x
        if self.given is None:
            return _run(self.tail, _run(self.body, x, groups, num_ways), groups, num_ways)
        given: Any = self.body[0].get_submodule(self.given)
        given.value = shortcut
        y = _run(self.body, x, groups, num_ways)
        given.value = None
        return y


def _run(module: nn.Module, x: Tensor, groups: NormGroups | None, num_ways: int) -> Tensor:
    """A part of a unit, whose batch norms see the groups for this call alone."""
    norms = []
    if groups is not None:
        norms = [part for part in module.modules() if isinstance(part, UnitNorm)]
    for norm in norms:
        norm.groups, norm.num_ways = groups, num_ways
    y: Tensor = module(x)
    for norm in norms:
        norm.groups, norm.num_ways = None, 1
    return y


def _sequence(parts: Sequence[Part]) -> nn.Sequential:
    """Named by the last piece of their paths."""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for part in parts:
        name = part.path.rpartition(".")[2]
        while name in named:
            name += "_"
        named[name] = part.module
    return nn.Sequential(named)


def _replace_norms(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, UnitNorm):
                setattr(parent, name, UnitNorm(child))


# ---- making a model


def require_timm() -> Any:
    """The package, or one sentence that says how to install it."""
    try:
        import timm
    except ImportError:
        raise UserError(
            "The package timm is not installed. Install it: pip install 'distbranch[timm]'."
        ) from None
    return timm


def make_model(backbone: Backbone, seed: int) -> nn.Module:
    """A model of timm without its classifier, with the weights that timm draws after `torch.manual_seed(seed)`, in eval mode.

    Raises:
        UserError: timm is absent, has no such model, or cannot make it for these images and arguments.
    """
    timm = require_timm()
    name = backbone.source.removeprefix(PREFIX)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or FAMILIES.split(", ")
        raise UserError(f"timm has no model {name!r}. The nearest are {', '.join(near)}.")
    arguments = {"num_classes": 0, **backbone.keywords}
    sized = {"img_size": tuple(backbone.image_size), **arguments}
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            try:
                model = timm.create_model(name, **sized)
            except TypeError:  # what takes images of any size has no such argument
                torch.manual_seed(seed)
                model = timm.create_model(name, **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
            height, width = backbone.image_size
            raise UserError(
                f"timm cannot make {name} for images of {height}x{width} pixels with model.arguments={backbone.keywords} "
                f"({' '.join(str(error).split())[:200]}). Pack them in another size (`data pack`, `--image-size`), or give other arguments."
            ) from None
    _switch_off_dropout(model)
    return model.eval()  # type: ignore[no-any-return]


def _switch_off_dropout(model: nn.Module) -> None:
    module: Any
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):  # drop path and drop block of timm
            module.drop_prob = 0.0


# ---- its chain


def plan_timm(backbone: Backbone) -> Iterator[UnitPlan]:
    """The units of a model of timm.

    Raises:
        UserError: it cannot be made, or it is no chain of units.
    """
    from distbranch.models.backbone import UnitPlan

    for name, unit in _chain(backbone).items():
        yield UnitPlan(
            name,
            unit.width,
            None,
            partial(_copy_unit, unit),
            may_skip=unit.may_skip,
            positions=unit.positions,
        )


def _copy_unit(unit: TimmUnit, *, is_executed: bool = True) -> TimmUnit:
    copy = deepcopy(unit)
    if not is_executed:
        copy.body = None
    return copy.to(torch.get_default_device())


@lru_cache(maxsize=2)  # a run needs that of every new network, and that of its seed
@torch.inference_mode(False)
def _draw_state(backbone: Backbone, seed: int) -> dict[str, dict[str, Tensor]]:
    return unit_states(backbone, make_model(backbone, seed).state_dict())


def initial_state(backbone: Backbone, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """What timm draws for every unit, by its name; the generator gives the seed, so that all ranks draw the same."""
    return _draw_state(backbone, int(torch.randint(2**62, (), generator=generator)))


def unit_states(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state of a model as that of every unit, by its name."""
    states = {}
    for name, unit in _chain(backbone).items():
        states[name] = unit.state_dict()
        for key, origin in unit.origins.items():
            states[name][key] = state[origin]
    return states


@lru_cache(maxsize=3)
@torch.inference_mode(False)  # they outlive the context that asks for them
def _chain(backbone: Backbone) -> dict[str, TimmUnit]:
    model = make_model(backbone, seed=0)
    origins = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    with torch.device("cpu"):
        units = divide_model(model, backbone)
    for unit in units.values():
        for key, tensor in unit.state_dict(keep_vars=True).items():
            if id(tensor) in origins:  # else it is a constant of the steps between modules
                unit.origins[key] = origins[id(tensor)]
    return units


@torch.no_grad()
def divide_model(model: nn.Module, backbone: Backbone) -> dict[str, TimmUnit]:
    """The units of a model, which take its modules, compared with it on a random picture.

    Raises:
        UserError: it is no chain of units.
    """
    from timm.models._features_fx import get_notrace_functions

    name = backbone.source.removeprefix(PREFIX)
    refusal = f"{name} of timm is no chain of units, of which a tree could branch or tasks skip some. Models that are: {FAMILIES}."
    picture = torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    try:
        expected = model(picture)
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = backbone.image_size
        raise UserError(
            f"{name} of timm cannot see images of {height}x{width} pixels ({' '.join(str(error).split())[:200]}). "
            "Pack them in another size (`data pack`, `--image-size`), or give other model.arguments."
        ) from None
    steps = divide(model, opaque=get_notrace_functions())
    useful = [
        step
        for step in steps
        if not isinstance(step.module, nn.Identity | nn.modules.dropout._DropoutNd)
    ]
    parts = group_parts(useful)
    if len(parts) < 3 or not isinstance(expected, Tensor) or expected.ndim not in (2, 4):
        raise UserError(refusal)

    units: dict[str, TimmUnit] = {}
    x = picture
    level = 0.0
    for group in parts:
        unit = TimmUnit(group).eval()
        try:
            x, level = _watch(unit, x, level, backbone.image_size)
        except Exception:  # parts of whatever models, which may need more than one tensor
            raise UserError(refusal) from None
        main = next(part for part in group if part.kind != "light")
        units[main.path.replace(".", "_") if units else "stem"] = unit
    scale = max(1.0, float(expected.abs().max()))
    if x.shape != expected.shape or not float((x - expected).abs().max()) <= TOLERANCE * scale:
        raise UserError(refusal)
    if any("running_var" in key for unit in units.values() for key in _other_statistics(unit)):
        raise UserError(
            f"{name} of timm has norms that keep statistics of their own kind, which ranks could not share. Models that work: {FAMILIES}."
        )
    for unit in units.values():
        unit.train()  # which forgets what some attentions keep of their weights in eval mode
    return units


def _other_statistics(unit: nn.Module) -> Iterator[str]:
    for module in unit.modules():
        if not isinstance(module, BatchNorm):
            yield from (name for name, _ in module.named_buffers(recurse=False))


def _watch(
    unit: TimmUnit, x: Tensor, level: float, image_size: tuple[int, int]
) -> tuple[Tensor, float]:
    """Run a unit and note what it is: its shortcut, width, positions and halvings.

    level: how often height and width are halved below it; so is what is given back, above it.
    """
    assert unit.body is not None
    version = x._version
    with _AddWatch(unit.body[0]) as adds:
        y = unit.body(x)
    unit.changes_input = x._version != version
    has_plain_tail = not any(isinstance(module, BatchNorm) for module in unit.tail.modules())
    if len(unit.body) == 1 and has_plain_tail:
        name = adds.find_shortcut(x, y)
        unit.may_skip = name == ""
        if name and not len(unit.tail):
            unit.may_skip = True
            unit.given = name
            unit.projection = unit.body[0].get_submodule(name)
            unit.body[0].set_submodule(name, Given())
            y = unit.execute(x, unit.shortcut(x))

    new_level = level
    if _num_positions(y) > 1 or 1 < _num_positions(x) <= 4:  # else all positions were made one
        new_level = max(level, _count_halvings(y, image_size))
    for part in unit.tail:
        y = part(y)
        if _num_positions(y) > 1:
            new_level = max(new_level, _count_halvings(y, image_size))
    unit.halvings = round(new_level) - round(level)
    unit.width, unit.positions = _layout(y)
    return y, new_level


def _num_positions(x: Tensor) -> int:
    _, (height, width) = _layout(x)
    return height * width


def _count_halvings(x: Tensor, image_size: tuple[int, int]) -> float:
    return math.log2(math.prod(image_size) / _num_positions(x)) / 2


def _layout(x: Tensor) -> tuple[int, tuple[int, int]]:
    """Channels and (height, width) of features; tokens [B, N, C] are a column of N."""
    if x.ndim == 2:
        return x.shape[1], (1, 1)
    if x.ndim == 3:
        return x.shape[2], (x.shape[1], 1)
    _, first, second, third = x.shape
    # timm tells not of every module whether its channels are last; maps are square, or nearly.
    if abs(math.log(first / second)) < abs(math.log(second / third)):
        return third, (first, second)
    return first, (second, third)


class _AddWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes, while a block runs, which tensors are added, and what its children gave from its own input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.added: list[Tensor] = []
        self.calls: list[tuple[str, Any, Any]] = []
        self.handles = [
            child.register_forward_hook(partial(self._note_call, name))
            for name, child in block.named_children()
        ]

    def _note_call(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1:
            self.calls.append((name, inputs[0], output))

    def __exit__(self, *problem: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*problem)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            self.added += [value for value in args[:2] if isinstance(value, Tensor)]
        return function(*args, **(kwargs or {}))

    def find_shortcut(self, x: Tensor, y: Tensor) -> str | None:
        """The name of the child whose output from the block's input `x` is added on the way to `y`; "" for the input itself."""
        added = {id(value) for value in self.added}
        if x.shape == y.shape and id(x) in added:
            return ""
        names = [
            name
            for name, given, output in self.calls
            if given is x and id(output) in added and output.shape == y.shape
        ]
        return names[0] if len(names) == 1 else None


# ---- weights from elsewhere


def colours(backbone: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of every colour channel, in 0..1, that the weights of a model were trained with."""
    config = require_timm().get_pretrained_cfg(backbone.source.removeprefix(PREFIX))
    if config is None:
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        return tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
    return tuple(config.mean), tuple(config.std)


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules of a model that give its own classes."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def adapt_state(
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
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The weights of {place} are of another network ({type(error).__name__}: {reason}). {how_to_get}"
        ) from None
    return converted


def download_state(backbone: Backbone, place: str) -> dict[str, Tensor]:
    """The weights of `hf-hub:OWNER/NAME`, or with `timm` the model's own.

    Raises:
        UserError: they do not exist or cannot be reached.
    """
    timm = require_timm()
    from timm.models import load_state_dict_from_hf

    name = backbone.source.removeprefix(PREFIX)
    try:
        if place == "timm":
            model = timm.create_model(name, pretrained=True, **backbone.keywords)
            return dict(model.state_dict())
        return dict(load_state_dict_from_hf(place.removeprefix("hf-hub:"), weights_only=True))
    except Exception as error:  # of the network, of the hub, of timm
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The weights {place} of {name} cannot be fetched ({reason}). Fetch them on a machine that reaches huggingface.co, "
            "and give the .safetensors file."
        ) from None
