"""Tasks: what a network predicts, and the losses and margins of all of them together. What a kind of task is stands in `kinds`.

Labels are one float32 matrix [B, T], NaN where a sample is not labelled: 0..1 for a binary task (soft labels too), the
class index for a categorical one, a number in the unit of its table. Dense tasks have maps beside it (maps.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from distbranch.errors import UserError
from distbranch.kinds import KINDS, Answer, Loss
from distbranch.kinds.dense import DenseKind, average_valid
from distbranch.maps import (
    AnyLabels,
    AnyOutputs,
    Labels,
    MixedLabels,
    Outputs,
    resize_maps,
    sample_codes,
)


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    `classes` are the names of a categorical task's classes, in the order of its labels; `exclusive` names the set of
    binary tasks to which this one belongs if a sample is positive in one of them only (one task per class); `mean` and
    `deviation` are those of a number's training labels, in its `unit` (years). The codes of `quantity` depth are divided by
    `scale` to give metres; of `disparity` they are pixels by the rule of CityScapes.
    """

    name: str
    kind: str = "binary"
    classes: tuple[str, ...] = ()
    exclusive: str = ""
    mean: float = 0.0
    deviation: float = 1.0
    unit: str = ""
    scale: float = 1000.0
    quantity: str = "depth"

    def __post_init__(self) -> None:
        KINDS[self.kind].check_task(self)

    @property
    def num_outputs(self) -> int:
        """Outputs of the network for this task."""
        return KINDS[self.kind].count_outputs(self)

    @property
    def is_dense(self) -> bool:
        """Whether every pixel has a label."""
        return KINDS[self.kind].is_dense

    def is_same_task(self, other: Task) -> bool:
        """Whether one head serves both: they agree in all but how the training labels of their data sets lie."""
        return self == replace(other, mean=self.mean, deviation=self.deviation)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; what is empty is left out."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        for name in KINDS[self.kind].fields:
            value = getattr(self, name)
            if value not in ("", ()):
                data[name] = value
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
            float(data.get("scale", 1000.0)),
            str(data.get("quantity", "depth")),
        )


@dataclass(frozen=True)
class LossOptions:
    """How losses are taken.

    at: of dense tasks; `input`: outputs are resized to the labels, `output`: labels are sampled at the centres of the outputs' pixels.
    class_weights: what a sample, or a pixel, weighs by its class, by name of the task.
    positive_weights: what a sample weighs whose label is 1, by name of the binary task; of a soft label so much of it.
    """

    at: str = "input"
    class_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    positive_weights: Mapping[str, float] = field(default_factory=dict)


class TaskSet:
    """The tasks of one network, in the order of its labels [B, T] and outputs [B, O].

    `columns` says which columns of the outputs belong to which task; those in `dense`, by their number among all, have maps
    instead.

    Args:
        tasks: in the order of their labels.
        losses: instead of that of its kind, by kind.
        options: how they are taken.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        losses: Mapping[str, Loss] | None = None,
        options: LossOptions | None = None,
    ) -> None:
        self.tasks = tuple(tasks)
        self.losses = dict(losses or {})
        self.options = options or LossOptions()
        self.names = tuple(task.name for task in self.tasks)
        doubled = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if doubled or not self.names:
            raise UserError(
                f"A network needs at least one task and every task its own name, found {len(self.names)} tasks, "
                f"more than once: {doubled}."
            )
        self.num_tasks = len(self.tasks)
        self.dense = {number: task for number, task in enumerate(self.tasks) if task.is_dense}
        _check_class_weights(self.options.class_weights, self.tasks)
        self.columns = locate_outputs(self.tasks)
        self.num_outputs = count_logits(self.tasks)
        # Tasks of one kind and number of outputs are computed together.
        self._alike: dict[tuple[str, int], list[int]] = {}
        for number, task in enumerate(self.tasks):
            if number not in self.dense:
                self._alike.setdefault((task.kind, task.num_outputs), []).append(number)
        self._losses: dict[str, Loss] = {}
        for task in self.tasks:
            kind = KINDS[task.kind]
            own = kind.compute_pixel_losses if isinstance(kind, DenseKind) else kind.compute_loss
            self._losses[task.kind] = self.losses.get(task.kind, own)
        self._margins = {task.kind: KINDS[task.kind].compute_margin for task in self.tasks}
        self._standards = [(task.mean, task.deviation) for task in self.tasks]
        self._is_standardised = set(self._standards) != {(0.0, 1.0)}
        self._standards_on: dict[torch.device, Tensor] = {}
        self._weights_on: dict[tuple[str, torch.device], Tensor] = {}
        self._by_class = {
            number: task.name
            for number, task in enumerate(self.tasks)
            if task.name in self.options.class_weights and not task.is_dense
        }
        self._positive_weights = [
            self.options.positive_weights.get(name, 1.0) for name in self.names
        ]
        self._weighs_labels = bool(self._by_class) or set(self._positive_weights) != {1.0}

    def compute_losses(self, outputs: AnyOutputs, labels: AnyLabels) -> Tensor:
        """The loss of every sample and task [B, T]; 0, with gradient 0, where unlabelled.

        outputs: [B, O], with the maps of dense tasks; labels: [B, T], likewise. The loss of a dense task is the mean over the
        labelled pixels of the sample; that of others is multiplied by what the label weighs.
        """
        if isinstance(labels, MixedLabels):
            return labels.blend(lambda part: self.compute_losses(outputs, part))
        losses = self._compute_all(self._losses, outputs, labels)
        if self._weighs_labels:
            losses = losses * self._weigh_labels(labels).to(losses.dtype)
        return losses

    @torch.no_grad()
    def compute_margins(
        self, outputs: AnyOutputs, labels: AnyLabels, losses: Tensor | None = None
    ) -> Tensor:
        """The margin of every sample and task [B, T] (Eq. 6), 0 where unlabelled; no gradient.

        Of a dense task it is its loss, for margins are compared with their own mean only; where the losses [B, T] of the same
        outputs are known, maps are not looked at once more.
        """
        if isinstance(labels, MixedLabels):
            return labels.blend(lambda part: self.compute_margins(outputs, part))
        return self._compute_all(self._margins, outputs, labels, losses)

    def select(self, tasks: Sequence[Task]) -> TaskSet:
        """Some of the tasks, with the same losses."""
        return TaskSet(tasks, self.losses, self.options)

    def count_loss_pixels(self, outputs: AnyOutputs, labels: AnyLabels) -> Tensor:
        """Over how many labelled pixels of each sample the loss of each dense task is the mean [B, D]; weighted ones count so much.

        Of `outputs` only the height and the width count: they may be those of another batch.
        """
        assert isinstance(outputs, Outputs)
        assert isinstance(labels, Labels)
        counts = []
        for task in self.dense.values():
            _, _, weights = self._prepare_maps(task, outputs.maps[task.name], labels)
            counts.append(weights.sum(dim=(1, 2), dtype=torch.float64))
        return torch.stack(counts, dim=1)

    def split_by_task(self, outputs: AnyOutputs) -> dict[str, Tensor]:
        """The logits of every task by name: [B] of one output, [B, K] of several, [B, K, h, w] of a dense task."""
        answer = outputs if isinstance(outputs, Outputs) else Outputs(outputs, {})
        logits = {}
        for task in self.tasks:
            if task.name in answer.maps:
                logits[task.name] = answer.maps[task.name]
                continue
            columns = answer.logits[:, self.columns[task.name]]
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
            own = logits[task.name]
            if own.ndim < 4:
                own = own.reshape(-1, task.num_outputs)
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

    def _compute_all(
        self,
        functions: Mapping[str, Loss],
        outputs: AnyOutputs,
        labels: Tensor | Labels,
        known: Tensor | None = None,
    ) -> Tensor:
        """Values [B, T]; those of dense tasks are their losses, which may be `known` [B, T]."""
        unlabelled = labels.isnan()
        logits = outputs.logits if isinstance(outputs, Outputs) else outputs
        numbers = labels.values if isinstance(labels, Labels) else labels
        # A loss in bf16 would have three digits; float64 stays, for tests against slow references.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # The mean stands for what is unlabelled, of which no loss of anyone's overflows.
        filled = self.standardise_labels(numbers).masked_fill(unlabelled, 0.0).to(logits.dtype)
        if len(self._alike) == 1 and not self.dense:  # nothing to bring together
            pieces = logits.view(len(logits), self.num_tasks, self.num_outputs // self.num_tasks)
            values = functions[self.tasks[0].kind](pieces, filled)
        else:
            of_tasks = self._compute_by_kind(functions, logits, filled)
            for number, task in self.dense.items():
                if known is None:
                    of_tasks[number] = self._compute_of_maps(task, outputs, labels)
                else:
                    of_tasks[number] = known[:, number]
            values = torch.stack([of_tasks[number] for number in range(self.num_tasks)], dim=1)
        masked: Tensor = values.masked_fill(unlabelled, 0.0)
        return masked

    def _compute_by_kind(
        self, functions: Mapping[str, Loss], logits: Tensor, labels: Tensor
    ) -> dict[int, Tensor]:
        """Of every task that is not dense, by its number, the values [B]."""
        # Slices and not indices, which would have to be on the device first.
        pieces_of_tasks = {name: logits[:, columns] for name, columns in self.columns.items()}
        columns = labels.unbind(dim=1)
        found: dict[int, Tensor] = {}
        for (kind, _), numbers in self._alike.items():
            pieces = torch.stack([pieces_of_tasks[self.names[n]] for n in numbers], dim=1)
            own_labels = torch.stack([columns[number] for number in numbers], dim=1)
            values = functions[kind](pieces, own_labels)
            found |= dict(zip(numbers, values.unbind(dim=1), strict=True))
        return found

    def _compute_of_maps(self, task: Task, outputs: AnyOutputs, labels: Tensor | Labels) -> Tensor:
        """The losses of a dense task [B]: means over the labelled pixels of a sample."""
        assert isinstance(outputs, Outputs)
        assert isinstance(labels, Labels)
        maps = outputs.maps[task.name]
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        size, targets, weights = self._prepare_maps(task, maps, labels)
        values = self._losses[task.kind](resize_maps(maps, size), targets)
        return average_valid(values, weights)

    def _prepare_maps(
        self, task: Task, maps: Tensor, labels: Labels
    ) -> tuple[Sequence[int], Tensor, Tensor]:
        """The size at which the loss of a dense task is taken, its targets, and what each pixel weighs [B, H, W]."""
        kind = KINDS[task.kind]
        assert isinstance(kind, DenseKind)
        codes = labels.maps[task.name]
        if self.options.at == "output":
            codes = sample_codes(codes, maps.shape[-2:])
        targets = kind.decode_labels(task, codes)
        weights = kind.find_valid(codes).to(torch.promote_types(maps.dtype, torch.float32))
        if task.name in self.options.class_weights:
            of_classes = self._load_weights(task.name, weights.device)
            weights = weights * of_classes.to(weights.dtype)[targets]
        return codes.shape[-2:], targets, weights

    def _weigh_labels(self, labels: Tensor | Labels) -> Tensor:
        """What the label of every sample weighs [B, T], in float64; 1 of dense tasks, whose pixels are weighed."""
        values = labels.values if isinstance(labels, Labels) else labels
        known = values.nan_to_num().double()
        positive = self._load_weights("", known.device)
        weights = torch.lerp(torch.ones_like(positive), positive, known)
        for number, name in self._by_class.items():
            weights[:, number] = self._load_weights(name, known.device)[known[:, number].long()]
        return weights

    def _load_weights(self, name: str, device: torch.device) -> Tensor:
        """Those of the classes of a task, or of all positives (of no name), on a device.

        They stay there: a copy at every step would make the host wait for a GPU.
        """
        if (name, device) not in self._weights_on:
            given = self.options.class_weights[name] if name else self._positive_weights
            self._weights_on[name, device] = torch.tensor(given, dtype=torch.float64).to(device)
        return self._weights_on[name, device]


def _check_class_weights(given: Mapping[str, Sequence[float]], tasks: Sequence[Task]) -> None:
    known = {task.name: task for task in tasks}
    for name, weights in given.items():
        if name in known and len(weights) != len(known[name].classes):
            raise UserError(
                f"loss.class_weights should have a weight for each of the {len(known[name].classes)} classes of '{name}', found "
                f"{len(weights)}."
            )


def list_scalar_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Those with one label per image."""
    return [task for task in tasks if not task.is_dense]


def locate_outputs(tasks: Sequence[Task]) -> dict[str, slice]:
    """Which columns of outputs [B, O] belong to which task; dense ones have none."""
    scalar = list_scalar_tasks(tasks)
    ends = accumulate(task.num_outputs for task in scalar)
    return {
        task.name: slice(end - task.num_outputs, end)
        for task, end in zip(scalar, ends, strict=True)
    }


def count_logits(tasks: Sequence[Task]) -> int:
    """O, the number of columns of the outputs of those tasks that have one label per image."""
    return sum(task.num_outputs for task in list_scalar_tasks(tasks))


def split_task_names(given: Sequence[str], known: Sequence[str]) -> list[str]:
    """Task names out of texts that each hold one name (which may have commas) or several between commas."""
    names = [text if text in known else text.split(",") for text in given]
    return [part.strip() for name in names for part in ([name] if isinstance(name, str) else name)]


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, or if it is taken the first of `name (2)`, `name (3)`, ... that is not."""
    unused = name
    number = 2
    while unused in taken:
        unused = f"{name} ({number})"
        number += 1
    return unused
