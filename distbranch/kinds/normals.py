"""The direction of the surface at each pixel: a unit vector, x to the right, y up, z towards the camera."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import KINDS, Answer, Array, Metric, Metrics, Summary

if TYPE_CHECKING:
    from distbranch.tasks import Task

MIDDLE = 128  # the code of 0: codes are symmetric about it, so that a mirrored one is 256 less it
STEPS = 127
LEAST_LENGTH = 1e-6
THRESHOLDS = {"11_25": 11.25, "22_5": 22.5, "30": 30.0}  # degrees
NUM_BINS = 18_000  # of 0.01 degrees: from them comes the median, which is exact to half of one
DIRECTIONS = ("right", "left", "up", "down", "forward", "away")  # as the camera sees a surface face


def _list_metrics() -> dict[str, Metric]:
    found = {
        "mean_angle": Metric(
            "Mean angle",
            "degrees",
            lower_is_better=True,
            is_drawn=True,
            in_delta=True,
            is_first=True,
        ),
        "median_angle": Metric("Median angle", "degrees", lower_is_better=True, in_delta=True),
        "rmse_angle": Metric("RMSE of angle", "degrees", lower_is_better=True),
    }
    for name, degrees in THRESHOLDS.items():
        found[f"below_{name}"] = Metric(f"Below {degrees:g}\u00b0", in_delta=True)
    return found


def _list_byte_metrics() -> dict[str, Metric]:
    """The same of bytes, which are compared with published numbers alone."""
    found = {}
    for name, metric in _list_metrics().items():
        title = f"Byte {metric.in_words}"
        found[f"byte_{name}"] = Metric(
            title, metric.unit, lower_is_better=metric.lower_is_better, is_averaged=False
        )
    return found


LENGTHS = (0.9, 1.1)  # of stored vectors; rounding alone changes them by less than a hundredth


class Normals(DenseKind):
    """One minus the cosine of the angle between prediction and truth."""

    metrics = _list_metrics() | _list_byte_metrics()
    meaning = "direction of [batch, 3, height, width]: x right, y up, z towards the camera"
    channels = 3
    invalid = 0
    default_weight = 3.0
    error_unit = "degrees"

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

    def check_codes(self, task: Task, codes: Array) -> None:
        vectors = (codes[self.find_labelled(codes)].astype(np.float32) - MIDDLE) / STEPS
        lengths = np.linalg.norm(vectors, axis=1)
        wrong = lengths[(lengths < LENGTHS[0]) | (lengths > LENGTHS[1])]
        if wrong.size:
            raise UserError(
                f"the vectors of '{task.name}' should have the length 1, as bytes of 128 + 127 n and 0, 0, 0 where not labelled, found "
                f"{wrong.size:,} of {lengths.size:,} between {wrong.min():.2f} and {wrong.max():.2f}."
            )

    def count_sums(self, task: Task) -> int:
        return 2 + len(THRESHOLDS) + NUM_BINS

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """Sums of angles in degrees and of their squares, pixels below each threshold, and the histogram of angles."""
        truth = functional.normalize(codes.double() - MIDDLE, dim=1, eps=LEAST_LENGTH)
        return sum_angles(compute_cosine(outputs.double(), truth), self.find_valid(codes))

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        return score_angles(sums, _list_metrics())

    def with_byte_angles(self) -> DenseKind:
        return NormalsWithByteAngles()

    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        """Unit vectors, float32 [H, W, 3]."""
        vectors = functional.normalize(logits.float(), dim=1, eps=LEAST_LENGTH)
        return list(vectors.permute(0, 2, 3, 1).cpu().numpy())

    def encode_answer(self, task: Task, answer: Array) -> Array:
        return encode_normals(answer, np.full(answer.shape[:-1], True))

    def summarise_answer(self, task: Task, answer: Answer) -> Summary:
        """The share of the picture that faces mostly each of six directions."""
        assert isinstance(answer, np.ndarray)
        vectors = answer.reshape(-1, 3)
        axes = np.abs(vectors).argmax(axis=1)
        is_negative = vectors[np.arange(len(vectors)), axes] < 0
        counts = np.bincount(2 * axes + is_negative, minlength=len(DIRECTIONS))
        return dict(zip(DIRECTIONS, (counts / len(vectors)).tolist(), strict=True))

    def describe_answer(self, task: Task, answer: Summary, threshold: float) -> str:
        assert isinstance(answer, dict)
        largest = sorted(answer, key=answer.__getitem__, reverse=True)[:3]
        told = [f"{name} {answer[name]:.0%}" for name in largest if answer[name] > 0]
        return f"{task.name}: {', '.join(told)}"

    def draw_codes(self, task: Task, codes: Array) -> Array:
        return codes

    def measure_errors(self, task: Task, found: Array, truth: Array) -> Array:
        """The angle in degrees."""
        (own, _), (true, valid) = decode_normals(found), decode_normals(truth)
        # By the chord between them, for the cosine of a small angle is 1 in float32.
        chord = np.linalg.norm(own - true, axis=-1)
        angles = np.rad2deg(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
        return np.where(valid, angles, np.nan).astype(np.float32)


class NormalsWithByteAngles(Normals):
    """Beside the angles those that AdaShare publishes: between (n + 1) of prediction and truth, the bytes of its files.

    Its files hold x, -z, y of our axes as (n + 1) * 127.5, and its program takes the bytes for vectors, all of which lie in the
    positive octant: a constant has a mean angle of 19 degrees there and of 47 in truth.
    """

    def count_sums(self, task: Task) -> int:
        return 2 * super().count_sums(task)

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        truth = functional.normalize(codes.double() - MIDDLE, dim=1, eps=LEAST_LENGTH)
        found = functional.normalize(outputs.double(), dim=1, eps=LEAST_LENGTH)
        signs = truth.new_tensor([1, 1, -1]).view(3, 1, 1)
        true_bytes = functional.normalize(truth * signs + 1, dim=1)
        cosine = compute_cosine(found * signs + 1, true_bytes)
        of_bytes = sum_angles(cosine, self.find_valid(codes))
        return torch.cat([super().sum_maps(task, outputs, codes), of_bytes])

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        own, of_bytes = np.split(sums, 2)
        return score_angles(own, _list_metrics()) | score_angles(of_bytes, _list_byte_metrics())


def sum_angles(cosine: Tensor, valid: Tensor) -> Tensor:
    """The sums of a batch from cosines and labelled pixels [B, H, W]: see `Normals.sum_maps`."""
    angles = cosine.clamp(-1, 1).arccos().rad2deg()
    kept = torch.where(valid, angles, 0)
    sums = [kept.sum(), kept.square().sum()]
    sums += [((angles < degrees) & valid).sum().double() for degrees in THRESHOLDS.values()]
    bins = (angles * (NUM_BINS / 180)).long().clamp(0, NUM_BINS - 1)
    # What is not labelled is counted in a bin of its own.
    bins = torch.where(valid, bins, NUM_BINS)
    histogram = torch.bincount(bins.flatten(), minlength=NUM_BINS + 1)[:-1]
    return torch.cat([torch.stack(sums), histogram.double()])


def score_angles(sums: Array, names: Mapping[str, Metric]) -> Metrics:
    """Mean, median and root of the mean square in degrees, and the shares below the thresholds, in the order of `names`."""
    total, squares, *rest = sums[: 2 + len(THRESHOLDS)].tolist()
    reached = sums[-NUM_BINS:].cumsum()
    count = reached[-1]
    if not count:
        return dict.fromkeys(names)
    # Of an even number of pixels the median is between two, which may be in different bins.
    middle = (count - 1) / 2
    bins = np.searchsorted(reached, [math.floor(middle), math.ceil(middle)], side="right")
    median = (bins.mean() + 0.5) * 180 / NUM_BINS
    values = [total / count, median, math.sqrt(squares / count), *(one / count for one in rest)]
    return dict(zip(names, map(float, values), strict=True))


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
