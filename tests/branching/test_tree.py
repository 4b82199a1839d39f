"""A tree is the fold of its splits."""

import json

import pytest

from distbranch.branching.tree import Split, Tree

LAYERS = ("conv1", "conv2", "fc1", "fc2")
EMPTY = Tree(LAYERS, 5)
GROWN = EMPTY.split(Split(4, ((0, 3), (1, 4), (2,)))).split(Split(3, ((0, 2), (1,))))


def test_before_any_split_every_task_shares_every_layer() -> None:
    for layer in range(1, 5):
        assert EMPTY.branches(layer) == ((0, 1, 2, 3, 4),)
    assert EMPTY.branches(5) == ((0,), (1,), (2,), (3,), (4,))
    assert EMPTY.active_layer == 4
    assert EMPTY.parents(5) == [0] * 5


def test_a_split_gives_the_active_layer_one_branch_per_group_of_branches_above() -> None:
    assert GROWN.branches(4) == ((0, 3), (1, 4), (2,))
    assert GROWN.branches(3) == ((0, 2, 3), (1, 4))
    assert GROWN.branches(2) == ((0, 1, 2, 3, 4),)
    assert GROWN.active_layer == 2
    assert [GROWN.num_branches(layer) for layer in range(1, 6)] == [1, 1, 2, 3, 5]


def test_every_branch_is_fed_by_the_branch_below_that_serves_its_tasks() -> None:
    assert GROWN.parents(5) == [0, 1, 2, 0, 1]
    assert GROWN.parents(4) == [0, 1, 0]
    assert GROWN.parents(3) == [0, 0]
    assert GROWN.parents(1) == [0]
    for layer in range(2, 6):
        for parent, tasks in zip(GROWN.parents(layer), GROWN.branches(layer), strict=True):
            assert set(tasks) <= set(GROWN.branches(layer - 1)[parent])


def test_the_json_of_a_tree_gives_the_same_tree() -> None:
    assert Tree.from_json(json.loads(json.dumps(GROWN.to_json()))) == GROWN


def test_a_permuted_tree_has_every_task_in_the_place_of_another() -> None:
    order = [4, 2, 0, 1, 3]
    permuted = GROWN.permuted(order)
    assert permuted.branches(4) == ((1, 4), (2, 3), (0,))
    for layer in range(1, 6):
        assert sorted(map(len, permuted.branches(layer))) == sorted(map(len, GROWN.branches(layer)))
    inverse = [order.index(task) for task in range(5)]
    assert permuted.permuted(inverse) == GROWN
    assert EMPTY.permuted(order) == EMPTY


def test_the_text_of_a_tree_names_every_task_once_and_joins_equal_layers() -> None:
    assert GROWN.text(["a", "b", "c", "d", "e"]).splitlines() == [
        "conv1..conv2 (5 tasks)",
        "  fc1 (3 tasks)",
        "    fc2: a, d",
        "    fc2: c",
        "  fc1..fc2: b, e",
    ]
    assert EMPTY.text(["a", "b", "c", "d", "e"]) == "conv1..fc2: a, b, c, d, e"


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split(3, ((0, 1, 2), (3, 4))), "layer 4 is next"),
        (Split(4, ((0, 1, 2, 3, 4),)), "at least two groups that are not empty"),
        (Split(4, ((0,), (1,), (2,), (3,), (4,), ())), "not empty"),
        (Split(4, ((0, 1), (2, 3))), "0 to 4, .* every branch in exactly one"),
        (
            Split(4, ((0, 1, 2), (2, 3, 4))),
            "every branch in exactly one, found [[0, 1, 2], [2, 3, 4]]",
        ),
        (Split(4, ((0, 1, 2, 3, 4), ())), "not empty"),
        (Split(4, ((0, 1, 2), (3, 5))), "every branch in exactly one"),
    ],
)
def test_a_split_that_is_not_possible_is_refused_with_the_reason(
    split: Split, message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        EMPTY.split(split)


def test_more_splits_than_layers_are_refused() -> None:
    tree = Tree(("fc",), 3).split(Split(1, ((0, 1), (2,))))
    with pytest.raises(ValueError, match="each once"):
        tree.split(Split(0, ((0,), (1,))))


def test_the_tree_of_some_tasks_keeps_who_shares_what() -> None:
    tree = (
        Tree(("a", "b", "c"), 5)
        .split(Split(3, ((0, 3), (1,), (2, 4))))
        .split(Split(2, ((0, 2), (1,))))
    )
    for tasks in ((0,), (0, 3), (1, 4), (4, 1), (0, 1, 2), (0, 1, 2, 3, 4)):
        smaller = tree.restricted(tasks)
        for layer in range(1, 5):
            expected = [
                {n for n, task in enumerate(tasks) if task in branch}
                for branch in tree.branches(layer)
            ]
            found = [set(branch) for branch in smaller.branches(layer)]
            assert sorted(map(sorted, found)) == sorted(
                sorted(numbers) for numbers in expected if numbers
            )
    assert tree.restricted(range(5)) == tree
    assert tree.restricted((0, 3)).splits == ()


def test_a_task_that_leaves_the_way_of_another_one_has_a_branch_of_its_own_from_there_up() -> None:
    added = GROWN.restricted((0, 1, 2, 3, 4, 1), apart=[5], lowest=4)
    assert added.branches(4) == ((0, 3), (1, 4), (5,), (2,))
    assert added.branches(3) == ((0, 2, 3), (1, 4, 5))
    from_below = GROWN.restricted((0, 1, 2, 3, 4, 1), apart=[5], lowest=2)
    assert from_below.branches(3) == ((0, 2, 3), (1, 4), (5,))
    assert from_below.branches(2) == ((0, 1, 2, 3, 4), (5,))
    assert GROWN.restricted((0, 1, 2, 3, 4, 1)).branches(4) == ((0, 3), (1, 4, 5), (2,))
