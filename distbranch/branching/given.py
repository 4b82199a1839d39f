"""Trees that are given and not learned: a grouping by layer, and a network of its own for every task."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from distbranch.branching.tree import Split, Tree

NamedGroups = Sequence[Sequence[str]]


def independent(layers: Sequence[str], num_tasks: int) -> Tree:
    """The tree in which no two tasks share anything: every layer has a branch per task."""
    tree = Tree(tuple(layers), num_tasks)
    if num_tasks == 1:
        return tree
    alone = tuple((task,) for task in range(num_tasks))
    return Tree(tree.layers, num_tasks, tuple(Split(layer, alone) for layer in range(tree.num_layers, 0, -1)))


def tree_of_groups(layers: Sequence[str], tasks: Sequence[str], groups: Mapping[str, NamedGroups]) -> Tree:
    """The tree in which the tasks of a group share a branch.

    Args:
        layers: names, input first.
        tasks: names, in the order of the network.
        groups: the branches of some layers, each as the names of its tasks. A layer that is not named has the groups of the
            nearest named one above it, or, above all of them, those of the highest; below the lowest, all tasks share.

    Raises:
        ValueError: no layer or an unknown one; a task that is absent, unknown or doubled; a branch that is no union of those
            above it.
    """
    unknown = [name for name in groups if name not in layers]
    if unknown or not groups:
        found = f"found {unknown[0]}" if unknown else "found none"
        raise ValueError(f"groups are given for some of the layers {', '.join(layers)}, but {found}")
    named = [number for number, name in enumerate(layers) if name in groups]
    tree, above, current = Tree(tuple(layers), len(tasks)), [[task] for task in tasks], groups[layers[named[-1]]]
    name_above = "the heads"
    for name in reversed(layers[named[0] :]):
        current = groups.get(name, current)
        _check_tasks(name, tasks, current)
        _check_unions(name, current, name_above, above)
        if len(current) > 1:
            served = [members[0] for members in tree.branches(tree.active_layer + 1)]
            inside = tuple(tuple(k for k, task in enumerate(served) if tasks[task] in group) for group in current)
            tree = tree.split(Split(tree.active_layer, inside))
        above, name_above = [list(group) for group in current], name
    return tree


def _check_tasks(layer: str, tasks: Sequence[str], groups: NamedGroups) -> None:
    members = [task for group in groups for task in group]
    for task in members:
        if task not in tasks:
            near = difflib.get_close_matches(task, tasks, n=3) or list(tasks[:5])
            raise ValueError(
                f"the groups of {layer} name the task {task!r}, which there is not (the nearest: {', '.join(near)})"
            )
    doubled = next((task for task in tasks if members.count(task) > 1), None)
    if doubled is not None:
        raise ValueError(f"the groups of {layer} name the task {doubled!r} more than once")
    absent = [task for task in tasks if task not in members]
    if absent:
        raise ValueError(
            f"the groups of {layer} should hold all {len(tasks)} tasks, but {', '.join(absent[:5])} are not there"
        )
    if not all(groups):
        raise ValueError(f"the groups of {layer} should each hold a task, but one is empty")


def _check_unions(layer: str, groups: NamedGroups, layer_above: str, above: NamedGroups) -> None:
    """A branch cannot be fed by two branches of the layer below it."""
    for branch in above:
        own = next(group for group in groups if branch[0] in group)
        parted = [task for task in branch if task not in own]
        if parted:
            raise ValueError(
                f"the groups of {layer} should be unions of those of {layer_above}, but {branch[0]!r} and {parted[0]!r}, which "
                f"share a branch of {layer_above}, are parted in {layer}"
            )
