"""The settings of the network and of the method by which its tasks come to share layers, and what each method reads of them."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from distbranch.config.names import (
    BUILT_IN,
    Affinity,
    DecisionMethod,
    check_name,
    describe_names,
)
from distbranch.config.paths import expand_places

# Those of the first weights.
KEYS_OF_BEGINNINGS = ("init", "pretrained", "pretrained_channels")
# Those of a tree that is decided by a scout, before the first step of the network that is trained with it.
KEYS_OF_SCOUTS = ("scout", "scout_iterations", "split_from", "group_layers", "budget")

# Networks of other papers over the units of a ResNet; all but `mtan` have weights that mix the features of tasks.
BASELINES = ("cross-stitch", "mtan", "nddr", "sluice")
MIXING = tuple(name for name in BASELINES if name != "mtan")
WIDTHS = ("width", "width_fraction", "widths")  # of which a backbone is given one at most
TIMM = "timm:"  # before the name of a model of timm
# Places of weights that are no files: a repository, and what timm itself names for a model.
HUB = "hf-hub:"
OF_TIMM = "timm"

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Place = Annotated[str, AfterValidator(expand_places)]  # a path or a URL


class Section(BaseModel):
    """The base of every part of a configuration; refuses keys that it does not know. The text below a key is its help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def check_backbone(name: str) -> str:
    """The name of a backbone, if there is one; that of a timm model is looked up when it is made.

    Raises:
        ValueError: there is none, with the nearest names.
    """
    if name.startswith(TIMM) and name != TIMM:
        return name
    try:
        return check_name(name, what="backbone")
    except ValueError as error:
        model = name.removeprefix(TIMM) or "NAME"
        raise ValueError(f"{error}; if it is a model of timm, write {TIMM}{model}") from None


class ModelConfig(Section):
    """The network before any widening."""

    backbone: Annotated[str, AfterValidator(check_backbone)] = Field(
        "vgg16", json_schema_extra={"range": " | ".join([*BUILT_IN["backbone"], "timm:NAME"])}
    )
    """VGG-16, or a shorter one for small images; a residual network; or a model of timm that is a chain of blocks."""
    arguments: dict[str, Any] = Field({}, json_schema_extra={"range": "{ARGUMENT: VALUE, ...}"})
    """What timm makes its model with, such as {depths: [2, 2, 6, 2]}."""
    pretrained: Place | None = Field(
        None, json_schema_extra={"range": "PATH | hf-hub:OWNER/NAME | timm"}
    )
    """Weights that a timm model, or a ResNet of full width, begins from: a .safetensors or .pth file with timm's names, a
    repository, or `timm` for those that timm knows (both downloaded)."""
    width: Count | None = 32
    """Thinness omega: width of every convolution; full if empty, or as `width_fraction` or `widths` say. Empty for a timm model."""
    width_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """This fraction of the full width of every layer (in eights, at least 8); `width` is empty then."""
    widths: tuple[Count, ...] | None = Field(None, json_schema_extra={"range": "[WIDTH, ...]"})
    """The width of every unit by itself, input first, fully connected layers too: 15 numbers for VGG-16; `width` is empty then."""
    output_stride: Literal[8, 16, 32] | None = None
    """Of a ResNet, pixels of the image per feature: strides are replaced from the top by dilation; 32 if empty. Dense tasks want 8."""
    head: Literal["light", "aspp"] | None = None
    """Of dense tasks: two convolutions, which is what they have if it is empty, or the published head, which alone has more weights
    than a ResNet-34."""
    head_width: Count | None = None
    """Channels inside that head; if empty 64 of `light` and 1,024 of `aspp`."""
    from_run: Place | None = Field(None, json_schema_extra={"range": "PATH"})
    """With method.name=fixed or branching: the finished run whose tree, or policy, and weights the run begins with, for tasks of the
    same names; heads of other tasks begin at random, each on the branch that suits it."""

    @model_validator(mode="before")
    @classmethod
    def _has_one_width(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {key: values[key] for key in WIDTHS if values.get(key) is not None}
        found = " and ".join(f"{key}={value}" for key, value in given.items())
        backbone = str(values.get("backbone"))
        if backbone.startswith(TIMM):
            if given:
                raise ValueError(
                    f"backbone={backbone} has widths of its own, so `width`, `width_fraction` and `widths` should be empty, found {found}; "
                    f"leave it out, or empty it (model.{next(iter(given))}=)"
                )
        elif not given.keys() - {"width"}:
            return values
        elif len(given) > 1:
            raise ValueError(
                f"only one of `width`, `width_fraction` and `widths` should be given, found {found}; empty the others "
                f"(model.{next(iter(given))}=)"
            )
        # Emptied before the fields are validated, for the default of `width` is a number.
        return {**values, "width": None}

    @model_validator(mode="after")
    def _begins_from_what_fits(self) -> Self:
        if self.arguments and self.backbone in BUILT_IN["backbone"]:
            raise ValueError(
                f"arguments are those of a model of timm (backbone=timm:NAME), found backbone={self.backbone}; leave them out"
            )
        if self.output_stride is not None and not self.backbone.startswith("resnet"):
            advice = "leave it out"
            if self.is_of_timm:
                advice = f"many models of timm take it as model.arguments={{output_stride: {self.output_stride}}}"
            raise ValueError(
                f"output_stride={self.output_stride} is that of a ResNet, found backbone={self.backbone}; {advice}"
            )
        if self.pretrained is None or self.is_of_timm:
            return self
        if self.backbone.startswith("vgg"):
            raise ValueError(
                f"pretrained={self.pretrained} is for a timm model or a ResNet; {self.backbone} begins from "
                "method.pretrained with method.init=somp"
            )
        if not self.is_full_size:
            raise ValueError(
                f"pretrained={self.pretrained} needs {self.backbone} at its full width, found {self.width_text}; empty it "
                "(model.width=)"
            )
        return self

    @property
    def is_of_timm(self) -> bool:
        """Whether timm makes the network, at widths of its own."""
        return self.backbone.startswith(TIMM)

    @property
    def is_full_size(self) -> bool:
        """Whether the backbone is as wide as it was published."""
        return self.width is None and self.width_fraction is None and self.widths is None

    @property
    def pretrained_file(self) -> str | None:
        """The path in `pretrained`; None for weights that are downloaded."""
        place = self.pretrained
        return None if place is None or is_fetched(place) else place

    @property
    def width_text(self) -> str:
        """The width for people."""
        if self.width is not None:
            return f"width {self.width}"
        if self.width_fraction is not None:
            return f"{self.width_fraction:g} of the full width"
        return "full width" if self.widths is None else f"widths {describe_widths(self.widths)}"


def is_fetched(place: str) -> bool:
    """Whether pretrained weights are fetched from the hub, and are no file."""
    return place == OF_TIMM or place.startswith(HUB)


def describe_widths(widths: Iterable[int]) -> str:
    """Widths with equal neighbours together: `7 x 16, 8 x 36`."""
    runs = [(len(list(equal)), width) for width, equal in itertools.groupby(widths)]
    return ", ".join(f"{count} x {width}" for count, width in runs)


class BudgetConfig(Section):
    """What the tree of `method.begin: anew` may cost at most, all its branches and heads counted."""

    weights: Count | None = None
    """Weights, with batch norm folded and biases not counted."""
    multiply_adds: Count | None = None
    """Multiply-adds of one image."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.weights is None and self.multiply_adds is None:
            raise ValueError("budget should have a number for `weights`, `multiply_adds` or both")
        return self


class MethodConfig(Section):
    """How tasks come to share layers (design: branching, sections 3 to 6)."""

    name: Literal[
        "branching",
        "adashare",
        "fixed",
        "independent",
        "low-rank",
        "cross-stitch",
        "mtan",
        "nddr",
        "sluice",
    ] = "branching"
    """`branching` grows a tree; `adashare` learns which task skips which block; `fixed` keeps the network as it is, or the tree of
    `groups`; `independent`: a network per task; `low-rank`: the SVD of `pretrained` (VGG-16), trained further. To compare with, of
    ResNets: `cross-stitch`, `nddr` and `sluice`, a network per task that mixes its features with those of others after every stage,
    and `mtan`, one network of which every task attends to its own part."""
    mixing_rate: Positive | None = None
    """With `cross-stitch`, `nddr` and `sluice`: the learning rate of the weights that mix tasks, as a multiple of that of all others;
    if empty 100 with SGD, else 1."""
    groups: str | dict[str, list[list[str]]] | None = Field(
        None, json_schema_extra={"range": "PATH | {UNIT: [[TASK, ...], ...]}"}
    )
    """With `fixed`: the tree, that of a run directory, a tree.json, or groups of tasks by unit of the backbone (one not named has
    those of the nearest named one above, else of the highest; below the lowest all tasks share)."""
    permutation: CountOrZero | None = None
    """Seed of a random order of the tasks in the tree of `groups`, or in that of `begin: anew`: a control."""
    begin: Literal["grown", "anew"] = "grown"
    """With `branching`: the tree grows while the network trains, or it is decided once by a scout, a thin network that was trained
    to its end, and trained from fresh weights: one grouping for all layers from one of them to the top."""
    scout: Place | None = Field(None, json_schema_extra={"range": "PATH"})
    """With `anew`: the run directory of a finished thin run of the same units and tasks that is the scout; if empty one is trained."""
    scout_iterations: Count | None = None
    """With `anew`: optimiser steps of the scout, on a schedule of its own in proportion; `train.iterations` if empty."""
    split_from: str | None = Field(None, json_schema_extra={"range": "UNIT"})
    """With `anew`: the lowest unit that gets branches; if empty the cheapest of all from the second on (Eq. 9 and 11). With
    train.only=new: the lowest unit of which new tasks have a copy of their own; if empty the last one."""
    # In a thin network a branch of a ResNet's stem repeats a fifth of all multiply-adds.
    lowest: str | None = Field(None, json_schema_extra={"range": "UNIT"})
    """With `branching`: the lowest unit that may get branches; if empty block1_1 of a ResNet for dense tasks, else the first."""
    group_layers: Literal["together", "one-by-one"] | None = None
    """With `anew`: one grouping for all layers from `split_from` up (`together`, also if empty), or layer by layer from the top down
    to it, each by its own affinity, as a tree grows."""
    budget: BudgetConfig | None = Field(
        None, json_schema_extra={"range": "{weights: N, multiply_adds: N}"}
    )
    """With `anew`: what the tree may cost at most; it takes the place of the price of branches."""
    branches: Literal["copies", "delta"] = "copies"
    """What branches of a layer are: copies of it, or differences of low rank between weights that they share."""
    # Of the measured networks; a convolution of 16 channels has rank 16.
    delta_rank: Count = 4
    """Rank of these differences. A weight that a difference would not be smaller than is copied."""
    widen_at: Count | None = None
    """With `groups`: the optimiser step after which the tree is taken, all its layers at once; until then all tasks share every
    layer. If empty the run begins with the tree."""
    birth: Literal["copies", "perturbed", "fresh"] = "copies"
    """What the branches of a widened layer begin as: copies of the one they were, newly drawn ones without memory of the
    optimiser, or halfway between (`perturbed`, with its memory)."""
    init: Literal["random", "somp", "largest-norm", "random-rows"] = "random"
    """First weights: random numbers, or filters of `pretrained`, chosen by SOMP, by norm or at random."""
    pretrained: Place | None = None
    """VGG-16 weights (.pth, .safetensors) or the directory of a finished wide run."""
    pretrained_channels: Literal["rgb", "bgr"] = "rgb"
    """Order of colours for which a weights file was trained."""
    affinity: Affinity = Field("agreement", json_schema_extra=describe_names("kind of affinity"))
    """Which tasks find the same samples difficult: Eq. 6 of the paper, or its chance-corrected form; or, measured at every decision
    over 1,024 training samples, which need the same filters (`importance`), pull shared weights in the same direction
    (`gradient-cosine`) or lower each other's loss by a step (`look-ahead`)."""
    decision: DecisionMethod = Field("cost", json_schema_extra=describe_names("method of decision"))
    """How branches are grouped at the end of a round; `cost`: the least cost of Eq. 9."""
    alpha: PositiveOrZero = 1.0
    """Branching factor: weight of the separation cost (Eq. 9)."""
    price: Literal["pools", "multiply-adds"] | None = None
    """What one more branch costs: `unit_cost` doubled for every halving above it (the paper), or by its share of the network's
    multiply-adds. If empty `multiply-adds` for a timm model, else `pools`."""
    # 1/64 is of the published experiments: with it a branch in conv1 of VGG-16, below five pooling layers, costs 1/2.
    unit_cost: Positive = 1 / 64
    """L0 of Eq. 9: cost of one more branch above all pooling layers, or of a fully connected layer of VGG-16."""
    # Half of the weight lies on the last 69 steps, so that affinities follow the network as it learns.
    decay: float = Field(0.99, gt=0, lt=1)
    """Decay of the affinity sums per optimiser step."""
    # At least 2: the first batch after a start only seeds the mean margins.
    round_iterations: int = Field(1000, ge=2)
    """Optimiser steps between two decisions."""
    first_decision: int | None = Field(None, ge=2)
    """Optimiser steps before the first decision; `round_iterations` if empty."""
    max_branches: Count | Literal["auto"] | None = "auto"
    """Cap per unit: `auto` (full width / thin width; none for a timm model), a number, or empty for none."""
    when_no_split: Literal["freeze", "retry"] = "freeze"
    """After a decision against a split: decide no more, or test again after the next round."""

    @field_validator("groups", mode="before")
    @classmethod
    def _is_a_tree(cls, groups: Any) -> Any:
        if groups is None or isinstance(groups, str):
            return expand_places(groups)
        # Checked before pydantic sees it, which would tell of a union's every member.
        if not isinstance(groups, Mapping) or not all(map(_is_a_grouping, groups.values())):
            raise ValueError(
                f"should be a run directory, a tree.json, or a mapping {{layer: [[task, ...], ...]}}, found {groups!r}"
            )
        # Names may look like numbers in YAML.
        return {
            str(name): [list(map(str, group)) for group in layer] for name, layer in groups.items()
        }

    @model_validator(mode="after")
    def _begins_from_what_is_given(self) -> Self:
        if self.groups is not None and self.name != "fixed":
            raise ValueError(
                f"groups give a tree that is kept: use method.name=fixed with them, found {self.name}"
            )
        if self.permutation is not None and self.groups is None and self.begin != "anew":
            raise ValueError(
                "permutation permutes the tasks of a given tree: give method.groups with it, or method.begin=anew"
            )
        if self.branches == "delta" and not (self.name == "branching" or self.groups is not None):
            raise ValueError(
                "branches=delta is for branches of a tree: use method.name=branching, or method.name=fixed with method.groups, found "
                f"{self.name}"
            )
        if self.widen_at is not None and self.groups is None:
            raise ValueError(
                f"widen_at={self.widen_at} is the step at which a given tree is taken: give method.groups with it"
            )
        if self.init != "random" and self.name == "low-rank":
            raise ValueError(
                f"name=low-rank begins from the factors of method.pretrained, so method.init should be random, found {self.init}"
            )
        if self.begins_from_pretrained and self.pretrained is None:
            raise ValueError(
                f"name={self.name} with init={self.init} begins from a wide network: give method.pretrained, the path of VGG-16 "
                "weights (.pth or .safetensors) or the directory of a finished wide run"
            )
        if self.pretrained is not None and not self.begins_from_pretrained:
            raise ValueError(
                f"pretrained={self.pretrained} is used with method.init=somp|largest-norm|random-rows or method.name=low-rank: add "
                "method.init=somp, or leave method.pretrained out; a ResNet or a model of timm begins from model.pretrained"
            )
        return self

    @model_validator(mode="after")
    def _has_weights_that_mix_tasks(self) -> Self:
        if self.mixing_rate is not None and self.name not in MIXING:
            raise ValueError(
                f"mixing_rate={self.mixing_rate:g} is of weights that mix tasks (method.name={', '.join(MIXING)}), found "
                f"name={self.name}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_a_lowest_unit_where_one_is_read(self) -> Self:
        if self.lowest is None:
            return self
        if self.name != "branching":
            raise ValueError(
                f"lowest={self.lowest} is of a tree that is decided: use method.name=branching with it, found {self.name}"
            )
        if self.split_from is not None:
            raise ValueError(
                f"lowest={self.lowest} would be ignored, for split_from={self.split_from} says which unit is the lowest: leave one of "
                "them out"
            )
        return self

    @model_validator(mode="after")
    def _has_a_scout_where_one_is_read(self) -> Self:
        if self.begin == "grown":
            given = [key for key in KEYS_OF_SCOUTS if getattr(self, key) is not None]
            if self.name == "fixed" and given == ["split_from"]:
                return self  # of a task that is added to a tree, see `Config`
            if given:
                raise ValueError(
                    f"{' and '.join(given)} would be ignored, for a scout decides only with method.begin=anew: add that, or leave "
                    "them out"
                )
            return self
        if self.name != "branching":
            raise ValueError(
                f"begin=anew decides on a tree: use method.name=branching with it, found {self.name}"
            )
        if self.decision != "cost":
            raise ValueError(
                f"begin=anew groups tasks once for a block of layers, by their cost: leave out method.decision, found {self.decision}"
            )
        if self.scout is not None and self.scout_iterations is not None:
            raise ValueError(
                f"scout_iterations is the length of a scout that is trained, and scout={self.scout} is one already: leave one of them "
                "out"
            )
        if self.group_layers == "one-by-one" and self.budget is not None:
            raise ValueError(
                f"budget={self.budget.model_dump(exclude_none=True)} would go to the highest layer alone with group_layers=one-by-one: "
                "leave one of them out"
            )
        return self

    @property
    def grows(self) -> bool:
        """Whether the tree grows while the network trains."""
        return self.name == "branching" and self.begin == "grown"

    @property
    def has_scout(self) -> bool:
        """Whether a scout decides on the tree before the first step."""
        return self.begin == "anew"

    @property
    def begins_from_pretrained(self) -> bool:
        """Whether the first weights come from `pretrained`."""
        return self.init != "random" or self.name == "low-rank"

    @property
    def rank_between_branches(self) -> int | None:
        """Rank of the differences between branches; None if these are copies."""
        if self.branches == "delta":
            return self.delta_rank
        return None

    @property
    def without_branches(self) -> "MethodConfig":
        """The method of the plain network that begins alike, in which all tasks share every layer."""
        kept: dict[str, Any] = {}
        if self.init != "random":  # else `pretrained` is what low-rank factorises
            kept = {key: getattr(self, key) for key in KEYS_OF_BEGINNINGS}
        return MethodConfig(name="fixed", **kept)

    @property
    def steps_to_first(self) -> int:
        """Optimiser steps before the first decision."""
        return self.first_decision or self.round_iterations

    @property
    def keeps_thin(self) -> bool:
        """Whether the network never has branches: a thin (or wide) baseline."""
        return self.name == "fixed" and self.groups is None


def _is_a_grouping(layer: Any) -> bool:
    """Whether it is [[task, ...], ...]."""
    return isinstance(layer, list) and all(map(_is_a_group, layer))


def _is_a_group(group: Any) -> bool:
    return isinstance(group, list) and all(isinstance(task, str | int) for task in group)


class AdaShareConfig(Section):
    """With `method.name: adashare`: the search for a policy, or the policy to train with (design: section 9)."""

    policy: Place | None = Field(None, json_schema_extra={"range": "PATH"})
    """The finished search whose policy is trained with, from fresh weights; empty: search for one."""
    policy_number: CountOrZero | None = None
    """Which of the policies drawn from that search; its most probable decisions if empty."""
    warmup_iterations: CountOrZero = 1000
    """Optimiser steps in which all tasks share every block."""
    weights_part: float = Field(0.8, gt=0, lt=1)
    """Fraction of the training images that trains weights; the rest trains the policy."""
    # The published experiments have 3, in some cases 1.
    cycles_per_block: Count = 3
    """Cycles (an epoch of either part) until the policy may decide one block more, from the top."""
    cycle_iterations: int | None = Field(None, ge=2)
    """Optimiser steps of a cycle, divided between weights and policy as `weights_part` says; if empty those of an epoch of either
    part."""
    # 0.14 after a hundred cycles, when a sample is all but a decision: searches of fewer cycles want a smaller one.
    cooling: float = Field(0.965, gt=0, le=1)
    """What the temperature of the decisions is multiplied by after every cycle; it is 5 at first."""
    weights_lr: Positive = 0.001
    """Learning rate of the weights after the warm-up (SGD)."""
    policy_lr: Positive = 0.01
    """Learning rate of the policy (Adam)."""
    sparsity: PositiveOrZero | None = None
    """Weight of the price of executing blocks; if empty the published one for this number of tasks."""
    sharing: PositiveOrZero | None = None
    """Weight of the price of decisions that differ between tasks; the published one if empty."""
    sharing_preset: Literal["paper", "experiments"] = "paper"
    """That price as in the text of the paper (heavy on low blocks), or as in its experiments."""

    @model_validator(mode="after")
    def _draws_from_something(self) -> Self:
        if self.policy_number is not None and self.policy is None:
            raise ValueError(
                "policy_number is one of the policies drawn from a search: give adashare.policy with it"
            )
        return self
