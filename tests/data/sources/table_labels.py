"""The labels that a table gives, without its images."""

from pathlib import Path
from typing import Any

from distbranch.data.sources import parse_options
from distbranch.data.sources.csv import CsvOptions
from distbranch.data.sources.label_table import LearntTable, learn_table
from distbranch.data.sources.tables import Problems, read_table
from distbranch.tasks import Task

Labels = dict[str, list[object]]


def read_tasks(path: Path, **given: Any) -> tuple[Task, ...]:
    return learn_file(path, **given).tasks


def read_labels(path: Path, **given: Any) -> Labels:
    learnt = learn_file(path, **given)
    labels = [row.labels for row in learnt.rows]
    return {task.name: [one.get(task.name) for one in labels] for task in learnt.tasks}


def learn_file(path: Path, **given: Any) -> LearntTable:
    options = parse_options({"source": "csv", "images": path.parent, "table": path, **given})
    assert isinstance(options, CsvOptions)
    problems = Problems(path)
    return learn_table(options, read_table(options, problems), problems)
