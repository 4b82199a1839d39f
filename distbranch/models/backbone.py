"""Backbones: a source and its sizes, which give a chain of fresh units, and what one pass over them tells of each unit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from distbranch.config.network import TIMM
from distbranch.errors import UserError
from distbranch.models import timm_chain
from distbranch.models.norm import BatchNorm
from distbranch.models.units import (
    Block,
    Bottleneck,
    Layer,
    LowRank,
    Unit,
    UnitPlan,
    make_convolution,
    make_unset,
)
from distbranch.registry import Registry

SMALLEST_IMAGE = 32  # pixels: VGG-16 halves its input five times

# `name:width` at full size; `|` is a pooling layer after the layer before it.
VGG_LAYERS = {
    "vgg16": "conv1_1:64 conv1_2:64 | conv2_1:128 conv2_2:128 | conv3_1:256 conv3_2:256 conv3_3:256 | "
    "conv4_1:512 conv4_2:512 conv4_3:512 | conv5_1:512 conv5_2:512 conv5_3:512 | fc6:4096 fc7:4096",
    "vgg9": "conv1:64 | conv2:128 | conv3_1:256 conv3_2:256 | conv4_1:512 conv4_2:512 | fc5:512 fc6:512",
}
Arguments = tuple[tuple[str, Any], ...]
# Blocks per stage (He et al. 2016); those of resnet50 are bottlenecks.
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
STAGE_WIDTHS = (64, 128, 256, 512)
OUTPUT_STRIDES = (8, 16, 32)  # of image over features, which a ResNet is given

# The paper's basis filters, by the stage of the layers (conv4 is conv4_1 .. conv4_3), and of the outputs.
BASIS = {
    "conv1": 8,
    "conv2": 16,
    "conv3": 32,
    "conv4": 64,
    "conv5": 64,
    "fc6": 64,
    "fc7": 64,
    "output": 16,
}


@dataclass(frozen=True)
class Cost:
    """Weights without norms and biases, everything that is trained, and multiply-adds of one image."""

    weights: int
    parameters: int
    multiply_adds: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.weights + other.weights,
            self.parameters + other.parameters,
            self.multiply_adds + other.multiply_adds,
        )


@dataclass(frozen=True)
class WeightShape:
    """A weight of a unit by its name, seen as a matrix [rows, columns]: a convolution is [C', positions * C]."""

    name: str
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.rows * self.columns

    def delta_size(self, rank: int) -> int:
        """How many numbers a difference of this rank has."""
        return rank * (self.rows + self.columns)

    @property
    def largest_delta_rank(self) -> int:
        """That of the largest difference that is smaller than the weight."""
        return (self.size - 1) // (self.rows + self.columns)


@dataclass(frozen=True)
class UnitSpec:
    """What a unit is and costs.

    halvings_above: how often height and width are halved from this unit on up to the heads, its own included: p of Eq. 9. Of a
        backbone with an output stride its own are not, for a block works at the size that it gives.
    max_copies: so many copies of it are together no wider than the unit at full size; None: it has but one size.
    body: what it costs beside its shortcut.
    weights: those that have more than one dimension.
    num_scales: of its batch norms together.
    features: shape of what it gives for one image.
    """

    name: str
    width: int
    max_copies: int | None
    halvings_above: int
    may_skip: bool
    body: Cost
    shortcut: Cost
    weights: tuple[WeightShape, ...]
    num_scales: int
    features: tuple[int, ...]


@dataclass(frozen=True)
class Backbone:
    """A chain of units by its source and sizes.

    source: one of `BACKBONES`, or `timm:NAME`.
    image_size: (height, width) in pixels.
    width: omega; None: full, or as one of the next two says.
    width_fraction: of the full width, in 0..1.
    widths: of every unit by itself, input first, as `specs` tells them.
    low_rank: whether every layer is factorised (models/low_rank.py).
    arguments: further ones of `timm.create_model`, from `freeze_arguments`.
    input_affine: scale and shift of every colour channel of normalised images, for weights that were trained with another mean
        and deviation (models/weights_file.py).
    output_stride: of a ResNet, how many pixels of the image are one of its features, 8, 16 or 32: strides are replaced from the
        top by dilation (Chen et al. 2017). None: 32.
    """

    source: str
    image_size: tuple[int, int]
    width: int | None = None
    width_fraction: float | None = None
    widths: tuple[int, ...] | None = None
    low_rank: bool = False
    arguments: Arguments = ()
    input_affine: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    output_stride: int | None = None

    def __post_init__(self) -> None:
        if self.output_stride is not None:
            self._check_output_stride()
        if self.is_of_timm:
            if not self.is_full_size:
                raise UserError(
                    f"A model of timm has its own widths, but a width was given for {self.source}. Leave width, width_fraction and "
                    "widths empty, and choose a smaller model for a thinner network."
                )
            if self.low_rank:
                raise UserError(
                    f"The low-rank baseline is of the layers of VGG, found {self.source}. Choose vgg16 or vgg9."
                )
            return
        if self.source not in BACKBONES:
            raise UserError(
                f"{BACKBONES.describe_unknown(self.source)} A model of timm is named timm:NAME."
            )
        if self.arguments and self.source in {**VGG_LAYERS, **BLOCKS}:
            raise UserError(
                f"Arguments are those of a model of timm (timm:NAME), found {self.keywords} for {self.source}. Leave them out."
            )
        if self.width is not None and self.width < 1:
            raise UserError(f"The width of a thin network is at least 1, found {self.width}.")
        if min(self.image_size) < SMALLEST_IMAGE:
            raise UserError(
                f"Images must be at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels (height x width), found "
                f"{self.image_size[0]}x{self.image_size[1]}. Pack them larger (`data pack`, `--image-size`)."
            )
        if self.widths is not None:
            self._check_widths(self.widths)

    def _check_output_stride(self) -> None:
        if self.source not in BLOCKS:
            raise UserError(
                f"An output stride is that of a ResNet ({', '.join(BLOCKS)}), found {self.output_stride} for {self.source}. Leave it "
                "out; many models of timm take it among their arguments (model.arguments={output_stride: 8})."
            )
        if self.output_stride not in OUTPUT_STRIDES:
            choices = ", ".join(map(str, OUTPUT_STRIDES))
            raise UserError(
                f"The output stride of {self.source} should be one of {choices}, found {self.output_stride}."
            )

    def _check_widths(self, widths: tuple[int, ...]) -> None:
        names = replace(self, widths=None).names
        if len(widths) != len(names):
            raise UserError(
                f"The widths of {self.source} should be {len(names)} numbers, one for each of its units ({', '.join(names)}), "
                f"found {len(widths)}."
            )
        _ = self.plans  # each of them is checked where its unit is planned

    def __getstate__(self) -> dict[str, Any]:
        """Its fields alone: the plans of a timm model hold its weights, which no other rank and no copy needs."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def plans(self) -> tuple[UnitPlan, ...]:
        """How its units are made, input first."""
        plan = timm_chain.plan_timm if self.is_of_timm else BACKBONES[self.source]
        return tuple(plan(self))

    @property
    def is_of_timm(self) -> bool:
        """Whether it is a model of timm."""
        return self.source.startswith(TIMM)

    @property
    def is_full_size(self) -> bool:
        """Whether its units are as wide as they were published."""
        return self.width is None and self.width_fraction is None and self.widths is None

    @property
    def keywords(self) -> dict[str, Any]:
        """Its arguments by name."""
        return dict(self.arguments)

    @property
    def specs(self) -> tuple[UnitSpec, ...]:
        """What its units are and cost, input first."""
        return _measure_units(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Those of its units, input first."""
        return tuple(plan.name for plan in self.plans)

    @property
    def may_skip(self) -> tuple[bool, ...]:
        """Which of its units tasks may skip."""
        return tuple(plan.may_skip for plan in self.plans)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the units that tasks may skip."""
        return tuple(plan.name for plan in self.plans if plan.may_skip)

    @property
    def block(self) -> type[Block]:
        """The class of its residual blocks."""
        return Bottleneck if self.source == "resnet50" else Block

    @property
    def stages(self) -> tuple[range, ...]:
        """The numbers (0..L-1) of the blocks of every stage; none of what is no ResNet."""
        ends = accumulate(BLOCKS.get(self.source, ()), initial=1)
        return tuple(range(start, end) for start, end in pairwise(ends))

    def draw_units(self, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
        """The first weights of its units, by their names, where its source draws them itself; else empty."""
        return timm_chain.initial_state(self, generator) if self.is_of_timm else {}

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; what is not set stands there only if every backbone always had it."""
        values = asdict(self) | {"image_size": list(self.image_size), "arguments": self.keywords}
        for name in ("arguments", "input_affine", "widths", "output_stride"):
            if not values[name]:
                del values[name]
        return values

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Backbone:
        """The inverse of `to_json`."""
        values = data | {"image_size": tuple(map(int, data["image_size"]))}
        values["arguments"] = freeze_arguments(data.get("arguments", {}))
        widths = data.get("widths")
        if widths is not None:
            values["widths"] = tuple(map(int, widths))
        affine = data.get("input_affine")
        if affine is not None:
            values["input_affine"] = tuple(tuple(map(float, part)) for part in affine)
        return cls(**values)

    def thin_width(
        self, full: int, *, omega_times: int = 1, unit: int | None = None, expansion: int = 1
    ) -> int:
        """The width of a unit (paper section 3.1): `omega_times` omega, which is 2 of fully connected layers, or less if it is less.

        Args:
            full: that at full size.
            omega_times: units of it.
            unit: its number, from 0 at the input; without it a backbone cannot be given `widths`.
            expansion: how many times wider the unit is outside, which is what `widths` say.
        """
        if self.widths is not None:
            if unit is None:
                raise UserError(
                    f"The backbone {self.source} takes one width for all of its units, found widths. Give width instead."
                )
            inner, rest = divmod(self.widths[unit], expansion)
            if rest or not 1 <= inner <= full:
                kind = "" if expansion == 1 else f"a multiple of {expansion} "
                raise UserError(
                    f"Number {unit + 1} of the widths of {self.source} should be {kind}from {expansion} to {expansion * full}, its "
                    f"full width, found {self.widths[unit]}."
                )
            return inner
        if self.width is not None:
            return min(omega_times * self.width, full)
        if self.width_fraction is not None:
            return min(in_eights(self.width_fraction * full), full)
        return full


def freeze_arguments(arguments: Mapping[str, Any]) -> Arguments:
    """Arguments by name as a value that can be hashed.

    Raises:
        UserError: one is no number, text or list of them.
    """
    return tuple((name, _freeze(name, value)) for name, value in sorted(arguments.items()))


def _freeze(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_freeze(name, part) for part in value)
    if isinstance(value, Mapping):
        raise UserError(
            f"model.arguments should hold numbers, texts and lists of them, found {value} for {name}. Leave it out."
        )
    return value


def in_eights(units: float) -> int:
    """The nearest multiple of 8, at least 8: whole vectors of channels."""
    return max(8, 8 * int(units / 8 + 0.5))


@cache
@torch.no_grad()
def _measure_units(backbone: Backbone) -> tuple[UnitSpec, ...]:
    """One pass over all units without any numbers."""
    # Loads triton where there is one: 75 MiB, for who asks what units cost.
    from torch.utils.flop_counter import FlopCounterMode

    specs = []
    plans = backbone.plans  # made with numbers
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        units = [plan.build().eval().requires_grad_(False) for plan in plans]
        halvings = sum(unit.halvings for unit in units)
        x = torch.zeros(1, 3, *backbone.image_size)
        for plan, unit in zip(plans, units, strict=True):
            start = counter.get_total_flops()
            shortcut = unit.shortcut(x)
            around = counter.get_total_flops() - start
            x = unit.execute(x, shortcut)
            through = counter.get_total_flops() - start - around

            max_copies = None if plan.full_width is None else plan.full_width // plan.width
            own_halvings = 0 if backbone.output_stride is None else unit.halvings
            # The parameters of the shortcut are those of a unit that nobody executes.
            spare = plan.build(is_executed=False) if plan.may_skip else nn.Identity()
            whole, past = count_cost(unit, through), count_cost(spare, around)
            spec = UnitSpec(
                name=plan.name,
                width=plan.width,
                max_copies=max_copies,
                halvings_above=halvings - own_halvings,
                may_skip=plan.may_skip,
                body=Cost(
                    whole.weights - past.weights,
                    whole.parameters - past.parameters,
                    whole.multiply_adds,
                ),
                shortcut=past,
                weights=_list_weights(unit),
                num_scales=_count_scales(unit),
                features=tuple(x.shape[1:]),
            )
            specs.append(spec)
            halvings -= unit.halvings
    return tuple(specs)


def count_cost(module: nn.Module, flops: int) -> Cost:
    """Of a module, from what torch counts when it runs."""
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Cost(weights, parameters, flops // 2)  # torch counts a product and its sum as two


def _list_weights(module: nn.Module) -> tuple[WeightShape, ...]:
    return tuple(
        WeightShape(name, len(parameter), parameter.numel() // len(parameter))
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1
    )


def _count_scales(module: nn.Module) -> int:
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    return sum(norm.num_features for norm in norms)


# ---- the sources


def _plan_vgg(backbone: Backbone) -> Iterator[UnitPlan]:
    items = VGG_LAYERS[backbone.source].split()
    num_inputs = 3
    number = 0
    height, length = backbone.image_size
    for item, following in zip(items, [*items[1:], ""], strict=True):
        if item == "|":
            height, length = height // 2, length // 2
            continue
        name, full = item.split(":")
        is_linear = name.startswith("fc")
        if is_linear:  # the first one sees every channel at every position left
            num_inputs, height, length = num_inputs * height * length, 1, 1
        omega_times = 2 if is_linear else 1
        width = backbone.thin_width(int(full), omega_times=omega_times, unit=number)
        basis = basis_size(name, num_inputs, width, int(full)) if backbone.low_rank else None
        build = partial(
            _build_layer, num_inputs, width, basis, is_linear=is_linear, is_pooled=following == "|"
        )
        yield UnitPlan(name, width, int(full), build)
        num_inputs = width
        number += 1


def _build_layer(
    num_inputs: int, width: int, basis: int | None, *, is_linear: bool, is_pooled: bool
) -> Unit:
    def product(inputs: int, outputs: int, size: int = 3) -> nn.Module:
        if is_linear:
            return make_unset(nn.Linear, inputs, outputs, bias=False)  # type: ignore[no-any-return]
        return make_convolution(inputs, outputs, size)

    whole = (
        product(num_inputs, width)
        if basis is None
        else LowRank(product(num_inputs, basis), product(basis, width, 1))
    )
    return Layer(whole, width, pool=(2, 2, 0) if is_pooled else None, halvings=int(is_pooled))


def basis_size(name: str, num_inputs: int, width: int, full_width: int) -> int:
    """The number of basis filters of a layer: the paper's for the full VGG-16.

    Of a narrower layer the same share of its width, in eights and at least eight; never more than its rank.
    """
    stage = re.sub(r"_\d+$", "", name)
    if stage not in BASIS:
        raise UserError(
            f"The low-rank baseline has basis sizes for the layers of vgg16, found the layer {name}."
        )
    rank = min(width, num_inputs * (1 if name.startswith("fc") else 9))
    return min(in_eights(BASIS[stage] * width / full_width), rank)


def _plan_resnet(backbone: Backbone) -> Iterator[UnitPlan]:
    block = backbone.block
    num_inputs = backbone.thin_width(STAGE_WIDTHS[0], unit=0)
    number = 0
    yield UnitPlan("stem", num_inputs, STAGE_WIDTHS[0], partial(_build_stem, num_inputs))
    stages = zip(BLOCKS[backbone.source], STAGE_WIDTHS, strict=True)
    reached = 4  # the stride of the features so far, the stem's
    for stage, (count, full) in enumerate(stages, start=1):
        published = 1 if stage == 1 else 2
        stride = published if reached * published <= (backbone.output_stride or 32) else 1
        reached *= stride
        dilation = 2 ** (stage + 1) // reached
        for place in range(1, count + 1):
            number += 1
            width = backbone.thin_width(full, unit=number, expansion=block.expansion)
            is_first = place == 1
            build = partial(
                block,
                num_inputs,
                width,
                stride if is_first else 1,
                dilation=dilation,
                # Also where dilation is all that changes, as in thin networks.
                projects=is_first and published == 2,
            )
            num_inputs = width * block.expansion
            name = f"block{stage}_{place}"
            yield UnitPlan(name, num_inputs, full * block.expansion, build, may_skip=True)


def _build_stem(width: int) -> Unit:
    return Layer(make_convolution(3, width, 7, 2), width, pool=(3, 2, 1), halvings=2)


# How the units of a source are planned.
BACKBONES: Registry[Callable[[Backbone], Iterator[UnitPlan]]] = Registry("backbone")
for _name in VGG_LAYERS:
    BACKBONES.register(_name)(_plan_vgg)
for _name in BLOCKS:
    BACKBONES.register(_name)(_plan_resnet)
