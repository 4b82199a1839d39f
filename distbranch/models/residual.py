"""Residual networks (He et al. 2016, ResNet-18 and -34) as values: their blocks, thin widths, and who executes which block.

With a policy the blocks are shared weights, and the ways through them a tree: tasks that decided alike so far share their
features, and part for good at the first block that one of them skips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from distbranch.branching.tree import Tree, build_tree_of_groups
from distbranch.errors import UserError
from distbranch.models.backbones import SMALLEST_IMAGE, Architecture, in_eights
from distbranch.tasks import Task

Policy = tuple[tuple[bool, ...], ...]  # [T][L], True = execute

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}  # per stage
STAGE_WIDTHS = (64, 128, 256, 512)
STEM_SIZE = 7  # of its filters


@dataclass(frozen=True)
class BlockShape:
    """A basic block: two convolutions 3x3, the first with `stride`, to `width` channels at `height` x `length` positions.

    `projects` says whether the shortcut is a convolution 1x1 (where size or channels change), which always runs.
    """

    name: str
    num_inputs: int
    width: int
    stride: int
    height: int
    length: int

    @property
    def projects(self) -> bool:
        """Whether input and output differ in shape."""
        return self.stride != 1 or self.num_inputs != self.width


@dataclass(frozen=True)
class ResidualArchitecture:
    """All that makes a residual network but its numbers.

    backbone: one of `BLOCKS`.
    width: omega, the width of every convolution (at most the full one); None: full, or the fraction of it.
    image_size: (height, width) in pixels.
    tasks: what it predicts.
    policy: which task executes which block [T][L]; None while it is searched for.
    width_fraction: of the full width, in 0..1.
    """

    backbone: str
    width: int | None
    image_size: tuple[int, int]
    tasks: tuple[Task, ...]
    policy: Policy | None = None
    width_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.backbone not in BLOCKS:
            raise UserError(f"The residual backbone must be one of {', '.join(BLOCKS)}, found {self.backbone!r}.")
        if min(self.image_size) < SMALLEST_IMAGE:
            raise UserError(
                f"Images must be at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels (height x width), found "
                f"{self.image_size[0]}x{self.image_size[1]}. Give a larger image size."
            )
        if self.policy is not None and (
            len(self.policy) != len(self.tasks) or any(len(row) != self.num_blocks for row in self.policy)
        ):
            raise UserError(
                f"The policy should decide {self.num_blocks} blocks for each of {len(self.tasks)} tasks, found "
                f"{sorted({len(row) for row in self.policy})} blocks for {len(self.policy)}."
            )

    @property
    def num_blocks(self) -> int:
        """L: 8 of ResNet-18, 16 of ResNet-34."""
        return sum(BLOCKS[self.backbone])

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """The width of every stage, input first."""
        if self.width is not None:
            return tuple(min(self.width, full) for full in STAGE_WIDTHS)
        return tuple(min(in_eights((self.width_fraction or 1.0) * full), full) for full in STAGE_WIDTHS)

    @property
    def num_outputs(self) -> int:
        """O, the number of outputs of all tasks."""
        return sum(task.num_outputs for task in self.tasks)

    @property
    def stem_size(self) -> tuple[int, int]:
        """Positions after the stem: a convolution 7x7 and a pooling, each with stride 2."""
        height, length = self.image_size
        return halved(halved(height)), halved(halved(length))

    @cached_property
    def shapes(self) -> tuple[BlockShape, ...]:
        """The shape of every block, input first; they are named by stage and place, `block2_1`."""
        height, length = self.stem_size
        channels, shapes = self.stage_widths[0], []
        for stage, (count, width) in enumerate(zip(BLOCKS[self.backbone], self.stage_widths, strict=True), start=1):
            for place in range(1, count + 1):
                stride = 2 if stage > 1 and place == 1 else 1
                if stride == 2:
                    height, length = halved(height), halved(length)
                shapes.append(BlockShape(f"block{stage}_{place}", channels, width, stride, height, length))
                channels = width
        return tuple(shapes)

    @property
    def executed(self) -> Policy:
        """[T][L]: the policy, or all blocks for all tasks."""
        return self.policy or shared_policy(len(self.tasks), self.num_blocks)

    def num_ways(self, block: int) -> tuple[int, int]:
        """How many ways come to block `block` (0..L-1), and how many of them execute it."""
        ways = {(row[:block], row[block]) for row in self.executed}
        return len({before for before, _ in ways}), sum(executes for _, executes in ways)

    @cached_property
    def tree(self) -> Tree:
        """The ways through the network: after a block those tasks share their features that decided alike up to there."""
        names = [task.name for task in self.tasks]
        groups: dict[str, list[list[str]]] = {}
        for number, shape in enumerate(self.shapes, start=1):
            ways: dict[tuple[bool, ...], list[str]] = {}
            for name, row in zip(names, self.executed, strict=True):
                ways.setdefault(row[:number], []).append(name)
            groups[shape.name] = list(ways.values())
        return build_tree_of_groups(tuple(groups), names, groups)

    def with_policy(self, policy: Policy) -> ResidualArchitecture:
        """The same network with these decisions."""
        return replace(self, policy=policy)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "backbone": self.backbone,
            "width": self.width,
            "width_fraction": self.width_fraction,
            "image_size": list(self.image_size),
            "tasks": [task.to_json() for task in self.tasks],
            "policy": None if self.policy is None else [[int(executes) for executes in row] for row in self.policy],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ResidualArchitecture:
        """The inverse of `to_json`."""
        height, length = data["image_size"]
        policy = data["policy"]
        return cls(
            data["backbone"],
            data["width"],
            (int(height), int(length)),
            tuple(Task.from_json(task) for task in data["tasks"]),
            None if policy is None else tuple(tuple(map(bool, row)) for row in policy),
            data["width_fraction"],
        )


AnyArchitecture = Architecture | ResidualArchitecture


def shared_policy(num_tasks: int, num_blocks: int) -> Policy:
    """Every task executes every block: hard sharing, the baseline."""
    return ((True,) * num_blocks,) * num_tasks


def architecture_from_json(data: dict[str, Any]) -> AnyArchitecture:
    """The inverse of `to_json` of either kind."""
    kind = ResidualArchitecture if data["backbone"] in BLOCKS else Architecture
    return kind.from_json(data)


def halved(size: int) -> int:
    """What a stride of 2 leaves of so many positions, padded by half of the kernel."""
    return (size + 1) // 2
