"""What a run does not read: the keys whose values change nothing, and a sentence for each that is given all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distbranch.config.network import MethodConfig

if TYPE_CHECKING:
    from distbranch.config.sections import Config

# The settings that act nowhere but at a decision. Both kinds of affinity come from the same sums.
KEYS_OF_DECISIONS = (
    "affinity",
    "decision",
    "alpha",
    "price",
    "unit_cost",
    "max_branches",
    "lowest",
    "when_no_split",
)
# Those of them that weigh what branches cost against what they separate.
KEYS_OF_PRICES = ("alpha", "price", "unit_cost")
# Those that say when decisions are taken, and what the sums are that they are taken from.
KEYS_OF_ROUNDS = ("decay", "round_iterations", "first_decision")
# Those of a search for a policy; a run that trains with one found elsewhere reads none of them.
KEYS_OF_SEARCHES = (
    "warmup_iterations",
    "weights_part",
    "cycles_per_block",
    "cycle_iterations",
    "cooling",
    "weights_lr",
    "policy_lr",
    "sparsity",
    "sharing",
    "sharing_preset",
)


def keys_without_effect(config: Config) -> frozenset[str]:
    """The dotted keys that the run of a configuration never reads, whatever their values.

    The one place that says what a method reads: a run whose configuration differs in nothing else is the same run.
    """
    found = set[str]()
    if config.method.has_scout:
        found |= {f"method.{key}" for key in (*KEYS_OF_ROUNDS, "when_no_split")}
        if config.method.budget is not None:  # which is the price
            found |= {f"method.{key}" for key in KEYS_OF_PRICES}
    elif not config.decides:
        found |= {f"method.{key}" for key in (*KEYS_OF_DECISIONS, *KEYS_OF_ROUNDS)}
    if not config.widens:
        found |= {"method.birth", "optim.when_widened"}
    if not config.inherits_memory:
        found.add("optim.inherited_steps")
    if not (config.decides or config.method.has_scout or config.method.groups is not None):
        found.add("method.branches")
    if config.method.branches == "copies" or "method.branches" in found:
        found.add("method.delta_rank")
    if config.method.pretrained is None:
        found.add("method.pretrained_channels")
    if config.data.scale is None:
        found.add("data.depth_follows_scale")
    if config.optim.schedule != "step":
        found |= {"optim.decay_every", "optim.decay_factor"}
    if config.loss.weighting != "dwa":
        found.add("loss.window")
    if not config.train.judges_evaluations:
        found.add("train.keep_metric")
    if not config.searches:
        found |= {f"adashare.{key}" for key in KEYS_OF_SEARCHES}
    return frozenset(found)


def list_ignored(config: Config) -> tuple[str, ...]:
    """A sentence for every setting that is given and has no effect."""
    told = []
    iterations = config.train.iterations
    method = config.method
    if config.optim.warmup > iterations:
        told.append(
            f"optim.warmup={config.optim.warmup} is longer than train.iterations={iterations}: optim.lr is never reached."
        )
    if method.grows and not config.decides:
        told.append(
            f"The first decision would come after {method.steps_to_first} steps, and train.iterations={iterations}: the network "
            "never branches. Lower method.first_decision or method.round_iterations."
        )
    has_room = config.model.is_of_timm or not config.model.is_full_size
    decides = config.decides or method.has_scout
    if decides and method.max_branches == "auto" and not has_room:
        told.append(
            "method.max_branches=auto leaves a network of full width no room for a second branch: it never branches. Give a "
            "number, or empty it (method.max_branches=) for no cap."
        )
    if method.branches == "copies" and method.delta_rank != MethodConfig().delta_rank:
        told.append(
            f"method.delta_rank={method.delta_rank} is that of method.branches=delta, found method.branches=copies."
        )
    if method.widen_at is not None and not config.widens:
        told.append(
            f"method.widen_at={method.widen_at} is not before the end, and train.iterations={iterations}: the network never "
            "branches. Lower it."
        )
    if method.birth != "copies" and not config.widens:
        told.append(
            f"method.birth={method.birth} is of branches that are born while a run trains, and none are: give method.widen_at, or "
            "leave it out."
        )
    if config.optim.inherited_steps is not None and not config.inherits_memory:
        told.append(
            f"optim.inherited_steps={config.optim.inherited_steps} is of copies that are born while a run trains with optim.name=adam "
            "or adamw: it has no effect."
        )
    window = type(config.loss).model_fields["window"].default
    if config.loss.weighting != "dwa" and config.loss.window != window:
        told.append(
            f"loss.window={config.loss.window} is of loss.weighting=dwa, found {config.loss.weighting}: it has no effect."
        )
    if method.pretrained_channels != "rgb" and method.pretrained is None:
        told.append(
            f"method.pretrained_channels={method.pretrained_channels} is that of a file in method.pretrained, which is empty."
        )
    if config.data.scale is None and not config.data.depth_follows_scale:
        told.append("data.depth_follows_scale=false is that of data.scale, which is empty.")
    metric = config.train.keep_metric
    if metric is not None and not config.train.judges_evaluations:
        told.append(
            f"train.keep_metric={metric} is that of train.keep=best and train.patience, of which neither is given: it has no effect."
        )
    if method.has_scout:
        told += _list_unread_of_scouts(config)
    return tuple(told)


def _list_unread_of_scouts(config: Config) -> list[str]:
    """A sentence for every setting of a method that decides by a scout and does not read it."""
    told = []
    unread = keys_without_effect(config)
    for name in (*KEYS_OF_ROUNDS, *KEYS_OF_DECISIONS):
        value = getattr(config.method, name)
        if f"method.{name}" not in unread or value == MethodConfig.model_fields[name].default:
            continue
        reason = "with method.begin=anew a finished scout decides, once"
        if name in KEYS_OF_PRICES:
            reason = "what a tree may cost is given by method.budget"
        told.append(f"method.{name}={value} has no effect: {reason}.")
    when = config.optim.when_widened
    if when != type(config.optim).model_fields["when_widened"].default:
        told.append(
            f"optim.when_widened={when} has no effect: with method.begin=anew no layer divides while the run trains."
        )
    return told
