"""Tasks: what a network predicts, and for every kind of task its loss, its margin and its metrics.

Labels are one float32 matrix [B, T], NaN where a sample is not labelled: 0..1 for a binary task (soft labels too), the
class index for a categorical one. A further kind of task is one more entry of `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distbranch.errors import UserError

Metrics = dict[str, float | None]
CHOICES = ("top3", "top5")  # the metrics of an exclusive set that none of its tasks has


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
            raise UserError(f"The kind of task {self.name!r} must be one of {', '.join(KINDS)}, found {self.kind!r}.")
        if self.kind == "categorical" and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise UserError(
                f"The categorical task {self.name!r} needs at least two different classes, found {list(self.classes)}."
            )
        if self.kind == "binary" and self.classes:
            raise UserError(
                f"The binary task {self.name!r} has no classes, found {list(self.classes)}. Use kind: categorical."
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
        """Plain values, for JSON."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        data |= {"classes": list(self.classes)} if self.classes else {}
        return data | {"exclusive": self.exclusive} if self.exclusive else data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The inverse of `to_json`."""
        name, kind, classes = str(data["name"]), str(data.get("kind", "binary")), tuple(data.get("classes", ()))
        return cls(name, kind, classes, str(data.get("exclusive", "")))


@dataclass(frozen=True)
class Kind:
    """What a kind of task must bring.

    `loss` and `margin` take logits [B, n, K] and labels [B, n] without NaN (0 stands for unlabelled) and return [B, n];
    the margin lies in 0..1 and is large for a difficult sample (Eq. 6). `metrics` takes the labelled samples of one
    task: logits [N, K] and labels [N].
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    margin: Callable[[Tensor, Tensor], Tensor]
    metrics: Callable[[NDArray[np.float64], NDArray[np.float64]], Metrics]


def _binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits.squeeze(2), labels, reduction="none")


def _binary_margin(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.squeeze(2).sigmoid().sub_(labels).abs_()


def _binary_metrics(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> Metrics:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score

    truth, predicted = labels >= 0.5, logits[:, 0] >= 0
    positive = int(truth.sum())
    has_both = 0 < positive < truth.size  # of one class alone there is nothing to tell apart, nor to rank
    return {
        "accuracy": float(np.mean(truth == predicted)) if truth.size else None,
        "balanced_accuracy": float(balanced_accuracy_score(truth, predicted)) if has_both else None,
        "average_precision": float(average_precision_score(truth, logits[:, 0])) if has_both else None,
        "num_labelled": truth.size,
        "num_positive": positive,
    }


def _categorical_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(dim=2).gather(2, labels.long().unsqueeze(2)).squeeze(2)


def _categorical_margin(logits: Tensor, labels: Tensor) -> Tensor:
    return 1 - logits.softmax(dim=2).gather(2, labels.long().unsqueeze(2)).squeeze(2)


def _categorical_metrics(logits: NDArray[np.float64], labels: NDArray[np.float64]) -> Metrics:
    from sklearn.metrics import average_precision_score

    truth = labels.astype(np.int64)
    chosen = _choice_metrics(logits, truth)
    scores, present = _softmax(logits), np.unique(truth)
    precisions = [average_precision_score(truth == index, scores[:, index]) for index in present]
    return {
        "accuracy": chosen.pop("accuracy"),
        "balanced_accuracy": chosen.pop("balanced_accuracy"),
        "average_precision": float(np.mean(precisions)) if len(present) > 1 else None,
        **chosen,
    }


def _choice_metrics(scores: NDArray[np.float64], truth: NDArray[np.int64]) -> Metrics:
    """How well the highest of the scores [N, K] finds the true class [N]; the first one wins a tie.

    Nothing is found where there are no samples, or one class alone competes; nothing is balanced where one class alone is true.
    """
    if not truth.size or scores.shape[1] < 2:
        return dict.fromkeys(("accuracy", "balanced_accuracy", "top3", "top5")) | {"num_labelled": truth.size}
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.argmax(order == truth[:, None], axis=1)
    recalls = [float(np.mean(rank[truth == index] == 0)) for index in np.unique(truth)]
    return {
        "accuracy": float(np.mean(rank == 0)),
        "balanced_accuracy": float(np.mean(recalls)) if len(recalls) > 1 else None,
        "top3": float(np.mean(rank < 3)),
        "top5": float(np.mean(rank < 5)),
        "num_labelled": truth.size,
    }


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


KINDS: dict[str, Kind] = {
    "binary": Kind(_binary_loss, _binary_margin, _binary_metrics),
    "categorical": Kind(_categorical_loss, _categorical_margin, _categorical_metrics),
}


@dataclass(frozen=True)
class _Batched:
    """Tasks of one kind and number of outputs, computed together."""

    kind: Kind
    tasks: Tensor  # [n] task numbers
    columns: Tensor  # [n, K] columns of the outputs


class TaskSet:
    """The tasks of one network, in the order of its labels [B, T] and outputs [B, O].

    `columns` says which columns of the outputs belong to which task.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self.names = tuple(task.name for task in self.tasks)
        if len(set(self.names)) < len(self.names) or not self.names:
            doubled = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UserError(
                f"A network needs at least one task and every task its own name, found {len(self.names)} tasks, "
                f"more than once: {doubled}."
            )
        starts = np.cumsum([0, *(task.num_outputs for task in self.tasks)]).tolist()
        self.num_tasks = len(self.tasks)
        self.num_outputs: int = starts[-1]
        self.columns = {
            name: slice(start, stop) for name, start, stop in zip(self.names, starts, starts[1:], strict=False)
        }
        self._batched = self._by_kind(starts)
        order = torch.cat([batched.tasks for batched in self._batched])
        self._inverse = torch.argsort(order)
        self._on_devices: dict[torch.device, tuple[list[_Batched], Tensor]] = {}

    def _by_kind(self, starts: list[int]) -> list[_Batched]:
        members: dict[tuple[str, int], list[int]] = {}
        for number, task in enumerate(self.tasks):
            members.setdefault((task.kind, task.num_outputs), []).append(number)
        return [
            _Batched(
                KINDS[kind],
                torch.tensor(numbers),
                torch.tensor([[starts[number] + k for k in range(width)] for number in numbers]),
            )
            for (kind, width), numbers in members.items()
        ]

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of every sample and task [B, T]; 0, with gradient 0, where unlabelled. outputs: [B, O]."""
        return self._masked("loss", outputs, labels)

    @torch.no_grad()
    def margins(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The margin of every sample and task [B, T] (Eq. 6), 0 where unlabelled; no gradient."""
        return self._masked("margin", outputs, labels)

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """The logits of every task by name: [B] if binary, [B, K] if categorical."""
        return {
            task.name: outputs[:, columns].squeeze(1) if task.kind == "binary" else outputs[:, columns]
            for task, columns in zip(self.tasks, self.columns.values(), strict=True)
        }

    def _masked(self, name: str, outputs: Tensor, labels: Tensor) -> Tensor:
        unlabelled = labels.isnan()
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # of bf16 too
        filled = labels.masked_fill(unlabelled, 0.0).to(outputs.dtype)
        if len(self._batched) == 1:  # all tasks are alike: no gathering
            by_task = outputs.view(len(outputs), self.num_tasks, self.num_outputs // self.num_tasks)
            values = getattr(self._batched[0].kind, name)(by_task, filled)
        else:
            batches, inverse = self._on(outputs.device)
            parts = [
                getattr(batched.kind, name)(outputs[:, batched.columns], filled[:, batched.tasks])
                for batched in batches
            ]
            values = torch.cat(parts, dim=1)[:, inverse]
        masked: Tensor = values.masked_fill(unlabelled, 0.0)
        return masked

    def _on(self, device: torch.device) -> tuple[list[_Batched], Tensor]:
        """The numbers of tasks and columns on a device, where they are copied once: every copy makes the host wait for a GPU."""
        if device not in self._on_devices:
            with torch.inference_mode(False):  # whoever comes first, others may need them in a backward pass
                batches = [
                    _Batched(batched.kind, batched.tasks.to(device), batched.columns.to(device))
                    for batched in self._batched
                ]
                self._on_devices[device] = batches, self._inverse.to(device)
        return self._on_devices[device]


def task_metrics(tasks: Sequence[Task], outputs: NDArray[Any], labels: NDArray[Any], top_k: int = 10) -> dict[str, Any]:
    """The metrics of one split, `{"tasks": {name: {...}}, "mean": {...}}`, in 0..1; None where undefined.

    Exclusive sets of tasks add `"exclusive": {set: {...}}`: accuracy, balanced accuracy, top-3 and top-5 of the arg-max
    over the set. A mean is over the tasks for which the metric is defined; top-3 and top-5, which a binary task has not,
    are over categorical tasks and sets. A task without a single label has no score, and does not compete in the top-k
    recall or in its set. Where all labels are of one class there is no balanced accuracy and no average precision.

    Args:
        tasks: in the order of the labels.
        outputs: logits [N, O].
        labels: [N, T], NaN where unlabelled.
        top_k: a positive sample of a binary task is recalled if the task is among its `top_k` highest scores; where no
            more than `top_k` tasks compete each always is, so there is no recall.
    """
    task_set = TaskSet(tasks)
    outputs, labels = np.asarray(outputs, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    recalls = _top_recalls(task_set, outputs, labels, top_k)
    rows: dict[str, Metrics] = {}
    for number, task in enumerate(task_set.tasks):
        labelled = ~np.isnan(labels[:, number])
        row = KINDS[task.kind].metrics(outputs[labelled, task_set.columns[task.name]], labels[labelled, number])
        rows[task.name] = row | ({f"top{top_k}_recall": recalls[task.name]} if task.kind == "binary" else {})
    return _with_means(rows, _exclusive_metrics(task_set, outputs, labels))


def merge_metrics(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of several data sets (each of `task_metrics`) as one.

    A task that one of them labels keeps its row; one that several label gets the mean, weighted by their labels.
    """
    rows, sets = (
        {
            name: _merged_row([part[key][name] for part in parts if name in part.get(key, {})])
            for name in dict.fromkeys(name for part in parts for name in part.get(key, {}))
        }
        for key in ("tasks", "exclusive")
    )
    return _with_means(rows, sets)


def _with_means(rows: dict[str, Metrics], sets: dict[str, Metrics]) -> dict[str, Any]:
    of_sets = [{name: row[name] for name in CHOICES} for row in sets.values()]
    metrics = {"tasks": rows, "mean": _means([*rows.values(), *of_sets])}
    return metrics | {"exclusive": sets} if sets else metrics


def _merged_row(rows: Sequence[Metrics]) -> Metrics:
    labelled = [row for row in rows if row["num_labelled"]]
    if len(labelled) < 2:
        return (labelled or rows)[0]
    merged: Metrics = {}
    for name in labelled[0]:
        known = [(row[name], row["num_labelled"]) for row in labelled if row.get(name) is not None]
        values, weights = np.array(known, dtype=np.float64).reshape(-1, 2).T
        if name.startswith("num_"):
            merged[name] = int(values.sum())
        else:
            merged[name] = float(np.average(values, weights=weights)) if known else None
    return merged


def _competitors(task_set: TaskSet, labels: NDArray[np.float64], among: Sequence[int]) -> tuple[list[int], list[int]]:
    """Those of the binary tasks `among` that have a label, and their columns of the outputs."""
    numbers = [number for number in among if not np.isnan(labels[:, number]).all()]
    return numbers, [task_set.columns[task_set.names[number]].start for number in numbers]


def _top_recalls(task_set: TaskSet, outputs: NDArray[np.float64], labels: NDArray[np.float64], top_k: int) -> Metrics:
    binary = [number for number, task in enumerate(task_set.tasks) if task.kind == "binary"]
    recalls: Metrics = {task_set.names[number]: None for number in binary}
    competing, columns = _competitors(task_set, labels, binary)
    if len(competing) <= top_k:
        return recalls
    scores = outputs[:, columns]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    among = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(among, order, True, axis=1)
    positive = labels[:, competing] >= 0.5  # NaN compares as False
    return recalls | {
        task_set.names[number]: float(among[positive[:, column], column].mean()) if positive[:, column].any() else None
        for column, number in enumerate(competing)
    }


def _exclusive_metrics(
    task_set: TaskSet, outputs: NDArray[np.float64], labels: NDArray[np.float64]
) -> dict[str, Metrics]:
    """Per exclusive set, over the samples labelled in the whole set and positive (at least 0.5) in one of its tasks."""
    sets: dict[str, list[int]] = {}
    for number, task in enumerate(task_set.tasks):
        if task.exclusive:
            sets.setdefault(task.exclusive, []).append(number)
    found: dict[str, Metrics] = {}
    for name, members in sets.items():
        competing, columns = _competitors(task_set, labels, members)
        truth = labels[:, competing]
        known = (~np.isnan(truth)).all(axis=1) & (truth >= 0.5).any(axis=1)
        truth = truth[known]
        found[name] = _choice_metrics(
            outputs[known][:, columns], truth.argmax(axis=1) if truth.size else np.zeros(0, np.int64)
        )
    return found


def _means(rows: list[Metrics]) -> Metrics:
    names = dict.fromkeys(name for row in rows for name in row if not name.startswith("num_"))
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {
        name: float(np.mean(np.asarray(column, dtype=np.float64))) if column else None
        for name, column in values.items()
    }


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, or if it is taken the first of `name (2)`, `name (3)`, ... that is not."""
    unused, number = name, 2
    while unused in taken:
        unused, number = f"{name} ({number})", number + 1
    return unused
