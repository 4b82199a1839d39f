"""The tree of a branched network: which tasks share which copy of which layer.

A tree is nothing but the list of its splits; everything else is computed by folding them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

Groups = tuple[tuple[int, ...], ...]
NamedGroups = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Split:
    """One widening: layer `layer` (1..L, counted from the input) gets one branch per group of branches above it.

    At the top layer L the "branches above" are the tasks themselves.
    """

    layer: int
    groups: Groups

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {"layer": self.layer, "groups": [list(group) for group in self.groups]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Split:
        """The inverse of `to_json`."""
        return cls(int(data["layer"]), _to_groups(data["groups"]))


@dataclass(frozen=True)
class Tree:
    """Layers from the input to the last hidden one, the number of tasks, and the splits so far, top layer first."""

    layers: tuple[str, ...]
    num_tasks: int
    splits: tuple[Split, ...] = ()

    def __post_init__(self) -> None:
        above = self._list_heads()
        for split, layer in zip(self.splits, range(self.num_layers, 0, -1), strict=False):
            _check_split(split, layer, len(above))
            above = _merge_branches(above, split.groups)
        if len(self.splits) > self.num_layers:
            raise ValueError(
                f"A tree of {self.num_layers} layers has at most that many splits, but {len(self.splits)} were given."
            )

    @property
    def num_layers(self) -> int:
        """L, the number of hidden layers; the heads stand above them as layer L + 1."""
        return len(self.layers)

    @property
    def active_layer(self) -> int:
        """The next layer to be widened (1..L); 0 when every layer has been."""
        return self.num_layers - len(self.splits)

    @cached_property
    def _branches(self) -> tuple[Groups, ...]:
        """Index 0 is the heads (layer L + 1), index k is layer L + 1 - k."""
        levels = [self._list_heads()]
        for split in self.splits:
            levels.append(_merge_branches(levels[-1], split.groups))
        return tuple(levels)

    def _list_heads(self) -> Groups:
        return tuple((task,) for task in range(self.num_tasks))

    def branches(self, layer: int) -> Groups:
        """The tasks served by every branch of a layer (1..L; layer L + 1 are the heads, one per task)."""
        self._check_layer(layer, self.num_layers + 1)
        depth = self.num_layers + 1 - layer
        return self._branches[depth] if depth < len(self._branches) else (tuple(range(self.num_tasks)),)

    def num_branches(self, layer: int) -> int:
        """The number of copies of a layer; T for the heads, layer L + 1."""
        return len(self.branches(layer))

    def parents(self, layer: int) -> list[int]:
        """Of every branch of a layer the branch of layer - 1 that feeds it; of layer L + 1, of every task; 0 for the input."""
        if layer == 1:
            return [0] * self.num_branches(layer)
        feeding = {task: number for number, tasks in enumerate(self.branches(layer - 1)) for task in tasks}
        return [feeding[tasks[0]] for tasks in self.branches(layer)]

    def split(self, split: Split) -> Tree:
        """The tree after one more split, which must be of the active layer.

        Raises:
            ValueError: if the groups are no partition of the branches above, or the layer is not the active one.
        """
        if self.active_layer == 0:
            raise ValueError("Every layer of this tree has been split already, so no further split is possible.")
        return Tree(self.layers, self.num_tasks, (*self.splits, split))

    def permuted(self, order: Sequence[int]) -> Tree:
        """The same shape with task `order[i]` in the place of task i: the control for whether the grouping matters."""
        if sorted(order) != list(range(self.num_tasks)):
            raise ValueError(
                f"An order of {self.num_tasks} tasks holds every number from 0 to {self.num_tasks - 1} once, "
                f"found {list(order)}."
            )
        if not self.splits:
            return self
        top, *rest = self.splits
        groups = tuple(tuple(sorted(order[task] for task in group)) for group in top.groups)
        return Tree(self.layers, self.num_tasks, (Split(top.layer, groups), *rest))

    def restricted(self, tasks: Sequence[int]) -> Tree:
        """The tree of some of the tasks, which are numbered anew in the given order; branches that serve none fall away.

        What is left of a layer's branches keeps its order.
        """
        above: Groups = tuple((number,) for number in range(len(tasks)))
        splits: list[Split] = []
        for layer in range(self.num_layers, 0, -1):
            left = []
            for branch in self.branches(layer):
                numbers = {number for number, task in enumerate(tasks) if task in branch}
                if numbers:
                    left.append(numbers)
            if len(left) < 2:  # nothing is apart here, nor in any layer below
                break
            groups = tuple(tuple(k for k, members in enumerate(above) if members[0] in numbers) for numbers in left)
            splits.append(Split(layer, groups))
            above = _merge_branches(above, groups)
        return Tree(self.layers, len(tasks), tuple(splits))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "layers": list(self.layers),
            "num_tasks": self.num_tasks,
            "splits": [split.to_json() for split in self.splits],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tree:
        """The inverse of `to_json`; checks every split again."""
        splits = tuple(Split.from_json(split) for split in data["splits"])
        return cls(tuple(data["layers"]), int(data["num_tasks"]), splits)

    def text(self, task_names: Sequence[str]) -> str:
        """The tree as indented text from the input up; layers with the same branches share one line."""
        names = list(task_names)
        lines: list[str] = []
        for root in range(self.num_branches(1)):
            lines += self._list_lines(1, root, names, depth=0)
        return "\n".join(lines)

    def _list_lines(self, layer: int, branch: int, names: list[str], depth: int) -> Iterable[str]:
        tasks = self.branches(layer)[branch]
        top = layer
        while top < self.num_layers and tasks in self.branches(top + 1):
            top += 1
        span = self.layers[layer - 1]
        if top > layer:
            span += f"..{self.layers[top - 1]}"
        if top == self.num_layers:
            yield "  " * depth + f"{span}: " + ", ".join(names[task] for task in tasks)
            return
        count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        yield "  " * depth + f"{span} ({count})"
        for number, above in enumerate(self.branches(top + 1)):
            if above[0] in tasks:
                yield from self._list_lines(top + 1, number, names, depth + 1)

    def _check_layer(self, layer: int, highest: int) -> None:
        if not 1 <= layer <= highest:
            raise ValueError(f"Layers are numbered from 1 to {highest}, but layer {layer} was asked for.")


def _to_groups(groups: Iterable[Iterable[int]]) -> Groups:
    return tuple(tuple(int(member) for member in group) for group in groups)


def _merge_branches(above: Groups, groups: Groups) -> Groups:
    """The tasks of every group of branches."""
    return tuple(tuple(sorted(task for branch in group for task in above[branch])) for group in groups)


def _check_split(split: Split, layer: int, num_above: int) -> None:
    if split.layer != layer:
        raise ValueError(
            f"Layers are split from the top down, so layer {layer} is next, but the split is of layer {split.layer}."
        )
    if not 2 <= len(split.groups) <= num_above:
        allowed = f"Give between 2 and {num_above} groups." if num_above > 1 else "There is nothing left to separate."
        raise ValueError(
            f"The layer above layer {layer} has {num_above} branches, so a split into {len(split.groups)} groups "
            f"is not possible. {allowed}"
        )
    members = [branch for group in split.groups for branch in group]
    if sorted(members) != list(range(num_above)) or not all(split.groups):
        raise ValueError(
            f"The groups of a split of layer {layer} must hold every branch from 0 to {num_above - 1} exactly once and "
            f"none may be empty, found {[list(group) for group in split.groups]}."
        )


# ---- trees that are given and not learned


def build_independent_tree(layers: Sequence[str], num_tasks: int) -> Tree:
    """The tree in which no two tasks share anything: every layer has a branch per task."""
    tree = Tree(tuple(layers), num_tasks)
    if num_tasks == 1:
        return tree
    alone = tuple((task,) for task in range(num_tasks))
    return Tree(tree.layers, num_tasks, tuple(Split(layer, alone) for layer in range(tree.num_layers, 0, -1)))


def build_tree_of_groups(layers: Sequence[str], tasks: Sequence[str], groups: Mapping[str, NamedGroups]) -> Tree:
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
    tree = Tree(tuple(layers), len(tasks))
    above = [[task] for task in tasks]
    name_above = "the heads"
    current = groups[layers[named[-1]]]
    for name in reversed(layers[named[0] :]):
        # A layer that is not named has the groups of the one above it.
        current = groups.get(name, current)
        _check_tasks(name, tasks, current)
        _check_unions(name, current, name_above, above)

        # A split groups the branches above, not the tasks: each stands for all its tasks by the first one.
        if len(current) > 1:
            served = [members[0] for members in tree.branches(tree.active_layer + 1)]
            inside = tuple(tuple(k for k, task in enumerate(served) if tasks[task] in group) for group in current)
            tree = tree.split(Split(tree.active_layer, inside))

        above = [list(group) for group in current]
        name_above = name
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


# ---- widening


def widen(state: Mapping[str, Tensor], old: Tree, new: Tree) -> dict[str, Tensor]:
    """The state of the network of `new` (Eq. 3-5), every branch a copy of the one that served its tasks in `old`.

    Tensors are copied by branch name, so the function that the network computes stays the same.

    Args:
        state: tensors by name; `layers.<layer>.<branch>.<rest>` are copied per branch, all others as they are. It may be a
            network's state or one slot of an optimiser (momentum, say) keyed by parameter name.
        old: the tree of `state`.
        new: `old` with further splits.
    """
    origins = {name: _find_origins(old, new, layer) for layer, name in enumerate(new.layers, start=1)}
    copies: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("layers."):
            copies[key] = value.clone()
            continue
        _, name, branch, rest = key.split(".", 3)
        for number, origin in enumerate(origins[name]):
            if origin == int(branch):
                copies[f"layers.{name}.{number}.{rest}"] = value.clone()
    return copies


def _find_origins(old: Tree, new: Tree, layer: int) -> list[int]:
    """For every branch of a layer of the new tree, the branch of the old tree that served all its tasks."""
    before = [set(tasks) for tasks in old.branches(layer)]
    origins = []
    for tasks in new.branches(layer):
        serving = [number for number, served in enumerate(before) if served.issuperset(tasks)]
        if not serving:
            raise ValueError(
                f"Widening only divides branches, but tasks {list(tasks)} share layer {new.layers[layer - 1]} in the new tree "
                f"and did not in the old one. Give a tree that is the old one with further splits."
            )
        origins.append(serving[0])
    return origins
