"""How many images each class has in each split, and which have too few in test: of nine images one is eleven per cent."""

from collections.abc import Iterator, Mapping

from distbranch.data.shards import DatasetInfo
from distbranch.tasks import Task

FEW = 10  # images
NUM_SHOWN = 10

SplitCounts = Mapping[str, int]  # by split


def count_classes(info: DatasetInfo) -> dict[str, dict[str, SplitCounts]]:
    """The images of each class, by task; exclusive binary tasks are the classes of their set.

    Without numbers, dense tasks and those binary ones that are in no set.
    """
    counted: dict[str, dict[str, SplitCounts]] = {}
    for task in info.tasks:
        if task.exclusive:
            counted.setdefault(task.exclusive, {})[task.name] = count_label(info, task, "1")
        elif task.classes and not task.is_dense:
            counted[task.name] = {name: count_label(info, task, name) for name in task.classes}
    return counted


def count_label(info: DatasetInfo, task: Task, label: str) -> SplitCounts:
    """The images of a task that have this label, as `dataset.json` names it."""
    return {name: int(split.labels[task.name].get(label, 0)) for name, split in info.splits.items()}


def list_single_tasks(info: DatasetInfo) -> list[Task]:
    """The binary tasks that are in no exclusive set."""
    return [task for task in info.tasks if task.kind == "binary" and not task.exclusive]


def describe_rare_classes(info: DatasetInfo) -> Iterator[str]:
    """A sentence per task that has classes of few images in test, and one for all binary tasks."""
    if "test" not in info.splits:
        return
    for task, classes in count_classes(info).items():
        few = {name: counts["test"] for name, counts in classes.items() if counts["test"] < FEW}
        if few:
            yield (
                f"Task '{task}': {len(few)} of its {len(classes)} classes have fewer than {FEW} images in test, so their scores are "
                f"mostly chance: {_list_rarest(few)}."
            )
    rare = {}
    for single in list_single_tasks(info):
        for label in ("1", "0"):
            count = count_label(info, single, label)["test"]
            if count < FEW:
                rare[f"{single.name}={label}"] = count
    if rare:
        yield (
            f"{len(rare)} label(s) of binary tasks are those of fewer than {FEW} images in test, so their scores are mostly chance: "
            f"{_list_rarest(rare)}."
        )


def _list_rarest(few: SplitCounts) -> str:
    ranked = sorted(few.items(), key=lambda item: item[1])
    shown = ", ".join(f"{name} ({count})" for name, count in ranked[:NUM_SHOWN])
    return shown if len(ranked) <= NUM_SHOWN else f"{shown} and {len(ranked) - NUM_SHOWN} more"
