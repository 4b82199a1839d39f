"""What kinds of dense tasks have in common: a value per pixel, stored as a picture of codes beside the image.

A code that says "not labelled" is the kind's `invalid`; a sample without a labelled pixel is unlabelled for the task.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from distbranch.errors import UserError
from distbranch.kinds.kind import Array, Kind, Metrics

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
    """The code of a pixel that is not labelled, in every channel."""

    def check_task(self, task: Task) -> None:
        super().check_task(task)
        if not SLUG.fullmatch(task.name):
            raise UserError(
                f"The name of a {task.kind} task should be of small letters, digits, - and _, for it is part of the names of files, "
                f"found {task.name!r}."
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
        """The loss of every pixel [B, H, W]. outputs: [B, K, H, W]."""

    def mirror_codes(self, codes: Array) -> Array:
        """The codes [H, W] or [H, W, C] of the picture mirrored left to right."""
        return codes[:, ::-1]

    # ---- evaluation

    @abstractmethod
    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """Sums [count_sums], float64, over the labelled pixels of a batch. outputs: [b, K, H, W], as large as the codes."""

    @abstractmethod
    def score_sums(self, task: Task, sums: Array) -> Metrics:
        """The metrics of the sums over all samples."""


def average_valid(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over the labelled pixels of every sample [B]; 0, with gradient 0, where there is none. values, valid: [B, H, W]."""
    # Chosen and not multiplied, for 0 times infinity is NaN.
    kept = torch.where(valid, values, 0.0)
    return kept.sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)
