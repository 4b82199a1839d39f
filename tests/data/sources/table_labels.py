"""The labels that a table gives, without its images."""

from pathlib import Path
from typing import Any

from distbranch.data.sources import parse_options
from distbranch.data.sources.csv import CsvOptions, learn_table
from distbranch.tasks import Task

Labels = dict[str, list[object]]


def read_tasks(path: Path, **given: Any) -> tuple[Task, ...]:
    return learn_table(_parse_options(path, given))[0]


def read_labels(path: Path, **given: Any) -> Labels:
    tasks, rows, _ = learn_table(_parse_options(path, given))
    labels = [row.labels for row in rows]
    return {task.name: [one.get(task.name) for one in labels] for task in tasks}


def _parse_options(path: Path, given: dict[str, Any]) -> CsvOptions:
    options = parse_options({"source": "csv", "images": path.parent, "table": path, **given})
    assert isinstance(options, CsvOptions)
    return options
