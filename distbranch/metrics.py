"""How good predictions are: accuracy, balanced accuracy, average precision and top-k of every task, and their means over tasks.

Every metric is in 0..1, and None where the labels do not define it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbranch.tasks import Task, TaskSet

Metrics = dict[str, float | None]
Floats = NDArray[np.float64]
Counts = Mapping[str, int]
CHOICES = ("top3", "top5")  # the metrics of an exclusive set that none of its tasks has
TOP_K = 10
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
    recalls = _compute_top_recalls(task_set, outputs, labels, top_k)
    rows: dict[str, Metrics] = {}
    for number, task in enumerate(task_set.tasks):
        labelled = ~np.isnan(labels[:, number])
        logits = outputs[labelled, task_set.columns[task.name]]
        row = SCORES[task.kind](logits, labels[labelled, number])
        if task.kind == "binary":
            row[f"top{top_k}_recall"] = recalls[task.name]
        rows[task.name] = row
    return _add_means(rows, _score_exclusive_sets(task_set, outputs, labels))


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
    num_values = {task.name: _count_values(counts.get(task.name, {})) for task in tasks}
    labelled = [task for task in tasks if num_values[task.name]]
    if metric in CHOICES:
        sets = [task.exclusive for task in labelled if task.exclusive]
        return any(task.kind == "categorical" for task in labelled) or len(sets) > len(set(sets))
    if metric == TOP_RECALL:
        competing = [task.name for task in labelled if task.kind == "binary"]
        has_positive = any(counts[name].get("1") or counts[name].get("soft") for name in competing)
        return len(competing) > TOP_K and has_positive
    least = 1 if metric == "accuracy" else 2
    return any(num_values[task.name] >= least for task in labelled)


def _count_values(counts: Counts) -> int:
    """How many different labels occur; soft ones lie on either side of 0.5."""
    found = {name for name, count in counts.items() if count and name != "unlabelled"}
    return len(found) + ("soft" in found)


# ---- one task: its labelled samples, logits [N, K] and labels [N]


def _score_binary(logits: Floats, labels: Floats) -> Metrics:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score

    truth = labels >= 0.5
    predicted = logits[:, 0] >= 0
    positive = int(truth.sum())
    row: Metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "average_precision"))
    if truth.size:
        row["accuracy"] = float(np.mean(truth == predicted))
    if 0 < positive < truth.size:  # of one class alone there is nothing to tell apart, nor to rank
        row["balanced_accuracy"] = float(balanced_accuracy_score(truth, predicted))
        row["average_precision"] = float(average_precision_score(truth, logits[:, 0]))
    return row | {"num_labelled": truth.size, "num_positive": positive}


def _score_categorical(logits: Floats, labels: Floats) -> Metrics:
    from sklearn.metrics import average_precision_score

    truth = labels.astype(np.int64)
    powers: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))  # without the maximum, exp would overflow
    shares = powers / powers.sum(axis=1, keepdims=True)
    precisions = [average_precision_score(truth == index, shares[:, index]) for index in np.unique(truth)]
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
    recalls = [float(np.mean(rank[truth == index] == 0)) for index in np.unique(truth)]
    row["accuracy"] = float(np.mean(rank == 0))
    if len(recalls) > 1:
        row["balanced_accuracy"] = float(np.mean(recalls))
    row["top3"] = float(np.mean(rank < 3))
    row["top5"] = float(np.mean(rank < 5))
    return row


SCORES: dict[str, Callable[[Floats, Floats], Metrics]] = {"binary": _score_binary, "categorical": _score_categorical}


# ---- several tasks


def _find_competitors(task_set: TaskSet, labels: Floats, among: Sequence[int]) -> tuple[list[int], list[int]]:
    """Those of the binary tasks `among` that have a label, and their columns of the outputs."""
    unlabelled = np.flatnonzero(np.isnan(labels).all(axis=0)).tolist()
    numbers = [number for number in among if number not in unlabelled]
    return numbers, [task_set.columns[task_set.names[number]].start for number in numbers]


def _compute_top_recalls(task_set: TaskSet, outputs: Floats, labels: Floats, top_k: int) -> Metrics:
    binary = [number for number, task in enumerate(task_set.tasks) if task.kind == "binary"]
    recalls: Metrics = {task_set.names[number]: None for number in binary}
    competing, columns = _find_competitors(task_set, labels, binary)
    if len(competing) <= top_k:
        return recalls
    order = np.argsort(-outputs[:, columns], axis=1, kind="stable")[:, :top_k]
    for column, number in enumerate(competing):
        positive = labels[:, number] >= 0.5  # NaN compares as False
        if positive.any():
            among_highest = (order[positive] == column).any(axis=1)
            recalls[task_set.names[number]] = float(among_highest.mean())
    return recalls


def _score_exclusive_sets(task_set: TaskSet, outputs: Floats, labels: Floats) -> dict[str, Metrics]:
    """Per exclusive set, over the samples labelled in the whole set and positive (at least 0.5) in one of its tasks."""
    sets: dict[str, list[int]] = {}
    for number, task in enumerate(task_set.tasks):
        if task.exclusive:
            sets.setdefault(task.exclusive, []).append(number)
    found: dict[str, Metrics] = {}
    for name, members in sets.items():
        competing, columns = _find_competitors(task_set, labels, members)
        truth = labels[:, competing]
        known = (~np.isnan(truth)).all(axis=1) & (truth >= 0.5).any(axis=1)
        choices = np.zeros(0, np.int64)  # argmax of no samples, or over no tasks, is an error
        if known.any():
            choices = truth[known].argmax(axis=1)
        found[name] = _score_choice(outputs[known][:, columns], choices)
    return found


# ---- means


def _add_means(rows: dict[str, Metrics], sets: dict[str, Metrics]) -> dict[str, Any]:
    of_sets = [{name: row[name] for name in CHOICES} for row in sets.values()]
    metrics: dict[str, Any] = {"tasks": rows, "mean": _average([*rows.values(), *of_sets])}
    if sets:
        metrics["exclusive"] = sets
    return metrics


def _average(rows: Sequence[Mapping[str, float | None]]) -> Metrics:
    """The mean of every metric over the rows for which it is defined."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if not name.startswith("num_"):
                known = values.setdefault(name, [])
                known += [] if value is None else [value]
    return {name: float(np.mean(known)) if known else None for name, known in values.items()}


def _merge_rows(parts: Sequence[Mapping[str, Any]], key: str) -> dict[str, Metrics]:
    rows: dict[str, list[Metrics]] = {}
    for part in parts:
        for name, row in part.get(key, {}).items():
            rows.setdefault(name, []).append(row)
    return {name: _merge_row(several) for name, several in rows.items()}


def _merge_row(rows: Sequence[Metrics]) -> Metrics:
    labelled = [row for row in rows if row["num_labelled"]]
    if len(labelled) < 2:
        return (labelled or rows)[0]
    merged: Metrics = {}
    for name in labelled[0]:
        known = [(row[name], row["num_labelled"]) for row in labelled if row.get(name) is not None]
        values, weights = np.array(known, dtype=np.float64).reshape(-1, 2).T
        if name.startswith("num_"):
            merged[name] = int(values.sum())
            continue
        merged[name] = None
        if known:
            merged[name] = float(np.average(values, weights=weights))
    return merged
