"""A strength in 0..1 per pixel: edges, keypoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import KINDS, Answer, Array, Metric, Metrics, Summary

if TYPE_CHECKING:
    from distbranch.tasks import Task

STEPS = 254  # 255 says "not labelled"


class Heat(DenseKind):
    """The absolute error."""

    metrics = {
        "heat_error": Metric(
            "Heat error", "", lower_is_better=True, is_drawn=True, in_delta=True, is_first=True
        )
    }
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
        errors = (outputs[:, 0].double() - codes.double() / STEPS).abs()
        return torch.stack([valid.sum().double(), torch.where(valid, errors, 0).sum()])

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        count, errors = sums.tolist()
        return {"heat_error": errors / count if count else None}

    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        """Strengths in 0..1, float32 [H, W]."""
        return list(logits[:, 0].float().clamp(0, 1).cpu().numpy())

    def encode_answer(self, task: Task, answer: Array) -> Array:
        return encode_heat(answer, np.full(answer.shape, True))

    def summarise_answer(self, task: Task, answer: Answer) -> Summary:
        """The mean, the largest, and the share of pixels above a half."""
        assert isinstance(answer, np.ndarray)
        strong = float((answer > 0.5).mean())
        return {"mean": float(answer.mean()), "largest": float(answer.max()), "strong": strong}

    def describe_answer(self, task: Task, answer: Summary, threshold: float) -> str:
        assert isinstance(answer, dict)
        return f"{task.name}: {answer['strong']:.1%} above a half, mean {answer['mean']:.3f}"

    def draw_codes(self, task: Task, codes: Array) -> Array:
        """Strengths in 0..1."""
        return np.where(codes == self.invalid, np.nan, codes.astype(np.float32) / STEPS)

    def measure_errors(self, task: Task, found: Array, truth: Array) -> Array:
        """In 0..1."""
        difference = np.abs(found.astype(np.float32) - truth) / STEPS
        return np.where(truth == self.invalid, np.nan, difference)


def encode_heat(values: Array, valid: Array) -> Array:
    """Codes, uint8, of strengths in 0..1; 255 where not labelled."""
    return np.where(valid, np.rint(np.clip(values, 0, 1) * STEPS), 255).astype(np.uint8)


KINDS.register("heat")(Heat())
