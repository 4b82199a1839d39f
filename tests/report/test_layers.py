import itertools
import random

from distbranch.report.layers import (
    LayerBranches,
    count_trunk,
    describe_run,
    find_branch,
    group_numbers,
    grow_layers,
    list_top_groups,
    merge_equal_layers,
    shorten_trunk,
    wrap_layer_name,
)

TREE = (
    LayerBranches("conv1", (("a", "b", "c", "d", "e"),)),
    LayerBranches("conv2", (("a", "b", "c", "d", "e"),)),
    LayerBranches("conv3", (("d", "b"), ("a", "c", "e"))),
    LayerBranches("fc4", (("a",), ("b",), ("d",), ("c", "e"))),
)


def test_equal_consecutive_layers_become_one_run_and_no_layer_is_lost() -> None:
    found = merge_equal_layers(TREE)
    assert [describe_run(run)[0] for run in found] == ["conv1 … conv2", "conv3", "fc4"]
    assert [describe_run(run)[1] for run in found] == [
        "1 branch\n2 layers",
        "2 branches",
        "4 branches",
    ]
    assert [layer for run in found for layer in run] == list(TREE)


def test_layers_with_the_same_branches_in_another_order_are_one_run() -> None:
    other = LayerBranches("x", (("e", "c", "a"), ("b", "d")))
    assert len(merge_equal_layers([TREE[2], other])) == 1


def test_in_the_order_of_the_top_groups_every_branch_is_contiguous_so_no_edges_cross() -> None:
    rng = random.Random(0)
    for _ in range(50):
        layers, branches = [], [[f"t{i}"] for i in range(20)]
        for layer in range(6):
            layers.insert(0, LayerBranches(f"l{layer}", tuple(map(tuple, branches))))
            labels = [rng.randrange(max(1, len(branches) // 2)) for _ in branches]
            merged = {
                label: [t for b, x in zip(branches, labels, strict=True) if x == label for t in b]
                for label in labels
            }
            branches = list(merged.values())
        groups = list_top_groups(layers)
        assert sorted(groups) == sorted(layers[-1].branches)
        for layer in layers:
            feeds = [find_branch(layer.branches, group[0]) for group in groups]
            assert sum(a != b for a, b in itertools.pairwise(feeds)) == len(layer.branches) - 1


def test_growing_by_the_decisions_ends_in_the_tree_and_begins_with_everything_shared() -> None:
    decisions = [
        {"layer": 4, "tasks": [["a"], ["b"], ["d"], ["c", "e"]]},
        {"layer": 3, "tasks": [["d", "b"], ["a", "c", "e"]]},
    ]
    steps = grow_layers(TREE, decisions)
    assert len(steps) == 3
    assert all(len(layer.branches) == 1 for layer in steps[0])
    assert [len(layer.branches) for layer in steps[1]] == [1, 1, 1, 4]
    assert [
        set(map(frozenset, a.branches)) == set(map(frozenset, b.branches))
        for a, b in zip(steps[2], TREE, strict=True)
    ]


def test_every_task_has_the_number_of_its_group() -> None:
    groups = list_top_groups(TREE)
    assert group_numbers(groups) == {task: n for n, group in enumerate(groups) for task in group}
    assert list_top_groups(()) == ()


def test_what_all_tasks_share_of_a_deep_network_is_one_column() -> None:
    names = [f"stages_{number}_blocks_0" for number in range(30)]
    shared, branched = (("a", "b"),), (("a",), ("b",))
    deep = [LayerBranches(name, shared) for name in names[:28]]
    deep += [LayerBranches(name, branched) for name in names[28:]]
    shown = shorten_trunk(deep, count_trunk(deep))
    assert shown == (LayerBranches("stages_0_blocks_0 … stages_27_blocks_0", shared), *deep[28:])
    assert shorten_trunk(deep[15:], count_trunk(deep[15:])) == tuple(deep[15:])


def test_a_long_name_of_a_layer_is_broken_after_underscores() -> None:
    assert wrap_layer_name("stages_2_blocks_5") == "stages_2_\nblocks_5"
    assert wrap_layer_name("conv5_3") == "conv5_3"
