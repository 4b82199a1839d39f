"""Tables of a few columns, written and learnt."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest
from table_labels import Labels, read_labels


@pytest.fixture
def learn(tmp_path: Path) -> Callable[..., Labels]:
    """The labels, by task, of the rows of a table with these columns."""

    def learn_columns(columns: dict[str, Sequence[str]], **options: Any) -> Labels:
        num_rows = len(next(iter(columns.values())))
        frame = pandas.DataFrame({"image": [f"{n}.jpg" for n in range(num_rows)], **columns})
        frame.to_csv(tmp_path / "t.csv", index=False)
        return read_labels(tmp_path / "t.csv", **options)

    return learn_columns
