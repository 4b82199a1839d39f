"""What `evaluate --out` found, as the section "Answers" shows it: a table, curves, confusion matrices, and sheets of photographs."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distbranch.engine.run_directory import RunDirectory
from distbranch.permissions import explain_damage
from distbranch.report.console import UNDEFINED, format_amount, format_number, format_percent
from distbranch.report.figure_style import (
    BLUE,
    EXECUTES,
    GRID,
    INK,
    MUTED,
    ORANGE,
    choose_text_colour,
    hide_frame,
    in_style,
    make_figure,
)
from distbranch.report.layers import format_name

Json = Mapping[str, Any]
Draw = Callable[[], Figure]

COLUMNS = 4  # so that a narrow page shows all of them
PANEL = 1.85  # inches
MOST_PANELS = 60
MOST_CLASSES = 60  # with names
MOST_NUMBERS = 20  # classes of a matrix that has room for counts
# Columns of the table: the heads, and whether an interval follows.
SHARES = {
    "base_rate": ("base rate %", False),
    "accuracy": ("accuracy %", True),
    "average_precision": ("average precision %", True),
    "precision": ("precision %", False),
    "recall": ("recall %", False),
    "f1": ("F1 %", True),
    "calibration_error": ("calibration error %", False),
}
LEVEL = "95 % interval"
SHEET = Markup('<div class="figure"><img alt="{}" src="data:image/jpeg;base64,{}"></div>')


@dataclass(frozen=True)
class AnswerSheets:
    """Sheets of one sort, folded away if there may be many: a heading, a note, {title: picture}."""

    heading: str
    note: str
    pictures: dict[str, Markup]
    is_folded: bool = False


def read_answers(run_directory: Path) -> Json | None:
    """The content of answers/answers.json; None if the run was not evaluated so. UserError if it is damaged."""
    file = RunDirectory(run_directory).answers / "answers.json"
    if not file.exists():
        return None
    advice = "Write it anew with `distbranch evaluate RUN --out predictions.parquet`."
    with explain_damage(f"{file} is damaged", advice):
        answers: Json = json.loads(file.read_text())
        _ = answers["tasks"], answers["sheets"], answers["split"]
    return answers


def tabulate_answers(tasks: Json, *, in_brief: bool = False) -> pandas.DataFrame:
    """A row per task, texts; a column only if a task has something for it. In brief it fits into a terminal."""
    rows = list(tasks.values())
    cells: dict[str, list[str]] = {"task": list(map(format_name, tasks))}
    if any(row.get("threshold") is not None for row in rows):
        cells["threshold"] = [format_number(row.get("threshold")) for row in rows]
    for key, (head, has_interval) in SHARES.items():
        if in_brief and key == "calibration_error":
            continue
        if any(row.get(key) is not None for row in rows):
            cells[head] = [format_percent(row.get(key)) for row in rows]
            if has_interval and not in_brief:
                cells[f"{head.removesuffix(' %')}, {LEVEL}"] = [
                    _format_interval(row, key) for row in rows
                ]
    if any("mean_absolute_error" in row for row in rows):
        cells["mean absolute error"] = [
            format_number(row.get("mean_absolute_error"), unit=row.get("unit", "")) for row in rows
        ]
        if not in_brief:
            cells[f"error, {LEVEL}"] = [
                _format_interval(row, "mean_absolute_error") for row in rows
            ]
    if not in_brief:
        cells["labelled"] = [format_amount(row["num_labelled"]) for row in rows]
    return pandas.DataFrame(cells, dtype=object)


def list_answer_tables(tasks: Json) -> list[pandas.DataFrame]:
    """Numbers in a table of their own, as in the section of all tasks: together they are wider than a page."""
    numbers = {name for name, row in tasks.items() if "mean_absolute_error" in row}
    parts = [
        {name: row for name, row in tasks.items() if (name in numbers) == wanted}
        for wanted in (False, True)
    ]
    return [tabulate_answers(part) for part in parts if part]


def _format_interval(row: Json, key: str) -> str:
    interval = row.get("intervals", {}).get(key)
    if interval is None:
        return UNDEFINED
    show = format_number if key == "mean_absolute_error" else format_percent
    return " \u2013 ".join(map(show, interval))


def list_answer_pictures(answers: Json) -> dict[str, tuple[str, str, Draw]]:
    """Heading, note and figure by the name of its file."""
    tasks = answers["tasks"]
    split = answers["split"]
    found: dict[str, tuple[str, str, Draw]] = {}
    curves = _select_tasks(tasks, "curve", "average_precision", lower_first=True)
    if curves:
        note = f"On {split}{_describe_choice(curves, tasks, 'curve')}. Orange: the threshold; dotted: the share of yes."
        found["answers-curves"] = (
            "Precision and recall",
            note,
            partial(draw_precision_recall, curves),
        )
    reliable = _select_tasks(tasks, "reliability", "calibration_error", lower_first=False)
    if reliable:
        note = (
            f"How often answers of a probability are right on {split}{_describe_choice(reliable, tasks, 'reliability')}. On the line "
            "probabilities are what they say; the larger a point, the more images. Numbers: the expected calibration error in %."
        )
        found["answers-calibration"] = ("Calibration", note, partial(draw_calibration, reliable))
    for number, (name, row) in enumerate(tasks.items()):
        if "confusion" in row:
            note = f"Rows: labels of {split}, columns: answers; the darker, the larger the share of the row."
            heading = f"{format_name(name)}: which class is taken for which"
            found[f"answers-confusion-{number}"] = (
                heading,
                note,
                partial(draw_confusion, row["confusion"], row["classes"]),
            )
    return found


def _select_tasks(tasks: Json, needed: str, order: str, *, lower_first: bool) -> dict[str, Json]:
    """Those that have something to draw: all in their order, or of many the worst."""
    having = {name: row for name, row in tasks.items() if needed in row}
    if len(having) <= MOST_PANELS:
        return having
    worst = sorted(having, key=lambda name: having[name][order], reverse=not lower_first)
    return {name: having[name] for name in worst[:MOST_PANELS]}


def _describe_choice(shown: Json, tasks: Json, needed: str) -> str:
    num_all = sum(needed in row for row in tasks.values())
    return f", the {len(shown)} worst of {num_all} tasks" if len(shown) < num_all else ""


@in_style
def draw_precision_recall(tasks: Json) -> Figure:
    """A panel per binary task: precision over recall, its threshold, and the share of yes."""
    figure, panels = _make_panels(len(tasks))
    for axes, (name, row) in zip(panels, tasks.items(), strict=True):
        recall, precision = np.array(row["curve"]).T
        axes.plot(recall, precision, color=BLUE, linewidth=1.4, drawstyle="steps-post")
        axes.axhline(row["share_of_yes"], color=MUTED, linewidth=0.9, linestyle=":")
        if "f1" in row and "precision" in row:
            axes.plot(row["recall"], row["precision"], "o", color=ORANGE, markersize=4.5, zorder=3)
        _title_panel(axes, name, row.get("average_precision"))
    _label_panels(figure, "recall", "precision")
    return figure


@in_style
def draw_calibration(tasks: Json) -> Figure:
    """A panel per task: how often answers of a confidence are right."""
    figure, panels = _make_panels(len(tasks))
    for axes, (name, row) in zip(panels, tasks.items(), strict=True):
        confidence, share, count = np.array(row["reliability"]).T
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=":")
        axes.plot(confidence, share, color=BLUE, linewidth=1.0, alpha=0.6)
        axes.scatter(
            confidence, share, 8 + 50 * count / count.sum(), color=BLUE, linewidths=0, zorder=3
        )
        _title_panel(axes, name, row["calibration_error"])
    _label_panels(figure, "probability", "share that is right")
    return figure


def _make_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Square panels from 0 to 1, only as many as are filled."""
    columns = min(COLUMNS, count)
    num_rows = math.ceil(count / columns)
    figure = make_figure(max(columns, 2) * PANEL + 0.3, num_rows * (PANEL + 0.05) + 0.3)
    panels = [figure.add_subplot(num_rows, columns, number + 1) for number in range(count)]
    for number, axes in enumerate(panels):
        axes.set(
            xlim=(-0.03, 1.03),
            ylim=(-0.03, 1.06),
            xticks=[0, 0.5, 1],
            yticks=[0, 0.5, 1],
            aspect="equal",
        )
        axes.set_xticklabels(["0", "", "1"] if number + columns >= count else [])
        axes.set_yticklabels(["0", "", "1"] if number % columns == 0 else [])
        axes.grid()
        axes.spines[:].set(visible=True, color=GRID)
    return figure, panels


def _title_panel(axes: Axes, name: str, value: float | None) -> None:
    text = format_name(name)
    short = text if len(text) <= 16 else f"{text[:15]}…"
    axes.set_title(short, fontsize=8)
    axes.set_title(format_percent(value), fontsize=8, fontweight="normal", loc="right", color=MUTED)


def _label_panels(figure: Figure, below: str, beside: str) -> None:
    figure.supxlabel(below, color=MUTED, fontsize=8.5)
    figure.supylabel(beside, color=MUTED, fontsize=8.5)


@in_style
def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Counts [classes, classes], coloured by their share of the row."""
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.36 * len(classes), 2.2, 9.0))
    figure = make_figure(side + 1.6, side + 1.2)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=EXECUTES, vmin=0, vmax=1)
    ticks = range(len(classes)) if len(classes) <= MOST_CLASSES else []
    font = min(8.5, 55 * side / len(classes))
    names = [format_name(classes[tick]) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=font)
    axes.set_yticks(ticks, names, fontsize=font)
    axes.xaxis.tick_top()
    hide_frame(axes)
    axes.spines[:].set(visible=True, color=GRID)
    if len(classes) <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = choose_text_colour(EXECUTES(shares[row, column])[:3])
                axes.text(
                    column,
                    row,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color=INK if colour != "#ffffff" else colour,
                )
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    return figure


def list_sheets(run_directory: Path, answers: Json) -> list[AnswerSheets]:
    """The sheets that were drawn, by their sort."""
    texts = {
        "hardest-": (
            "What a group finds difficult",
            "The images with the largest sum of margins over the tasks of one group of the tree: tasks that find the same images "
            "difficult are together. Below each image the answers that differ from its labels.",
        ),
        "suspects": (
            "Suspected wrong labels",
            "Where the answer differs from the label by far more than is usual for that label; all of them stand in suspects.csv.",
        ),
        "errors-": ("Worst errors of every task", "The largest margins first."),
    }
    found = []
    for prefix, (heading, note) in texts.items():
        pictures = {}
        for file, title in answers["sheets"].items():
            path = RunDirectory(run_directory).answers / file
            if file.startswith(prefix) and path.exists():
                content = base64.b64encode(path.read_bytes()).decode()
                pictures[title] = SHEET.format(title, content)
        if pictures:
            found.append(AnswerSheets(heading, note, pictures, is_folded=prefix == "errors-"))
    return found
