"""The labels that a table gives, without its images."""

from pathlib import Path
from typing import Any

from distbranch.data.sources import parse_options
from distbranch.data.sources.csv import CsvOptions, learn_table
from distbranch.data.sources.tables import open_table

Labels = dict[str, list[object]]


def read_labels(path: Path, **given: Any) -> Labels:
    options = parse_options({"source": "csv", "images": path.parent, "table": path, **given})
    assert isinstance(options, CsvOptions)
    table = open_table(path, delimiter=options.delimiter, encoding=options.encoding, image_column=options.image_column)
    _, columns, _ = learn_table(options, table)
    rows = [cells for _, cells in table.rows()][1:]
    read = [
        {key: label for column in columns for key, label in column.read_labels(cells[column.at]).items()}
        for cells in rows
    ]
    return {task.name: [labels.get(task.name) for labels in read] for column in columns for task in column.tasks}
