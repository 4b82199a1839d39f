"""Given trees hold the groups that were asked for, and nothing that cannot be a tree is taken."""

import re

import pytest

from distbranch.branching.tree import (
    NamedGroups,
    Split,
    Tree,
    build_independent_tree,
    build_tree_of_groups,
)

LAYERS = ("one", "two", "three", "four")
TASKS = ("a", "b", "c", "d")


def named(tree: Tree) -> dict[str, list[list[str]]]:
    return {
        layer: [[TASKS[task] for task in branch] for branch in tree.branches(number)]
        for number, layer in enumerate(tree.layers, start=1)
    }


def test_layers_that_are_not_named_have_the_groups_of_the_named_one_above() -> None:
    top, middle, whole = (
        [["b"], ["a", "d"], ["c"]],
        [["a", "b", "d"], ["c"]],
        [["a", "b", "c", "d"]],
    )
    assert named(build_tree_of_groups(LAYERS, TASKS, {"four": top, "two": middle})) == {
        "four": top,
        "three": top,
        "two": middle,
        "one": whole,
    }


def test_layers_above_all_that_are_named_have_the_groups_of_the_highest_and_those_below_share() -> (
    None
):
    groups, whole = [["a", "c"], ["b", "d"]], [["a", "b", "c", "d"]]
    found = named(build_tree_of_groups(LAYERS, TASKS, {"three": [["c", "a"], ["b", "d"]]}))
    assert found == {"four": groups, "three": groups, "two": whole, "one": whole}


def test_a_learned_tree_comes_back_from_its_groups() -> None:
    learned = Tree(LAYERS, 4).split(Split(4, ((3,), (0, 2), (1,)))).split(Split(3, ((1, 2), (0,))))
    assert build_tree_of_groups(LAYERS, TASKS, named(learned)) == learned


def test_one_group_everywhere_is_the_thin_network() -> None:
    assert build_tree_of_groups(LAYERS, TASKS, {"two": [["a", "b", "c", "d"]]}) == Tree(LAYERS, 4)


def test_independent_tasks_share_no_branch() -> None:
    tree = build_independent_tree(LAYERS, 3)
    assert [tree.branches(layer) for layer in range(1, 5)] == [((0,), (1,), (2,))] * 4
    assert tree.parents(5) == tree.parents(3) == [0, 1, 2]
    assert build_independent_tree(LAYERS, 1) == Tree(LAYERS, 1)


def test_the_text_of_a_tree_shows_every_branch_of_the_first_layer() -> None:
    assert (
        build_independent_tree(LAYERS, 2).text(("cat", "dog")) == "one..four: cat\none..four: dog"
    )


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, "some of the layers one, two, three, four, found none"),
        ({"five": [["a", "b", "c", "d"]]}, "found five"),
        (
            {"four": [["a", "b"], ["c", "x"]]},
            "of four should hold each of the 4 tasks once, no other, and none should be empty, found 'd' 0 times, 'x' 1",
        ),
        ({"four": [["a", "b"], ["c", "d", "a"]]}, "found 'a' 2 times"),
        ({"four": [["a", "b"], ["c"]]}, "found 'd' 0 times"),
        ({"four": [["a", "b", "c", "d"], []]}, "found an empty one"),
        (
            {"four": [["a", "b"], ["c", "d"]], "two": [["a"], ["b", "c", "d"]]},
            "groups of two should be unions of those of the layer above, but a, b",
        ),
        (
            {"four": [["a", "b", "c", "d"]], "two": [["a"], ["b", "c", "d"]]},
            "but a, b, c, d, which share a branch there, are not together in two",
        ),
    ],
)
def test_what_is_no_tree_is_refused(groups: dict[str, NamedGroups], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        build_tree_of_groups(LAYERS, TASKS, groups)
