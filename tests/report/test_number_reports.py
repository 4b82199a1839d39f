"""Reports of tasks of every kind: each metric in its unit, errors apart from shares, the best first."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from circle_table import write_circles
from rich.console import Console
from tiny_world import run_command

from distbranch.metrics import task_metrics
from distbranch.report.console import (
    describe_means,
    describe_units,
    format_number,
    make_result_markdown,
    make_result_table,
    make_score_table,
)
from distbranch.report.figures import draw_scores, draw_task_table, list_score_curves, sort_tasks
from distbranch.report.page import report_run
from distbranch.tasks import Task

TASKS = (
    Task("filled"),
    Task("colour", "categorical", ("red", "green", "blue")),
    Task("weight", "number", mean=40_000.0, deviation=20_000.0, unit="kg"),
    Task("radius", "number", mean=4.0, deviation=1.0, unit="px"),
    Task("size", "ordinal", ("small", "medium", "large")),
)
CONFIG = """\
run: {{directory: {folder}/runs, name: circles}}
data: {{path: {folder}/data}}
model: {{backbone: vgg9, width: 2}}
method: {{round_iterations: 2, max_branches: null}}
train: {{iterations: 4, batch_size: 8, evaluate_every: 2, eval_batch_size: 24}}
optim: {{lr: 0.01, momentum: 0.9}}
launch: {{workers: 1, device: cpu, threads: 1}}
"""


@pytest.fixture(scope="module")
def scores() -> dict[str, Any]:
    """Of random predictions: weights are off by half a deviation or so, radii by twice as much."""
    draw = np.random.default_rng(0)
    truth = draw.standard_normal((40, 2))
    outputs = draw.standard_normal((40, 8))
    outputs[:, 4] = truth[:, 0] + 0.5 * draw.standard_normal(40)
    outputs[:, 5] = truth[:, 1] + draw.standard_normal(40)
    labels = np.column_stack(
        [
            draw.integers(0, 2, 40),
            draw.integers(0, 3, 40),
            40_000 + 20_000 * truth[:, 0],
            4 + truth[:, 1],
            draw.integers(0, 3, 40),
        ]
    )
    return task_metrics(TASKS, outputs, labels)


def shown(table: object, width: int) -> str:
    screen = Console(file=io.StringIO(), width=width)
    screen.print(table)
    return screen.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_units_stand_with_the_scores_where_a_task_has_one(scores: dict[str, Any]) -> None:
    assert scores["units"] == {"weight": "kg", "radius": "px", "size": "steps"}
    assert "units" not in task_metrics(TASKS[:1], np.zeros((2, 1)), np.ones((2, 1)))


@pytest.mark.parametrize("width", [80, 120])
def test_an_evaluation_shows_shares_and_errors_in_two_tables(
    scores: dict[str, Any], width: int
) -> None:
    text = shown(make_score_table(scores), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text
    shares, errors = re.split(r"\n\s*\n(?=\s*mean\s*\n)", text)
    assert re.findall(r"^ (\w+)", shares, re.MULTILINE)[1:] == ["filled", "colour", "size", "mean"]
    error = scores["tasks"]["weight"]["mean_absolute_error"]
    assert re.search(rf"weight +{error:,.0f} kg", errors)
    assert re.search(r"radius +0\.\d+ px", errors)
    assert re.search(r"size +\d\.\d+ steps", errors)
    assert "kg" not in shares
    assert "top-3" not in errors


@pytest.mark.parametrize("width", [80, 120])
def test_networks_are_compared_by_the_means_of_every_kind(
    scores: dict[str, Any], width: int
) -> None:
    sizes = {"num_groups_top": 2, "parameters": 9_000, "weights": 8_000, "multiply_adds": 12_500}
    results = {"branch-16-2": [{"metrics": {"test": scores}, **sizes}]}
    text = shown(make_result_table(results), width)
    assert "branch-16-2" in text
    assert "shares in %; of errors less is better" in text
    assert f"{scores['mean']['standardised_error']:.3f}" in text
    head = make_result_markdown(results).splitlines()[0]
    assert "| standardised error | R2 | rank correlation |" in head
    assert "error %" not in head
    assert "absolute" not in head, "what has a unit of its own has no mean"


def test_means_are_told_in_their_units(scores: dict[str, Any]) -> None:
    told = describe_means(scores["mean"])
    assert told["accuracy"] == f"{100 * scores['mean']['accuracy']:.1f}"
    assert told["r2"] == f"{scores['mean']['r2']:.3f}"
    assert describe_units(["accuracy"]) == "in %"
    assert describe_units(["r2", "seeds"]) == "of errors less is better"


def test_the_task_with_the_largest_error_is_the_last_of_its_table(scores: dict[str, Any]) -> None:
    assert sort_tasks(scores, ["standardised_error", "r2"])[:2] == ["weight", "radius"]
    assert sort_tasks(scores)[:2] == sorted(
        ["filled", "colour"],
        key=lambda name: -scores["tasks"][name]["average_precision"],
    )
    titles = [
        axes.get_title(loc="left") or axes.get_title() for axes in draw_task_table(scores, ()).axes
    ]
    assert titles[:3] == ["Accuracy", "Balanced accuracy", "Average precision"]
    assert "Mean absolute error\n(less is better)" in titles
    assert "R2" in titles


def test_every_metric_has_a_curve_on_an_axis_of_its_own(scores: dict[str, Any]) -> None:
    lines = [{"iteration": step, "split": "val", "mean": scores["mean"]} for step in (1, 2)]
    curves = list_score_curves([*lines, {"iteration": 2, "split": "test", "mean": scores["mean"]}])
    titles = [axes.get_title(loc="left") for axes in draw_scores(curves, {}).axes]
    assert titles[:2] == ["Accuracy, %", "Balanced accuracy, %"]
    assert "R2" in titles
    assert list_score_curves(lines[:1]) == {}, "one point is no curve"


def test_a_table_of_circles_becomes_a_report(tmp_path: Path) -> None:
    options = write_circles(tmp_path / "circles", train=32, val=24, test=24)
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path))
    for arguments in (
        ["data", "pack", "csv", str(tmp_path / "data"), *options],
        ["train", str(tmp_path / "c.yaml")],
    ):
        ended = run_command(arguments)
        assert ended.code == 0, ended.err
    page = report_run(tmp_path / "runs" / "circles").read_text()
    assert re.search(r"[\d,.]+ g<", page)
    assert re.search(r"[\d.]+ px<", page)
    assert re.search(r"[\d.]+ steps<", page)
    assert "mean absolute error %" not in page
    assert "Shares in %; of errors less is better." in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(6894.6, "6,895 kg"), (0.01234, "0.0123 kg"), (12.34, "12.3 kg"), (None, "\u2013"), (0.0, "0 kg")],
)  # fmt: skip
def test_errors_have_three_digits_and_their_unit(value: float | None, text: str) -> None:
    assert format_number(value, unit="kg") == text
