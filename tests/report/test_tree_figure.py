import itertools
import random

import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch

from distbranch.report.layers import (
    LayerBranches,
    find_branch,
    fold_single_tasks,
    grow_layers,
    list_top_groups,
    mark_skipped,
)
from distbranch.report.tree_figure import (
    LETTERS,
    SEPARATOR,
    choose_thickness,
    draw_growth,
    draw_tree,
    list_members,
    place_leaves,
    place_strands,
    wrap_names,
)


def random_tree(num_tasks: int, num_groups: int, num_layers: int, seed: int) -> list[LayerBranches]:
    rng = random.Random(seed)
    branches = [
        tuple(f"Task_number_{i}" for i in range(num_tasks) if i % num_groups == g)
        for g in range(num_groups)
    ]
    layers: list[LayerBranches] = []
    for layer in range(num_layers, 0, -1):
        layers.insert(0, LayerBranches(f"conv{layer}_1", tuple(branches)))
        if len(branches) > 1 and rng.random() < 0.6:
            first, second = rng.sample(range(len(branches)), 2)
            joined = (*branches[first], *branches[second])
            branches = [joined, *(b for i, b in enumerate(branches) if i not in (first, second))]
    return layers


def test_wrapped_lines_fit_and_keep_every_name_in_order() -> None:
    names = [f"Quite_a_long_name_{i}" for i in range(23)]
    lines = wrap_names(names)
    assert all(len(line) <= LETTERS for line in lines)
    assert SEPARATOR.join(lines).split(SEPARATOR) == [name.replace("_", " ") for name in names]


@pytest.mark.parametrize(
    ("num_tasks", "num_groups"), [(1, 1), (2, 2), (40, 2), (40, 9), (40, 20), (200, 30)]
)
def test_no_two_boxes_or_blocks_of_names_overlap(num_tasks: int, num_groups: int) -> None:
    for seed in range(3):
        layers = random_tree(num_tasks, num_groups, 15, seed)
        groups = list_top_groups(layers)
        thick = choose_thickness(groups)
        heights = np.maximum([0.185 * len(wrap_names(group)) for group in groups], thick + 0.05)
        leaves = place_leaves(heights, top=1.0, gap=0.13)
        assert (np.diff(leaves) > (heights[1:] + heights[:-1]) / 2).all()
        for layer in layers:
            strands = place_strands(layer.branches, groups, leaves, thick)
            members = list_members(layer.branches, groups)
            boxes = sorted(
                (strands[n[0]] - thick[n[0]] / 2 - 0.05, strands[n[-1]] + thick[n[-1]] / 2 + 0.05)
                for n in members
            )
            assert all(above[1] < below[0] for above, below in itertools.pairwise(boxes))


def test_a_figure_of_the_tree_names_every_task_and_every_layer() -> None:
    layers = random_tree(40, 9, 15, 0)
    figure = draw_tree(layers, title="A run")
    shown = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert all(f"Task number {i}" in shown for i in range(40))
    assert all(layer.name in shown for layer in layers)


def test_of_many_groups_single_tasks_out_of_one_branch_are_one_strand_and_all_are_named() -> None:
    pair, early, late = ("a", "b"), tuple(f"e{i}" for i in range(12)), ("x", "y", *"klmnopqrs")
    layers = [
        LayerBranches("one", ((*pair, *early, *late),)),
        LayerBranches("two", ((*pair, *late), *((task,) for task in early))),
        LayerBranches("three", (pair, *((task,) for task in (*early, *late)))),
    ]
    folded = fold_single_tasks(layers)
    assert [set(layer.branches) for layer in folded] == [
        set(layers[0].branches),
        {(*pair, *late), early},
        {pair, early, late},
    ]
    shown = [text.get_text() for text in draw_tree(layers).axes[0].texts]
    assert {"12x", "11x", "two (13)", "three (24)"} <= set(shown)
    names = SEPARATOR.join(shown).replace("\n", SEPARATOR).split(SEPARATOR)
    assert {*pair, *early, *late} <= set(names)


def test_a_tree_of_few_groups_has_a_strand_for_each() -> None:
    layers = random_tree(20, 20, 5, 0)
    assert list(fold_single_tasks(layers)) == layers


def test_a_block_that_tasks_skip_has_no_box_in_their_strand() -> None:
    layers = [LayerBranches("low", (("a", "b"),)), LayerBranches("high", (("a",), ("b",)))]
    policy = {"tasks": ["a", "b"], "blocks": ["high"], "policy": [[1], [0]]}
    boxes = [
        [patch for patch in draw_tree(shown).axes[0].patches if isinstance(patch, FancyBboxPatch)]
        for shown in (layers, mark_skipped(layers, policy))
    ]
    assert list(map(len, boxes)) == [3, 2]


def test_branches_of_a_layer_share_out_all_groups() -> None:
    layers = random_tree(40, 12, 15, 1)
    groups = list_top_groups(layers)
    for layer in layers:
        inside = list_members(layer.branches, groups)
        assert sorted(itertools.chain(*inside)) == list(range(12))
        assert all(
            len({find_branch(layer.branches, groups[n][0]) for n in numbers}) == 1
            for numbers in inside
        )


def test_the_growth_has_a_picture_before_the_first_decision_and_one_after_each() -> None:
    layers = random_tree(6, 3, 4, 0)
    decision = {"round": 1, "iteration": 1000, "layer": 4, "layer_name": "fc", "num_groups": 3}
    decision["tasks"] = [list(branch) for branch in layers[-1].branches]
    texts = [text.get_text() for text in draw_growth(layers, [decision]).axes[0].texts]
    assert texts == ["Before: everything shared", "Round 1, iteration 1,000: fc → 3"]


def test_the_decision_of_a_scout_splits_all_layers_of_its_block_at_once() -> None:
    groups = (("a", "b"), ("c",))
    layers = [LayerBranches("one", (("a", "b", "c"),))]
    layers += [LayerBranches(name, groups) for name in ("two", "three")]
    # Permuted: the tree that was trained holds other tasks than the groups of the decision.
    decision = {"round": 0, "iteration": 0, "layer": 2, "layer_name": "two", "num_groups": 2}
    decision |= {"layers": ["two", "three"], "tasks": [["a", "c"], ["b"]]}
    before, after = grow_layers(layers, [decision])
    assert [len(layer.branches) for layer in before] == [1, 1, 1]
    assert list(after) == layers
    figure = draw_growth(layers, [decision])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[1] == "By the scout, iteration 0: two and above → 2"
