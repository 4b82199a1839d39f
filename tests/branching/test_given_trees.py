"""Given trees hold the groups that were asked for, and nothing that cannot be a tree is taken."""

import re

import pytest

from distbranch.branching.tree import NamedGroups, Split, Tree, build_independent_tree, build_tree_of_groups

LAYERS = ("one", "two", "three", "four")
TASKS = ("a", "b", "c", "d")


def named(tree: Tree) -> dict[str, list[list[str]]]:
    return {
        layer: [[TASKS[task] for task in branch] for branch in tree.branches(number)]
        for number, layer in enumerate(tree.layers, start=1)
    }


def test_layers_that_are_not_named_have_the_groups_of_the_named_one_above() -> None:
    top, middle, whole = [["b"], ["a", "d"], ["c"]], [["a", "b", "d"], ["c"]], [["a", "b", "c", "d"]]
    assert named(build_tree_of_groups(LAYERS, TASKS, {"four": top, "two": middle})) == {
        "four": top,
        "three": top,
        "two": middle,
        "one": whole,
    }


def test_layers_above_all_that_are_named_have_the_groups_of_the_highest_and_those_below_share() -> None:
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
    assert build_independent_tree(LAYERS, 2).text(("cat", "dog")) == "one..four: cat\none..four: dog"


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, "some of the layers one, two, three, four, but found none"),
        ({"five": [["a", "b", "c", "d"]]}, "but found five"),
        ({"four": [["a", "b"], ["c", "x"]]}, "groups of four name the task 'x', which there is not"),
        ({"four": [["a", "b"], ["c", "d", "a"]]}, "name the task 'a' more than once"),
        ({"four": [["a", "b"], ["c"]]}, "should hold all 4 tasks, but d are not there"),
        ({"four": [["a", "b", "c", "d"], []]}, "one is empty"),
        (
            {"four": [["a", "b"], ["c", "d"]], "two": [["a"], ["b", "c", "d"]]},
            "groups of two should be unions of those of three, but 'a' and 'b'",
        ),
        (
            {"four": [["a", "b", "c", "d"]], "two": [["a"], ["b", "c", "d"]]},
            "'a' and 'b', which share a branch of three",
        ),
    ],
)
def test_what_is_no_tree_is_refused(groups: dict[str, NamedGroups], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        build_tree_of_groups(LAYERS, TASKS, groups)
