"""What a sharing method does at the end of a round: from affinity sums to a record of the decision.

The record holds everything the decision was based on. It is made on rank 0 and sent to all others as it is.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.decision import choose_groups, price_by_multiply_adds
from distbranch.branching.grouping import branch_affinity
from distbranch.branching.tree import Split
from distbranch.config import MethodConfig
from distbranch.models.architecture import Architecture


@dataclass(frozen=True)
class RoundDecision:
    """One decision: all that it changes in training, its record (a line of decisions.jsonl) and the matrices behind it.

    `split` is None where one branch was cheapest; `grows` says whether another round follows.
    """

    split: Split | None
    grows: bool
    record: dict[str, Any]
    matrices: dict[str, NDArray[np.float64]]


def decide_round(
    stats: AffinityStats, architecture: Architecture, methods: Sequence[MethodConfig], *, seed: int
) -> list[RoundDecision]:
    """Group the branches above the active layer (Eq. 7 to 11), once for each of `methods`.

    Args:
        stats: the sums over ALL ranks.
        architecture: of the network as it stands.
        methods: each with its alpha, unit cost, kind of affinity and cap.
        seed: of the clustering.
    """
    tree, layer = architecture.tree, architecture.tree.active_layer
    above = tree.branches(layer + 1)
    spec = architecture.specs[layer - 1]
    affinities = {kind: stats.affinity(kind) for kind in ("agreement", "phi")}
    num_unseen = len(stats.pairs_never_seen())

    decisions = []
    # Each as if it were alone: what is shared above depends on the statistics and not on the method.
    for method in methods:
        began = time.perf_counter()
        cap = method.max_branches
        if cap == "auto":  # what the layer's width leaves room for
            cap = spec.max_copies
        price = price_branch(method, architecture, layer)
        affinity = branch_affinity(affinities[method.affinity], above)
        decision = choose_groups(
            affinity,
            alpha=method.alpha,
            pools_above=spec.halvings_above,
            unit_cost=method.unit_cost,
            price=price,
            max_groups=cap,
            seed=seed,
        )
        split = None
        after = tree
        if decision.num_groups > 1:
            split = Split(layer, tuple(tuple(group) for group in decision.groups))
            after = tree.split(split)
        grows = after.active_layer > 0 and (split is not None or method.when_no_split == "retry")
        record = {
            "layer": layer,
            "layer_name": tree.layers[layer - 1],
            "num_groups": decision.num_groups,
            "groups": [list(group) for group in decision.groups],
            "tasks": [_name_tasks(architecture, above, group) for group in decision.groups],
            "costs": {str(number): cost for number, cost in decision.costs.items()},
            "separation": {str(number): cost for number, cost in decision.separation.items()},
            "search": decision.search,
            "moves": decision.num_moves,
            "alpha": method.alpha,
            "pools_above": spec.halvings_above,
            "unit_cost": method.unit_cost,
            "price": price,
            "priced_by": _choose_price(method, architecture),
            "max_groups": cap,
            "affinity_kind": method.affinity,
            "seconds": time.perf_counter() - began,
            "pairs_never_seen": num_unseen,
        }
        decisions.append(
            RoundDecision(split, grows, record, {**affinities, "branch_affinity": affinity})
        )
    return decisions


def price_branch(method: MethodConfig, architecture: Architecture, layer: int) -> float:
    """What one more branch of a layer (from 1) costs (Eq. 9): by the halvings above it, or by its share of all multiply-adds."""
    spec = architecture.specs[layer - 1]
    if _choose_price(method, architecture) == "pools":
        return float(method.unit_cost * 2**spec.halvings_above)
    costs = [unit.body.multiply_adds + unit.shortcut.multiply_adds for unit in architecture.specs]
    return price_by_multiply_adds(costs[layer - 1] / sum(costs), method.unit_cost)


def _choose_price(method: MethodConfig, architecture: Architecture) -> str:
    """Where hardly anything halves, as in many a timm model, pools would price all units alike."""
    if method.price is not None:
        return method.price
    return "multiply-adds" if architecture.backbone.is_of_timm else "pools"


def _name_tasks(
    architecture: Architecture, above: Sequence[Sequence[int]], group: Sequence[int]
) -> list[str]:
    """The tasks of a group of the branches `above`, in their order."""
    numbers = sorted(task for branch in group for task in above[branch])
    return [architecture.tasks[number].name for number in numbers]
