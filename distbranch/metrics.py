"""Which means over tasks a split can have, as far as the counts of its labels tell; the metrics themselves are in `tasks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distbranch.tasks import CHOICES, Task, merge_metrics, task_metrics

__all__ = ["is_defined", "merge_metrics", "task_metrics"]

Counts = Mapping[str, int]
TOP_RECALL = "top10_recall"
COMPETITORS = 10  # where no more compete, each is always among the highest


def is_defined(metric: str, tasks: Sequence[Task], counts: Mapping[str, Counts]) -> bool:
    """Whether any task, or exclusive set, of a split has the metric.

    Args:
        metric: a mean over tasks, as in `task_metrics`.
        tasks: of the data.
        counts: how often every label of each task occurs in the split: {"Shoes": {"1": 5000, "0": 15000, "unlabelled": 7}}.
    """
    values = {task.name: _num_values(counts.get(task.name, {})) for task in tasks}
    labelled = [task for task in tasks if values[task.name]]
    if metric in CHOICES:
        sets = [task.exclusive for task in labelled if task.exclusive]
        return any(task.kind == "categorical" for task in labelled) or len(sets) > len(set(sets))
    if metric == TOP_RECALL:
        competing = [task.name for task in labelled if task.kind == "binary"]
        has_positive = any(counts[name].get("1") or counts[name].get("soft") for name in competing)
        return len(competing) > COMPETITORS and has_positive
    least = 1 if metric == "accuracy" else 2
    return any(values[task.name] >= least for task in labelled)


def _num_values(counts: Counts) -> int:
    """How many different labels occur; soft ones lie on either side of 0.5."""
    found = {name for name, count in counts.items() if count and name != "unlabelled"}
    return len(found) + ("soft" in found)
