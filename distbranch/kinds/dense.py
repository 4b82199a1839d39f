"""What kinds of dense tasks have in common: a value per pixel, stored as a picture of codes beside the image.

A code that says "not labelled" is the kind's `invalid`; a sample without a labelled pixel is unlabelled for the task.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from distbranch.errors import UserError
from distbranch.kinds.kind import Answer, Array, Kind, Metrics, Summary
from distbranch.kinds.label_counts import Counts, LabelCounts, merge_class_counts
from distbranch.kinds.map_counts import MapCounts

if TYPE_CHECKING:
    from distbranch.tasks import Task

SLUG = re.compile(r"[a-z0-9_-]+")  # of a task: WebDataset ends the key of a file at its first dot


class DenseKind(Kind, ABC):
    """A kind of task with a value per pixel.

    Codes are what is stored: [B, H, W], of several channels [B, C, H, W]. Targets are what losses see.
    """

    is_dense = True
    channels: ClassVar[int] = 1  # of codes
    suffix: ClassVar[str] = (
        "png"  # of a label file; `png16` is one of 16 bits, which stock readers would spoil
    )
    invalid: ClassVar[int] = 255
    """The code of a pixel that is not labelled, in every channel, and its value in a batch."""
    code_type: ClassVar[type[np.generic]] = np.uint8
    value_type: ClassVar[type[np.generic]] = np.uint8
    """Of what a batch has, see `load_codes`."""

    def check_task(self, task: Task) -> None:
        super().check_task(task)
        if not SLUG.fullmatch(task.name):
            raise UserError(
                f"The name of a {task.kind} task should be of small letters, digits, - and _, for it is part of the names of files, "
                f"found {task.name!r}."
            )
        # Heads are modules by the names of their tasks, beside what every module has: train, half, values, ...
        if hasattr(nn.ModuleDict(), task.name):
            raise UserError(
                f"The name of a {task.kind} task should be no word that torch's modules use themselves, found {task.name!r}. Give it "
                f"another one, such as '{task.name}-map'."
            )

    def find_valid(self, codes: Tensor) -> Tensor:
        """Which pixels are labelled [B, H, W], bool."""
        is_valid = codes != self.invalid
        return is_valid.any(dim=1) if self.channels > 1 else is_valid

    @abstractmethod
    def decode_labels(self, task: Task, codes: Tensor) -> Tensor:
        """Targets [B, H, W], or of several channels [B, C, H, W], of codes; finite where not labelled, too."""

    @abstractmethod
    def compute_pixel_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every pixel [B, H, W], unless `loss.functions` names another. outputs: [B, K, H, W]."""

    def mirror_codes(self, codes: Array) -> Array:
        """The codes [H, W] or [H, W, C] of the picture mirrored left to right."""
        return codes[:, ::-1]

    # ---- storage

    def check_codes(self, task: Task, codes: Array) -> None:
        """UserError, the end of a sentence, for codes [H, W] or [H, W, C] that mean nothing."""

    def find_labelled(self, codes: Array) -> Array:
        """As `find_valid`, of one sample: [H, W], of codes [H, W] or [H, W, C]."""
        is_labelled = np.asarray(codes != self.invalid)
        if self.channels > 1:
            is_labelled = np.any(is_labelled, axis=2, keepdims=True)[..., 0]
        return is_labelled

    def load_codes(self, task: Task, codes: Array) -> Array:
        """What a batch has of codes [H, W] or [H, W, C]."""
        return codes

    def zoom_values(self, task: Task, values: Array, factor: float) -> Array:
        """What a batch has of a picture that is shown `factor` times larger: of depth what is nearer."""
        return values

    def read_label(self, task: Task, value: object) -> float:
        raise UserError(
            f"the labels of '{task.name}', a {task.kind} task, are a picture beside the image, found {value!r} in their place."
        )

    def describe_label(self, task: Task, number: float) -> str:
        return f"{task.name}: {number:.0%} labelled"

    def make_counts(self, task: Task) -> LabelCounts:
        return MapCounts(self)

    def merge_counts(self, parts: Sequence[Counts]) -> dict[str, int | float]:
        return merge_class_counts(parts)

    def describe_counts(self, task: Task, counts: Counts) -> str:
        """What the labels of a split are, by their counts: how much of each class, how far; "" of what says nothing."""
        return ""

    # ---- evaluation

    @abstractmethod
    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """Sums [count_sums], float64, over the labelled pixels of a batch. outputs: [b, K, H, W], as large as the codes."""

    @abstractmethod
    def score_sums(self, task: Task, sums: Array) -> Metrics:
        """The metrics of the sums over all samples."""

    def with_byte_angles(self) -> DenseKind:
        """The kind with what `metrics.byte_angles` adds to its metrics; itself, if that is nothing."""
        return self

    # ---- prediction

    @abstractmethod
    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        """A picture of answers for every image. logits: [B, K, H, W]."""

    @abstractmethod
    def encode_answer(self, task: Task, answer: Array) -> Array:
        """An answer as codes of labels, which a label file holds."""

    @abstractmethod
    def summarise_answer(self, task: Task, answer: Answer) -> Summary:
        """A few numbers that a picture of answers comes down to, by name."""

    def write_answer(self, task: Task, answer: Summary) -> dict[str, str]:
        assert isinstance(answer, dict)
        return {f"{task.name}:{name}": f"{value:.6g}" for name, value in answer.items()}

    @abstractmethod
    def draw_codes(self, task: Task, codes: Array) -> Array:
        """Codes as a picture for people: uint8 [H, W, 3], black where not labelled, or values [H, W], NaN there, for a colour map."""

    def get_palette(self) -> Array | None:
        """Colours of codes, uint8 [256, 3], where codes are numbers of something; else None."""
        return None

    error_unit: ClassVar[str] = ""

    @abstractmethod
    def measure_errors(self, task: Task, found: Array, truth: Array) -> Array:
        """How wrong codes are at each pixel, float32 [H, W]; NaN where the truth is not labelled."""


def average_valid(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of every sample [B]; 0, with gradient 0, where all weights are 0. values, weights (of 0 and more): [B, H, W]."""
    # Chosen and not multiplied, for 0 times infinity is NaN.
    kept = torch.where(weights > 0, values, 0.0) * weights
    total = weights.sum(dim=(1, 2))
    return kept.sum(dim=(1, 2)) / torch.where(total > 0, total, 1)
