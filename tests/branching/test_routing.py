"""A routing says of a tree and of a policy which tasks share what, and how often each unit is there and runs."""

import itertools

import pytest
import torch

from distbranch.branching.routing import Policy, copy_units, route_policy, route_tree
from distbranch.branching.tree import Split, Tree

UNITS = ("stem", "a", "b", "c")
TREE = Tree(UNITS, 5).split(Split(4, ((0, 3), (1,), (2, 4)))).split(Split(3, ((0, 2), (1,))))


def drawn_policy(seed: int, num_tasks: int = 5) -> Policy:
    drawn = torch.rand(num_tasks, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
    return tuple(map(tuple, drawn.tolist()))


def test_of_a_tree_every_branch_is_a_copy_that_its_tasks_go_through() -> None:
    routing = route_tree(TREE)
    for layer in range(1, 5):
        branches = TREE.branches(layer)
        assert routing.copies(layer - 1) == [True] * len(branches)
        assert routing.num_runs(layer - 1) == (len(branches), len(branches))
        for branch, tasks in enumerate(branches):
            assert {routing.ways[layer - 1][task] for task in tasks} == {branch}
    assert routing.tree(UNITS) == TREE


@pytest.mark.parametrize("seed", range(6))
def test_of_a_policy_tasks_share_a_node_as_long_as_they_decided_alike(seed: int) -> None:
    policy = drawn_policy(seed)
    routing = route_policy(UNITS, (False, True, True, True), policy)
    assert len(routing.nodes[0]) == 1
    for block in range(3):
        for one, other in itertools.combinations(range(5), 2):
            alike = policy[one][: block + 1] == policy[other][: block + 1]
            ways = routing.ways[block + 1]
            assert (ways[one] == ways[other]) == alike
        before = {row[:block] for row in policy}
        executing = {row[: block + 1] for row in policy if row[block]}
        assert routing.num_runs(block + 1) == (len(before), len(executing))
        assert routing.copies(block + 1) == [bool(executing)]
        for task, row in enumerate(policy):
            assert routing.nodes[block + 1][routing.ways[block + 1][task]].executes == row[block]


def test_some_tasks_take_the_copies_that_served_them() -> None:
    kept = [1, 4]
    smaller = TREE.restricted(kept)
    state = {f"units.c.{copy}.weight": torch.tensor(float(copy)) for copy in range(3)} | {
        "mean": torch.tensor(9.0)
    }
    copied = copy_units(state, route_tree(TREE), route_tree(smaller), kept)
    assert {name: float(value) for name, value in copied.items()} == {
        "units.c.0.weight": 1,
        "units.c.1.weight": 2,
        "mean": 9,
    }
