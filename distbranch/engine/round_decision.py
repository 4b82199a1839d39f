"""What a sharing method does at the end of a round: from affinity sums to a record of the decision.

The record holds everything the decision was based on. It is made on rank 0 and sent to all others as it is.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.decision import Candidates
from distbranch.branching.grouping import branch_affinity
from distbranch.branching.tree import Split, Tree
from distbranch.config import MethodConfig
from distbranch.models.architecture import Architecture


@dataclass(frozen=True)
class RoundDecision:
    """One decision: its record (a line of decisions.jsonl) and the matrices behind it."""

    record: dict[str, Any]
    matrices: dict[str, NDArray[np.float64]]

    @property
    def split(self) -> Split | None:
        """The split to be made, or None where one branch was cheapest."""
        groups = tuple(tuple(group) for group in self.record["groups"])
        return Split(self.record["layer"], groups) if len(groups) > 1 else None


def decide(
    stats: AffinityStats, architecture: Architecture, methods: Sequence[MethodConfig], *, seed: int
) -> list[RoundDecision]:
    """Group the branches above the active layer (Eq. 7 to 11), once for each of `methods`.

    Args:
        stats: the sums over ALL ranks.
        architecture: of the network as it stands.
        methods: each with its alpha, unit cost, kind of affinity and cap.
        seed: of the clustering.
    """
    affinities = {kind: stats.affinity(kind) for kind in ("agreement", "phi")}
    num_unseen = len(stats.pairs_never_seen())
    above = architecture.tree.branches(architecture.tree.active_layer + 1)

    @cache
    def affinity_above(kind: str) -> NDArray[np.float64]:
        return branch_affinity(affinities[kind], above)

    @cache  # methods that differ in nothing but prices and caps choose among the same
    def candidates(kind: str) -> Candidates:
        return Candidates(affinity_above(kind), seed=seed)

    decisions = []
    for method in methods:
        record = _make_record(candidates, architecture, method)
        record["pairs_never_seen"] = num_unseen
        matrices = {**affinities, "branch_affinity": affinity_above(method.affinity)}
        decisions.append(RoundDecision(record, matrices))
    return decisions


def _make_record(
    candidates: Callable[[str], Candidates], architecture: Architecture, method: MethodConfig
) -> dict[str, Any]:
    began = time.perf_counter()
    tree, layer = architecture.tree, architecture.tree.active_layer
    above = tree.branches(layer + 1)
    spec = architecture.specs[layer - 1]
    cap = method.max_branches
    if cap == "auto":  # what the layer's width leaves room for
        cap = max(1, spec.max_copies)
    decision = candidates(method.affinity).choose(
        alpha=method.alpha, pools_above=spec.halvings_above, unit_cost=method.unit_cost, max_groups=cap
    )
    names = [task.name for task in architecture.tasks]
    tasks = []
    for group in decision.groups:
        members = sorted(task for branch in group for task in above[branch])
        tasks.append([names[task] for task in members])
    return {
        "layer": layer,
        "layer_name": tree.layers[layer - 1],
        "num_groups": decision.num_groups,
        "groups": [list(group) for group in decision.groups],
        "tasks": tasks,
        "costs": {str(number): cost for number, cost in decision.costs.items()},
        "separation": {str(number): cost for number, cost in decision.separation.items()},
        "search": decision.search,
        "moves": decision.num_moves,
        "alpha": method.alpha,
        "pools_above": spec.halvings_above,
        "unit_cost": method.unit_cost,
        "max_groups": cap,
        "affinity_kind": method.affinity,
        "seconds": time.perf_counter() - began,
    }


def may_still_grow(tree: Tree, decision: RoundDecision, method: MethodConfig) -> bool:
    """Whether another round follows a decision; `tree` is the tree after it."""
    if tree.active_layer == 0:
        return False
    return decision.split is not None or method.when_no_split == "retry"


def next_split(tree: Tree, decision: RoundDecision, method: MethodConfig) -> tuple[Split | None, bool]:
    """All that a decision changes in training: the split, and whether another round follows. `tree` is the tree before it."""
    after = tree if decision.split is None else tree.split(decision.split)
    return decision.split, may_still_grow(after, decision, method)
