"""How many images each class has in each split; where there are many classes, the most frequent and the rarest."""

from collections import Counter
from collections.abc import Mapping

from rich.table import Table

from distbranch.data.class_checks import (
    SplitCounts,
    count_classes,
    count_label,
    list_single_tasks,
)
from distbranch.data.shards import DatasetInfo
from distbranch.report.tables import render_rich

MOST_CLASSES = 12  # of a task in full
MOST_TASKS = 40  # binary ones, likewise


def make_class_table(info: DatasetInfo) -> Table:
    """A row per class, per binary task and per number; of dense tasks tells `console.describe_maps`."""
    import pandas

    samples = {name: split.num_samples for name, split in info.splits.items()}
    rows = [["samples", "", *_write_counts(samples)]]
    classes_of_tasks = count_classes(info)
    for task, classes in classes_of_tasks.items():
        shown = _fold(classes, most=MOST_CLASSES)
        unlabelled = Counter(samples)
        for counts in classes.values():
            unlabelled.subtract(counts)
        if any(unlabelled.values()):
            shown["unlabelled"] = unlabelled
        for name, counts in shown.items():
            rows.append([task, name, *_write_counts(counts)])
            task = ""

    labelled = {}
    for one in info.tasks:
        missing = count_label(info, one, "unlabelled")
        labelled[one.name] = {name: samples[name] - missing[name] for name in samples}
    ones = {task.name: count_label(info, task, "1") for task in list_single_tasks(info)}
    for name, counts in _fold(ones, most=MOST_TASKS).items():
        cells = [
            f"{counts[split]:,} of {labelled[name][split]:,}" for split in samples if name in ones
        ]
        rows.append([name, "1 of labelled", *cells] if cells else [name, "", *[""] * len(samples)])
    for one in info.tasks:
        is_told = one.exclusive or one.is_dense or one.name in (*classes_of_tasks, *ones)
        if not is_told:
            rows.append([one.name, "labelled", *_write_counts(labelled[one.name])])
    cells = pandas.DataFrame(rows, columns=["task", "class", *samples])
    return render_rich(cells, "Images of each class", num_names=2)


def _fold(classes: Mapping[str, SplitCounts], *, most: int) -> dict[str, SplitCounts]:
    """All of them in their order; of too many the most frequent and the rarest, and those between as a sum."""
    if len(classes) <= most:
        return dict(classes)
    ranked = sorted(classes, key=lambda name: -sum(classes[name].values()))
    between: Counter[str] = Counter()
    for name in ranked[most // 2 : -most // 2]:
        between.update(classes[name])
    first = {name: classes[name] for name in ranked[: most // 2]}
    last = {name: classes[name] for name in ranked[-most // 2 :]}
    return first | {f"\u2026 {len(ranked) - most:,} more": between} | last


def _write_counts(counts: SplitCounts) -> list[str]:
    return [f"{count:,}" for count in counts.values()]
