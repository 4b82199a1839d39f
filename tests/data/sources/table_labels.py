"""The labels that a table gives, without its images."""

from pathlib import Path
from typing import Any

from distbranch.data.sources import parse_options
from distbranch.data.sources.csv import CsvOptions, learn_table

Labels = dict[str, list[object]]


def read_labels(path: Path, **given: Any) -> Labels:
    options = parse_options({"source": "csv", "images": path.parent, "table": path, **given})
    assert isinstance(options, CsvOptions)
    tasks, rows, _ = learn_table(options)
    labels = [row.labels for row in rows]
    return {task.name: [one.get(task.name) for one in labels] for task in tasks}
