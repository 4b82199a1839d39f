"""Tables of a few columns, written and learnt."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest
from table_labels import Labels, read_labels, read_tasks

from distbranch.tasks import Task

Columns = dict[str, Sequence[str]]


@pytest.fixture
def learn(tmp_path: Path) -> Callable[..., Labels]:
    """The labels, by task, of the rows of a table with these columns."""

    def learn_columns(columns: Columns, **options: Any) -> Labels:
        return read_labels(_write_table(tmp_path, columns), **options)

    return learn_columns


@pytest.fixture
def learn_tasks(tmp_path: Path) -> Callable[..., tuple[Task, ...]]:
    """The tasks of a table with these columns."""

    def learn_columns(columns: Columns, **options: Any) -> tuple[Task, ...]:
        return read_tasks(_write_table(tmp_path, columns), **options)

    return learn_columns


def _write_table(folder: Path, columns: Columns) -> Path:
    num_rows = len(next(iter(columns.values())))
    frame = pandas.DataFrame({"image": [f"{n}.jpg" for n in range(num_rows)], **columns})
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"
