"""How good predictions are: the metrics of every task, by its kind, those over several tasks, and means over tasks.

A metric is None where the labels do not define it. Titles and units stand with the kinds (`list_metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from distbranch.kinds import KINDS, Metric, Metrics
from distbranch.kinds.binary import count_classes
from distbranch.kinds.categorical import CHOICES, score_choice
from distbranch.kinds.kind import PER_CLASS, Array
from distbranch.kinds.label_counts import Counts
from distbranch.tasks import Task, locate_outputs

TOP_K = 10  # of the paper's recall
TOP_RECALL = f"top{TOP_K}_recall"
DELTA = "delta"  # the name of `compute_delta` in tables, where it is a share


def task_metrics(
    tasks: Sequence[Task],
    outputs: Array,
    labels: Array,
    top_k: int = TOP_K,
    *,
    scored: Mapping[str, Metrics] | None = None,
) -> dict[str, Any]:
    """The metrics of one split, `{"tasks": {name: {...}}, "mean": {...}}`; None where undefined.

    Exclusive sets of tasks add `"exclusive": {set: {...}}`: accuracy, balanced accuracy, top-3 and top-5 of the arg-max
    over the set. A mean is over the tasks for which the metric is defined; top-3 and top-5, which a binary task has not,
    are over categorical tasks and sets. A task without a single label has no score, and does not compete in the top-k
    recall or in its set. Where all labels are of one class there is no balanced accuracy and no average precision. Errors
    in the units of tables have no mean; `"units": {name: ...}` says what these are, where a task has one.

    Args:
        tasks: in the order of the labels.
        outputs: logits [N, O].
        labels: [N, T], NaN where unlabelled, numbers in the unit of their table.
        top_k: a positive sample of a binary task is recalled if the task is among its `top_k` highest scores; where no
            more than `top_k` tasks compete each always is, so there is no recall.
        scored: the metrics of tasks that were scored from sums, which then have no columns in `outputs` and `labels`.
    """
    rows: dict[str, Metrics] = {task.name: {} for task in tasks} | dict(scored or {})
    by_rows = [task for task in tasks if task.name not in (scored or {})]
    columns = locate_outputs(by_rows)
    outputs = np.asarray(outputs)
    labels = np.asarray(labels, dtype=np.float64)
    observed = ~np.isnan(labels)
    binary: list[int] = []
    exclusive: dict[str, list[int]] = {}
    for number, task in enumerate(by_rows):
        labelled = observed[:, number]
        logits = outputs[labelled, columns[task.name]].astype(np.float64)
        kind = KINDS[task.kind]
        rows[task.name] = kind.score(task, logits, labels[labelled, number])
        rows[task.name].setdefault("num_labelled", int(labelled.sum()))
        if kind.is_share:
            rows[task.name][f"top{top_k}_recall"] = None
        # Tasks without any label compete nowhere.
        if kind.is_share and labelled.any():
            binary.append(number)
        if task.exclusive:
            exclusive.setdefault(task.exclusive, [])
            if labelled.any():
                exclusive[task.exclusive].append(number)

    firsts = np.array([place.start for place in columns.values()], dtype=np.int64)
    recalls = _compute_top_recalls(outputs[:, firsts[binary]], labels[:, binary], top_k)
    for number, recall in zip(binary, recalls, strict=True):
        rows[by_rows[number].name][f"top{top_k}_recall"] = recall

    sets: dict[str, Metrics] = {}
    for name, members in exclusive.items():
        sets[name] = _score_exclusive_set(outputs[:, firsts[members]], labels[:, members])
    scores = _add_means(rows, sets)
    units = {task.name: KINDS[task.kind].get_unit(task) for task in tasks}
    return _add_units(scores, units)


def merge_metrics(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of several data sets (each of `task_metrics`) as one.

    A task that one of them labels keeps its row; one that several label gets the mean, weighted by their labels.
    """
    scores = _add_means(_merge_rows(parts, "tasks"), _merge_rows(parts, "exclusive"))
    units: dict[str, str] = {}
    for part in parts:
        units |= part.get("units", {})
    return _add_units(scores, units)


def list_metrics() -> dict[str, Metric]:
    """Every metric of any kind of task, and those over several tasks, in the order of tables."""
    found = dict(KINDS["binary"].metrics) | {TOP_RECALL: Metric(f"Top-{TOP_K} recall")}
    kinds = sorted(KINDS.values(), key=lambda kind: kind.is_dense)  # those of dense tasks last
    for name, metric in chain.from_iterable(kind.metrics.items() for kind in kinds):
        found.setdefault(name, metric)
    return found


def compute_delta(
    rows: Mapping[str, Metrics], baseline: Mapping[str, Metrics], *, first_only: bool = False
) -> float:
    """How much better tasks are than in networks of their own, in percent: the mean over tasks of that over a task's metrics.

    Delta = 100 / T sum_t 1 / M_t sum_m s_m (m - b) / b with s_m = -1 of an error and 1 of others. AdaShare and LibMTL take mIoU,
    pixel accuracy | absolute, relative error | mean, median, 11.25, 22.5, 30 degrees | error (`Metric.in_delta`); Vandenhende et
    al. the first metric of each task alone, which is mIoU, RMSE, mean angle, error (`Metric.is_first`).

    Example: `compute_delta({"depth": {"rmse": 0.5}}, {"depth": {"rmse": 1.0}}, first_only=True)` is 50.0.

    Args:
        rows: the metrics of every task, as `task_metrics` gives them under "tasks".
        baseline: those of single-task networks, of the same split; of more tasks, perhaps.
        first_only: the first metric of each task alone.

    Raises:
        ValueError: a task that has none of these metrics, or a baseline that lacks one of them or has 0 there.
    """
    metrics = list_metrics()
    known = [
        name
        for name, metric in metrics.items()
        if (metric.is_first if first_only else metric.in_delta)
    ]
    of_tasks = []
    for task, row in rows.items():
        gains = []
        for name in known:
            value = row.get(name)
            if value is None:
                continue
            before = baseline.get(task, {}).get(name)
            if not before:
                raise ValueError(
                    f"the baseline should have {name} of the task '{task}', and not as 0; found {before}"
                )
            sign = -1 if metrics[name].lower_is_better else 1
            gains.append(sign * (value - before) / before)
        if not gains:
            raise ValueError(
                f"every task should have one of the metrics {', '.join(known)}, found none of the task '{task}'"
            )
        of_tasks.append(float(np.mean(gains)))
    return 100 * float(np.mean(of_tasks))


def list_dense_metrics() -> dict[str, str]:
    """The kind of dense task that has the metric, by metric."""
    kinds = {name: kind for name, kind in KINDS.items() if kind.is_dense}
    return {metric: name for name, kind in kinds.items() for metric in kind.metrics}


def list_first_metrics() -> list[str]:
    """The metric by which dense tasks of each kind are compared first: mIoU, RMSE, mean angle, error."""
    return [name for name, metric in list_metrics().items() if metric.is_first]


def list_means() -> dict[str, Metric]:
    """The metrics of which a mean over tasks is told."""
    return {name: metric for name, metric in list_metrics().items() if metric.is_averaged}


def is_defined(metric: str, tasks: Sequence[Task], counts: Mapping[str, Counts]) -> bool:
    """Whether any task, or exclusive set, of a split has the metric, as far as the counts of its labels tell.

    Args:
        metric: a mean over tasks, as in `task_metrics`.
        tasks: of the data.
        counts: of the labels of each task in the split: {"Shoes": {"1": 5000, "0": 15000, "unlabelled": 7}}.
    """
    shares = {task: counts.get(task.name, {}) for task in tasks if KINDS[task.kind].is_share}
    labelled = {task: found for task, found in shares.items() if count_classes(found)}
    sets = [task.exclusive for task in labelled if task.exclusive]
    if metric in CHOICES and len(sets) > len(set(sets)):  # two tasks of one set
        return True
    if metric == TOP_RECALL:
        has_positive = any(found.get("1") or found.get("soft") for found in labelled.values())
        return len(labelled) > TOP_K and has_positive
    return any(KINDS[task.kind].is_defined(metric, counts.get(task.name, {})) for task in tasks)


# ---- several tasks


def _compute_top_recalls(scores: Array, labels: Array, top_k: int) -> list[float | None]:
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


def _score_exclusive_set(scores: Array, labels: Array) -> Metrics:
    """Over the samples labelled in the whole set and positive (at least 0.5) in one of its tasks; scores, labels: [N, n]."""
    is_labelled = ~np.isnan(labels).any(axis=1)
    is_positive = (labels >= 0.5).any(axis=1)
    known = is_labelled & is_positive
    choices = np.zeros(0, np.int64)  # argmax of no samples, or over no tasks, is an error
    if known.any():
        choices = labels[known].argmax(axis=1)
    return score_choice(scores[known], choices)


# ---- means


def _add_means(rows: dict[str, Metrics], sets: dict[str, Metrics]) -> dict[str, Any]:
    # Of a set only what its tasks do not have: its accuracy is told by theirs.
    of_sets = [{name: row[name] for name in CHOICES} for row in sets.values()]
    mean = _average_rows([*rows.values(), *of_sets])
    metrics: dict[str, Any] = {"tasks": rows, "mean": mean}
    if sets:
        metrics["exclusive"] = sets
    return metrics


def _add_units(scores: dict[str, Any], units: Mapping[str, str]) -> dict[str, Any]:
    known = {name: unit for name, unit in units.items() if unit}
    return scores | {"units": known} if known else scores


def _average_rows(rows: Sequence[Metrics]) -> Metrics:
    """The mean of every metric over the rows for which it is defined."""
    metrics = list_metrics()
    means: Metrics = {}
    for name in chain.from_iterable(rows):
        is_averaged = name not in metrics or metrics[name].is_averaged
        if name.startswith(("num_", PER_CLASS)) or name in means or not is_averaged:
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
