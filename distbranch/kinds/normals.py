"""The direction of the surface at each pixel: a unit vector, x to the right, y up, z towards the camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import KINDS, Array, Metric, Metrics

if TYPE_CHECKING:
    from distbranch.tasks import Task

MIDDLE = 128  # the code of 0: codes are symmetric about it, so that a mirrored one is 256 less it
STEPS = 127
LEAST_LENGTH = 1e-6


class Normals(DenseKind):
    """One minus the cosine of the angle between prediction and truth."""

    metrics = {
        "mean_angle": Metric("Mean angle", "degrees", lower_is_better=True, is_averaged=False)
    }
    meaning = "direction of [batch, 3, height, width]: x right, y up, z towards the camera"
    channels = 3
    invalid = 0
    default_weight = 3.0

    def count_outputs(self, task: Task) -> int:
        return 3

    def decode_labels(self, task: Task, codes: Tensor) -> Tensor:
        return functional.normalize((codes.float() - MIDDLE) / STEPS, dim=1, eps=LEAST_LENGTH)

    def compute_pixel_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 - compute_cosine(outputs, targets)

    def mirror_codes(self, codes: Array) -> Array:
        mirrored = codes[:, ::-1].copy()
        is_valid = mirrored.any(axis=2)
        mirrored[is_valid, 0] = 2 * MIDDLE - mirrored[is_valid, 0].astype(np.int16)
        return mirrored

    def count_sums(self, task: Task) -> int:
        return 2

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """Number of pixels and sum of angles in degrees."""
        valid = self.find_valid(codes)
        cosine = compute_cosine(outputs.double(), self.decode_labels(task, codes).double())
        angles = cosine[valid].clamp(-1, 1).arccos().rad2deg()
        return torch.stack([valid.sum().double(), angles.sum()])

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        count, angles = sums.tolist()
        return {"mean_angle": angles / count if count else None}


def compute_cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the angle between outputs [B, 3, H, W] of any length and unit targets: [B, H, W]."""
    return (functional.normalize(outputs, dim=1, eps=LEAST_LENGTH) * targets).sum(dim=1)


def encode_normals(vectors: Array, valid: Array) -> Array:
    """Codes, uint8 [..., 3], of unit vectors [..., 3]; 0 where not labelled [...]."""
    codes = np.rint(vectors * STEPS) + MIDDLE
    return np.where(valid[..., None], np.clip(codes, 1, 255), 0).astype(np.uint8)


def decode_normals(codes: Array) -> tuple[Array, Array]:
    """Unit vectors [..., 3], float32, and which of them are labelled [...], of codes."""
    valid = np.any(codes, axis=-1, keepdims=True)[..., 0]
    vectors = (codes.astype(np.float32) - MIDDLE) / STEPS
    length = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), LEAST_LENGTH)
    return np.where(valid[..., None], vectors / length, 0), valid


KINDS.register("normals")(Normals())
