"""A first configuration for a data set, by its size and kind, with a reason for every choice.

Lengths are fractions of what was measured (configs/README.md): 4,000 steps for the 20,800 photographs of configs/fps-*.yaml, of dense
tasks 5,400 steps for the 2,400 rooms of configs/rooms-tree.yaml. Between sizes they go with the square root of the number of images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml

from distbranch.config.network import TIMM
from distbranch.data.shards import DatasetInfo, list_dense_tasks
from distbranch.errors import UsageError
from distbranch.tasks import count_logits

ENOUGH_EPOCHS = 5  # of sets so large that the square root would show most images once or twice
FEWEST_STEPS = 400
FEW_IMAGES = 5000  # below it images are shifted too, as the 3,072 of configs/clothing-thin-16.yaml
LARGEST_SIDE = 128  # pixels, without pretrained weights: what two cores train in hours
LARGEST_DENSE_SIDE = 256
MANY_OUTPUTS = 64  # for the 32 features that a thin VGG of width 16 gives them


@dataclass(frozen=True)
class Choice:
    """The value of a dotted key, and why."""

    key: str
    value: Any
    reason: str

    @property
    def value_text(self) -> str:
        """The value in YAML, on one line."""
        text = yaml.safe_dump(self.value, default_flow_style=True, width=math.inf)
        return text.partition("\n")[0]


@dataclass(frozen=True)
class Facts:
    """What the choices depend on. `image_size`: (height, width) in pixels; `num_outputs`: of all tasks that are not dense."""

    num_train: int
    num_val: int
    num_tasks: int
    num_outputs: int
    image_size: tuple[int, int]
    is_dense: bool
    is_pretrained: bool

    @property
    def batch_size(self) -> int:
        """As measured, or so few that an epoch has ten batches."""
        if self.is_dense:
            return 4  # as many images in steps of 16 were worth 7 points of mIoU less
        if self.num_train < 320:
            return 16
        return 64 if self.num_train >= 640 else 32

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        measured, num_images = 4_000, 20_800
        if self.is_dense:
            measured, num_images = 5_400, 2_400
        by_root = measured * math.sqrt(self.num_train / num_images)
        by_epochs = ENOUGH_EPOCHS * self.num_train / self.batch_size
        return max(FEWEST_STEPS, 100 * round(max(by_root, by_epochs) / 100))


def choose_recipe(
    info: DatasetInfo, path: str, *, backbone: str | None = None, pretrained: str | None = None
) -> list[Choice]:
    """The keys that matter, section by section, each with its reason.

    Args:
        info: of the data set.
        path: where it is, as the configuration is to say it.
        backbone: a name for `model.backbone`; a thin network for the kind of tasks if None.
        pretrained: weights for that backbone, see `model.pretrained`.

    Raises:
        UsageError: weights without a backbone, or no training images.
    """
    if pretrained and not backbone:
        raise UsageError(
            f"{pretrained} has the weights of some network: say of which with --backbone, such as --backbone timm:convnext_atto."
        )
    num_samples = {name: split.num_samples for name, split in info.splits.items()}
    if not num_samples.get("train"):
        raise UsageError(f"{path} should have training images, found none: pack some as `train`.")
    is_dense = bool(list_dense_tasks(info.tasks))
    facts = Facts(
        num_train=num_samples["train"],
        num_val=num_samples.get("val", 0),
        num_tasks=len(info.tasks),
        num_outputs=count_logits(info.tasks),
        image_size=info.image_size,
        is_dense=is_dense,
        is_pretrained=pretrained is not None,
    )
    return [
        *_choose_data(facts, path),
        *_choose_network(facts, backbone, pretrained),
        *_choose_method(facts),
        *_choose_length(facts),
        *_choose_rates(facts, backbone),
    ]


def write_recipe(choices: Sequence[Choice], head: Sequence[str]) -> str:
    """The choices as YAML: `head` as comments on top, a reason behind every key."""
    lines = [f"# {line}" for line in head]
    for section, keys in groupby(choices, key=lambda choice: choice.key.partition(".")[0]):
        lines.append(f"{section}:")
        for choice in keys:
            name = choice.key.partition(".")[2]
            lines.append(f"  {name}: {choice.value_text}  # {choice.reason}")
    return "\n".join(lines) + "\n"


def _choose_data(facts: Facts, path: str) -> list[Choice]:
    height, width = facts.image_size
    choices = [
        Choice("data.path", path, f"{facts.num_train:,} training images of {height}x{width}"),
        Choice(
            "data.flip", True, "mirrored images mean the same; false for writing, left and right"
        ),
    ]
    if facts.num_train < FEW_IMAGES and not facts.is_dense:
        choices.append(Choice("data.shift", 4, "few images, so each is seen at other places"))
    largest = LARGEST_DENSE_SIDE if facts.is_dense else LARGEST_SIDE
    if max(facts.image_size) > largest and not facts.is_pretrained:
        scale = largest / max(facts.image_size)
        # in steps of what five halvings leave whole
        size = [max(32, 32 * round(side * scale / 32)) for side in facts.image_size]
        times = height * width / math.prod(size)
        why = f"costs {times:.0f} times less than {height}x{width}; empty: as packed"
        choices.append(Choice("data.image_size", size, why))
    return choices


def _choose_network(facts: Facts, backbone: str | None, pretrained: str | None) -> list[Choice]:
    if backbone is not None:
        choices = [Choice("model.backbone", backbone, "as you asked")]
    elif facts.is_dense:
        choices = [Choice("model.backbone", "resnet18", "of dense tasks, as for drawn rooms")]
    else:
        choices = [Choice("model.backbone", "vgg16", "thin, and grown where tasks differ")]
    name = choices[0].value
    if pretrained is not None:
        choices.append(Choice("model.pretrained", pretrained, "what all blocks begin from"))
    if not name.startswith(TIMM):
        choices.append(_choose_width(facts))
    if facts.is_dense and name.startswith("resnet"):
        choices.append(Choice("model.output_stride", 8, "finer maps, by dilation"))
    return choices


def _choose_width(facts: Facts) -> Choice:
    if facts.is_pretrained:
        return Choice("model.width", None, "pretrained weights have the full width")
    if facts.is_dense:
        return Choice("model.width", 32, "as for five dense tasks of drawn rooms")
    if facts.num_outputs > MANY_OUTPUTS:
        why = f"{facts.num_outputs} outputs read many features; 16 costs a quarter"
        return Choice("model.width", 32, why)
    why = "32 was 3 points better on product photos, for 3.7 times the multiply-adds"
    return Choice("model.width", 16, why)


def _choose_method(facts: Facts) -> list[Choice]:
    if facts.num_tasks == 1:
        return [Choice("method.name", "fixed", "one task has no other to part from")]
    # as in configs/fps-branch-16-2.yaml, rooms-tree.yaml and own-images.yaml
    every = max(2, facts.steps * 4 // 100)
    first, alpha, why = every, 2.0, "early, so that branches have time to learn"
    if facts.is_dense:
        first, every, alpha = facts.steps // 3, facts.steps // 6, 0.17
        why = "a third of the steps, as for drawn rooms"
    elif facts.is_pretrained:
        first, why = facts.steps // 6, "a sixth of the steps: new heads learn first"
    choices = [
        Choice("method.name", "branching", f"{facts.num_tasks} tasks find out what to share"),
        Choice("method.affinity", "phi", "tasks are alike that are difficult together"),
        Choice("method.alpha", alpha, "a larger one makes more branches"),
        Choice("method.first_decision", first, why),
        Choice("method.round_iterations", every, "steps between two decisions"),
        Choice("method.max_branches", None, "no cap: each branch has a price"),
    ]
    if facts.is_dense:
        choices.append(Choice("method.decay", 0.9975, "remembers more steps, for these are small"))
    return choices


def _choose_length(facts: Facts) -> list[Choice]:
    epochs = facts.steps * facts.batch_size / facts.num_train
    choices = [
        Choice("train.iterations", facts.steps, f"{epochs:.0f} times through the training images"),
        Choice("train.batch_size", facts.batch_size, "images per step, over all ranks"),
    ]
    if facts.num_val:
        why = f"twenty points of a curve, on {facts.num_val:,} images of val"
        choices.append(Choice("train.evaluate_every", facts.steps // 20, why))
    if facts.is_dense:
        choices.append(Choice("train.eval_batch_size", 40, "maps take memory"))
    if facts.is_dense or facts.is_pretrained:
        choices.append(Choice("train.clip_norm", 5.0, "against single large steps"))
    return choices


def _choose_rates(facts: Facts, backbone: str | None) -> list[Choice]:
    # as in configs/fps-thin-16.yaml, own-images.yaml, timm-tree.yaml and rooms-tree.yaml
    lr, decay, why = 0.012, 0.01, "of a thin network from scratch, chosen on val of product photos"
    if facts.is_pretrained:
        lr, decay, why = 0.0003, 0.05, "usual for weights that have learned already"
    elif backbone is not None:
        lr, why = 0.004, "of blocks from scratch, as for drawn faces"
    elif facts.is_dense:
        lr, why = 0.008, "as for drawn rooms"
    return [
        Choice("optim.name", "adamw", "one rate suits all tasks"),
        Choice("optim.lr", lr, why),
        Choice("optim.weight_decay", decay, "goes with that rate"),
        Choice("optim.warmup", facts.steps * 6 // 100, "6 % of the steps"),
        Choice("optim.schedule", "cosine", "down to zero at the last step"),
        Choice("optim.when_widened", "continue", "a new branch does not begin the schedule again"),
    ]
