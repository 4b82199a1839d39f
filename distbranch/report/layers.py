"""The grown network as a list of layers, each with its branches: the one form from which the pictures of a tree are drawn.

It needs task names only: a branch feeds the branches of the next layer whose tasks it holds, so no edge has to be stored.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

Branches = tuple[tuple[str, ...], ...]

MOST_COLUMNS = (
    20  # layers side by side in a picture; VGG-16 has 15, and models of timm up to 50 units
)
MOST_GROUPS = 20  # of which each has a strand of its own; more would not fit a screen
LETTERS = 13  # of a line of a layer's name in a narrow column


@dataclass(frozen=True)
class LayerBranches:
    """One layer: its name, the tasks of each of its branches, and those that a policy leads past it."""

    name: str
    branches: Branches
    skipped: frozenset[str] = frozenset()


Run = tuple[LayerBranches, ...]  # consecutive layers with the same branching, drawn as one column


def list_layers(described: Iterable[Mapping[str, Any]]) -> tuple[LayerBranches, ...]:
    """The layers, input first, as `Tree.describe_layers` and tree.json have them."""
    return tuple(
        LayerBranches(layer["name"], tuple(map(tuple, layer["branches"]))) for layer in described
    )


def mark_skipped(
    layers: Sequence[LayerBranches], policy: Mapping[str, Any]
) -> tuple[LayerBranches, ...]:
    """The layers with the tasks that skip them, by the content of `policy.json`."""
    skipped = {}
    for block, decisions in zip(policy["blocks"], zip(*policy["policy"], strict=True), strict=True):
        pairs = zip(policy["tasks"], decisions, strict=True)
        skipped[block] = frozenset(task for task, executes in pairs if not executes)
    return tuple(replace(layer, skipped=skipped.get(layer.name, frozenset())) for layer in layers)


def grow_layers(
    layers: Sequence[LayerBranches], decisions: Iterable[Mapping[str, Any]]
) -> list[tuple[LayerBranches, ...]]:
    """The network before the first decision and after each one: [1 + number of decisions] lists of layers."""
    # every run begins with one branch of all tasks
    trunk = (tuple(chain(*layers[-1].branches)),)
    shown = [replace(layer, branches=trunk) for layer in layers]
    steps = [tuple(shown)]
    for decision in decisions:
        index = decision["layer"] - 1
        if "layers" in decision:  # all from there to the top, with tasks as they were permuted
            shown[index:] = layers[index:]
        elif decision.get("permutation") is not None:
            shown[index] = layers[index]
        else:
            shown[index] = replace(layers[index], branches=tuple(map(tuple, decision["tasks"])))
        steps.append(tuple(shown))
    return steps


def merge_equal_layers(layers: Sequence[LayerBranches]) -> list[Run]:
    """The layers with equal consecutive branchings put together."""
    # as sets: a decision may list the same groups in another order
    same = groupby(layers, key=lambda layer: set(map(frozenset, layer.branches)))
    return [tuple(run) for _, run in same]


def count_trunk(layers: Sequence[LayerBranches]) -> int:
    """How many layers at the input have one branch."""
    branched = (number for number, layer in enumerate(layers) if len(layer.branches) > 1)
    return next(branched, len(layers))


def shorten_trunk(layers: Sequence[LayerBranches], num_shared: int) -> tuple[LayerBranches, ...]:
    """Of a network too deep for a picture the first layers, which all tasks share, as one."""
    if len(layers) <= MOST_COLUMNS or num_shared < 3:
        return tuple(layers)
    shared = tuple(layers[:num_shared])
    trunk = replace(shared[0], name=f"{shared[0].name} … {shared[-1].name}")
    return (trunk, *layers[num_shared:])


def fold_single_tasks(layers: Sequence[LayerBranches]) -> tuple[LayerBranches, ...]:
    """Of a tree with many groups: tasks that are alone from the same layer on, out of the same branch, as if they were one."""
    if not layers or len(layers[-1].branches) <= MOST_GROUPS:
        return tuple(layers)
    folded: dict[tuple[int, int], list[str]] = {}
    for (task,) in [branch for branch in layers[-1].branches if len(branch) == 1]:
        alone = [len(layer.branches[find_branch(layer.branches, task)]) == 1 for layer in layers]
        depth = alone.index(True)
        below = find_branch(layers[depth - 1].branches, task) if depth else 0
        folded.setdefault((depth, below), []).append(task)
    place = {task: key for key, tasks in folded.items() for task in tasks}

    shown = []
    for layer in layers:
        singles = {branch for branch in layer.branches if len(branch) == 1}
        kept = [branch for branch in layer.branches if branch not in singles]
        there = dict.fromkeys(place[task] for (task,) in singles)
        shown.append(replace(layer, branches=(*kept, *(tuple(folded[key]) for key in there))))
    return tuple(shown)


def wrap_layer_name(name: str) -> str:
    """The name of a layer on short lines, which end at underscores: stages_2_ over blocks_5."""
    lines = [""]
    for piece in re.findall(r"[^_]*_|[^_]+$", name):
        if lines[-1] and len(lines[-1] + piece) > LETTERS:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def describe_run(run: Run) -> tuple[str, str]:
    """The name of a run's only layer, or of its first and its last one; the number of branches and of layers."""
    title = run[0].name
    count = len(run[0].branches)
    text = f"{count} branches" if count > 1 else "1 branch"
    if len(run) > 1:
        title += f" … {run[-1].name}"
        text += f"\n{len(run)} layers"
    return title, text


def name_decision(decision: Mapping[str, Any]) -> tuple[str, str]:
    """When a decision was taken, and the layer, or the layers, that it is about."""
    layer = decision["layer_name"]
    if "layers" in decision:  # one for a block of layers, before the first step
        return "By the scout", f"{layer} and above"
    return f"Round {decision['round']}", layer


def list_top_groups(layers: Sequence[LayerBranches]) -> Branches:
    """The branches of the top layer in an order in which no two edges of the tree cross.

    Their place in this order is the number and the colour of a group in every figure and table.
    """

    def trace_path(branch: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(find_branch(layer.branches, branch[0]) for layer in layers)

    if not layers:
        return ()
    # branches that part late have paths that begin alike, so sorting puts them side by side
    return tuple(sorted(layers[-1].branches, key=trace_path))


def find_branch(branches: Sequence[Sequence[str]], task: str) -> int:
    """The index of the branch that holds a task."""
    return next(index for index, branch in enumerate(branches) if task in branch)


def group_numbers(groups: Branches) -> dict[str, int]:
    """The number (from 0) of the top group of every task."""
    return {task: number for number, group in enumerate(groups) for task in group}


def format_name(task: str) -> str:
    """A task name as people write it, in one line: without underscores, and with blanks for line breaks and tabs."""
    return " ".join(task.replace("_", " ").split())
