"""The decision of a run with a scout: one grouping for a block of layers, within a budget or by price, or one for each layer.

The choices themselves are pure functions, `branching.block.choose_block` and `branching.decision.choose_groups`.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.block import Block, BlockDecision, choose_block
from distbranch.branching.grouping import Matrix
from distbranch.branching.tree import Split, Tree
from distbranch.config import Config, MethodConfig
from distbranch.engine.round_decision import (
    choose_by_cost,
    choose_price,
    describe_decision,
    name_tasks,
    open_round,
    price_branch,
)
from distbranch.models.architecture import Architecture

logger = logging.getLogger("distbranch")


def decide_block(
    affinities: Mapping[int, Matrix], thin: Architecture, config: Config
) -> dict[str, Any]:
    """The block that saves most within the budget, as a line of decisions.jsonl.

    Args:
        affinities: A [T, T] of tasks by the layer (from 1) from which branches go up to the top.
        thin: the network before any split.
        config: of the run.
    """
    began = time.perf_counter()
    method, num_layers = config.method, thin.tree.num_layers
    alpha, priced_by = method.alpha, choose_price(method, thin)
    prices = [price_branch(method, thin, layer) for layer in range(1, num_layers + 1)]
    if method.budget is not None:  # separation alone is compared
        alpha, priced_by = 1.0, "budget"
        prices = [0.0] * num_layers
    max_groups = {layer: _cap_groups(method, thin, layer) for layer in affinities}
    decision = choose_block(
        affinities,
        layers=thin.tree.layers,
        prices=prices,
        alpha=alpha,
        max_groups=max_groups,
        fits=lambda tree: is_within_budget(tree, thin, method),
        seed=config.seed,
    )
    chosen = decision.chosen
    if chosen.num_groups == 1 and decision.num_too_dear:
        logger.warning(
            "method.budget leaves no room for a second branch, so the network is trained without: two in %s alone take %s.",
            thin.tree.layers[max(affinities) - 1],
            _describe_least_tree(max(affinities), thin),
        )
    budget = None
    if method.budget is not None:
        budget = method.budget.model_dump()
    return {
        **_describe_choice(decision, thin),
        "search": decision.search,
        "moves": decision.num_moves,
        "alpha": alpha,
        "pools_above": thin.specs[chosen.layer - 1].halvings_above,
        "unit_cost": method.unit_cost,
        "price": sum(prices[chosen.layer - 1 :]),
        "priced_by": priced_by,
        "max_groups": max_groups[chosen.layer],
        "decided_by": "block",
        "split_from": method.split_from,
        "budget": budget,
        "permutation": method.permutation,
        "seconds": time.perf_counter() - began,
    }


def decide_layers(
    affinities: Mapping[int, Matrix], thin: Architecture, config: Config
) -> list[dict[str, Any]]:
    """The groups of one layer after the other, as lines of decisions.jsonl: from the top down to where none divides any more.

    Args:
        affinities: A [T, T] of tasks by layer (from 1), of all layers from the lowest that may divide to the top.
        thin: the network before any split.
        config: of the run.
    """
    method, tree = config.method, thin.tree
    records = []
    for layer in sorted(affinities, reverse=True):
        began = time.perf_counter()
        # Of sums over pairs the cost asks nothing.
        stats = AffinityStats(len(thin.tasks), decay=method.decay)
        of = open_round(
            affinities[layer], thin.with_tree(tree), method, stats=stats, seed=config.seed
        )
        decision = choose_by_cost(of)
        record = describe_decision(of, decision)
        records.append(
            record | {"permutation": method.permutation, "seconds": time.perf_counter() - began}
        )
        if decision.num_groups == 1:
            break
        tree = tree.split(Split(layer, tuple(tuple(group) for group in decision.groups)))
    return records


def _cap_groups(method: MethodConfig, thin: Architecture, lowest: int) -> int | None:
    """No more groups than every layer of the block may have branches; None for no limit."""
    if method.max_branches != "auto":
        return method.max_branches
    rooms = [spec.max_copies for spec in thin.specs[lowest - 1 :]]
    return min((room for room in rooms if room is not None), default=None)


def is_within_budget(tree: Tree, thin: Architecture, method: MethodConfig) -> bool:
    """Whether the network with this tree costs no more than `method.budget`, if that is given."""
    budget = method.budget
    if budget is None:
        return True
    cost = thin.with_tree(tree).cost()
    weights_fit = budget.weights is None or cost.weights <= budget.weights
    return weights_fit and (
        budget.multiply_adds is None or cost.multiply_adds <= budget.multiply_adds
    )


def _describe_least_tree(layer: int, thin: Architecture) -> str:
    groups = ((0,), tuple(range(1, len(thin.tasks))))
    cost = thin.with_tree(Block(layer, groups).build_tree(thin.tree.layers)).cost()
    return f"{cost.weights:,} weights and {cost.multiply_adds:,} multiply-adds"


def _describe_choice(decision: BlockDecision, thin: Architecture) -> dict[str, Any]:
    """What was chosen, and everything that it was compared with."""
    chosen = decision.chosen
    layers = thin.tree.layers
    alone = [(task,) for task in range(len(thin.tasks))]
    candidates = []
    for block in decision.candidates:
        cost = thin.with_tree(block.build_tree(layers)).cost()
        candidates.append(
            {
                "layer_name": layers[block.layer - 1],
                "num_groups": block.num_groups,
                "cost": block.cost,
                "separation": block.separation,
                "saving": block.saving,
                "weights": cost.weights,
                "multiply_adds": cost.multiply_adds,
            }
        )
    beside = [block for block in decision.candidates if block.layer == chosen.layer]
    return {
        "layer": chosen.layer,
        "layer_name": layers[chosen.layer - 1],
        "layers": list(layers[chosen.layer - 1 :]),
        "num_groups": chosen.num_groups,
        "groups": [list(group) for group in chosen.groups],
        "tasks": [name_tasks(thin, alone, group) for group in chosen.groups],
        "costs": {str(block.num_groups): block.cost for block in beside},
        "separation": {str(block.num_groups): block.separation for block in beside},
        "candidates": candidates,
    }
