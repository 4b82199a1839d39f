"""What the labels of samples weigh, in numbers: `balanced` and `auto` are counted among the training labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distbranch.config.training import LossConfig
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.kinds.label_counts import Counts
from distbranch.registry import find_near
from distbranch.tasks import Task

MAX_WEIGHT = 100.0  # one sample should not outweigh the rest of a batch


def with_counted_weights(
    config: LossConfig, tasks: Sequence[Task], counts: Mapping[str, Counts]
) -> LossConfig:
    """The configuration with numbers in place of `balanced` and `auto`.

    Args:
        config: what is minimised.
        tasks: of the data set.
        counts: of the training labels of every task (`SplitInfo.labels`); of several data sets their sums.

    Raises:
        UserError: weights are given for a task that has no classes, or is not binary, or does not exist.

    Example:
        >>> counts = {"hat": {"1": 10, "0": 30, "unlabelled": 5}}
        >>> config = LossConfig(positive_weights="auto")
        >>> with_counted_weights(config, [Task("hat")], counts).positive_weights
        {'hat': 3.0}
    """
    with_classes = {task.name: task for task in tasks if task.classes}
    binary = [task.name for task in tasks if KINDS[task.kind].is_share]
    _refuse_others("class_weights", "tasks with classes", config.class_weights, [*with_classes])

    class_weights = dict(config.class_weights)
    for name, given in class_weights.items():
        if given == "balanced":
            task = with_classes[name]
            found = KINDS[task.kind].list_class_counts(task, counts.get(name, {}))
            class_weights[name] = balance_classes(found)

    positive_weights = config.positive_weights
    if positive_weights == "auto":
        positive_weights = dict.fromkeys(binary, "auto")
        if not binary:
            raise UserError(
                "loss.positive_weights is of binary tasks, of which the data have none: leave it out."
            )
    _refuse_others("positive_weights", "binary tasks", positive_weights, binary)
    numbers = {
        name: balance_positives(counts.get(name, {})) if given == "auto" else given
        for name, given in positive_weights.items()
    }
    return config.model_copy(update={"class_weights": class_weights, "positive_weights": numbers})


def balance_classes(counts: Sequence[float]) -> tuple[float, ...]:
    """The weight n / (K n_c) of every class c with n_c of n labels, K being how many classes occur; 1 of one that does not.

    Example:
        >>> balance_classes([30, 10, 0])
        (0.6666666666666666, 2.0, 1.0)
    """
    total = sum(counts)
    num_found = sum(count > 0 for count in counts)
    weights = [total / (num_found * count) if count else 1.0 for count in counts]
    return tuple(min(weight, MAX_WEIGHT) for weight in weights)


def balance_positives(counts: Counts) -> float:
    """How many labels 0 there are for one of 1; 1 where one of the two does not occur. Soft labels are not counted."""
    negatives, positives = counts.get("0", 0), counts.get("1", 0)
    if not (negatives and positives):
        return 1.0
    return min(negatives / positives, MAX_WEIGHT)


def _refuse_others(key: str, what: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    others = [name for name in given if name not in known]
    if others:
        near = ", ".join(find_near(others[0], known)[:8]) or "it has none"
        raise UserError(
            f"loss.{key} should name {what} of the data set ({near}), found {', '.join(map(repr, others))}."
        )
