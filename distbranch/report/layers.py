"""The grown network as a list of layers, each with its branches: the one form from which the pictures of a tree are drawn.

It needs task names only: a branch feeds the branches of the next layer whose tasks it holds, so no edge has to be stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

Branches = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class LayerBranches:
    """One layer: its name, the tasks of each of its branches, and the channels (units) of one branch if known."""

    name: str
    branches: Branches
    width: int | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, branch after branch."""
        return tuple(task for branch in self.branches for task in branch)


@dataclass(frozen=True)
class Run:
    """Consecutive layers with the same branching, drawn as one column."""

    layers: tuple[LayerBranches, ...]

    @property
    def branches(self) -> Branches:
        """The branches that all layers of the run have."""
        return self.layers[0].branches

    @property
    def title(self) -> str:
        """The name of the only layer, or of the first and the last one."""
        first = self.layers[0].name
        if len(self.layers) == 1:
            return first
        return f"{first} … {self.layers[-1].name}"

    @property
    def width(self) -> str:
        """The channels of one branch: one number, or the smallest and the largest one; empty if unknown."""
        widths = sorted({layer.width for layer in self.layers if layer.width is not None})
        # of several the smallest and the largest; a slice, because of one these are the same
        return "\u2013".join(map(str, widths[:1] + widths[1:][-1:]))


def layers_from_tree(tree: Mapping[str, Any], widths: Mapping[str, int] | None = None) -> tuple[LayerBranches, ...]:
    """The layers, input first, from the content of `tree.json`; `widths` gives the channels by layer name."""
    layers = []
    for layer in tree["layers"]:
        branches = tuple(map(tuple, layer["branches"]))
        layers.append(LayerBranches(layer["name"], branches, (widths or {}).get(layer["name"])))
    return tuple(layers)


def grow_layers(
    layers: Sequence[LayerBranches], decisions: Iterable[Mapping[str, Any]]
) -> list[tuple[LayerBranches, ...]]:
    """The network before the first decision and after each one: [1 + number of decisions] lists of layers."""
    # every run begins with one branch of all tasks
    shown = [replace(layer, branches=(layers[-1].tasks,)) for layer in layers]
    steps = [tuple(shown)]
    for decision in decisions:
        index = decision["layer"] - 1
        shown[index] = replace(layers[index], branches=tuple(map(tuple, decision["tasks"])))
        steps.append(tuple(shown))
    return steps


def merge_equal_layers(layers: Sequence[LayerBranches]) -> tuple[Run, ...]:
    """The layers with equal consecutive branchings put together."""
    # as sets: a decision may list the same groups in another order
    same = groupby(layers, key=lambda layer: set(map(frozenset, layer.branches)))
    return tuple(Run(tuple(run)) for _, run in same)


def top_groups(layers: Sequence[LayerBranches]) -> Branches:
    """The branches of the top layer in an order in which no two edges of the tree cross.

    Their place in this order is the number and the colour of a group in every figure and table.
    """

    def path(branch: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(find_branch(layer.branches, branch[0]) for layer in layers)

    if not layers:
        return ()
    # branches that part late have paths that begin alike, so sorting puts them side by side
    return tuple(sorted(layers[-1].branches, key=path))


def find_branch(branches: Sequence[Sequence[str]], task: str) -> int:
    """The index of the branch that holds a task."""
    return next(index for index, branch in enumerate(branches) if task in branch)


def group_numbers(groups: Branches) -> dict[str, int]:
    """The number (from 0) of the top group of every task."""
    return {task: number for number, group in enumerate(groups) for task in group}


def format_name(task: str) -> str:
    """A task name as people write it, in one line: without underscores, and with blanks for line breaks and tabs."""
    return " ".join(task.replace("_", " ").split())
