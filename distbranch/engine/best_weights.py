"""The best evaluation on val: what it was, its weights (`train.keep: best`), and how many came after it (`train.patience`).

It is forgotten when the tree changes, so the weights are always those of the tree that the run ends with.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distbranch.config import TrainConfig
from distbranch.data.shards import DatasetInfo
from distbranch.errors import UserError
from distbranch.metrics import is_defined, list_means
from distbranch.registry import find_near

LOSS = "loss"


class BestWeights:
    """All ranks have one, and compare the same scores.

    Args:
        train: says what is judged by which metric.
        info: the packed data.
    """

    def __init__(self, train: TrainConfig, info: DatasetInfo) -> None:
        self.is_kept = train.keep == "best"
        self.patience = train.patience
        self.metric = choose_metric(train, info) if train.judges_evaluations else None
        self.clear()

    def clear(self) -> None:
        """Begin anew, with a tree that has no evaluation yet."""
        self.iteration = 0
        self.value: float | None = None
        self.num_worse = 0
        self.weights: dict[str, Tensor] = {}

    def compare(
        self,
        scores: Mapping[str, Any] | None,
        iteration: int,
        weights: Mapping[str, Tensor],
        *,
        counts: bool,
    ) -> None:
        """Take in an evaluation on val.

        Args:
            scores: see `evaluate.evaluate_split`.
            iteration: after which it was made.
            weights: that were evaluated, by name.
            counts: whether patience suffers where it is no better.
        """
        if self.metric is None or scores is None:
            return
        value = scores[LOSS] if self.metric == LOSS else scores["mean"].get(self.metric)
        if value is not None and self._is_better(value):
            self.iteration = iteration
            self.value = value
            self.num_worse = 0
            if self.is_kept:
                self.weights = {name: one.clone() for name, one in weights.items()}
        elif counts:
            self.num_worse += 1

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return True
        if self.metric == LOSS or list_means()[str(self.metric)].lower_is_better:
            return value < self.value
        return value > self.value

    @property
    def ends_training(self) -> bool:
        """Whether patience is exhausted."""
        return 0 < self.patience <= self.num_worse

    def describe(self) -> dict[str, Any]:
        """Metric, value and step of the best evaluation, and whether its weights are kept, for the result."""
        return {
            "metric": self.metric,
            "value": self.value,
            "iteration": self.iteration,
            "is_kept": self.is_kept,
        }

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights."""
        return {"iteration": self.iteration, "value": self.value, "num_worse": self.num_worse}

    def load(self, values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """The inverse of `to_json`, with the weights."""
        self.iteration = values["iteration"]
        self.value = values["value"]
        self.num_worse = values["num_worse"]
        self.weights = dict(weights)


def choose_metric(train: TrainConfig, info: DatasetInfo) -> str:
    """The metric that is given, else the first that the data define.

    Raises:
        UserError: there is no val, or the metric does not exist or is not defined by its labels.
    """
    if "val" not in info.splits:
        raise UserError(
            f"train.keep=best and train.patience judge evaluations on val, and {info.path} has no such split. Pack one, or leave them "
            "out."
        )
    labels = info.splits["val"].labels
    known = [name for name in list_means() if is_defined(name, info.tasks, labels)]
    known.append(LOSS)
    if train.keep_metric is None:
        return known[0]
    if train.keep_metric not in known:
        raise UserError(
            f"train.keep_metric should be a mean over tasks that val of {info.path} defines, found {train.keep_metric!r}. The nearest "
            f"are {', '.join(find_near(train.keep_metric, known))}."
        )
    return train.keep_metric
