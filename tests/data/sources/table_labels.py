"""The labels that a table gives, without its images."""

from pathlib import Path
from typing import Any

from distbranch.data.sources import parse_options
from distbranch.data.sources.csv import CsvOptions, label_rows, learn_table

Labels = dict[str, list[object]]


def read_labels(path: Path, **given: Any) -> Labels:
    options = parse_options({"source": "csv", "images": path.parent, "table": path, **given})
    assert isinstance(options, CsvOptions)
    learnt = learn_table(options)
    rows = [row.labels for row in label_rows(options, learnt)]
    return {task.name: [labels.get(task.name) for labels in rows] for column in learnt.columns for task in column.tasks}
