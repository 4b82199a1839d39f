"""A distance per pixel along the optical axis, in metres, or the disparity of a stereo camera in pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distbranch.errors import UserError
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import KINDS, UNIT_OF_TASK, Array, Metric, Metrics

if TYPE_CHECKING:
    from distbranch.tasks import Task

LARGEST_CODE = 65535
QUANTITIES = {"depth": "m", "disparity": "pixels"}


class Depth(DenseKind):
    """The absolute error. What a loader gives is in metres or pixels already, 0 where not labelled."""

    metrics = {
        "abs_error": Metric("Abs. error", UNIT_OF_TASK, lower_is_better=True, is_averaged=False),
        "rel_error": Metric("Rel. error", lower_is_better=True, is_averaged=False),
    }
    fields = ("scale", "quantity")
    meaning = "[batch, 1, height, width], metres or pixels"
    suffix = "png16"
    invalid = 0

    def check_task(self, task: Task) -> None:
        super().check_task(task)
        if task.quantity not in QUANTITIES or not task.scale > 0:
            raise UserError(
                f"A {task.kind} task has the quantity depth or disparity and a scale above 0, found {task.quantity!r} and "
                f"{task.scale:g} of the task {task.name!r}."
            )

    def get_unit(self, task: Task) -> str:
        return QUANTITIES[task.quantity]

    def decode_labels(self, task: Task, codes: Tensor) -> Tensor:
        return codes.float()

    def compute_pixel_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs()

    def count_sums(self, task: Task) -> int:
        return 3

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """Number of pixels, sums of absolute and of relative errors."""
        valid = self.find_valid(codes)
        truth = codes[valid].double()
        error = (outputs[:, 0][valid].double() - truth).abs()
        return torch.stack([valid.sum().double(), error.sum(), (error / truth).sum()])

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        count, absolute, relative = sums.tolist()
        if not count:
            return dict.fromkeys(self.metrics)
        return {"abs_error": absolute / count, "rel_error": relative / count}


def encode_depth(task: Task, values: Array, valid: Array) -> Array:
    """Codes, uint16, of metres or pixels of disparity; 0 where not labelled, and where a value has no code."""
    codes = values * task.scale if task.quantity == "depth" else values * 256 + 1
    rounded = np.rint(np.where(valid, codes, 0))
    is_known = (rounded >= 1) & (rounded <= LARGEST_CODE)
    return np.where(is_known, rounded, 0).astype(np.uint16)


def decode_depth(task: Task, codes: Array) -> Array:
    """Metres or pixels of disparity, float32, of codes; 0 where not labelled."""
    values = codes / np.float32(task.scale)
    if task.quantity == "disparity":
        # A disparity of 0 is a point at infinity, and no label says so: half a step stands for it.
        values = np.maximum(codes.astype(np.float32) - 1, 0.5) / 256
    return np.where(codes > 0, values, 0).astype(np.float32)


KINDS.register("depth")(Depth())
