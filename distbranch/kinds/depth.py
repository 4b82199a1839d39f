"""A distance per pixel along the optical axis, in metres, or the disparity of a stereo camera in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distbranch.errors import UserError
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.digits import write_digits
from distbranch.kinds.kind import KINDS, Answer, Array, Metric, Metrics, Summary
from distbranch.kinds.label_counts import Counts, LabelCounts
from distbranch.kinds.map_counts import (
    PERCENTS,
    DepthCounts,
    merge_depth_counts,
    read_quantiles,
)

if TYPE_CHECKING:
    from distbranch.tasks import Task

LARGEST_CODE = 65535
QUANTITIES = {"depth": "m", "disparity": "pixels"}
RATIO = 1.25  # a pixel is right whose depth is within this factor of the truth, or within its square or cube
POWERS = (1, 2, 3)


def _list_metrics(quantity: str) -> dict[str, Metric]:
    unit = QUANTITIES[quantity]
    found = {
        "abs_error": Metric("Abs. error", unit, lower_is_better=True, is_drawn=True, in_delta=True),
        "rel_error": Metric("Rel. error", "", lower_is_better=True, in_delta=True),
        "rmse": Metric("RMSE", unit, lower_is_better=True, is_first=True),
    }
    found |= {f"delta{power}": Metric(f"\u03b4{power}") for power in POWERS}
    if quantity == "depth":
        return found
    named = {}
    for name, metric in found.items():
        named[f"{quantity}_{name}"] = replace(metric, title=f"Disparity {metric.in_words}")
    return named


class Depth(DenseKind):
    """The absolute error. What a loader gives is in metres or pixels already, 0 where not labelled."""

    # Metres and pixels have no mean, so that of a disparity has names of its own.
    metrics = _list_metrics("depth") | _list_metrics("disparity")
    fields = ("scale", "quantity")
    meaning = "[batch, 1, height, width], metres or pixels"
    suffix = "png16"
    invalid = 0
    code_type = np.uint16
    value_type = np.float32
    largest_code = LARGEST_CODE

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

    def load_codes(self, task: Task, codes: Array) -> Array:
        return decode_depth(task, codes)

    def zoom_values(self, task: Task, values: Array, factor: float) -> Array:
        # A camera so many times nearer; disparity is the inverse of depth.
        zoom = 1 / factor if task.quantity == "depth" else factor
        return values * np.float32(zoom)

    def make_counts(self, task: Task) -> LabelCounts:
        return DepthCounts(self, task)

    def merge_counts(self, parts: Sequence[Counts]) -> dict[str, int | float]:
        return merge_depth_counts(parts)

    def describe_counts(self, task: Task, counts: Counts) -> str:
        """Between which distances 98 % of the pixels lie, and the median: a wrong unit is seen there."""
        found = dict(zip(PERCENTS, read_quantiles(counts), strict=False))
        if not found:
            return ""
        low, middle, high = (write_digits(found[percent], 3) for percent in (1, 50, 99))
        return f"{task.name}: {low} to {high} {self.get_unit(task)} (median {middle})"

    def count_sums(self, task: Task) -> int:
        return 4 + len(POWERS)

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """Number of pixels, sums of absolute, relative and squared errors, and how many pixels are within each ratio."""
        valid = self.find_valid(codes)
        truth = torch.where(valid, codes, 1).double()
        found = torch.where(valid, outputs[:, 0].double(), truth)
        error = (found - truth).abs()
        ratio = torch.maximum(found / truth, truth / found)
        sums = [valid.sum().double(), error.sum(), (error / truth).sum(), error.square().sum()]
        for power in POWERS:
            is_near = (ratio < RATIO**power) & (found > 0)
            sums.append((is_near & valid).sum().double())
        return torch.stack(sums)

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        count, absolute, relative, squared, *near = sums.tolist()
        names = _list_metrics(task.quantity)
        if not count:
            return dict.fromkeys(names)
        rmse = math.sqrt(squared / count)
        values = [absolute / count, relative / count, rmse, *(one / count for one in near)]
        return dict(zip(names, values, strict=True))

    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        """Metres or pixels, float32 [H, W]."""
        return list(logits[:, 0].float().cpu().numpy())

    def encode_answer(self, task: Task, answer: Array) -> Array:
        # What lies beyond the last code is far away, and not unknown.
        farthest = decode_depth(task, np.array(LARGEST_CODE))
        return encode_depth(task, np.minimum(answer, farthest), answer > 0)

    def summarise_answer(self, task: Task, answer: Answer) -> Summary:
        """The 1st and the 99th percentile, and between them the median."""
        assert isinstance(answer, np.ndarray)
        low, middle, high = np.percentile(answer, (1, 50, 99)).tolist()
        return {"low": low, "median": middle, "high": high}

    def describe_answer(self, task: Task, answer: Summary, threshold: float) -> str:
        assert isinstance(answer, dict)
        low, middle, high = (write_digits(value, 3) for value in answer.values())
        return f"{task.name}: {low} to {high} {self.get_unit(task)} (median {middle})"

    def draw_codes(self, task: Task, codes: Array) -> Array:
        """Metres or pixels."""
        return np.where(codes > 0, decode_depth(task, codes), np.nan)

    def measure_errors(self, task: Task, found: Array, truth: Array) -> Array:
        """In metres or pixels."""
        difference = np.abs(decode_depth(task, found) - decode_depth(task, truth))
        return np.where(truth > 0, difference, np.nan)


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
