"""How good predictions are: accuracy, balanced accuracy, average precision and top-k of every task, and their means over tasks.

Every metric is in 0..1, and None where the labels do not define it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbranch.tasks import Task, TaskSet

Metrics = dict[str, float | None]
Floats = NDArray[np.float64]
Counts = Mapping[str, int]
CHOICES = ("top3", "top5")  # the metrics of an exclusive set that none of its tasks has
TOP_K = 10  # of the paper's recall
TOP_RECALL = f"top{TOP_K}_recall"


def task_metrics(
    tasks: Sequence[Task], outputs: NDArray[Any], labels: NDArray[Any], top_k: int = TOP_K
) -> dict[str, Any]:
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
    outputs = np.asarray(outputs, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64)
    observed = ~np.isnan(labels)
    rows: dict[str, Metrics] = {}
    binary: list[int] = []
    exclusive: dict[str, list[int]] = {}
    for number, task in enumerate(task_set.tasks):
        labelled = observed[:, number]
        logits = outputs[labelled, task_set.columns[task.name]]
        rows[task.name] = SCORES[task.kind](logits, labels[labelled, number])
        if task.kind == "binary":
            rows[task.name][f"top{top_k}_recall"] = None
        # Tasks without any label compete nowhere.
        if task.kind == "binary" and labelled.any():
            binary.append(number)
        if task.exclusive:
            exclusive.setdefault(task.exclusive, [])
            if labelled.any():
                exclusive[task.exclusive].append(number)

    scores = _pick_scores(task_set, outputs, binary)
    for number, recall in zip(
        binary, _compute_top_recalls(scores, labels[:, binary], top_k), strict=True
    ):
        rows[task_set.names[number]][f"top{top_k}_recall"] = recall

    sets: dict[str, Metrics] = {}
    for name, members in exclusive.items():
        scores = _pick_scores(task_set, outputs, members)
        sets[name] = _score_exclusive_set(scores, labels[:, members])
    return _add_means(rows, sets)


def merge_metrics(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of several data sets (each of `task_metrics`) as one.

    A task that one of them labels keeps its row; one that several label gets the mean, weighted by their labels.
    """
    return _add_means(_merge_rows(parts, "tasks"), _merge_rows(parts, "exclusive"))


def is_defined(metric: str, tasks: Sequence[Task], counts: Mapping[str, Counts]) -> bool:
    """Whether any task, or exclusive set, of a split has the metric, as far as the counts of its labels tell.

    Args:
        metric: a mean over tasks, as in `task_metrics`.
        tasks: of the data.
        counts: how often every label of each task occurs in the split: {"Shoes": {"1": 5000, "0": 15000, "unlabelled": 7}}.
    """
    labelled = [task for task in tasks if _count_values(counts.get(task.name, {}))]
    if metric in CHOICES:
        sets = [task.exclusive for task in labelled if task.exclusive]
        has_choice = len(sets) > len(set(sets))  # two tasks of one set
        return has_choice or any(task.kind == "categorical" for task in labelled)

    if metric == TOP_RECALL:
        competing = [counts[task.name] for task in labelled if task.kind == "binary"]
        has_positive = any(found.get("1") or found.get("soft") for found in competing)
        return len(competing) > TOP_K and has_positive

    # The others tell two classes apart.
    least = 1 if metric == "accuracy" else 2
    return any(_count_values(counts[task.name]) >= least for task in labelled)


def _count_values(counts: Counts) -> int:
    """How many different labels occur; soft ones lie on either side of 0.5."""
    found = [name for name, count in counts.items() if count and name != "unlabelled"]
    return len(found) + found.count("soft")


# ---- one task: its labelled samples, logits [N, K] and labels [N]


def _score_binary(logits: Floats, labels: Floats) -> Metrics:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score

    scores = logits[:, 0]
    truth = labels >= 0.5
    predicted = scores >= 0
    num_positive = int(truth.sum())
    row: Metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "average_precision"))
    if truth.size:
        row["accuracy"] = float(np.mean(truth == predicted))
    if (
        0 < num_positive < truth.size
    ):  # of one class alone there is nothing to tell apart, nor to rank
        row["balanced_accuracy"] = float(balanced_accuracy_score(truth, predicted))
        row["average_precision"] = float(average_precision_score(truth, scores))
    row["num_labelled"] = truth.size
    row["num_positive"] = num_positive
    return row


def _score_categorical(logits: Floats, labels: Floats) -> Metrics:
    from scipy.special import softmax
    from sklearn.metrics import average_precision_score

    truth = labels.astype(np.int64)
    shares = softmax(logits, axis=1)
    # One class against the others; a class that never occurs has no precision.
    precisions = [
        average_precision_score(truth == index, shares[:, index]) for index in np.unique(truth)
    ]
    row: Metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "average_precision"))
    row |= _score_choice(logits, truth)
    if len(precisions) > 1:
        row["average_precision"] = float(np.mean(precisions))
    return row


def _score_choice(scores: Floats, truth: NDArray[np.int64]) -> Metrics:
    """How well the highest of the scores [N, K] finds the true class [N]; the first one wins a tie.

    Nothing is found where there are no samples, or one class alone competes; nothing is balanced where one class alone is true.
    """
    row: Metrics = dict.fromkeys(("accuracy", "balanced_accuracy", *CHOICES))
    row["num_labelled"] = truth.size
    if not truth.size or scores.shape[1] < 2:
        return row
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.argmax(order == truth[:, None], axis=1)
    is_first = rank == 0
    recalls = [is_first[truth == index].mean() for index in np.unique(truth)]
    row["accuracy"] = float(is_first.mean())
    if len(recalls) > 1:
        row["balanced_accuracy"] = float(np.mean(recalls))
    row["top3"] = float(np.mean(rank < 3))
    row["top5"] = float(np.mean(rank < 5))
    return row


SCORES: dict[str, Callable[[Floats, Floats], Metrics]] = {
    "binary": _score_binary,
    "categorical": _score_categorical,
}


# ---- several tasks


def _pick_scores(task_set: TaskSet, outputs: Floats, numbers: Sequence[int]) -> Floats:
    """The outputs [N, n] of these binary tasks."""
    names = [task_set.names[number] for number in numbers]
    picked: Floats = outputs[:, [task_set.columns[name].start for name in names]]
    return picked


def _compute_top_recalls(scores: Floats, labels: Floats, top_k: int) -> list[float | None]:
    """Of every competing task the share of its positive samples in which it is among the highest; scores, labels: [N, n]."""
    recalls: list[float | None] = [None] * scores.shape[1]
    if len(recalls) <= top_k:
        return recalls
    highest = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    for column in range(len(recalls)):
        positive = labels[:, column] >= 0.5  # NaN compares as False
        if positive.any():
            recalls[column] = float((highest[positive] == column).any(axis=1).mean())
    return recalls


def _score_exclusive_set(scores: Floats, labels: Floats) -> Metrics:
    """Over the samples labelled in the whole set and positive (at least 0.5) in one of its tasks; scores, labels: [N, n]."""
    is_labelled = ~np.isnan(labels).any(axis=1)
    is_positive = (labels >= 0.5).any(axis=1)
    known = is_labelled & is_positive
    choices = np.zeros(0, np.int64)  # argmax of no samples, or over no tasks, is an error
    if known.any():
        choices = labels[known].argmax(axis=1)
    return _score_choice(scores[known], choices)


# ---- means


def _add_means(rows: dict[str, Metrics], sets: dict[str, Metrics]) -> dict[str, Any]:
    # Of a set only what its tasks do not have: its accuracy is told by theirs.
    of_sets = [{name: row[name] for name in CHOICES} for row in sets.values()]
    mean = _average_rows([*rows.values(), *of_sets])
    metrics: dict[str, Any] = {"tasks": rows, "mean": mean}
    if sets:
        metrics["exclusive"] = sets
    return metrics


def _average_rows(rows: Sequence[Metrics]) -> Metrics:
    """The mean of every metric over the rows for which it is defined."""
    means: Metrics = {}
    for name in chain.from_iterable(rows):
        if name.startswith("num_") or name in means:
            continue
        values = [row.get(name) for row in rows]
        known = [value for value in values if value is not None]
        means[name] = float(np.mean(known)) if known else None
    return means


def _merge_rows(parts: Sequence[Mapping[str, Any]], key: str) -> dict[str, Metrics]:
    rows: dict[str, list[Metrics]] = {}
    for part in parts:
        for name, row in part.get(key, {}).items():
            rows.setdefault(name, []).append(row)
    return {name: _merge_row(several) for name, several in rows.items()}


def _merge_row(rows: list[Metrics]) -> Metrics:
    labelled = [row for row in rows if row["num_labelled"]]
    if len(labelled) < 2:
        return (labelled or rows)[0]
    merged: Metrics = {}
    for name in labelled[0]:
        known = [row for row in labelled if row.get(name) is not None]
        values = np.array([row[name] for row in known], dtype=np.float64)
        weights = np.array([row["num_labelled"] for row in known], dtype=np.float64)
        merged[name] = None
        if name.startswith("num_"):
            merged[name] = int(values.sum())
        elif known:
            merged[name] = float(np.average(values, weights=weights))
    return merged
