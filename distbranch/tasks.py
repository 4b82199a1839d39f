"""Tasks: what a network predicts, and for every kind of task its loss and its margin. Scores are in `metrics`.

Labels are one float32 matrix [B, T], NaN where a sample is not labelled: 0..1 for a binary task (soft labels too), the
class index for a categorical one. A further kind of task is one more entry of `KINDS`, and one of `metrics.SCORES`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    `classes` are the names of a categorical task's classes, in the order of its labels; `exclusive` names the set of
    binary tasks to which this one belongs if a sample is positive in one of them only (one task per class).
    """

    name: str
    kind: str = "binary"
    classes: tuple[str, ...] = ()
    exclusive: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(
                f"The kind of task {self.name!r} must be one of {', '.join(KINDS)}, found {self.kind!r}."
            )
        fits = len(self.classes) >= 2 and len(set(self.classes)) == len(self.classes)
        if self.kind == "binary":
            fits = not self.classes
        if not fits:
            raise UserError(
                f"A categorical task has at least two different classes and a binary one has no classes, found {list(self.classes)} "
                f"of the {self.kind} task {self.name!r}."
            )
        if self.kind != "binary" and self.exclusive:
            raise UserError(
                f"Only binary tasks form an exclusive set, but {self.name!r} of the set {self.exclusive!r} is {self.kind}."
            )

    @property
    def num_outputs(self) -> int:
        """Outputs of the network for this task: 1, or one per class."""
        return max(1, len(self.classes))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; what is empty is left out."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.classes:
            data["classes"] = list(self.classes)
        if self.exclusive:
            data["exclusive"] = self.exclusive
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The inverse of `to_json`."""
        return cls(
            str(data["name"]),
            str(data.get("kind", "binary")),
            tuple(data.get("classes", ())),
            str(data.get("exclusive", "")),
        )


@dataclass(frozen=True)
class Kind:
    """What a kind of task must bring.

    Both functions take logits [B, n, K] and labels [B, n] without NaN (0 stands for unlabelled) and return [B, n]; the
    margin lies in 0..1 and is large for a difficult sample (Eq. 6).
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    margin: Callable[[Tensor, Tensor], Tensor]


def _binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits.squeeze(2), labels, reduction="none")


def _binary_margin(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.squeeze(2).sigmoid().sub_(labels).abs_()


def _categorical_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return -_pick_true_class(logits.log_softmax(dim=2), labels)


def _categorical_margin(logits: Tensor, labels: Tensor) -> Tensor:
    return 1 - _pick_true_class(logits.softmax(dim=2), labels)


def _pick_true_class(values: Tensor, labels: Tensor) -> Tensor:
    """Of values [B, n, K] those of the true classes [B, n]."""
    index = labels.long().unsqueeze(2)
    return values.gather(2, index).squeeze(2)


KINDS = {
    "binary": Kind(_binary_loss, _binary_margin),
    "categorical": Kind(_categorical_loss, _categorical_margin),
}


class TaskSet:
    """The tasks of one network, in the order of its labels [B, T] and outputs [B, O].

    `columns` says which columns of the outputs belong to which task.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self.names = tuple(task.name for task in self.tasks)
        doubled = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if doubled or not self.names:
            raise UserError(
                f"A network needs at least one task and every task its own name, found {len(self.names)} tasks, "
                f"more than once: {doubled}."
            )
        self.num_tasks = len(self.tasks)
        self.num_outputs = 0
        self.columns: dict[str, slice] = {}
        # Tasks of one kind and number of outputs are computed together.
        self._alike: dict[tuple[str, int], list[int]] = {}
        for number, task in enumerate(self.tasks):
            start = self.num_outputs
            self.num_outputs += task.num_outputs
            self.columns[task.name] = slice(start, self.num_outputs)
            self._alike.setdefault((task.kind, task.num_outputs), []).append(number)

    def compute_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of every sample and task [B, T]; 0, with gradient 0, where unlabelled. outputs: [B, O]."""
        return self._compute_masked("loss", outputs, labels)

    @torch.no_grad()
    def compute_margins(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The margin of every sample and task [B, T] (Eq. 6), 0 where unlabelled; no gradient."""
        return self._compute_masked("margin", outputs, labels)

    def split_by_task(self, outputs: Tensor) -> dict[str, Tensor]:
        """The logits of every task by name: [B] if binary, [B, K] if categorical."""
        logits = {}
        for task in self.tasks:
            columns = outputs[:, self.columns[task.name]]
            if task.kind == "binary":
                columns = columns.squeeze(1)
            logits[task.name] = columns
        return logits

    def _compute_masked(
        self, name: Literal["loss", "margin"], outputs: Tensor, labels: Tensor
    ) -> Tensor:
        unlabelled = labels.isnan()
        # A loss in bf16 would have three digits; float64 stays, for tests against slow references.
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        filled = labels.masked_fill(unlabelled, 0.0).to(outputs.dtype)
        if len(self._alike) == 1:  # nothing to bring together
            pieces = outputs.view(len(outputs), self.num_tasks, self.num_outputs // self.num_tasks)
            values = getattr(KINDS[self.tasks[0].kind], name)(pieces, filled)
        else:
            # Slices and not indices, which would have to be on the device first.
            of_tasks = torch.split(outputs, [task.num_outputs for task in self.tasks], dim=1)
            columns = filled.unbind(dim=1)
            values_of_tasks = list(columns)
            for (kind, _), numbers in self._alike.items():
                pieces = torch.stack([of_tasks[number] for number in numbers], dim=1)
                own_labels = torch.stack([columns[number] for number in numbers], dim=1)
                own_values = getattr(KINDS[kind], name)(pieces, own_labels)
                for number, value in zip(numbers, own_values.unbind(dim=1), strict=True):
                    values_of_tasks[number] = value
            values = torch.stack(values_of_tasks, dim=1)
        masked: Tensor = values.masked_fill(unlabelled, 0.0)
        return masked


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, or if it is taken the first of `name (2)`, `name (3)`, ... that is not."""
    unused = name
    number = 2
    while unused in taken:
        unused = f"{name} ({number})"
        number += 1
    return unused
