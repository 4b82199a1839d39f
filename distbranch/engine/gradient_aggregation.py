"""How the gradients of tasks that share weights become one, by TorchJD's aggregators, the same on every rank.

An aggregator needs a row per task: the gradient of that task's loss over the whole batch. The mean over ranks of what each would
make of its own rows is something else, so the rows are summed over the ranks first. Rank 0 then finds the weights of the rows, of
which it sees nothing but their products with each other, and tells them to all: one more message, after which no processor that
rounds otherwise, and no random order, can make ranks differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distbranch.branching.routing import SHARED, Routing
from distbranch.engine.distributed import Ranks
from distbranch.errors import UserError, reason_of
from distbranch.extras import require

Tasks = tuple[int, ...]
CAGRAD_RADIUS = 0.4  # c: as far from the mean gradient as its authors go on dense tasks
# Their weights have the mean 1 where tasks do not pull in different directions, as the sum has; those of the others sum to 1.
OF_SUMS = ("pcgrad", "gradvac", "nash-mtl")
COLUMNS_AT_ONCE = 2**20  # of rows in float64


@dataclass(frozen=True)
class SharedWeights:
    """Weights of a network that the same tasks share; those of `tasks` () belong to heads, of which tasks share none."""

    tasks: Tasks
    parameters: tuple[nn.Parameter, ...]

    @property
    def num_rows(self) -> int:
        """One for each task that shares them."""
        return max(1, len(self.tasks))


def group_by_tasks(network: Any) -> list[SharedWeights]:
    """The trained weights of a network, by the tasks whose losses depend on them.

    Of a tree every branch is of its own tasks. What a policy makes tasks skip is of all of them, for those that go through the same
    unit are normalised together.
    """
    routing: Routing = network.routing
    everybody = tuple(range(network.tasks.num_tasks))
    is_tree = all(
        [node.copy for node in nodes] == list(range(len(nodes)))
        and all(node.executes for node in nodes)
        for nodes in routing.nodes
    )
    found: dict[Tasks, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part, *rest = name.split(".")
        tasks = everybody
        if part in ("heads", "dense_heads"):
            tasks = ()
        elif part == "units" and is_tree and rest[1] != SHARED:
            ways = routing.ways[routing.units.index(rest[0])]
            tasks = tuple(task for task, way in enumerate(ways) if way == int(rest[1]))
        found.setdefault(tasks, []).append(parameter)
    return [SharedWeights(tasks, tuple(group)) for tasks, group in found.items()]


class TaskGradients:
    """The gradients of one step by task, added over its passes: rows [S, n] of every group of n weights that S tasks share."""

    def __init__(self, groups: Sequence[SharedWeights]) -> None:
        self.groups = groups
        self.rows: list[Tensor] = []
        for group in groups:
            size = sum(parameter.numel() for parameter in group.parameters)
            self.rows.append(group.parameters[0].new_zeros(group.num_rows, size))

    def add_pass(self, losses: Tensor) -> None:
        """Go back from the losses [T] of a pass, once per task; its graph is freed by the last."""
        for number, group in enumerate(self.groups):
            if not group.tasks:
                self._add(losses.sum(), [(number, 0)], retain_graph=True)
        last = len(losses) - 1
        for task, loss in enumerate(losses):
            places = [
                (number, group.tasks.index(task))
                for number, group in enumerate(self.groups)
                if task in group.tasks
            ]
            self._add(loss, places, retain_graph=task != last)

    def _add(self, loss: Tensor, places: Sequence[tuple[int, int]], *, retain_graph: bool) -> None:
        """The gradient of a loss in the groups of weights of these numbers, into these rows."""
        parameters = [
            parameter for number, _ in places for parameter in self.groups[number].parameters
        ]
        gradients = iter(
            torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True)
        )
        for number, row in places:
            sizes = [parameter.numel() for parameter in self.groups[number].parameters]
            for own in torch.split(self.rows[number][row], sizes):
                gradient = next(gradients)
                if gradient is not None:
                    own += gradient.reshape(-1)

    def sum_over_ranks(self, ranks: Ranks) -> None:
        """Add the rows of all ranks: each group's are one message."""
        for pending in [ranks.start_sum(rows) for rows in self.rows]:
            pending.wait()

    def set_gradients(self, weights: Mapping[Tasks, Tensor]) -> None:
        """Give every weight the sum of its rows, times `weights` [S] of those of its tasks."""
        for group, rows in zip(self.groups, self.rows, strict=True):
            total = rows[0]
            if group.tasks in weights:
                # One product after the other: a matrix product rounds otherwise on another processor.
                own = weights[group.tasks].to(rows).unbind()
                total = rows[0] * own[0]
                for row, weight in zip(rows[1:], own[1:], strict=True):
                    total += row * weight
            sizes = [parameter.numel() for parameter in group.parameters]
            for parameter, part in zip(group.parameters, torch.split(total, sizes), strict=True):
                # In the layout of the weight, which fused optimisers rely on.
                gradient = torch.empty_like(parameter, requires_grad=False)
                parameter.grad = gradient.copy_(part.view_as(parameter))


class GradientAggregation:
    """An aggregator of TorchJD for every set of tasks that share weights.

    `memory` is what it keeps from step to step, of those that do, by the numbers of the tasks: "0,2,3". Rank 0's is the one that counts.

    Args:
        name: as in `loss.aggregation`.
        seed: of the orders in which PCGrad and GradVac take the tasks, with the number of the step.

    Raises:
        UserError: TorchJD, or the solver of this aggregator, is absent.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.seed = seed
        self.memory: dict[str, Tensor] = {}
        self._make = _find_aggregator(name)
        self._make(2)  # says now what is absent

    def weigh(self, gradients: TaskGradients, ranks: Ranks, iteration: int) -> dict[Tasks, Tensor]:
        """The weights [S] of the rows of every set of two or more tasks; rows are those of all ranks, and all must call it.

        Raises:
            SharedError: a solver failed.
        """
        products = {}
        for group, rows in zip(gradients.groups, gradients.rows, strict=True):
            if len(group.tasks) > 1 and ranks.is_first:
                products[group.tasks] = compute_products(rows).cpu()
        weights = {
            group.tasks: torch.full((group.num_rows,), torch.nan, dtype=torch.float64)
            for group in gradients.groups
            if len(group.tasks) > 1
        }
        problem = None
        try:
            for number, (tasks, matrix) in enumerate(products.items()):
                (order,) = np.random.SeedSequence([self.seed, iteration, number]).generate_state(1)
                with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                    warnings.simplefilter(
                        "ignore"
                    )  # Nash-MTL's solver says at every step how it is built
                    torch.manual_seed(int(order))
                    weights[tasks] = self._weigh_labelled(tasks, matrix)
        except Exception as error:  # of any kind: solvers have their own
            problem = (
                f"loss.aggregation={self.name} found no weights at step {iteration + 1} ({reason_of(error)}). Use another one, or "
                "lower optim.lr."
            )
        ranks.broadcast_tensors(list(weights.values()))
        if not all(own.isfinite().all() for own in weights.values()):
            # Without a problem the gradient is not finite, of which the losses tell at the next step.
            ranks.raise_on_all_ranks(problem)
        return weights

    def _weigh_labelled(self, tasks: Tasks, products: Tensor) -> Tensor:
        """The weights [S] of rows with these products [S, S]; 0 of those without any length, as of a task without labels."""
        if not products.isfinite().all():
            return torch.full_like(products[0], torch.nan)
        weights = torch.zeros_like(products[0])
        kept = products.diagonal().nonzero()[:, 0]
        if len(kept) < 2:
            weights[kept] = 1.0
            return weights

        # Rows that have the same products with each other stand for the real ones, of which no aggregator wants to know more.
        values, vectors = torch.linalg.eigh(products[kept][:, kept])
        rows = vectors * values.clamp_min(0).sqrt()
        aggregator = self._make(len(kept))
        found = self._weigh_with_memory(aggregator, rows, tasks, kept)
        weights[kept] = found if self.name in OF_SUMS else len(kept) * found
        return weights

    def _weigh_with_memory(
        self, aggregator: Any, rows: Tensor, tasks: Tasks, kept: Tensor
    ) -> Tensor:
        """The weights of the rows of those tasks that are kept, from what is remembered of them, which is brought up to date."""
        key, size = ",".join(map(str, tasks)), len(tasks)
        weighting = aggregator.weighting
        if self.name == "gradvac":
            inner = aggregator.gramian_weighting
            memory = self.memory.setdefault(key, torch.zeros(size, size, dtype=torch.float64))
            inner._phi_t = memory[kept][:, kept]
            inner._state_key = (len(kept), torch.float64)
            weights: Tensor = weighting(rows)
            memory[kept[:, None], kept] = inner._phi_t
            return weights
        if self.name == "nash-mtl":
            memory = self.memory.setdefault(key, torch.ones(size, dtype=torch.float64))
            weighting.prvs_alpha = memory[kept].numpy()
            weights = weighting(rows)
            memory[kept] = torch.from_numpy(np.array(weighting.prvs_alpha, dtype=np.float64))
            return weights
        found: Tensor = weighting(rows)
        return found


def compute_products(rows: Tensor) -> Tensor:
    """The products [S, S] of rows [S, n] with each other, in float64: what is left of two that nearly cancel is what counts."""
    products = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in torch.split(rows, COLUMNS_AT_ONCE, dim=1):
        wide = part.double()
        products += wide @ wide.t()
    return products


def _find_aggregator(name: str) -> Callable[[int], Any]:
    """What makes an aggregator of so many rows."""
    require("torchjd", "weighting", f"loss.aggregation={name}")
    from torchjd import aggregation as of

    makers: dict[str, Callable[[int], Any]] = {
        "pcgrad": lambda _: of.PCGrad(),
        "cagrad": lambda _: of.CAGrad(c=CAGRAD_RADIUS),
        "mgda": lambda _: of.MGDA(),
        "upgrad": lambda _: of.UPGrad(),
        "aligned-mtl": lambda _: of.AlignedMTL(),
        "imtl-g": lambda _: of.IMTLG(),
        "gradvac": lambda _: of.GradVac(),
        "nash-mtl": lambda num_rows: of.NashMTL(num_rows),
    }
    make = makers[name]

    def make_or_explain(num_rows: int) -> Any:
        try:
            return make(num_rows)
        except ImportError as error:
            raise UserError(
                f"loss.aggregation={name} needs a solver that is not installed ({reason_of(error)}). Install it: pip install "
                "'distbranch[weighting]'."
            ) from None

    return make_or_explain
