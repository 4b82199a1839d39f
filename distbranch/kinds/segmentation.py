"""A class per pixel. Codes are the numbers of classes, 255 where not labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import KINDS, Array, Metric, Metrics

if TYPE_CHECKING:
    from distbranch.tasks import Task

MOST_CLASSES = 255  # the last of 256 codes says "not labelled"


class Segmentation(DenseKind):
    """Cross-entropy of the classes of a pixel."""

    metrics = {"miou": Metric("mIoU", is_drawn=True), "pixel_accuracy": Metric("Pixel accuracy")}
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

    def count_sums(self, task: Task) -> int:
        return len(task.classes) ** 2

    def sum_maps(self, task: Task, outputs: Tensor, codes: Tensor) -> Tensor:
        """The confusion matrix [K * K]: rows are true classes."""
        valid = self.find_valid(codes)
        number = len(task.classes)
        cells = codes[valid].long() * number + outputs.argmax(dim=1)[valid]
        return torch.bincount(cells, minlength=number**2).double()

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        number = len(task.classes)
        confusion = sums.reshape(number, number)
        right = confusion.diagonal()
        truth = confusion.sum(axis=1)
        union = truth + confusion.sum(axis=0) - right
        row: Metrics = dict.fromkeys(self.metrics)
        if truth.any():
            is_present = truth > 0
            row["miou"] = float((right[is_present] / union[is_present]).mean())
            row["pixel_accuracy"] = float(right.sum() / truth.sum())
        return row


KINDS.register("segmentation")(Segmentation())
