"""The tree of a branched network: which tasks share which copy of which layer.

A tree is nothing but the list of its splits; everything else is computed by folding them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from distbranch.branching.grouping import Groups, label_branches
from distbranch.registry import find_near

NamedGroups = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Split:
    """One widening: layer `layer` (1..L, counted from the input) gets one branch per group of branches above it.

    At the top layer L the "branches above" are the tasks themselves.
    """

    layer: int
    groups: Groups

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {"layer": self.layer, "groups": list(map(list, self.groups))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Split:
        """The inverse of `to_json`."""
        return cls(data["layer"], tuple(map(tuple, data["groups"])))


@dataclass(frozen=True)
class Tree:
    """Layers from the input to the last hidden one, the number of tasks, and the splits so far, top layer first.

    `task_names` are for people: `str(tree)` shows them, or numbers where there are none.
    """

    layers: tuple[str, ...]
    num_tasks: int
    splits: tuple[Split, ...] = ()
    task_names: tuple[str, ...] = field(default=(), compare=False, repr=False)

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
        above: Groups = tuple((task,) for task in range(self.num_tasks))
        layer = self.num_layers + 1  # the heads
        found = {layer: above}
        for split in self.splits:
            layer -= 1
            _check_split(split, layer, len(above))
            above = _merge_branches(above, split.groups)
            found[layer] = above
        return found

    def branches(self, layer: int) -> Groups:
        """The tasks served by every branch of a layer (1..L; layer L + 1 are the heads, one per task)."""
        assert 1 <= layer <= self.num_layers + 1
        # A layer that was not split is shared by all.
        everything = tuple(range(self.num_tasks))
        return self._branches.get(layer, (everything,))

    def describe_layers(self, task_names: Sequence[str]) -> list[dict[str, Any]]:
        """Every layer from the input up, with the tasks of its branches, for people and for JSON.

        Example:
            >>> Tree(("top",), 2).describe_layers(["shoes", "bags"])
            [{'name': 'top', 'branches': [['shoes', 'bags']]}]
        """
        described = []
        for number, layer in enumerate(self.layers, start=1):
            branches = [[task_names[task] for task in tasks] for tasks in self.branches(number)]
            described.append({"name": layer, "branches": branches})
        return described

    def num_branches(self, layer: int) -> int:
        """The number of copies of a layer; T for the heads, layer L + 1."""
        return len(self.branches(layer))

    def parents(self, layer: int) -> list[int]:
        """Of every branch of a layer the branch of layer - 1 that feeds it; of layer L + 1, of every task; 0 for the input."""
        if layer == 1:
            return [0] * self.num_branches(layer)
        feeding: list[int] = label_branches(self.branches(layer - 1)).tolist()
        # All tasks of a branch come from the same branch below, so one of them tells.
        return [feeding[tasks[0]] for tasks in self.branches(layer)]

    def split(self, split: Split) -> Tree:
        """The tree after one more split, which must be of the active layer.

        Raises:
            ValueError: if the groups are no partition of the branches above, or the layer is not the active one.
        """
        return replace(self, splits=(*self.splits, split))

    def permuted(self, order: Sequence[int]) -> Tree:
        """The same shape with task `order[i]` in the place of task i: the control for whether the grouping matters."""
        assert sorted(order) == list(range(self.num_tasks))
        if not self.splits:
            return self
        # Only the top split groups tasks; those below group branches, which keep their places.
        top, *rest = self.splits
        groups = _merge_branches([(task,) for task in order], top.groups)
        return replace(self, splits=(Split(top.layer, groups), *rest))

    def restricted(
        self, tasks: Sequence[int], *, apart: Collection[int] = (), lowest: int = 1
    ) -> Tree:
        """The tree of some of the tasks, which are numbered anew in the given order; branches that serve none fall away.

        What is left of a layer's branches keeps its order. A task may be given again for another one that goes its way; those
        `apart`, by their new numbers, leave it at layer `lowest`: from there up those of a way have a branch of their own.

        Example:
            >>> Tree(("low", "top"), 2).restricted([0, 1, 1], apart=[2], lowest=2).branches(2)
            ((0, 1), (2,))
        """
        layers = []
        for layer in range(self.num_layers, 0, -1):
            branches: dict[tuple[int, bool], list[int]] = {}
            serving = label_branches(self.branches(layer)).tolist()
            for number, task in enumerate(tasks):
                has_left = layer >= lowest and number in apart
                branches.setdefault((serving[task], has_left), []).append(number)
            layers.append([branches[branch] for branch in sorted(branches)])
        return grow_tree(self.layers, len(tasks), layers)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        splits = [split.to_json() for split in self.splits]
        return {"layers": list(self.layers), "num_tasks": self.num_tasks, "splits": splits}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tree:
        """The inverse of `to_json`; checks every split again."""
        splits = tuple(map(Split.from_json, data["splits"]))
        return cls(tuple(data["layers"]), data["num_tasks"], splits)

    def __str__(self) -> str:
        return self.text(self.task_names or list(map(str, range(self.num_tasks))))

    def text(self, task_names: Sequence[str]) -> str:
        """The tree as indented text from the input up; layers with the same branches share one line."""
        lines: list[str] = []
        # From the input up, each branch before those that it feeds.
        waiting = [(1, tasks, "") for tasks in reversed(self.branches(1))]
        while waiting:
            layer, tasks, indent = waiting.pop()
            top = layer
            while top < self.num_layers and tasks in self.branches(top + 1):
                top += 1
            span = "..".join(dict.fromkeys((self.layers[layer - 1], self.layers[top - 1])))
            if top == self.num_layers:
                served = ", ".join(task_names[task] for task in tasks)
                lines.append(f"{indent}{span}: {served}")
                continue
            noun = "task" if len(tasks) == 1 else "tasks"
            lines.append(f"{indent}{span} ({len(tasks)} {noun})")
            fed = [above for above in self.branches(top + 1) if above[0] in tasks]
            waiting += [(top + 1, above, indent + "  ") for above in reversed(fed)]
        return "\n".join(lines)


def _merge_branches(above: Sequence[Sequence[int]], groups: Groups) -> Groups:
    """The tasks of every group of branches."""
    merged = []
    for group in groups:
        tasks = chain.from_iterable(above[branch] for branch in group)
        merged.append(tuple(sorted(tasks)))
    return tuple(merged)


def _check_split(split: Split, layer: int, num_above: int) -> None:
    if layer == 0 or split.layer != layer:
        raise ValueError(
            f"Layers are split from the top down, each once, so layer {layer} is next (0: none), found a split of layer {split.layer}."
        )
    branches = sorted(chain.from_iterable(split.groups))
    if branches != list(range(num_above)) or len(split.groups) < 2 or not all(split.groups):
        raise ValueError(
            f"A split of layer {layer} should divide the branches above, 0 to {num_above - 1}, into at least two groups that are not "
            f"empty, every branch in exactly one, found {list(map(list, split.groups))}."
        )


# ---- trees that are given and not learned


def grow_tree(
    layers: Sequence[str], num_tasks: int, branches: Iterable[Sequence[Sequence[int]]]
) -> Tree:
    """The tree with these branches, each as its tasks, from the top layer down; below the first single one all tasks share.

    Raises:
        ValueError: a branch is no union of those of the layer above.
    """
    tree = Tree(tuple(layers), num_tasks)
    for layer in branches:
        if len(layer) < 2:
            break
        # A split groups the branches above, not the tasks.
        number_above: list[int] = label_branches(tree.branches(tree.active_layer + 1)).tolist()
        groups = []
        for tasks in layer:
            numbers = {number_above[task] for task in tasks}
            groups.append(tuple(sorted(numbers)))
        tree = tree.split(Split(tree.active_layer, tuple(groups)))
    return tree


def build_independent_tree(layers: Sequence[str], num_tasks: int) -> Tree:
    """The tree in which no two tasks share anything: every layer has a branch per task."""
    alone = [[task] for task in range(num_tasks)]
    return grow_tree(layers, num_tasks, [alone] * len(layers))


def build_tree_of_groups(
    layers: Sequence[str], tasks: Sequence[str], groups: Mapping[str, NamedGroups]
) -> Tree:
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
    named = [number for number, name in enumerate(layers) if name in groups]
    for name in groups:
        if name not in layers:
            near = find_near(name, layers)
            raise ValueError(
                f"groups are given for some of its {len(layers)} layers, found {name}; the nearest are {', '.join(near)}"
            )
    if not named:
        raise ValueError(f"groups are given for some of the layers {', '.join(layers)}, found none")
    numbers = {task: number for number, task in enumerate(tasks)}
    above: NamedGroups = [[task] for task in tasks]
    current = groups[layers[named[-1]]]
    branches = []
    for layer in reversed(layers[named[0] :]):
        # A layer that is not named has the groups of the one above it.
        current = groups.get(layer, current)
        _check_groups(layer, current, tasks, above)
        branches.append([[numbers[task] for task in group] for group in current])
        above = current
    return grow_tree(layers, len(tasks), branches)


def _check_groups(
    layer: str, groups: NamedGroups, tasks: Sequence[str], above: NamedGroups
) -> None:
    counts = Counter(chain.from_iterable(groups))
    wrong = [
        f"{task!r} {counts[task]} times"
        for task in {*tasks, *counts}
        if counts[task] != (task in tasks)
    ]
    if wrong or not all(groups):
        raise ValueError(
            f"the groups of {layer} should hold each of the {len(tasks)} tasks once, no other, and none should be empty, found "
            f"{', '.join(sorted(wrong)[:6]) or 'an empty one'}"
        )
    # A branch cannot be fed by two branches of the layer below it.
    for branch in above:
        if not any(set(branch) <= set(group) for group in groups):
            raise ValueError(
                f"the groups of {layer} should be unions of those of the layer above, but {', '.join(branch)}, which share a branch "
                f"there, are not together in {layer}"
            )
