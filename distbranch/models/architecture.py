"""All that makes a network but its numbers: a backbone, the tasks, and which of them go which way through its units."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from distbranch.branching.routing import Policy, Routing, route_policy, route_tree, share_all_blocks
from distbranch.branching.tree import Split, Tree, build_independent_tree
from distbranch.errors import UserError
from distbranch.models.backbone import BASIS, Backbone, Cost, UnitSpec, WeightShape
from distbranch.models.baselines import BASELINES, Baseline
from distbranch.models.baselines.baseline import measure_baseline
from distbranch.models.dense_heads import DEFAULT_HEADS, HeadPlan
from distbranch.tasks import Task, count_logits

VERSION = 2  # of the form in which it is written; the first one is read by models/earlier_runs.py


@dataclass(frozen=True)
class Architecture:
    """A backbone for tasks that share its units by a tree, by a policy, or, while one is searched for, all of them.

    splits: of the tree, top layer first.
    policy: which task executes which block [T][L].
    searches: whether a policy is looked for.
    delta_rank: of the differences between branches that share their weights (models/delta.py); None: they are copies.
    dense_head: how the heads of dense tasks are made.
    baseline: one of `BASELINES`, which mixes tasks in a way of its own (models/baselines).
    """

    backbone: Backbone
    tasks: tuple[Task, ...]
    splits: tuple[Split, ...] = ()
    policy: Policy | None = None
    searches: bool = False
    delta_rank: int | None = None
    dense_head: HeadPlan = DEFAULT_HEADS
    baseline: str | None = None

    def __post_init__(self) -> None:
        if self.dense_tasks:
            self._check_has_map()
        if self.backbone.low_rank and self.splits:
            raise UserError(
                "The low-rank baseline is made of a network without branches, but this one has branched."
            )
        rows = self.policy or ()
        sizes = {len(row) for row in rows}
        if self.policy is not None and (len(rows) != len(self.tasks) or sizes != {self.num_blocks}):
            raise UserError(
                f"The policy should decide {self.num_blocks} blocks for each of {len(self.tasks)} tasks, found "
                f"{sorted(sizes)} blocks for {len(rows)}."
            )

    def _check_has_map(self) -> None:
        """Refuse dense tasks over features without positions."""
        features = self.backbone.specs[-1].features
        if len(features) == 3 and math.prod(self.map_shape[1:]) > 1:
            return
        names = ", ".join(task.name for task in self.dense_tasks[:3])
        height, width = self.image_size
        raise UserError(
            f"Dense tasks ({names}) need a network that ends in a map of features, found that {self.backbone.source} ends in one vector "
            f"for an image of {height}x{width} pixels. Use model.backbone=resnet18 with model.output_stride=8, say, or larger images."
        )

    @classmethod
    def thin(
        cls,
        source: str,
        width: int | None,
        image_size: tuple[int, int],
        tasks: tuple[Task, ...],
        *,
        width_fraction: float | None = None,
    ) -> Architecture:
        """The architecture before any split: every task shares every unit."""
        return cls(Backbone(source, image_size, width, width_fraction), tasks)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.backbone.image_size

    @property
    def specs(self) -> tuple[UnitSpec, ...]:
        """What the units of the backbone are and cost, input first."""
        return self.backbone.specs

    @property
    def num_outputs(self) -> int:
        """O, the number of outputs of all tasks that are not dense."""
        return count_logits(self.tasks)

    @property
    def dense_tasks(self) -> tuple[Task, ...]:
        """Those whose outputs are maps."""
        return tuple(task for task in self.tasks if task.is_dense)

    @property
    def num_blocks(self) -> int:
        """L, the number of units that tasks may skip."""
        return len(self.backbone.blocks)

    @property
    def has_policy(self) -> bool:
        """Whether it has a policy, or looks for one."""
        return self.searches or self.policy is not None

    @property
    def output_basis(self) -> int | None:
        """Of a low-rank network the number of basis units of the outputs, 16; never more than their rank."""
        if not self.backbone.low_rank:
            return None
        return min(BASIS["output"], self.backbone.plans[-1].width, self.num_outputs)

    @cached_property
    def routing(self) -> Routing:
        """The way of every task through the units; of a search that on which all execute all of them."""
        if not self.has_policy:
            return route_tree(self.tree)
        policy = self.policy or share_all_blocks(len(self.tasks), self.num_blocks)
        return route_policy(self.backbone.names, self.backbone.may_skip, policy)

    @cached_property
    def tree(self) -> Tree:
        """Which tasks share which units; of a policy, after which block they still share their features."""
        if self.has_policy:
            return self.routing.tree(self.backbone.blocks)
        return Tree(self.backbone.names, len(self.tasks), self.splits)

    def deltas(self, unit: int) -> tuple[WeightShape, ...]:
        """The weights of a unit (0..L-1) that its branches share but for a difference; none without branches.

        A weight of which a difference is no smaller is copied.
        """
        rank = self.delta_rank
        if rank is None or len(self.routing.copies(unit)) == 1:
            return ()
        weights = self.specs[unit].weights
        return tuple(weight for weight in weights if rank <= weight.largest_delta_rank)

    @property
    def has_deltas(self) -> bool:
        """Whether branches of any unit share weights."""
        return any(self.deltas(unit) for unit in range(len(self.backbone.names)))

    @property
    def folded(self) -> Architecture:
        """The same network with whole weights in every branch."""
        return replace(self, delta_rank=None)

    def with_tree(self, tree: Tree) -> Architecture:
        """The same network with another tree.

        Raises:
            UserError: the tree is of other units, or of another number of tasks.
        """
        if tree.layers != self.backbone.names:
            raise UserError(
                f"The tree is of other layers than those of {self.backbone.source}: found {', '.join(tree.layers)}."
            )
        if tree.num_tasks != len(self.tasks):
            raise UserError(
                f"The tree is of {tree.num_tasks} tasks, but {len(self.tasks)} tasks were given."
            )
        return replace(self, splits=tree.splits)

    def with_baseline(self, name: str) -> Architecture:
        """The network of another paper over the same units and heads: `name` is one of `BASELINES`.

        Raises:
            UserError: it is not of this backbone, or not of one task.
        """
        mixed = replace(self, baseline=name)
        with torch.device("meta"):
            baseline = mixed.make_baseline()
        if not baseline.has_columns:
            return mixed
        return mixed.with_tree(build_independent_tree(self.backbone.names, len(self.tasks)))

    def with_policy(self, policy: Policy) -> Architecture:
        """The same network with these decisions."""
        return replace(self, policy=policy, searches=False)

    def factorised(self) -> Architecture:
        """The same network with every layer of low rank."""
        return replace(self, backbone=replace(self.backbone, low_rank=True))

    def shared_by(self, tasks: tuple[Task, ...]) -> Architecture:
        """The thin network of the same widths and images for these tasks, which share every unit, of full rank."""
        backbone = replace(self.backbone, low_rank=False)
        shared = Architecture(backbone, tasks, dense_head=self.dense_head)
        return (
            shared.with_policy(share_all_blocks(len(tasks), self.num_blocks))
            if self.has_policy
            else shared
        )

    def restricted(self, numbers: Sequence[int]) -> Architecture:
        """That of some of the tasks, in the given order, with the copies and blocks that these need."""
        return self.retargeted([self.tasks[number] for number in numbers], numbers)

    def retargeted(
        self,
        tasks: Sequence[Task],
        origins: Sequence[int],
        *,
        apart: Collection[int] = (),
        lowest: int = 1,
    ) -> Architecture:
        """That of other tasks, each of which goes the way of one of these, by its number; see `Tree.restricted`."""
        changed = replace(self, tasks=tuple(tasks), splits=(), policy=None)
        if self.policy is not None:
            return changed.with_policy(tuple(self.policy[number] for number in origins))
        return changed.with_tree(self.tree.restricted(origins, apart=apart, lowest=lowest))

    def cost(self) -> Cost:
        """Of all units and heads, at the image size of the backbone."""
        return self.measure_units() + self.measure_heads()

    def measure_units(self) -> Cost:
        """Of all that is below the heads: a unit is paid once per copy, and run once per way; of delta branches what is stored."""
        weights = parameters = multiply_adds = 0
        for number, spec in enumerate(self.specs):
            copies = self.routing.copies(number)
            coming, running = self.routing.num_runs(number)
            weights += spec.shortcut.weights * len(copies) + spec.body.weights * sum(copies)
            parameters += spec.shortcut.parameters * len(copies) + spec.body.parameters * sum(
                copies
            )
            multiply_adds += (
                spec.shortcut.multiply_adds * coming + spec.body.multiply_adds * running
            )
            if deltas := self.deltas(number):
                whole = sum(weight.size for weight in deltas)
                differences = sum(weight.delta_size(self.delta_rank or 0) for weight in deltas)
                saved = whole * (len(copies) - 1) - differences * len(copies)
                # No scale of a batch norm can be folded into what other branches share.
                weights += spec.num_scales * len(copies) - saved
                parameters -= saved
        cost = Cost(weights, parameters, multiply_adds)
        if self.baseline is None:
            return cost
        with torch.device("meta"):
            return cost + measure_baseline(self.make_baseline(), self.backbone)

    def make_baseline(self) -> Baseline:
        """What a baseline has beside units and heads."""
        assert self.baseline is not None
        return BASELINES[self.baseline](self.backbone, len(self.tasks))

    def measure_heads(self) -> Cost:
        """Of the heads alone, which of dense tasks may outweigh all units."""
        heads = self.specs[-1].width * self.num_outputs
        if self.output_basis is not None:
            heads = self.output_basis * (self.specs[-1].width + self.num_outputs)
        cost = Cost(heads, heads + self.num_outputs, heads)
        for task in self.dense_tasks:
            cost += self.dense_head.measure(self.map_shape, task.num_outputs)
        return cost

    @property
    def map_shape(self) -> tuple[int, ...]:
        """[C, h, w] of the features that dense heads read."""
        last = self.specs[-1]
        rest = list(last.features)
        rest.remove(last.width)
        return (last.width, *rest)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        policy = None
        if self.policy is not None:
            policy = [list(map(int, row)) for row in self.policy]
        values = {
            "version": VERSION,
            "backbone": self.backbone.to_json(),
            "tasks": [task.to_json() for task in self.tasks],
            "splits": [split.to_json() for split in self.splits],
            "policy": policy,
            "searches": self.searches,
        }
        if self.delta_rank is not None:
            values["delta_rank"] = self.delta_rank
        if self.dense_tasks:
            values["dense_head"] = asdict(self.dense_head)
        if self.baseline is not None:
            values["baseline"] = self.baseline
        return values

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Architecture:
        """The inverse of `to_json`."""
        policy = data["policy"]
        if policy is not None:
            policy = tuple(tuple(map(bool, row)) for row in policy)
        return cls(
            Backbone.from_json(data["backbone"]),
            tuple(Task.from_json(task) for task in data["tasks"]),
            tuple(Split.from_json(split) for split in data["splits"]),
            policy,
            data["searches"],
            data.get("delta_rank"),
            HeadPlan(**data.get("dense_head", {})),
            data.get("baseline"),
        )


def num_weights(architecture: Architecture) -> int:
    """Weights with batch norm folded and biases not counted, heads included: the count of the paper's tables.

    Of delta branches those that are stored: shared weights once, differences, and the scales of their batch norms.
    """
    return architecture.cost().weights


def num_parameters(architecture: Architecture) -> int:
    """Everything that is trained: weights, batch norm's scale and shift, the heads' biases."""
    return architecture.cost().parameters


def multiply_adds(architecture: Architecture) -> int:
    """Multiply-adds of one image's way through all copies (or all ways) and heads; batch norm folded."""
    return architecture.cost().multiply_adds
