"""A strength in 0..1 per pixel: edges, keypoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import KINDS, Array, Metric, Metrics

if TYPE_CHECKING:
    from distbranch.tasks import Task

STEPS = 254  # 255 says "not labelled"


class Heat(DenseKind):
    """The absolute error."""

    metrics = {"heat_error": Metric("Error", "", lower_is_better=True, is_averaged=False)}
    meaning = "[batch, 1, height, width], 0 to 1"
    default_weight = 7.0

    def decode_labels(self, task: Task, codes: Tensor) -> Tensor:
        return codes.float() / STEPS

    def compute_pixel_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs()

    def count_sums(self, task: Task) -> int:
        return 2

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """Number of pixels and sum of absolute errors."""
        valid = self.find_valid(codes)
        errors = self.compute_pixel_losses(outputs.double(), self.decode_labels(task, codes))
        return torch.stack([valid.sum().double(), errors[valid].sum()])

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        count, errors = sums.tolist()
        return {"heat_error": errors / count if count else None}


def encode_heat(values: Array, valid: Array) -> Array:
    """Codes, uint8, of strengths in 0..1; 255 where not labelled."""
    return np.where(valid, np.rint(np.clip(values, 0, 1) * STEPS), 255).astype(np.uint8)


KINDS.register("heat")(Heat())
