"""The way of every task through the units of a network: a tree, which has copies of units, and a policy, which goes past some.

Tasks that went alike so far share a node, and features are kept once per node. A network knows nothing but its routing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from distbranch.branching.tree import Tree, grow_tree

Policy = tuple[tuple[bool, ...], ...]  # [T][L] over the units that may be skipped, True = execute
SHARED = (
    "shared"  # stands in names for the number of a copy, of a weight that all copies have in common
)


@dataclass(frozen=True)
class Node:
    """One way after a unit: from node `parent` of the unit below (0 for the image) through, or past, one copy of the unit.

    What goes past it takes the copy's shortcut.
    """

    parent: int
    copy: int = 0
    executes: bool = True


@dataclass(frozen=True)
class Routing:
    """The units, input first, the nodes after each of them, and, of every task, the node of the last unit that its head reads."""

    units: tuple[str, ...]
    nodes: tuple[tuple[Node, ...], ...]
    top: tuple[int, ...]

    @cached_property
    def ways(self) -> tuple[tuple[int, ...], ...]:
        """[L][T]: after every unit the node of every task."""
        found = [self.top]
        for nodes in reversed(self.nodes[1:]):
            above = found[-1]
            found.append(tuple(nodes[number].parent for number in above))
        return tuple(reversed(found))

    def copies(self, unit: int) -> list[bool]:
        """Of every copy of a unit (0..L-1), whether some task executes it."""
        nodes = self.nodes[unit]
        executed = {node.copy for node in nodes if node.executes}
        return [copy in executed for copy in range(1 + max(node.copy for node in nodes))]

    def num_runs(self, unit: int) -> tuple[int, int]:
        """How often the shortcuts of a unit run for one image, once for every way that comes to a copy, and how often it itself."""
        nodes = self.nodes[unit]
        coming = {(node.parent, node.copy) for node in nodes}
        return len(coming), sum(node.executes for node in nodes)

    def tree(self, units: Sequence[str]) -> Tree:
        """The tree in which, after each of these units, those tasks share a branch that share a node."""
        branches = []
        for name in reversed(units):
            groups: dict[int, list[int]] = {}
            for task, node in enumerate(self.ways[self.units.index(name)]):
                groups.setdefault(node, []).append(task)
            branches.append(list(groups.values()))
        return grow_tree(units, len(self.top), branches)


def route_tree(tree: Tree) -> Routing:
    """Every branch of a layer is a copy of it."""
    nodes = []
    for layer in range(1, tree.num_layers + 1):
        parents = tree.parents(layer)
        nodes.append(tuple(Node(parent, copy) for copy, parent in enumerate(parents)))
    return Routing(tree.layers, tuple(nodes), tuple(tree.parents(tree.num_layers + 1)))


def route_policy(units: Sequence[str], may_skip: Sequence[bool], policy: Policy) -> Routing:
    """One copy of every unit, which each task runs or goes past.

    Args:
        units: names, input first.
        may_skip: which of them the policy decides; the others are executed by all.
        policy: [T][L].
    """
    nodes = []
    place = 0  # among the units that may be skipped
    node_of_task = [0] * len(policy)
    for skippable in may_skip:
        executes = [row[place] if skippable else True for row in policy]
        place += skippable
        ways = [Node(parent, 0, runs) for parent, runs in zip(node_of_task, executes, strict=True)]
        distinct = list(dict.fromkeys(ways))
        nodes.append(tuple(distinct))
        node_of_task = [distinct.index(way) for way in ways]
    return Routing(tuple(units), tuple(nodes), tuple(node_of_task))


def share_all_blocks(num_tasks: int, num_blocks: int) -> Policy:
    """The policy by which every task executes every block: hard sharing, the baseline."""
    return ((True,) * num_blocks,) * num_tasks


def copy_units(
    state: Mapping[str, Tensor], old: Routing, new: Routing, tasks: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """The state of the network of `new` (Eq. 3-5), every unit a copy of the one that served its tasks in `old`.

    Tensors are copied by name, so a wider network computes the same function.

    Args:
        state: tensors by name; `units.<unit>.<copy>.<rest>` are copied per copy, all others, and
            `units.<unit>.shared.<rest>`, as they are. It may be a network's state or one slot of an optimiser (momentum, say) keyed by
            parameter name.
        old: the routing of `state`.
        new: one that divides the copies of `old` further, or leaves some out.
        tasks: of every task of `new` its number in `old`, where these differ.

    Raises:
        ValueError: tasks share a copy in `new` that did not in `old`.
    """
    numbers = range(len(new.top)) if tasks is None else tasks
    origins = {}
    for unit, name in enumerate(new.units):
        origins[name] = _find_origins(
            _copies_of_tasks(old, unit), _copies_of_tasks(new, unit), numbers, name
        )
    copies: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("units.") or key.split(".")[2] == SHARED:
            copies[key] = value.clone()
            continue
        _, name, copy, rest = key.split(".", 3)
        for number, origin in enumerate(origins[name]):
            if origin == int(copy):
                copies[f"units.{name}.{number}.{rest}"] = value.clone()
    return copies


def _copies_of_tasks(routing: Routing, unit: int) -> list[int]:
    return [routing.nodes[unit][node].copy for node in routing.ways[unit]]


def _find_origins(
    before: Sequence[int], after: Sequence[int], tasks: Iterable[int], unit: str
) -> list[int]:
    """Of every new copy of a unit the old one, from the copies that the tasks had before and have after."""
    origins: dict[int, int] = {}
    for copy, task in zip(after, tasks, strict=True):
        if origins.setdefault(copy, before[task]) != before[task]:
            raise ValueError(
                f"Widening only divides branches, but tasks share a copy of {unit} in the new network that have one each in the "
                "old one. Give a tree that is the old one with further splits."
            )
    return [origins[copy] for copy in sorted(origins)]
