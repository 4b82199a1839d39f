"""What the page of a search shows: curves, keys, importances, and which order of a front is noise."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from distbranch.report import sweep_page
from distbranch.report.console import make_front_table
from distbranch.report.sweep_figures import draw_curves, draw_importances, draw_keys, read_curve
from distbranch.report.sweep_files import FRONT, TIED, SweepFiles, read_sweep, tabulate_points
from distbranch.report.sweep_page import report_sweep
from distbranch.sweep.importances import measure_importances, write_importances

NUM_SETTINGS = 60
SPACE = {
    "optim.lr": {"low": 1e-4, "high": 1e-1, "log": True, "int": False},
    "model.width": {"low": 4, "high": 64, "log": False, "int": True},
    "method.affinity": {"choices": ["agreement", "phi"]},
}


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """A made-up search: the learning rate decides what a network is worth, its width what it costs; the last was stopped."""
    config = {"name": "made-up", "metric": "accuracy", "search": "optuna", "grid": {}}
    config |= {"space": SPACE, "cost": "weights"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rng, rows = np.random.default_rng(0), []
    for number in range(NUM_SETTINGS):
        rate, width = 10 ** rng.uniform(-4, -1), int(rng.integers(4, 65))
        value = 0.9 - 0.1 * abs(np.log10(rate) + 2.5) + rng.normal(0, 0.002)
        row: dict[str, Any] = {"trial": f"{number:04d}", "status": "finished", "reason": ""}
        row |= {"optim.lr": rate, "model.width": width, "method.affinity": "phi"}
        if number % 2:
            row["method.affinity"] = "agreement"
        row |= {"seed": 0, "val_accuracy": value, "test_accuracy": value, "weights": 10 * width}
        row |= {"parameters": 11 * width, "multiply_adds": width**2, "seconds": 60}
        row["directory"] = str(tmp_path / row["trial"])
        rows.append(row)
        write_curve(tmp_path / row["trial"], value)
    rows[-1] |= {"status": "stopped early", "reason": "poor", "weights": "", "test_accuracy": ""}
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def write_curve(run: Path, value: float) -> None:
    """Two evaluations on val up to `value`, among other lines, and a torn one."""
    run.mkdir()
    lines = [{"kind": "step", "iteration": step, "loss": 1.0} for step in range(3)]
    for split, step, there in (("val", 10, value / 2), ("test", 10, 0.1), ("val", 20, value)):
        mean = {"accuracy": there, "evaluation": 1}
        lines.append({"kind": "evaluation", "split": split, "iteration": step, "mean": mean})
    text = "\n".join(map(json.dumps, lines))
    (run / "metrics.jsonl").write_text(text + '\n{"kind": "evaluation", "spl')


def axes_with(figure: Any, label: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_xlabel() == label)


def test_a_curve_is_what_the_run_logged_on_val(search: Path) -> None:
    value = read_sweep(search).rows["val_accuracy"][0]
    curve = read_curve(search / "0000", "accuracy")
    assert curve == ((10, pytest.approx(value / 2)), (20, pytest.approx(value)))
    assert read_curve(search / "0000", "average_precision") == ()
    with (search / "0000" / "metrics.jsonl").open("a") as file:  # the run goes on
        line = {"kind": "evaluation", "split": "val", "iteration": 30, "mean": {"accuracy": 1.0}}
        file.write("\n" + json.dumps(line) + "\n")
    assert read_curve(search / "0000", "accuracy")[-1] == (30, 1.0)


def test_every_trial_has_a_curve_and_the_best_on_val_is_the_one_in_colour(search: Path) -> None:
    sweep = read_sweep(search)
    figure = draw_curves(sweep)
    assert figure is not None
    parts = {
        part.get_label(): part.get_segments()
        for part in figure.axes[0].collections
        if isinstance(part, LineCollection)
    }
    finished = sweep.rows[sweep.rows["status"] == "finished"]["val_accuracy"]
    [best] = parts["best on val"]
    assert best[-1] == pytest.approx([20, 100 * finished.max()])
    assert len(parts["all trials"]) == NUM_SETTINGS - 1
    [ends] = [part for part in figure.axes[0].collections if part.get_label() == "ended early"]
    assert np.asarray(ends.get_offsets()).tolist() == [
        pytest.approx([20, 100 * sweep.rows["val_accuracy"].iloc[-1]])
    ]


def test_a_sweep_whose_trials_have_one_evaluation_has_no_curves(search: Path) -> None:
    for file in search.glob("*/metrics.jsonl"):
        file.unlink()
    assert draw_curves(read_sweep(search)) is None


def test_every_key_of_a_range_has_a_panel_on_the_scale_on_which_it_was_drawn(search: Path) -> None:
    figure = draw_keys(read_sweep(search))
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["optim.lr", "model.width"]
    assert axes_with(figure, "optim.lr").get_xscale() == "log"
    assert axes_with(figure, "model.width").get_xscale() == "linear"
    ticks = [text.get_text() for text in axes_with(figure, "optim.lr").get_xticklabels()]
    assert "0.001" in ticks, "as people write it"


def test_the_cost_that_was_searched_comes_first_and_the_page_has_every_figure(search: Path) -> None:
    sweep = read_sweep(search)
    assert list(sweep.costs) == ["weights", "parameters", "multiply_adds", "latency_ms"]
    assert "weights" in tabulate_points(sweep, sweep.points).columns
    write_importances(sweep, search / "importances.json")
    text = report_sweep(search).read_text()
    for name in ("curves", "keys", "importances"):
        assert f'<section id="{name}">' in text
        assert (search / "report" / f"{name}.png").exists()
    assert "noise" not in text, "latency was not measured"


def test_long_tables_are_folded_and_the_best_and_those_on_a_front_stay_open(
    search: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pandas.read_csv(search / "results.csv")
    rows.loc[30:50, "status"] = "unfinished"  # of a search that runs
    rows.loc[50, "status"] = "failed"
    rows.to_csv(search / "results.csv", index=False)
    short = report_sweep(search).read_text()
    assert "<summary>1 failed, 1 stopped early, 20 unfinished</summary>" in short
    assert "settings</summary>" not in short

    monkeypatch.setattr(sweep_page, "MOST_SETTINGS", 30)
    monkeypatch.setattr(sweep_page, "NUM_BEST", 3)
    sweep = read_sweep(search)
    page = report_sweep(search).read_text()
    openly, _, folded = page.partition("<summary>all 60 settings</summary>")
    assert folded
    openly = openly.partition('<section id="points">')[2]
    fronts = sweep.find_fronts(sweep.points).values()
    shown = {*sweep.rank_points(sweep.points)[:3], *(one for front in fronts for one in front)}
    assert openly.count("<tr>") == 1 + len(shown)
    assert len(shown) < 30


def test_importances_divide_the_variance_as_it_was_made(search: Path) -> None:
    shares = measure_importances(read_sweep(search))
    assert list(shares) == ["accuracy", "weights"]
    for name, key in (("accuracy", "optim.lr"), ("weights", "model.width")):
        assert sum(shares[name].values()) == pytest.approx(1)
        assert shares[name][key] > 0.9
    assert measure_importances(read_sweep(search)) == shares


def test_the_importances_that_a_sweep_wrote_are_shown_per_objective(search: Path) -> None:
    sweep = read_sweep(search)
    assert draw_importances(sweep) is None
    write_importances(sweep, search / "importances.json")
    figure = draw_importances(sweep)
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Accuracy on val", "Weights"]
    labels = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert labels[-1] == "model.width", "the largest share on top"


def test_few_settings_or_one_key_have_no_importances(search: Path) -> None:
    sweep = read_sweep(search)
    few = SweepFiles(search, sweep.config, sweep.rows.head(7))
    assert measure_importances(few) == {}
    one_width = sweep.rows.assign(**{"model.width": "4", "method.affinity": "phi"})
    assert measure_importances(SweepFiles(search, sweep.config, one_width)) == {}


@pytest.fixture
def timed(search: Path) -> Path:
    """Five networks: 1 to 4 are on the front of latency; a better one may be as fast as 2."""
    rows = pandas.read_csv(search / "results.csv").head(5)
    rows["val_accuracy"] = [0.5, 0.6, 0.7, 0.8, 0.4]
    rows["latency_ms"] = [1.0, 2.0, 2.1, 3.0, 1.5]
    rows["latency_low_ms"] = rows["latency_ms"] - 0.08
    rows["latency_high_ms"] = rows["latency_ms"] + 0.08
    rows.to_csv(search / "results.csv", index=False)
    return search


def test_a_place_on_the_front_that_noise_may_have_given_is_marked(timed: Path) -> None:
    sweep = read_sweep(timed)
    assert sweep.find_fronts(sweep.points)["latency_ms"] == [0, 1, 2, 3]
    assert sweep.find_ties(sweep.points) == [1]
    cells = tabulate_points(sweep, sweep.points)["latency ms"]
    assert [text[0] for text in cells] == [FRONT, TIED, FRONT, FRONT, "1"]
    table = make_front_table(timed)
    assert "a better one may be as fast" in str(table.title)
    assert "noise" in report_sweep(timed).read_text()


def test_an_error_is_better_the_less_it_is_also_among_ties(timed: Path) -> None:
    rows = pandas.read_csv(timed / "results.csv")
    rows["val_standardised_error"] = 1 - rows["val_accuracy"]
    rows["test_standardised_error"] = 1 - rows["val_accuracy"]
    rows.to_csv(timed / "results.csv", index=False)
    config = yaml.safe_load((timed / "sweep.yaml").read_text()) | {"metric": "standardised_error"}
    (timed / "sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    sweep = read_sweep(timed)
    assert sweep.find_ties(sweep.points) == [1]
    assert sweep.find_best(sweep.points) == 3


def test_of_a_latency_without_an_interval_nothing_is_called_noise(timed: Path) -> None:
    rows = pandas.read_csv(timed / "results.csv")
    rows.drop(columns=["latency_low_ms", "latency_high_ms"]).to_csv(
        timed / "results.csv", index=False
    )
    sweep = read_sweep(timed)
    assert sweep.find_ties(sweep.points) == []
