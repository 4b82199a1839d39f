"""The tree of a branched network: which tasks share which copy of which layer.

A tree is nothing but the list of its splits; everything else is computed by folding them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

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
        return {"layer": self.layer, "groups": list(map(list, self.groups))}

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
        _ = self._branches  # checks every split

    @property
    def num_layers(self) -> int:
        """L, the number of hidden layers; the heads stand above them as layer L + 1."""
        return len(self.layers)

    @property
    def active_layer(self) -> int:
        """The next layer to be widened (1..L); 0 when every layer has been."""
        return self.num_layers - len(self.splits)

    @cached_property
    def _branches(self) -> dict[int, Groups]:
        """Those of the heads (layer L + 1) and of every layer that was split."""
        above = _stand_alone(self.num_tasks)
        layer = self.num_layers + 1  # the heads
        found = {layer: above}
        for split in self.splits:
            layer -= 1
            if layer == 0:
                raise ValueError(
                    f"A tree of {self.num_layers} layers has at most that many splits, but {len(self.splits)} were given."
                )
            _check_split(split, layer, len(above))
            above = _merge_branches(above, split.groups)
            found[layer] = above
        return found

    def branches(self, layer: int) -> Groups:
        """The tasks served by every branch of a layer (1..L; layer L + 1 are the heads, one per task)."""
        highest = self.num_layers + 1
        if not 1 <= layer <= highest:
            raise ValueError(f"Layers are numbered from 1 to {highest}, but layer {layer} was asked for.")
        # A layer that was not split is shared by all.
        everything = tuple(range(self.num_tasks))
        return self._branches.get(layer, (everything,))

    def num_branches(self, layer: int) -> int:
        """The number of copies of a layer; T for the heads, layer L + 1."""
        return len(self.branches(layer))

    def parents(self, layer: int) -> list[int]:
        """Of every branch of a layer the branch of layer - 1 that feeds it; of layer L + 1, of every task; 0 for the input."""
        if layer == 1:
            return [0] * self.num_branches(layer)
        feeding = _number_by_task(self.branches(layer - 1))
        # All tasks of a branch come from the same branch below, so one of them tells.
        return [feeding[tasks[0]] for tasks in self.branches(layer)]

    def split(self, split: Split) -> Tree:
        """The tree after one more split, which must be of the active layer.

        Raises:
            ValueError: if the groups are no partition of the branches above, or the layer is not the active one.
        """
        if self.active_layer == 0:
            raise ValueError("Every layer of this tree has been split already, so no further split is possible.")
        return replace(self, splits=(*self.splits, split))

    def permuted(self, order: Sequence[int]) -> Tree:
        """The same shape with task `order[i]` in the place of task i: the control for whether the grouping matters."""
        if sorted(order) != list(range(self.num_tasks)):
            raise ValueError(
                f"An order of {self.num_tasks} tasks holds every number from 0 to {self.num_tasks - 1} once, "
                f"found {list(order)}."
            )
        if not self.splits:
            return self
        # Only the top split groups tasks; those below group branches, which keep their places.
        top, *rest = self.splits
        groups = _merge_branches([(task,) for task in order], top.groups)
        return replace(self, splits=(Split(top.layer, groups), *rest))

    def restricted(self, tasks: Sequence[int]) -> Tree:
        """The tree of some of the tasks, which are numbered anew in the given order; branches that serve none fall away.

        What is left of a layer's branches keeps its order.
        """
        tree = Tree(self.layers, len(tasks))
        for layer in range(self.num_layers, 0, -1):
            left = []
            for branch in self.branches(layer):
                numbers = [number for number, task in enumerate(tasks) if task in branch]
                if numbers:
                    left.append(numbers)
            if len(left) < 2:  # nothing is apart here, nor in any layer below
                break
            tree = tree.with_groups(left)
        return tree

    def with_groups(self, groups: Iterable[Iterable[int]]) -> Tree:
        """The tree after the split of the active layer that gives it a branch per group of tasks.

        Every group must be a union of branches of the layer above.
        """
        # A split groups the branches above, not the tasks.
        number_above = _number_by_task(self.branches(self.active_layer + 1))
        inside = []
        for group in groups:
            numbers = {number_above[task] for task in group}
            inside.append(tuple(sorted(numbers)))
        return self.split(Split(self.active_layer, tuple(inside)))

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
        for tasks in self.branches(1):
            lines += self._list_lines(1, tasks, names, indent="")
        return "\n".join(lines)

    def _list_lines(self, layer: int, tasks: tuple[int, ...], names: list[str], indent: str) -> Iterable[str]:
        top = layer
        while top < self.num_layers and tasks in self.branches(top + 1):
            top += 1
        span = self.layers[layer - 1]
        if top > layer:
            span += f"..{self.layers[top - 1]}"
        if top == self.num_layers:
            served = ", ".join(names[task] for task in tasks)
            yield f"{indent}{span}: {served}"
            return
        count = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
        yield f"{indent}{span} ({count})"
        for above in self.branches(top + 1):
            if above[0] in tasks:
                yield from self._list_lines(top + 1, above, names, indent + "  ")


def _to_groups(groups: Iterable[Iterable[int]]) -> Groups:
    return tuple(tuple(map(int, group)) for group in groups)


def _stand_alone(count: int) -> Groups:
    """Every one a group of its own."""
    return tuple((member,) for member in range(count))


def _number_by_task(branches: Groups) -> dict[int, int]:
    """Of every task the number of the branch that serves it."""
    numbers: dict[int, int] = {}
    for number, tasks in enumerate(branches):
        numbers |= dict.fromkeys(tasks, number)
    return numbers


def _merge_branches(above: Sequence[tuple[int, ...]], groups: Groups) -> Groups:
    """The tasks of every group of branches."""
    merged = []
    for group in groups:
        tasks = chain.from_iterable(above[branch] for branch in group)
        merged.append(tuple(sorted(tasks)))
    return tuple(merged)


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
    members = chain.from_iterable(split.groups)
    if sorted(members) != list(range(num_above)) or not all(split.groups):
        raise ValueError(
            f"The groups of a split of layer {layer} must hold every branch from 0 to {num_above - 1} exactly once and "
            f"none may be empty, found {list(map(list, split.groups))}."
        )


# ---- trees that are given and not learned


def build_independent_tree(layers: Sequence[str], num_tasks: int) -> Tree:
    """The tree in which no two tasks share anything: every layer has a branch per task."""
    tree = Tree(tuple(layers), num_tasks)
    while num_tasks > 1 and tree.active_layer:
        tree = tree.split(Split(tree.active_layer, _stand_alone(num_tasks)))
    return tree


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
    number_of = {task: number for number, task in enumerate(tasks)}
    above = [[task] for task in tasks]
    name_above = "the heads"
    current = groups[layers[named[-1]]]
    for name in reversed(layers[named[0] :]):
        # A layer that is not named has the groups of the one above it.
        current = groups.get(name, current)
        _check_tasks(name, tasks, current)
        _check_unions(name, current, name_above, above)
        # One group is no split, and neither is any below it.
        if len(current) > 1:
            numbered = [[number_of[task] for task in group] for group in current]
            tree = tree.with_groups(numbered)
        above = [list(group) for group in current]
        name_above = name
    return tree


def _check_tasks(layer: str, tasks: Sequence[str], groups: NamedGroups) -> None:
    members = list(chain.from_iterable(groups))
    for task in members:
        if task not in tasks:
            near = difflib.get_close_matches(task, tasks, n=3) or list(tasks[:5])
            raise ValueError(
                f"the groups of {layer} name the task {task!r}, which there is not (the nearest: {', '.join(near)})"
            )
    for task in tasks:
        if members.count(task) > 1:
            raise ValueError(f"the groups of {layer} name the task {task!r} more than once")
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
