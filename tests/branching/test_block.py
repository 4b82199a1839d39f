"""The choice of a block: planted groups and layers are found, a budget is kept and used, and costs are what they say."""

import itertools

import numpy as np
import pytest

from distbranch.branching.block import Block, choose_block
from distbranch.branching.decision import choose_groups, list_partitions
from distbranch.branching.grouping import Matrix, separation_cost
from distbranch.branching.tree import Tree

LAYERS = ("one", "two", "three", "four")
FREE = [0.0] * len(LAYERS)
GROUPS = ((0, 3, 4), (1, 5), (2, 6, 7))


def planted(groups: tuple[tuple[int, ...], ...], *, inside: float, across: float) -> Matrix:
    """Tasks of a group have one affinity, tasks of two groups another, both with a little noise."""
    count = sum(map(len, groups))
    noise = np.random.default_rng(2).uniform(0, 0.02, (count, count))
    affinity = across + (noise + noise.T) / 2
    for group in groups:
        affinity[np.ix_(group, group)] += inside - across
    np.fill_diagonal(affinity, 1.0)
    return affinity


def random_affinity(count: int, seed: int) -> Matrix:
    affinity = np.random.default_rng(seed).uniform(0.2, 0.9, (count, count))
    affinity = (affinity + affinity.T) / 2
    np.fill_diagonal(affinity, 1.0)
    return affinity


def count_copies(tree: Tree) -> int:
    return sum(tree.num_branches(layer) for layer in range(1, tree.num_layers + 1))


def test_planted_groups_are_found_in_all_layers_from_the_one_that_tells_them_apart() -> None:
    unclear = planted(GROUPS, inside=0.95, across=0.93)
    clear = planted(GROUPS, inside=0.9, across=0.2)
    # A branch costs more than a layer gains where all tasks are alike.
    found = choose_block(
        {2: unclear, 3: clear, 4: unclear},
        layers=LAYERS,
        prices=[0.1] * 4,
        alpha=1.0,
        max_groups=dict.fromkeys((2, 3, 4)),
    )
    assert (found.chosen.layer, found.chosen.groups) == (3, GROUPS)
    tree = found.chosen.build_tree(LAYERS)
    assert [tree.num_branches(layer) for layer in (1, 2, 3, 4)] == [1, 1, 3, 3]
    assert tree.branches(3) == tree.branches(4) == GROUPS


def test_where_no_branch_pays_there_is_none() -> None:
    found = choose_block(
        {2: random_affinity(6, 0), 4: random_affinity(6, 1)},
        layers=LAYERS,
        prices=[5.0] * 4,
        alpha=1.0,
        max_groups={2: None, 4: None},
    )
    assert found.chosen.num_groups == 1
    assert not found.chosen.build_tree(LAYERS).splits
    assert found.num_too_dear == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_block_is_the_one_that_saves_most_of_all_partitions_and_layers(seed: int) -> None:
    prices, alpha = [0.01, 0.02, 0.04, 0.08], 0.7
    affinities = {layer: random_affinity(5, 10 * seed + layer) for layer in (2, 3, 4)}
    found = choose_block(
        affinities, layers=LAYERS, prices=prices, alpha=alpha, max_groups={2: None, 3: 3, 4: None}
    )

    def cost(layer: int, groups: tuple[tuple[int, ...], ...]) -> float:
        everyone = (tuple(range(5)),)
        total = 0.0
        for number, price in enumerate(prices, start=1):
            own = groups if number >= layer else everyone
            total += (len(own) - 1) * price + alpha * separation_cost(affinities[layer], own)
        return total

    savings = {}
    for layer, groups in itertools.product(affinities, list_partitions(5)):
        if layer != 3 or len(groups) <= 3:
            savings[layer, groups] = cost(layer, (tuple(range(5)),)) - cost(layer, groups)
    assert found.chosen.saving == pytest.approx(max(savings.values()))
    assert {block.layer for block in found.candidates} == {2, 3, 4}
    chosen = found.chosen.layer, found.chosen.groups
    assert savings[chosen] == pytest.approx(max(savings.values()))
    for block in found.candidates:
        assert block.cost == pytest.approx(cost(block.layer, block.groups))
        assert block.saving == pytest.approx(savings[block.layer, block.groups])


@pytest.mark.parametrize("budget", [4, 6, 9, 11, 20])
def test_a_budget_is_kept_and_no_grouping_that_it_leaves_room_for_separates_better(
    budget: int,
) -> None:
    affinities = {layer: random_affinity(6, 4) for layer in (2, 3, 4)}

    def fits(tree: Tree) -> bool:
        return count_copies(tree) <= budget

    found = choose_block(
        affinities,
        layers=LAYERS,
        prices=FREE,
        alpha=1.0,
        max_groups=dict.fromkeys((2, 3, 4)),
        fits=fits,
    )
    assert fits(found.chosen.build_tree(LAYERS))
    every = [Block(*pair) for pair in itertools.product((2, 3, 4), list_partitions(6))]
    separations = [
        measured_separation(block, affinities[block.layer])
        for block in every
        if fits(block.build_tree(LAYERS))
    ]
    assert found.chosen.separation == pytest.approx(min(separations))
    assert bool(found.num_too_dear) == (budget < 19)


def measured_separation(block: Block, affinity: Matrix) -> float:
    tree = block.build_tree(LAYERS)
    return sum(separation_cost(affinity, tree.branches(layer)) for layer in range(1, 5))


def test_many_tasks_are_grouped_as_one_layer_would_group_them() -> None:
    many = tuple(tuple(range(first, 30, 3)) for first in range(3))
    affinity = np.clip(planted(many, inside=0.7, across=0.4) + random_affinity(30, 1) / 8, 0, 1)
    np.fill_diagonal(affinity, 1.0)
    found = choose_block(
        {3: affinity}, layers=LAYERS, prices=FREE, alpha=1.0, max_groups={3: 4}, seed=5
    )
    alone = choose_groups(affinity, alpha=1.0, pools_above=0, price=0.0, max_groups=4, seed=5)
    assert found.chosen.groups == alone.groups
    assert (found.search, found.num_moves) == (alone.search, alone.num_moves)
    costs = {block.num_groups: block.separation for block in found.candidates}
    everyone = 2 * separation_cost(affinity, (tuple(range(30)),))
    assert costs == pytest.approx({d: 2 * one + everyone for d, one in alone.separation.items()})


def test_on_ties_there_are_no_more_branches_and_layers_than_needed() -> None:
    alike = np.ones((4, 4))
    found = choose_block(
        {2: alike, 3: alike}, layers=LAYERS, prices=FREE, alpha=1.0, max_groups={2: None, 3: None}
    )
    assert (found.chosen.layer, found.chosen.num_groups) == (3, 1)
