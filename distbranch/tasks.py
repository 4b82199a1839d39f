"""Tasks: what a network predicts, and the losses and margins of all of them together. What a kind of task is stands in `kinds`.

Labels are one float32 matrix [B, T], NaN where a sample is not labelled: 0..1 for a binary task (soft labels too), the
class index for a categorical one, a number in the unit of its table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from distbranch.errors import UserError
from distbranch.kinds import KINDS, Answer, Loss


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    `classes` are the names of a categorical task's classes, in the order of its labels; `exclusive` names the set of
    binary tasks to which this one belongs if a sample is positive in one of them only (one task per class); `mean` and
    `deviation` are those of a number's training labels, in its `unit` (years).
    """

    name: str
    kind: str = "binary"
    classes: tuple[str, ...] = ()
    exclusive: str = ""
    mean: float = 0.0
    deviation: float = 1.0
    unit: str = ""

    def __post_init__(self) -> None:
        KINDS[self.kind].check_task(self)

    @property
    def num_outputs(self) -> int:
        """Outputs of the network for this task."""
        return KINDS[self.kind].count_outputs(self)

    def is_same_task(self, other: Task) -> bool:
        """Whether one head serves both: they agree in all but how the training labels of their data sets lie."""
        return self == replace(other, mean=self.mean, deviation=self.deviation)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; what is empty is left out."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        for field in KINDS[self.kind].fields:
            value = getattr(self, field)
            if value not in ("", ()):
                data[field] = value
        if "classes" in data:
            data["classes"] = list(self.classes)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The inverse of `to_json`."""
        return cls(
            str(data["name"]),
            str(data.get("kind", "binary")),
            tuple(data.get("classes", ())),
            str(data.get("exclusive", "")),
            float(data.get("mean", 0.0)),
            float(data.get("deviation", 1.0)),
            str(data.get("unit", "")),
        )


class TaskSet:
    """The tasks of one network, in the order of its labels [B, T] and outputs [B, O].

    `columns` says which columns of the outputs belong to which task.

    Args:
        tasks: in the order of their labels.
        losses: instead of that of its kind, by kind.
    """

    def __init__(self, tasks: Sequence[Task], losses: Mapping[str, Loss] | None = None) -> None:
        self.tasks = tuple(tasks)
        self.losses = dict(losses or {})
        self.names = tuple(task.name for task in self.tasks)
        doubled = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if doubled or not self.names:
            raise UserError(
                f"A network needs at least one task and every task its own name, found {len(self.names)} tasks, "
                f"more than once: {doubled}."
            )
        self.num_tasks = len(self.tasks)
        self.columns = locate_outputs(self.tasks)
        self.num_outputs = sum(task.num_outputs for task in self.tasks)
        # Tasks of one kind and number of outputs are computed together.
        self._alike: dict[tuple[str, int], list[int]] = {}
        for number, task in enumerate(self.tasks):
            self._alike.setdefault((task.kind, task.num_outputs), []).append(number)
        own_losses = {task.kind: KINDS[task.kind].compute_loss for task in self.tasks}
        self._losses: dict[str, Loss] = own_losses | self.losses
        self._margins = {task.kind: KINDS[task.kind].compute_margin for task in self.tasks}
        self._standards = [(task.mean, task.deviation) for task in self.tasks]
        self._is_standardised = set(self._standards) != {(0.0, 1.0)}
        self._standards_on: dict[torch.device, Tensor] = {}

    def compute_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of every sample and task [B, T]; 0, with gradient 0, where unlabelled. outputs: [B, O]."""
        return self._compute_masked(self._losses, outputs, labels)

    @torch.no_grad()
    def compute_margins(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The margin of every sample and task [B, T] (Eq. 6), 0 where unlabelled; no gradient."""
        return self._compute_masked(self._margins, outputs, labels)

    def split_by_task(self, outputs: Tensor) -> dict[str, Tensor]:
        """The logits of every task by name: [B] of one output, [B, K] of several."""
        logits = {}
        for task in self.tasks:
            columns = outputs[:, self.columns[task.name]]
            if task.num_outputs == 1:
                columns = columns.squeeze(1)
            logits[task.name] = columns
        return logits

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, list[Answer]]:
        """What every task answers for each image: a probability, those of every class, or a number in the unit of its table.

        logits: by name, as `split_by_task` or a network gives them.
        """
        answers = {}
        for task in self.tasks:
            own = logits[task.name].reshape(-1, task.num_outputs)
            answers[task.name] = KINDS[task.kind].predict(task, own)
        return answers

    def standardise_labels(self, labels: Tensor) -> Tensor:
        """The labels [B, T] as losses see them: numbers less their mean, in their deviations; others are what they are."""
        if not self._is_standardised:
            return labels
        # In float64, for float32 would move all years or seconds since 1970 by a part of their deviation.
        if labels.device not in self._standards_on:
            standards = labels.new_tensor(self._standards, dtype=torch.float64)
            self._standards_on[labels.device] = standards
        mean, deviation = self._standards_on[labels.device].unbind(dim=1)
        return (labels - mean).div(deviation).to(labels.dtype)

    def _compute_masked(
        self, functions: Mapping[str, Loss], outputs: Tensor, labels: Tensor
    ) -> Tensor:
        unlabelled = labels.isnan()
        # A loss in bf16 would have three digits; float64 stays, for tests against slow references.
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        # The mean stands for what is unlabelled, of which no loss of anyone's overflows.
        filled = self.standardise_labels(labels).masked_fill(unlabelled, 0.0).to(outputs.dtype)
        if len(self._alike) == 1:  # nothing to bring together
            pieces = outputs.view(len(outputs), self.num_tasks, self.num_outputs // self.num_tasks)
            values = functions[self.tasks[0].kind](pieces, filled)
        else:
            # Slices and not indices, which would have to be on the device first.
            of_tasks = torch.split(outputs, [task.num_outputs for task in self.tasks], dim=1)
            columns = filled.unbind(dim=1)
            values_of_tasks = list(columns)
            for (kind, _), numbers in self._alike.items():
                pieces = torch.stack([of_tasks[number] for number in numbers], dim=1)
                own_labels = torch.stack([columns[number] for number in numbers], dim=1)
                own_values = functions[kind](pieces, own_labels)
                for number, value in zip(numbers, own_values.unbind(dim=1), strict=True):
                    values_of_tasks[number] = value
            values = torch.stack(values_of_tasks, dim=1)
        masked: Tensor = values.masked_fill(unlabelled, 0.0)
        return masked


def locate_outputs(tasks: Sequence[Task]) -> dict[str, slice]:
    """Which columns of outputs [B, O] belong to which task."""
    ends = accumulate(task.num_outputs for task in tasks)
    return {
        task.name: slice(end - task.num_outputs, end) for task, end in zip(tasks, ends, strict=True)
    }


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, or if it is taken the first of `name (2)`, `name (3)`, ... that is not."""
    unused = name
    number = 2
    while unused in taken:
        unused = f"{name} ({number})"
        number += 1
    return unused
