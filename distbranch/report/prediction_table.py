"""Predictions as text, as a table of pandas, and as what a server answers: the same numbers under the same names."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distbranch.engine.answer_pictures import PredictionSummary
from distbranch.engine.predict import Predictor
from distbranch.kinds import KINDS
from distbranch.kinds.kind import LabelValue
from distbranch.tasks import Task, unused_name

# which a server has no use for
if TYPE_CHECKING:
    import pandas

Thresholds = (
    Mapping[str, float] | None
)  # by binary task, from which probability on the answer is yes; None: not chosen yet


def read_thresholds(network: Predictor) -> Thresholds:
    """Those that were chosen for a network, if any were."""
    if network.thresholds is None:
        return None
    return {name: one["threshold"] for name, one in network.thresholds.items()}


def tabulate_predictions(
    tasks: Sequence[Task],
    predictions: Sequence[PredictionSummary],
    thresholds: Thresholds = None,
) -> "pandas.DataFrame":
    """The table that `format_predictions` writes as CSV, with numbers as numbers."""
    import pandas

    text = format_predictions(tasks, predictions, thresholds, as_json=False)
    # A file or a class may be called NA; only what is empty is unknown.
    return pandas.read_csv(
        io.StringIO(text), dtype={"image": str}, keep_default_na=False, na_values=[""]
    )


def describe_prediction(
    tasks: Sequence[Task], one: PredictionSummary, thresholds: Thresholds = None
) -> dict[str, Any]:
    """One image as plain values, for JSON: its scores and, under "answers", what follows from them."""
    described: dict[str, Any] = {"image": str(one.image)}
    if one.pictures:
        described["pictures"] = one.pictures
    described["scores"] = one.scores
    decided = _decide_answers(tasks, one, thresholds)
    if decided:
        described["answers"] = decided
    return described


def format_predictions(
    tasks: Sequence[Task],
    predictions: Sequence[PredictionSummary],
    thresholds: Thresholds = None,
    *,
    as_json: bool,
) -> str:
    """JSON, or CSV with a column per task or `task:class`.

    Also what is answered, yes or no only with thresholds: under "answers", or where the scores do not say it themselves in the
    column `task`, or `task:answer` where that is taken.
    """
    if as_json:
        content = [describe_prediction(tasks, one, thresholds) for one in predictions]
        return json.dumps(content, indent=1) + "\n"
    rows = [_make_row(tasks, one, thresholds) for one in predictions]
    # The writer of CSV has line ends of its own.
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _decide_answers(
    tasks: Sequence[Task], one: PredictionSummary, thresholds: Thresholds
) -> dict[str, LabelValue]:
    """What is answered by task: a number, a class, or 1 or 0 once thresholds were chosen."""
    decided: dict[str, LabelValue] = {}
    for task in tasks:
        score = one.scores[task.name]
        threshold = (thresholds or {}).get(task.name)
        answer = KINDS[task.kind].decide_answer(task, score, threshold)
        if answer is not None:
            decided[task.name] = answer
    return decided


def _make_row(
    tasks: Sequence[Task], one: PredictionSummary, thresholds: Thresholds
) -> dict[str, str]:
    row = {"image": str(one.image)}
    if one.pictures:
        row["pictures"] = one.pictures
    decided = _decide_answers(tasks, one, thresholds)
    for task in tasks:
        cells = KINDS[task.kind].write_answer(task, one.scores[task.name])
        # A name that is taken (a task may be called `image`) gets a number.
        for name, cell in cells.items():
            row[unused_name(name, row)] = cell
        answer = decided.get(task.name)
        # A number is its own score.
        if answer is not None and not isinstance(answer, float):
            name = f"{task.name}:answer" if task.name in row else task.name
            row[unused_name(name, row)] = str(answer)
    return row
