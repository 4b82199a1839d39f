"""The settings of the network and of the method by which its tasks come to share layers, and what each method reads of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from distbranch.config.names import Affinity, DecisionMethod, Source, describe_names
from distbranch.config.paths import expand_places

if TYPE_CHECKING:
    from distbranch.config.sections import Config

# The settings that act nowhere but at a decision. Both kinds of affinity come from the same sums.
KEYS_OF_DECISIONS = (
    "affinity",
    "decision",
    "alpha",
    "unit_cost",
    "max_branches",
    "when_no_split",
)
# Those that say when decisions are taken, and what the sums are that they are taken from.
KEYS_OF_ROUNDS = ("decay", "round_iterations", "first_decision")
# Those of a search for a policy; a run that trains with one found elsewhere reads none of them.
KEYS_OF_SEARCHES = (
    "warmup_iterations",
    "weights_part",
    "cycles_per_block",
    "weights_lr",
    "policy_lr",
    "sparsity",
    "sharing",
    "sharing_preset",
)

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


class ModelConfig(Section):
    """The network before any widening."""

    backbone: Source = Field("vgg16", json_schema_extra=describe_names("backbone"))
    """VGG-16, or a shorter one for small images; a residual network for `adashare` or `fixed`."""
    width: Count | None = 32
    """Thinness omega: width of every convolution; full (or `width_fraction` of it) if empty."""
    width_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """This fraction of the full width of every layer (in eights, at least 8); `width` is empty then."""

    @model_validator(mode="before")
    @classmethod
    def _has_one_width(cls, values: Any) -> Any:
        fraction = values.get("width_fraction") if isinstance(values, Mapping) else None
        if fraction is None:
            return values
        width = values.get("width")
        if width is not None:
            raise ValueError(
                f"either `width` or `width_fraction` should be given, found width={width} and width_fraction={fraction}; "
                "empty one of them (model.width=)"
            )
        # Emptied before the fields are validated, for the default of `width` is a number.
        return {**values, "width": None}

    @property
    def is_residual(self) -> bool:
        """Whether it is of residual blocks, which tasks may skip; else it is of layers, which may branch."""
        return self.backbone.startswith("resnet")

    @property
    def width_text(self) -> str:
        """The width for people."""
        if self.width is not None:
            return f"width {self.width}"
        return (
            "full width"
            if self.width_fraction is None
            else f"{self.width_fraction:g} of the full width"
        )


class MethodConfig(Section):
    """How tasks come to share layers (design: branching, sections 3 to 6)."""

    name: Literal["branching", "adashare", "fixed", "independent", "low-rank"] = "branching"
    """`branching` grows a tree; `adashare` learns which task skips which block; `fixed` keeps the thin network, or the tree of
    `groups`; `independent`: a network per task; `low-rank`: the SVD of `pretrained`, trained further."""
    groups: str | dict[str, list[list[str]]] | None = Field(
        None, json_schema_extra={"range": "PATH | {LAYER: [[TASK, ...], ...]}"}
    )
    """With `fixed`: the tree, that of a run directory, a tree.json, or groups of tasks by layer (a layer not named has those of
    the nearest named one above, else of the highest; below the lowest all tasks share)."""
    permutation: CountOrZero | None = None
    """Seed of a random order of the tasks in the tree of `groups`: a control."""
    init: Literal["random", "somp", "largest-norm", "random-rows"] = "random"
    """First weights: random numbers, or filters of `pretrained`, chosen by SOMP, by norm or at random."""
    pretrained: Place | None = None
    """VGG-16 weights (.pth, .safetensors) or the directory of a finished wide run."""
    pretrained_channels: Literal["rgb", "bgr"] = "rgb"
    """Order of colours for which a weights file was trained."""
    affinity: Affinity = Field("agreement", json_schema_extra=describe_names("kind of affinity"))
    """Eq. 6 of the paper, or its chance-corrected form."""
    decision: DecisionMethod = Field("cost", json_schema_extra=describe_names("method of decision"))
    """How branches are grouped at the end of a round; `cost`: the least cost of Eq. 9."""
    alpha: PositiveOrZero = 1.0
    """Branching factor: weight of the separation cost (Eq. 9)."""
    # 1/64 is of the published experiments: with it a branch in conv1 of VGG-16, below five pooling layers, costs 1/2.
    unit_cost: Positive = 1 / 64
    """L0 of Eq. 9: cost of one more branch above all pooling layers."""
    # Half of the weight lies on the last 69 steps, so that affinities follow the network as it learns.
    decay: float = Field(0.99, gt=0, lt=1)
    """Decay of the affinity sums per optimiser step."""
    # At least 2: the first batch after a start only seeds the mean margins.
    round_iterations: int = Field(1000, ge=2)
    """Optimiser steps between two decisions."""
    first_decision: int | None = Field(None, ge=2)
    """Optimiser steps before the first decision; `round_iterations` if empty."""
    max_branches: Count | Literal["auto"] | None = "auto"
    """Cap per layer: `auto` (VGG width / thin width), a number, or empty for none."""
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
        if self.permutation is not None and self.groups is None:
            raise ValueError(
                "permutation permutes the tasks of a given tree: give method.groups with it"
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
                "method.init=somp, or leave method.pretrained out"
            )
        return self

    @property
    def begins_from_pretrained(self) -> bool:
        """Whether the first weights come from `pretrained`."""
        return self.init != "random" or self.name == "low-rank"

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


def keys_without_effect(config: "Config") -> frozenset[str]:
    """The dotted keys that the run of a configuration never reads, whatever their values.

    The one place that says what a method reads: a run whose configuration differs in nothing else is the same run.
    """
    found = set[str]()
    if not config.decides:
        found |= {f"method.{key}" for key in (*KEYS_OF_DECISIONS, *KEYS_OF_ROUNDS)}
        found.add("optim.when_widened")
    if config.method.pretrained is None:
        found.add("method.pretrained_channels")
    if config.optim.schedule != "step":
        found |= {"optim.decay_every", "optim.decay_factor"}
    if not config.searches:
        found |= {f"adashare.{key}" for key in KEYS_OF_SEARCHES}
    return frozenset(found)
