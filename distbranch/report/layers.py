"""The grown network as a list of layers, each with its branches: the one form from which the pictures of a tree are drawn.

It needs task names only: a branch feeds the branches of the next layer whose tasks it holds, so no edge has to be stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
        first, last = self.layers[0].name, self.layers[-1].name
        return first if len(self.layers) == 1 else f"{first} … {last}"

    @property
    def width(self) -> str:
        """The channels of one branch: one number, or the smallest and the largest one; empty if unknown."""
        widths = [layer.width for layer in self.layers if layer.width is not None]
        if not widths:
            return ""
        return str(widths[0]) if min(widths) == max(widths) else f"{min(widths)}\u2013{max(widths)}"


def layers_from_tree(tree: Mapping[str, Any], widths: Mapping[str, int] | None = None) -> tuple[LayerBranches, ...]:
    """The layers, input first, from the content of `tree.json`; `widths` gives the channels by layer name."""
    return tuple(
        LayerBranches(
            layer["name"], tuple(tuple(branch) for branch in layer["branches"]), (widths or {}).get(layer["name"])
        )
        for layer in tree["layers"]
    )


def grow(layers: Sequence[LayerBranches], decisions: Iterable[Mapping[str, Any]]) -> list[tuple[LayerBranches, ...]]:
    """The network before the first decision and after each one: [1 + number of decisions] lists of layers."""
    together = (layers[-1].tasks,)
    steps = [tuple(replace(layer, branches=together) for layer in layers)]
    for decision in decisions:
        branches = tuple(tuple(branch) for branch in decision["tasks"])
        index = decision["layer"] - 1
        steps.append((*steps[-1][:index], replace(layers[index], branches=branches), *steps[-1][index + 1 :]))
    return steps


def runs(layers: Sequence[LayerBranches]) -> tuple[Run, ...]:
    """The layers with equal consecutive branchings put together."""
    found: list[list[LayerBranches]] = []
    for layer in layers:
        if found and set(map(frozenset, found[-1][0].branches)) == set(map(frozenset, layer.branches)):
            found[-1].append(layer)
        else:
            found.append([layer])
    return tuple(Run(tuple(run)) for run in found)


def top_groups(layers: Sequence[LayerBranches]) -> Branches:
    """The branches of the top layer in an order in which no two edges of the tree cross.

    Their place in this order is the number and the colour of a group in every figure and table.
    """

    def path(branch: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(branch_of(layer.branches, branch[0]) for layer in layers)

    return tuple(sorted(layers[-1].branches, key=path)) if layers else ()


def branch_of(branches: Sequence[Sequence[str]], task: str) -> int:
    """The index of the branch that holds a task."""
    return next(index for index, branch in enumerate(branches) if task in branch)


def group_numbers(groups: Branches) -> dict[str, int]:
    """The number (from 0) of the top group of every task."""
    return {task: number for number, group in enumerate(groups) for task in group}


def readable(task: str) -> str:
    """A task name as people write it, in one line: without underscores, and with blanks for line breaks and tabs."""
    return " ".join(task.replace("_", " ").split())
