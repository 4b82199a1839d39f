"""What a kind of task is: all that differs between a yes or no, a class and a number stands in one subclass of `Kind`.

A kind of one's own needs a loss and scores; the rest is that of a task with one output whose label is a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distbranch.errors import UserError
from distbranch.kinds.digits import write_digits
from distbranch.kinds.label_counts import Counts, LabelCounts, NumberCounts, merge_number_counts
from distbranch.registry import Registry

if TYPE_CHECKING:
    from distbranch.tasks import Task

Array = NDArray[Any]
Metrics = dict[str, float | None]  # None where the labels do not define it
LabelValue = int | float | str  # as it stands in a packed sample
Summary = float | dict[str, float]  # as a table or a CSV tells an answer
Answer = Summary | Array  # what is predicted of one image; an array of a dense task
# Logits [B, n, K] and labels [B, n] without NaN: [B, n]; of a dense kind outputs [B, K, H, W] and targets [B, ...]: [B, H, W].
Loss = Callable[[Tensor, Tensor], Tensor]
PER_CLASS = (
    "iou:"  # begins the names of what a task has once per class, which no table of tasks shows
)


@dataclass(frozen=True)
class Metric:
    """How a score is told.

    title: its name at the head of a column.
    unit: "%" of a share in 0..1, "" of a plain number, UNIT_OF_TASK, or any other, which follows the title.
    lower_is_better: of an error.
    is_averaged: whether the mean over tasks says anything; of what is in the unit of each table it does not.
    is_drawn: whether TensorBoard has it for every task, beside the mean.
    in_delta: whether Delta compares it with that of single-task networks.
    is_first: whether `delta_first` does, which compares one metric per task.
    """

    title: str
    unit: str = "%"
    lower_is_better: bool = False
    is_averaged: bool = True
    is_drawn: bool = False
    in_delta: bool = False
    is_first: bool = False

    @property
    def in_words(self) -> str:
        """The title within a sentence; R2, RMSE and mIoU stay what they are."""
        return " ".join(map(_lower_word, self.title.split(" ")))


def _lower_word(word: str) -> str:
    is_name = any(map(str.isupper, word[1:])) or (word.isupper() and len(word) > 1)
    return word if is_name else word.lower()


UNIT_OF_TASK = "unit of the task"
MAX_LABEL = torch.finfo(torch.float32).max


class Kind:
    """All that the program knows of a kind of task; one object serves every task of it.

    `fields` names the fields of `Task`, beside name and kind, that it uses: others must be as they are by default. A task with
    `mean` and `deviation` has them subtracted and divided by before its labels reach loss and margin.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {}
    fields: ClassVar[tuple[str, ...]] = ()
    meaning: ClassVar[str] = "[batch]"
    """How an answer follows from the logits of an exported network."""
    is_share: ClassVar[bool] = False
    """Whether label and prediction are one share in 0..1: soft labels, and ranks among the tasks of a sample."""
    is_dense: ClassVar[bool] = False
    """Whether every pixel has a label (`DenseKind`)."""
    default_weight: ClassVar[float] = 1.0
    """What the loss of a task counts beside those of others, unless `loss.weights` says otherwise."""

    def check_task(self, task: Task) -> None:
        """UserError, one sentence, for fields that do not suit the kind."""
        for field in dataclasses.fields(task):
            value = getattr(task, field.name)
            if field.name not in ("name", "kind", *self.fields) and value != field.default:
                raise UserError(
                    f"A {task.kind} task has no field {field.name!r}, found {value!r} of the task {task.name!r}."
                )

    def count_outputs(self, task: Task) -> int:
        """Outputs of the network for a task."""
        return 1

    def describe_task(self, task: Task) -> str:
        """What distinguishes a task from others of its kind, for a list of them; empty if nothing does."""
        return ""

    def get_unit(self, task: Task) -> str:
        """The unit of errors that have that of the task (UNIT_OF_TASK)."""
        return task.unit

    # ---- training

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss [B, n] of n tasks with K outputs each. logits: [B, n, K]; labels: [B, n] without NaN."""
        raise NotImplementedError(f"{type(self).__name__} has no `compute_loss`.")

    def compute_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How wrong the network is, in 0..1 [B, n] (Eq. 6): unless a kind says otherwise 1 - exp(-loss), for a loss of 0 or more."""
        return -(-self.compute_loss(logits, labels)).expm1()

    # ---- evaluation

    def score(self, task: Task, logits: Array, labels: Array) -> Metrics:
        """The `metrics` of a task, and perhaps counts, which are called num_...

        logits: [N, K]; labels: [N], all known, as the data set has them; N may be 0.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `score` nor `score_sums`.")

    def count_sums(self, task: Task) -> int:
        """How many sums its metrics need; 0 if they need the samples themselves, as every ranking does."""
        return 0

    def sum_batch(self, task: Task, logits: Tensor, labels: Tensor) -> Tensor:
        """Sums [count_sums], float64, over a batch, to be added over batches and ranks. logits: [b, K]; labels: [b], all known."""
        raise NotImplementedError

    def score_sums(self, task: Task, sums: Array) -> Metrics:
        """As `score`, of the sums [count_sums] over all samples."""
        raise NotImplementedError

    def is_defined(self, metric: str, counts: Counts) -> bool:
        """Whether labels counted so (`make_counts`) give a task the metric, as far as counts tell."""
        return metric in self.metrics and counts.get("count", 0) > 0

    # ---- prediction

    def predict(self, task: Task, logits: Tensor) -> list[Answer]:
        """The answer for every image. logits: [B, K]."""
        answers: list[Answer] = (logits[:, 0].double() * task.deviation + task.mean).tolist()
        return answers

    def summarise_answer(self, task: Task, answer: Answer) -> Summary:
        """An answer as tables tell it: of a dense task a few numbers, of others the answer itself."""
        assert not isinstance(answer, np.ndarray)
        return answer

    def write_answer(self, task: Task, answer: Summary) -> dict[str, str]:
        """An answer as cells of a CSV, by column."""
        # Float32 has seven digits, to which a mean adds others: seconds since 1970 have ten.
        return {task.name: f"{answer:.10g}"}

    def decide_answer(
        self, task: Task, answer: Summary, threshold: float | None
    ) -> LabelValue | None:
        """What is answered: a number, a class, or 1 or 0 by the threshold; None without one, and for answers that are pictures."""
        return answer if isinstance(answer, float) else None

    def describe_answer(self, task: Task, answer: Summary, threshold: float) -> str:
        """An answer for people; empty if it is less probable than `threshold`."""
        assert isinstance(answer, float)
        return f"{task.name}={write_digits(answer, 4)} {task.unit}".rstrip()

    # ---- labels

    def read_label(self, task: Task, value: object) -> float:
        """A label as it stands in a packed sample, as a number. Raises UserError for what is none.

        For speed a loader does not ask about the numbers 0 and 1 of a task without classes: they are what they are.
        """
        # NaN is not smaller either.
        if not isinstance(value, int | float) or not abs(value) <= MAX_LABEL:
            raise UserError(
                f"the label of '{task.name}' should be a number, at most {MAX_LABEL:.1e}, found {value!r}."
            )
        return float(value)

    def write_label(self, task: Task, number: float) -> LabelValue:
        """The inverse of `read_label`: what a packed sample holds."""
        return number

    def describe_label(self, task: Task, number: float) -> str:
        """A label for people; empty if it says that something is not there."""
        return f"{task.name}: {write_digits(number, 6)} {task.unit}".rstrip()

    def make_counts(self, task: Task) -> LabelCounts:
        """An empty count of labels."""
        return NumberCounts()

    def list_class_counts(self, task: Task, counts: Counts) -> list[float]:
        """How often every class of a task occurs, in the order of its classes; of a dense task its pixels."""
        return [counts.get(name, 0) for name in task.classes]

    def merge_counts(self, parts: Sequence[Counts]) -> dict[str, int | float]:
        """Counts of several splits as one; each with `unlabelled`."""
        return merge_number_counts(parts)


KINDS: Registry[Kind] = Registry("kind of task")
