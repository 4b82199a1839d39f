"""One decision for a block of layers: from which layer up to the top there are branches, and which tasks share one all the way.

Where tasks are grouped layer by layer (decision.py), a layer groups the branches above it. Here all layers of the block have the
same groups of tasks, so that candidates are few: a lowest layer and a number of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distbranch.branching.decision import (
    ALL_PARTITIONS,
    WITH_MOVES,
    list_groupings,
    move_branches,
    tries_all_partitions,
)
from distbranch.branching.grouping import ROUNDING, Groups, Matrix, separation_cost
from distbranch.branching.tree import Tree, grow_tree


@dataclass(frozen=True)
class Block:
    """Layers from `layer` (from 1) to the top whose branches serve these groups of tasks, and what that costs.

    separation: the sum of L_s (Eq. 11) over all layers of the network, of which those below the block have one group.
    cost: with the price of all branches (Eq. 9).
    saving: how much less it costs than no branch, by the same affinity.
    """

    layer: int
    groups: Groups
    separation: float = 0.0
    cost: float = 0.0
    saving: float = 0.0

    @property
    def num_groups(self) -> int:
        """d; 1 is no branch."""
        return len(self.groups)

    def build_tree(self, layers: Sequence[str]) -> Tree:
        """The tree of a network of these layers, input first."""
        num_tasks = sum(map(len, self.groups))
        num_split = len(layers) - self.layer + 1
        return grow_tree(layers, num_tasks, [self.groups] * num_split)


@dataclass(frozen=True)
class BlockDecision:
    """The block that was chosen, all that were compared, and how the groups were found.

    num_too_dear: candidates beyond what the tree may cost; of more groups than one of these none was looked at.
    """

    chosen: Block
    candidates: tuple[Block, ...]
    num_too_dear: int
    search: str = ALL_PARTITIONS
    num_moves: int = 0


def choose_block(
    affinities: Mapping[int, Matrix],
    *,
    layers: Sequence[str],
    prices: Sequence[float],
    alpha: float,
    max_groups: Mapping[int, int | None],
    fits: Callable[[Tree], bool] = lambda _: True,
    seed: int = 0,
) -> BlockDecision:
    """The block that saves most against no branch; on ties the fewest groups, then the fewest layers.

    A block from layer l with d groups costs (d - 1) times the prices of its layers, and alpha times the separation of all layers of
    the network. Affinities of different layers have different levels, so what is compared is what a block saves against one
    group in all layers by its own affinity: of blocks from one layer that is the one with the least cost.

    Args:
        affinities: A [T, T] of tasks by lowest layer of the block (from 1).
        layers: names of all layers, input first.
        prices: of one more branch of every layer (Eq. 9).
        alpha: the branching factor.
        max_groups: by lowest layer, no more than this many groups; None for no limit.
        fits: whether a tree may be taken at all; one with more groups may not where one with fewer may not.
        seed: of the clustering.

    Example:
        >>> choose_block({3: affinity}, layers=names, prices=[0.0] * 5, alpha=1.0, max_groups={3: 4})
    """
    candidates: list[Block] = []
    num_too_dear = 0
    for layer, affinity in affinities.items():
        num_tasks = len(affinity)
        limit = min(num_tasks, max_groups[layer] or num_tasks)
        no_branch = 0.0
        for d, groups in list_groupings(affinity, limit, seed=seed):
            block = measure_block(layer, groups, affinity, prices=prices, alpha=alpha)
            # From here on the price of branches alone is more than the best block has saved, whatever the grouping.
            complexity = block.cost - alpha * block.separation
            if d == 1:
                no_branch = block.cost
            elif no_branch - complexity < max(one.saving for one in candidates):
                break
            elif not fits(block.build_tree(layers)):
                num_too_dear += 1
                break
            candidates.append(replace(block, saving=no_branch - block.cost))

    most = max(block.saving for block in candidates) - ROUNDING
    best = [block for block in candidates if block.saving >= most]
    chosen = min(best, key=lambda block: (block.num_groups, -block.layer))
    affinity = affinities[chosen.layer]
    if tries_all_partitions(affinity) or chosen.num_groups == 1:
        return BlockDecision(chosen, tuple(candidates), num_too_dear)

    # Only the chosen grouping is mended, as in a decision of one layer: its tree costs the same.
    groups, num_moves = move_branches(affinity, chosen.groups)
    mended = measure_block(chosen.layer, groups, affinity, prices=prices, alpha=alpha)
    mended = replace(mended, saving=chosen.saving + chosen.cost - mended.cost)
    compared = tuple(mended if block is chosen else block for block in candidates)
    return BlockDecision(mended, compared, num_too_dear, WITH_MOVES, num_moves)


def measure_block(
    layer: int, groups: Groups, affinity: Matrix, *, prices: Sequence[float], alpha: float
) -> Block:
    """What a block costs, without what it saves."""
    everything = (tuple(range(len(affinity))),)
    num_below = layer - 1
    num_split = len(prices) - num_below
    separation = num_split * separation_cost(affinity, groups)
    separation += num_below * separation_cost(affinity, everything)
    complexity = (len(groups) - 1) * sum(prices[num_below:])
    return Block(layer, groups, separation, complexity + alpha * separation)
