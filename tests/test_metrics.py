"""Which means a split can have is told by its counts of labels as by its labels."""

import numpy as np
import pytest

from distbranch.config.sweep import SHARES
from distbranch.kinds import KINDS
from distbranch.metrics import CHOICES, TOP_RECALL, is_defined, list_means, task_metrics
from distbranch.tasks import Task

NAN = float("nan")


def counted(tasks: list[Task], labels: np.ndarray) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for task, column in zip(tasks, labels.T, strict=True):
        kind = KINDS[task.kind]
        counts = kind.make_counts(task)
        for value in column[~np.isnan(column)]:
            counts.add(kind.write_label(task, value))
        found[task.name] = counts.to_json() | {"unlabelled": int(np.isnan(column).sum())}
    return found


def test_the_metrics_that_are_computed_compared_and_shown_are_the_same_in_the_same_order() -> None:
    tasks = [Task("hat"), Task("colour", "categorical", ("red", "green", "blue"))]
    mean = task_metrics(tasks, np.zeros((2, 4)), np.zeros((2, 2)))["mean"]
    assert set(mean) == set(SHARES)
    assert SHARES[3:] == (TOP_RECALL, *CHOICES)
    assert tuple(list_means())[: len(SHARES)] == SHARES


@pytest.mark.parametrize("seed", range(60))
def test_a_mean_is_defined_by_the_counts_where_it_is_defined_by_the_labels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    tasks = [Task(f"t{number}") for number in range(int(draw.integers(1, 13)))]
    tasks += [Task(f"k{number}", exclusive="kind") for number in range(int(draw.integers(0, 3)))]
    tasks += [Task("colour", "categorical", ("red", "green", "blue"))] * int(draw.integers(0, 2))
    labels = draw.choice([0.0, 1.0, NAN], size=(4, len(tasks)), p=draw.dirichlet([1, 1, 1]))
    labels[:, draw.random(len(tasks)) < draw.random()] = NAN
    outputs = draw.standard_normal((4, sum(task.num_outputs for task in tasks)))
    mean = task_metrics(tasks, outputs, labels)["mean"]
    counts = counted(tasks, labels)
    known = [metric for metric in SHARES[:4] if mean.get(metric) is not None]
    assert [metric for metric in SHARES[:4] if is_defined(metric, tasks, counts)] == known
    for metric in SHARES[
        4:
    ]:  # of a set no sample may be labelled in the whole set: counts alone do not say
        assert is_defined(metric, tasks, counts) or mean.get(metric) is None


def test_soft_labels_are_taken_to_lie_on_either_side() -> None:
    assert is_defined("average_precision", [Task("a")], {"a": {"soft": 9}})
    assert not is_defined(
        "average_precision", [Task("a")], {"a": {"1": 9, "0": 0, "unlabelled": 3}}
    )
