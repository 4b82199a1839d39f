"""Which settings have no effect beside the others: the one place that says what a method reads.

A run whose configuration differs from another one's in nothing else is the same run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distbranch.config.sections import Config

# The settings that act nowhere but at a decision. Both kinds of affinity come from the same sums.
KEYS_OF_DECISIONS = ("affinity", "alpha", "unit_cost", "max_branches", "when_no_split")
# Those that say when decisions are taken, and what the sums are that they are taken from.
KEYS_OF_ROUNDS = ("decay", "round_iterations", "first_decision")
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


def keys_without_effect(config: Config) -> frozenset[str]:
    """The dotted keys that the run of a configuration never reads, whatever their values."""
    found = set[str]()
    if not config.decides:
        found |= {f"method.{key}" for key in (*KEYS_OF_DECISIONS, *KEYS_OF_ROUNDS)} | {"optim.when_widened"}
    if config.method.pretrained is None:
        found.add("method.pretrained_channels")
    if config.optim.schedule != "step":
        found |= {"optim.decay_every", "optim.decay_factor"}
    if not config.searches:
        found |= {f"adashare.{key}" for key in KEYS_OF_SEARCHES}
    return frozenset(found)
