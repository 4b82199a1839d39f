"""What a sharing method does at the end of a round: from affinity sums to a record of the decision.

The record holds everything the decision was based on. It is made on rank 0 and sent to all others as it is.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.decision import Decision, choose_groups, price_by_multiply_adds
from distbranch.branching.grouping import Matrix, branch_affinity, separation_cost
from distbranch.branching.tree import Split
from distbranch.config import MethodConfig
from distbranch.engine.affinities import MeasuredAffinity
from distbranch.engine.initialisation import find_lowest_layer
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.registry import Registry

OF_PAIRS = (
    "agreement",
    "phi",
)  # kinds of affinity that every decision records, for they cost nothing


@dataclass(frozen=True)
class RoundDecision:
    """One decision: all that it changes in training, its record (a line of decisions.jsonl) and the matrices behind it.

    `split` is None where one branch was cheapest; `grows` says whether another round follows.
    """

    split: Split | None
    grows: bool
    record: dict[str, Any]
    matrices: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Round:
    """What a decision is taken from, on rank 0.

    affinity: A_b [c, c] of the branches above the active layer, by the configured kind.
    above: of each of those branches the numbers of its tasks.
    layer: the active one, from 1; its unit is `architecture.specs[layer - 1]`.
    max_groups: no more than this many groups; None for no limit.
    price: what one more branch costs (Eq. 9).
    seed: of whatever is drawn at random.
    stats: the sums over all ranks, for other affinities of the tasks.
    network: as it stands, in training mode; to be looked at, and left as it is. None where only statistics are at hand.
    """

    affinity: Matrix
    above: tuple[tuple[int, ...], ...]
    layer: int
    max_groups: int | None
    price: float
    seed: int
    method: MethodConfig
    stats: AffinityStats
    architecture: Architecture
    network: Network | None = None


# A method of decision: from a round to groups of the branches above.
DECISIONS: Registry[Callable[[Round], Decision]] = Registry("method of decision")


@DECISIONS.register("cost")
def choose_by_cost(of: Round) -> Decision:
    """The least sum of complexity and separation (Eq. 9)."""
    return choose_groups(
        of.affinity,
        alpha=of.method.alpha,
        pools_above=of.architecture.specs[of.layer - 1].halvings_above,
        unit_cost=of.method.unit_cost,
        price=of.price,
        max_groups=of.max_groups,
        seed=of.seed,
    )


def open_round(
    affinity: Matrix,
    architecture: Architecture,
    method: MethodConfig,
    *,
    stats: AffinityStats,
    seed: int,
    network: Network | None = None,
) -> Round:
    """What the active layer of a tree is decided from. affinity: A [T, T] of tasks; all else as in `Round`."""
    layer = architecture.tree.active_layer
    above = architecture.tree.branches(layer + 1)
    cap = method.max_branches
    if cap == "auto":  # what the layer's width leaves room for
        cap = architecture.specs[layer - 1].max_copies
    return Round(
        affinity=branch_affinity(affinity, above),
        above=tuple(tuple(branch) for branch in above),
        layer=layer,
        max_groups=cap,
        price=price_branch(method, architecture, layer),
        seed=seed,
        method=method,
        stats=stats,
        architecture=architecture,
        network=network,
    )


def decide_round(
    stats: AffinityStats,
    architecture: Architecture,
    methods: Sequence[MethodConfig],
    *,
    seed: int,
    network: Network | None = None,
    measured: Mapping[str, MeasuredAffinity] | None = None,
) -> list[RoundDecision]:
    """Group the branches above the active layer (Eq. 7 to 11), once for each of `methods`.

    Args:
        stats: the sums over ALL ranks.
        architecture: of the network as it stands.
        methods: each with its alpha, unit cost, kind of affinity and cap.
        seed: of the clustering.
        network: for methods of decision that look at it.
        measured: of the network, the kinds of affinity that methods ask for and that statistics do not give.

    Raises:
        UserError: a method of decision gives what are no groups of the branches.
    """
    tree, layer = architecture.tree, architecture.tree.active_layer
    measured = measured or {}
    kinds = dict.fromkeys([*OF_PAIRS, *(method.affinity for method in methods)])
    affinities = {}
    for kind in kinds:
        affinities[kind] = measured[kind].matrix if kind in measured else stats.affinity(kind)
    num_unseen = len(stats.pairs_never_seen())

    decisions = []
    # Each as if it were alone: what is shared above depends on the statistics and not on the method.
    for method in methods:
        began = time.perf_counter()
        # Those of other methods would make the record of a run depend on whom it trains with.
        own_kinds = dict.fromkeys([*OF_PAIRS, method.affinity])
        matrices = {kind: affinities[kind] for kind in own_kinds}
        of = open_round(
            affinities[method.affinity],
            architecture,
            method,
            stats=stats,
            seed=seed,
            network=network,
        )
        decision = _choose(of)
        split = None
        after = tree
        if decision.num_groups > 1:
            split = Split(layer, tuple(tuple(group) for group in decision.groups))
            after = tree.split(split)
        has_layers = after.active_layer >= find_lowest_layer(method, architecture)
        grows = has_layers and (split is not None or method.when_no_split == "retry")
        record = {
            **describe_decision(of, decision),
            "seconds": time.perf_counter() - began,
            "pairs_never_seen": num_unseen,
        }
        if (found := measured.get(method.affinity)) is not None:
            record[method.affinity] = found.describe()
            matrices |= {f"{method.affinity}_of_{name}": one for name, one in found.sums.items()}
        decisions.append(
            RoundDecision(split, grows, record, {**matrices, "branch_affinity": of.affinity})
        )
    return decisions


def describe_decision(of: Round, decision: Decision) -> dict[str, Any]:
    """What was decided, and from what, as it is recorded."""
    layers, method = of.architecture.tree.layers, of.method
    return {
        "layer": of.layer,
        "layer_name": layers[of.layer - 1],
        "num_groups": decision.num_groups,
        "groups": [list(group) for group in decision.groups],
        "tasks": [name_tasks(of.architecture, of.above, group) for group in decision.groups],
        "costs": {str(number): cost for number, cost in decision.costs.items()},
        "separation": {str(number): cost for number, cost in decision.separation.items()},
        "search": decision.search,
        "moves": decision.num_moves,
        "alpha": method.alpha,
        "pools_above": of.architecture.specs[of.layer - 1].halvings_above,
        "unit_cost": method.unit_cost,
        "price": of.price,
        "priced_by": choose_price(method, of.architecture),
        "max_groups": of.max_groups,
        "affinity_kind": method.affinity,
        "decided_by": method.decision,
    }


def _choose(of: Round) -> Decision:
    """What the configured method decides; with its costs by Eq. 9, which reports show, where it counts none.

    Raises:
        UserError: these are no groups of the branches above, or too many.
    """
    name = of.method.decision
    found = DECISIONS[name](of)
    groups = tuple(sorted(tuple(sorted(int(one) for one in group)) for group in found.groups))
    branches = sorted(branch for group in groups for branch in group)
    if branches != list(range(len(of.above))) or not all(groups):
        raise UserError(
            f"The method of decision {name!r} should put each of the {len(of.above)} branches (from 0) into one group, found {groups}."
        )
    d = len(groups)
    if of.max_groups is not None and d > max(1, of.max_groups):
        raise UserError(
            f"The method of decision {name!r} should give at most {of.max_groups} groups, which is the `max_groups` of the round, found "
            f"{d}."
        )
    if d in found.costs:
        return replace(found, groups=groups)
    separation = separation_cost(of.affinity, groups)
    cost = (d - 1) * of.price + of.method.alpha * separation
    return replace(found, groups=groups, costs={d: cost}, separation={d: separation}, search=name)


def price_branch(method: MethodConfig, architecture: Architecture, layer: int) -> float:
    """What one more branch of a layer (from 1) costs (Eq. 9): by the halvings above it, or by its share of all multiply-adds."""
    spec = architecture.specs[layer - 1]
    if choose_price(method, architecture) == "pools":
        return float(method.unit_cost * 2**spec.halvings_above)
    costs = [unit.body.multiply_adds + unit.shortcut.multiply_adds for unit in architecture.specs]
    return price_by_multiply_adds(costs[layer - 1] / sum(costs), method.unit_cost)


def choose_price(method: MethodConfig, architecture: Architecture) -> str:
    """Where hardly anything halves, as in many a timm model, pools would price all units alike."""
    if method.price is not None:
        return method.price
    return "multiply-adds" if architecture.backbone.is_of_timm else "pools"


def name_tasks(
    architecture: Architecture, above: Sequence[Sequence[int]], group: Sequence[int]
) -> list[str]:
    """The tasks of a group of the branches `above`, in their order."""
    numbers = sorted(task for branch in group for task in above[branch])
    return [architecture.tasks[number].name for number in numbers]
