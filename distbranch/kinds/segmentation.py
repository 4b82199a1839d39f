"""A class per pixel. Codes are the numbers of classes, 255 where not labelled."""

from __future__ import annotations

import colorsys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import KINDS, PER_CLASS, Answer, Array, Metric, Metrics, Summary
from distbranch.kinds.label_counts import Counts, LabelCounts
from distbranch.kinds.map_counts import ClassPixelCounts, read_class_pixels

if TYPE_CHECKING:
    from distbranch.tasks import Task

MOST_CLASSES = 255  # the last of 256 codes says "not labelled"
NUM_TOLD = 3  # classes in the line about a picture
GOLDEN_RATIO = 0.618034  # of a circle: so far apart are the hues of classes that follow each other


class Segmentation(DenseKind):
    """Cross-entropy of the classes of a pixel."""

    metrics = {
        "miou": Metric("mIoU", is_drawn=True, in_delta=True, is_first=True),
        "pixel_accuracy": Metric("Pixel accuracy", in_delta=True),
        "mean_class_accuracy": Metric("Mean class accuracy"),
    }
    fields = ("classes",)
    meaning = "softmax of [batch, classes, height, width]"

    def check_task(self, task: Task) -> None:
        super().check_task(task)
        is_double = len(set(task.classes)) != len(task.classes)
        if is_double or not 2 <= len(task.classes) <= MOST_CLASSES:
            raise UserError(
                f"A {task.kind} task has 2 to {MOST_CLASSES} different classes, found {list(task.classes)} of the task {task.name!r}."
            )

    def count_outputs(self, task: Task) -> int:
        return len(task.classes)

    def decode_labels(self, task: Task, codes: Tensor) -> Tensor:
        return codes.long().masked_fill(codes == self.invalid, 0)

    def compute_pixel_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def check_codes(self, task: Task, codes: Array) -> None:
        number = len(task.classes)
        unknown = codes[(codes >= number) & (codes != self.invalid)]
        if unknown.size:
            raise UserError(
                f"'{task.name}' has {number} classes, whose codes are 0 to {number - 1} and {self.invalid} where not labelled, found "
                f"{unknown.max()}."
            )

    def make_counts(self, task: Task) -> LabelCounts:
        return ClassPixelCounts(self, task)

    def list_class_counts(self, task: Task, counts: Counts) -> list[float]:
        return [*read_class_pixels(task, counts)]

    def describe_counts(self, task: Task, counts: Counts) -> str:
        """The share of every class, and those that no pixel has: wrong numbers of classes are seen there."""
        pixels = dict(zip(task.classes, read_class_pixels(task, counts), strict=True))
        total = sum(pixels.values()) or 1
        largest = sorted(pixels, key=pixels.__getitem__, reverse=True)
        told = [f"{name} {pixels[name] / total:.1%}" for name in largest if pixels[name]]
        absent = [name for name in task.classes if not pixels[name]]
        if absent:
            told.append(f"no pixel of {', '.join(absent)}")
        return f"{task.name}: {', '.join(told)}"

    def count_sums(self, task: Task) -> int:
        return len(task.classes) ** 2

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """The confusion matrix [K * K]: rows are true classes."""
        number = len(task.classes)
        cells = codes.long() * number + outputs.argmax(dim=1)
        # What is not labelled is counted in a cell of its own.
        cells = torch.where(self.find_valid(codes), cells, number**2)
        return torch.bincount(cells.flatten(), minlength=number**2 + 1)[:-1].double()

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        """Intersection over union of every class that the truth has, whether it was ever predicted or not, and their mean."""
        number = len(task.classes)
        confusion = sums.reshape(number, number)
        right = confusion.diagonal()
        truth = confusion.sum(axis=1)
        union = truth + confusion.sum(axis=0) - right
        row: Metrics = dict.fromkeys(self.metrics)
        row |= {f"{PER_CLASS}{name}": None for name in task.classes}
        is_present = truth > 0
        if is_present.any():
            ious = right[is_present] / union[is_present]
            row["miou"] = float(ious.mean())
            row["pixel_accuracy"] = float(right.sum() / truth.sum())
            row["mean_class_accuracy"] = float((right[is_present] / truth[is_present]).mean())
            for place, iou in zip(np.flatnonzero(is_present), ious, strict=True):
                row[f"{PER_CLASS}{task.classes[place]}"] = float(iou)
        return row

    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        """The number of the most probable class, uint8 [H, W]."""
        return list(logits.argmax(dim=1).to(torch.uint8).cpu().numpy())

    def encode_answer(self, task: Task, answer: Array) -> Array:
        return answer

    def summarise_answer(self, task: Task, answer: Answer) -> Summary:
        """The share of the picture of every class."""
        assert isinstance(answer, np.ndarray)
        counts = np.bincount(answer.ravel(), minlength=len(task.classes))
        return dict(zip(task.classes, (counts / answer.size).tolist(), strict=True))

    def describe_answer(self, task: Task, answer: Summary, threshold: float) -> str:
        assert isinstance(answer, dict)
        largest = sorted(answer, key=answer.__getitem__, reverse=True)[:NUM_TOLD]
        told = [f"{name} {answer[name]:.0%}" for name in largest if answer[name] > 0]
        return f"{task.name}: {', '.join(told)}"

    def draw_codes(self, task: Task, codes: Array) -> Array:
        picture: Array = make_palette()[codes]
        return picture

    def get_palette(self) -> Array:
        return make_palette()

    def measure_errors(self, task: Task, found: Array, truth: Array) -> Array:
        """1 where the class is wrong."""
        is_wrong = (found != truth).astype(np.float32)
        return np.where(truth == self.invalid, np.nan, is_wrong)


@cache
def make_palette() -> Array:
    """A colour for every code, uint8 [256, 3], the same in every picture; black is "not labelled"."""
    colours = []
    for number in range(MOST_CLASSES):
        # Light and dark in turns tell apart the hues that come near each other after many classes.
        hue = number * GOLDEN_RATIO % 1
        value = (0.95, 0.65, 0.8)[number % 3]
        colours.append(colorsys.hsv_to_rgb(hue, 0.6, value))
    palette: Array = np.rint(np.array([*colours, (0, 0, 0)]) * 255).astype(np.uint8)
    return palette


KINDS.register("segmentation")(Segmentation())
