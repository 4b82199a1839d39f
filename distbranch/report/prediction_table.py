"""Predictions as text, as a table of pandas, and as what a server answers: the same numbers under the same names."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distbranch.engine.answer_pictures import PredictionSummary
from distbranch.kinds import KINDS
from distbranch.tasks import Task, unused_name

# which a server has no use for
if TYPE_CHECKING:
    import pandas


def tabulate_predictions(
    tasks: Sequence[Task], predictions: Sequence[PredictionSummary]
) -> "pandas.DataFrame":
    """The table that `format_predictions` writes as CSV, with numbers as numbers."""
    import pandas

    text = format_predictions(tasks, predictions, as_json=False)
    # A file or a class may be called NA; only what is empty is unknown.
    return pandas.read_csv(
        io.StringIO(text), dtype={"image": str}, keep_default_na=False, na_values=[""]
    )


def describe_prediction(
    one: PredictionSummary, thresholds: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """One image as plain values, for JSON; `answers` says of tasks with a threshold whether the score reaches it (1 or 0)."""
    described: dict[str, Any] = {"image": str(one.image)}
    if one.pictures:
        described["pictures"] = one.pictures
    described["scores"] = one.scores
    answers = {}
    for name, chosen in (thresholds or {}).items():
        score = one.scores.get(name)
        if isinstance(score, float):
            answers[name] = int(score >= chosen["threshold"])
    if answers:
        described["answers"] = answers
    return described


def format_predictions(
    tasks: Sequence[Task], predictions: Sequence[PredictionSummary], *, as_json: bool
) -> str:
    """JSON, or CSV with a column per task or `task:class`."""
    if as_json:
        return json.dumps(list(map(describe_prediction, predictions)), indent=1) + "\n"
    rows = [_make_row(tasks, one) for one in predictions]
    # The writer of CSV has line ends of its own.
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _make_row(tasks: Sequence[Task], one: PredictionSummary) -> dict[str, str]:
    row = {"image": str(one.image)}
    if one.pictures:
        row["pictures"] = one.pictures
    for task in tasks:
        cells = KINDS[task.kind].write_answer(task, one.scores[task.name])
        # A name that is taken (a task may be called `image`) gets a number.
        for name, cell in cells.items():
            row[unused_name(name, row)] = cell
    return row
