"""What `train.only` leaves of a network as it is: whole parts without gradients, and the rows of heads of tasks that are not new.

The heads of all tasks that are not dense are one matrix. Its gradient is zero in the rows of tasks whose losses weigh nothing, but
weight decay and momentum move them all the same: they are put back after every step.
"""

from collections.abc import Collection

import torch

from distbranch.models.architecture import Architecture
from distbranch.models.network import Network


def list_frozen(architecture: Architecture, only: str, new: Collection[str]) -> list[str]:
    """The modules that are not trained, by name: with `heads` all units, with `new` the copies and heads that other tasks need.

    Args:
        architecture: of the network.
        only: `heads` or `new`.
        new: names of the tasks that are trained with the latter.
    """
    if only == "heads":
        return ["units"]
    frozen = [
        f"dense_heads.{task.name}" for task in architecture.dense_tasks if task.name not in new
    ]
    routing = architecture.routing
    for unit, name in enumerate(routing.units):
        used = set()
        for task, node in zip(architecture.tasks, routing.ways[unit], strict=True):
            if task.name not in new:
                used.add(routing.nodes[unit][node].copy)
        frozen += [f"units.{name}.{copy}" for copy in sorted(used)]
    return frozen


class KeptRows:
    """The rows of `heads` [O, F] and their biases of tasks that are not new, which `restore` writes back.

    Args:
        network: with heads.
        new: names of the tasks whose rows are trained.
    """

    def __init__(self, network: Network, new: Collection[str]) -> None:
        assert network.heads is not None
        self.heads = network.heads
        is_kept = torch.ones(len(self.heads.bias), dtype=torch.bool)
        for name in network.tasks.columns.keys() & set(new):
            is_kept[network.tasks.columns[name]] = False
        (rows,) = is_kept.nonzero(as_tuple=True)
        self.rows = rows.to(self.heads.weight.device)
        self.weight = self.heads.weight.detach()[self.rows]
        self.bias = self.heads.bias.detach()[self.rows]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the rows the values that they had."""
        self.heads.weight[self.rows] = self.weight
        self.heads.bias[self.rows] = self.bias
