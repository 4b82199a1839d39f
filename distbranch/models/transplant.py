"""What a network takes of an earlier one: every task goes the way that one task of the earlier network goes.

That is its own way, or, if the task is new, that of the branch that suits it. So one list of numbers, the origins, says what becomes
of the tree and of all weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from distbranch.models.delta import copy_state
from distbranch.models.network import Network
from distbranch.tasks import Task


@dataclass(frozen=True)
class Beginning:
    """What becomes of the tasks.

    tasks: of the new network; those that it takes are as the earlier run had them, mean and deviation of numbers included.
    origins: of each of them the number of the task in the earlier network whose way it goes; 0 of those in `unplaced`.
    new: names of those whose heads begin at random.
    unplaced: names of those new ones that the earlier network does not know; the others it had with other classes, say.
    left_out: names of the tasks of the earlier network that the new one lacks.
    """

    tasks: tuple[Task, ...]
    origins: tuple[int, ...]
    new: tuple[str, ...]
    unplaced: tuple[str, ...]
    left_out: tuple[str, ...]

    def only(self, names: Collection[str]) -> Beginning:
        """Of some of the tasks alone."""
        kept = [number for number, task in enumerate(self.tasks) if task.name in names]
        tasks = tuple(self.tasks[number] for number in kept)
        return replace(self, tasks=tasks, origins=tuple(self.origins[number] for number in kept))

    def placed(self, origins: Mapping[str, int]) -> Beginning:
        """With the origins of tasks that were unplaced, by their names."""
        pairs = zip(self.tasks, self.origins, strict=True)
        found = tuple(origins.get(task.name, origin) for task, origin in pairs)
        return replace(self, origins=found)


def match_tasks(theirs: Sequence[Task], own: Sequence[Task], *, keeps: bool) -> Beginning:
    """What becomes of the tasks of an earlier run and of those of the data; `keeps`: whether tasks that the data lack stay.

    Example:
        >>> match_tasks([Task("old"), Task("both")], [Task("both"), Task("new")], keeps=True).tasks
        (Task("old"), Task("both"), Task("new"))
    """
    numbers = {task.name: number for number, task in enumerate(theirs)}
    of_data = {task.name: task for task in own}
    taken = {}
    for task in own:
        if task.name in numbers and theirs[numbers[task.name]].is_same_task(task):
            taken[task.name] = theirs[numbers[task.name]]
    new = tuple(task.name for task in own if task.name not in taken)
    tasks = [taken.get(task.name, task) for task in own]
    if keeps:
        old = [task for task in theirs if task.name not in new]
        tasks = [*old, *(of_data[name] for name in new)]
    names = {task.name for task in tasks}
    return Beginning(
        tasks=tuple(tasks),
        origins=tuple(numbers.get(task.name, 0) for task in tasks),
        new=new,
        unplaced=tuple(name for name in new if name not in numbers),
        left_out=tuple(name for name in numbers if name not in names),
    )


@torch.no_grad()
def transplant_weights(
    network: Network, earlier: Network, origins: Sequence[int], new: Collection[str]
) -> None:
    """Overwrite all units of a network, and the heads of all tasks that are not new, by those of an earlier one.

    Args:
        network: of the same backbone.
        earlier: what they are copied from, on the same device.
        origins: of every task of the network the number of the task in the earlier one whose way it goes.
        new: names of tasks whose heads stay as they are.

    Raises:
        ValueError: tasks share a copy of a unit whose ways in the earlier network had one each.
    """
    own = network.state_dict()
    old = copy_state(earlier.state_dict(), earlier.architecture, network.architecture, origins)
    # Of a unit that no task executes only the shortcut is there.
    units = {name: old[name] for name in own if name.startswith("units.")}
    network.load_state_dict(own | units)
    for name in network.tasks.names:
        if name in new:
            continue
        if name in network.dense_heads:
            network.dense_heads[name].load_state_dict(earlier.dense_heads[name].state_dict())
            continue
        assert network.heads is not None
        assert earlier.heads is not None
        columns, rows = network.tasks.columns[name], earlier.tasks.columns[name]
        network.heads.weight[columns] = earlier.heads.weight[rows]
        network.heads.bias[columns] = earlier.heads.bias[rows]
