"""Any model of timm as a chain of units (models/timm_unit.py).

A model is made without its classifier and divided (models/chain.py). Dropout and drop path inside are off: siblings and ranks
compute the same, and so does a resumed run.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distbranch.config.network import TIMM
from distbranch.errors import UserError, reason_of
from distbranch.extras import require
from distbranch.models.chain import divide, group_parts
from distbranch.models.norm import BatchNorm
from distbranch.models.timm_unit import TimmUnit
from distbranch.models.units import UnitPlan

if TYPE_CHECKING:
    from distbranch.models.backbone import Backbone

FAMILIES = "resnet18, regnety_002, efficientnet_b0, mobilenetv3_small_050, convnext_atto, vit_tiny_patch16_224"
WITH_MAPS = "resnet18, regnety_002, efficientnet_b0, convnext_atto, swin_tiny_patch4_window7_224"
TOLERANCE = 1e-4  # of features, relative to the largest where that is above 1


# ---- making a model


def make_model(backbone: Backbone, seed: int) -> nn.Module:
    """A model of timm without its classifier, with the weights that timm draws from `seed`, in eval mode.

    Raises:
        UserError: timm is absent, has no such model, or cannot make it for these images and arguments.
    """
    timm = require("timm", "timm", "A backbone of timm")
    name = backbone.source.removeprefix(TIMM)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or FAMILIES.split(", ")
        raise UserError(f"timm has no model {name!r}. The nearest are {', '.join(near)}.")
    _check_arguments(backbone)
    arguments = {"num_classes": 0, **backbone.keywords}
    sized = {"img_size": tuple(backbone.image_size), **arguments}
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            try:
                model = _create(name, seed, sized)
            except TypeError:  # what takes images of any size has no such argument
                model = _create(name, seed, arguments)
        except Exception as error:  # of whatever models, given any arguments
            raise _refuse_size(backbone, error) from None
    module: Any
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):  # drop path and drop block of timm
            module.drop_prob = 0.0
    return model.eval()


def _create(name: str, seed: int, keywords: dict[str, Any]) -> nn.Module:
    import timm

    torch.default_generator.manual_seed(seed)  # not those of GPUs, which nobody would restore
    model: nn.Module = timm.create_model(name, **keywords)
    return model


def _check_arguments(backbone: Backbone) -> None:
    for argument in backbone.keywords:
        if argument in ("num_classes", "pretrained", "checkpoint_path") or "drop" in argument:
            raise UserError(
                f"model.arguments should say how large the network is, found {argument}. Leave it out: heads are those of the tasks, "
                "weights are read by model.pretrained, and there is no dropout inside."
            )


def _refuse_size(backbone: Backbone, error: Exception) -> UserError:
    height, width = backbone.image_size
    return UserError(
        f"timm cannot make {backbone.source.removeprefix(TIMM)} for images of {height}x{width} pixels with "
        f"model.arguments={backbone.keywords} ({reason_of(error)[:200]}). Pack the images in another size (`data pack`, "
        "`--image-size`), or give other model.arguments."
    )


# ---- its chain


def plan_timm(backbone: Backbone) -> Iterator[UnitPlan]:
    """The units of a model of timm.

    Raises:
        UserError: it cannot be made, or it is no chain of units.
    """
    for name, unit in _divide_backbone(backbone).items():
        yield UnitPlan(name, unit.width, None, partial(_copy_unit, unit), may_skip=unit.may_skip)


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
    for name, unit in _divide_backbone(backbone).items():
        states[name] = unit.state_dict()
        for key, origin in unit.origins.items():
            states[name][key] = state[origin]
    return states


@lru_cache(maxsize=3)
@torch.inference_mode(False)  # they outlive the context that asks for them
def _divide_backbone(backbone: Backbone) -> dict[str, TimmUnit]:
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

    name = backbone.source.removeprefix(TIMM)
    refusal = UserError(
        f"{name} of timm is no chain of units, of which a tree could branch or tasks skip some. Models that are: {FAMILIES}."
    )
    picture = torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    try:
        expected = model(picture)
    except Exception as error:  # likewise
        raise _refuse_size(backbone, error) from None
    nothing = (nn.Identity, nn.modules.dropout._DropoutNd)
    if isinstance(expected, Tensor) and expected.ndim == 3:
        raise UserError(
            f"{name} of timm ends in tokens, found without global pooling, and dense tasks need a map of features. Models that end in "
            f"one: {WITH_MAPS}."
        )
    steps = divide(model, opaque=get_notrace_functions())
    groups = group_parts([step for step in steps if not isinstance(step.module, nothing)])
    if len(groups) < 3 or not isinstance(expected, Tensor) or expected.ndim not in (2, 4):
        raise refusal

    units: dict[str, TimmUnit] = {}
    x = picture
    level = 0.0
    for group in groups:
        unit = TimmUnit(group).eval()
        try:
            x, level = _watch(unit, x, level, backbone.image_size)
        except Exception:  # parts of whatever models, which may need more than one tensor
            raise refusal from None
        main = next(part for part in group if part.kind != "light")
        units[main.path.replace(".", "_") if units else "stem"] = unit
    scale = max(1.0, float(expected.abs().max()))
    if x.shape != expected.shape or not float((x - expected).abs().max()) <= TOLERANCE * scale:
        raise refusal
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
    """Run a unit and note what it is: its shortcut, width and halvings.

    level: how often height and width are halved below it; so is what is given back, above it.
    """
    assert unit.body is not None
    version = x._version
    with _AddWatch(unit.body[0]) as adds:
        y = unit.body(x)
    unit.changes_input = x._version != version
    has_norm_behind = any(isinstance(module, BatchNorm) for module in unit.tail.modules())
    if len(unit.body) == 1 and not has_norm_behind:
        name = adds.find_shortcut(x, y)
        unit.may_skip = name == ""
        if name and not len(unit.tail):
            unit.may_skip = True
            unit.take_out_projection(name)
            y = unit.execute(x, unit.shortcut(x))

    new_level = level
    if _num_positions(y) > 1 or 1 < _num_positions(x) <= 4:  # else all positions were made one
        new_level = max(level, _count_halvings(y, image_size))
    for part in unit.tail:
        y = part(y)
        if _num_positions(y) > 1:
            new_level = max(new_level, _count_halvings(y, image_size))
    unit.halvings = round(new_level) - round(level)
    unit.width = _num_channels(y)
    return y, new_level


def _num_positions(x: Tensor) -> int:
    return x[0].numel() // _num_channels(x)


def _count_halvings(x: Tensor, image_size: tuple[int, int]) -> float:
    return math.log2(math.prod(image_size) / _num_positions(x)) / 2


def _num_channels(x: Tensor) -> int:
    """Of vectors [B, C], tokens [B, N, C], or maps, whose channels are first or last."""
    if x.ndim < 4:
        return x.shape[-1]
    _, first, second, third = x.shape
    # timm tells not of every module whether its channels are last; maps are square, or nearly.
    is_last = abs(math.log(first / second)) < abs(math.log(second / third))
    return third if is_last else first


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
