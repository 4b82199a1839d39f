"""The report of a sweep: gathered over seeds, chosen on val, and a page that shows everything there is."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml
from matplotlib.image import imread
from tiny_world import assert_one_sentence, run_command

from distbranch.engine.forks import Origin, write_family
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.report.sweep_files import COSTS, SweepFiles, find_pareto_front, read_sweep
from distbranch.report.sweep_page import report_sweep

WIDTHS, ALPHAS, SEEDS = (8, 16, 32), (0.5, 1.0, 2.0), (0, 1, 2)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A made-up sweep: wider and more branched is better and dearer; one trial failed, one was stopped early."""
    folder = tmp_path / "made-up"
    folder.mkdir()
    grid = {"model.width": list(WIDTHS), "method.alpha": list(ALPHAS)}
    config = {
        "name": "made-up",
        "metric": "average_precision",
        "search": "grid",
        "grid": grid,
        "space": {},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rng, rows = np.random.default_rng(0), []
    for width in WIDTHS:
        for alpha in ALPHAS:
            for seed in SEEDS:
                value = 0.6 + 0.05 * np.log2(width) + 0.03 * alpha + rng.normal(0, 0.004)
                row: dict[str, Any] = {
                    "trial": f"width{width}-alpha{alpha:g}-seed{seed}",
                    "status": "finished",
                    "reason": "",
                }
                row |= {
                    "model.width": width,
                    "method.alpha": alpha,
                    "seed": seed,
                    "val_average_precision": value,
                }
                row |= {
                    "test_average_precision": value - 0.01,
                    "parameters": int(100 * width**2 * alpha),
                    "seconds": 60,
                }
                row |= {
                    "multiply_adds": 50_000 * width**2,
                    "latency_ms": 1 + width / 30,
                    "directory": folder / row["trial"],
                }
                rows.append(row)
    for number, status, reason in (
        (0, "failed", "The loss of task 'Men' is <not> finite."),
        (20, "stopped early", "poor"),
    ):
        blank = dict.fromkeys((*COSTS, "val_average_precision", "test_average_precision"), "")
        rows[number] |= {**blank, "status": status, "reason": reason}
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_the_front_is_who_is_dominated_by_nobody() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        pairs = rng.integers(0, 8, (12, 2))  # ties happen

        def dominated(a: int, pairs: Any = pairs) -> bool:
            return any(
                cost <= pairs[a][0] and value >= pairs[a][1] and (cost, value) != tuple(pairs[a])
                for cost, value in pairs
            )

        expected = {tuple(pairs[n]) for n in range(len(pairs)) if not dominated(n)}
        points = pandas.DataFrame(pairs, columns=["cost", "value"]).assign(is_complete=True)
        front = find_pareto_front(points, "cost", "value")
        assert {tuple(pairs[n]) for n in front} == expected
        assert [pairs[n][0] for n in front] == sorted(pairs[n][0] for n in front)


def test_a_setting_with_a_missing_seed_is_never_on_the_front() -> None:
    points = pandas.DataFrame({"cost": [1, 0.5], "value": [0.5, 0.9], "is_complete": [True, False]})
    assert find_pareto_front(points, "cost", "value") == [0]


def test_of_an_error_the_front_is_who_is_dominated_by_nobody_that_errs_less(tmp_path: Path) -> None:
    points = pandas.DataFrame({"parameters": [1, 2, 3], "val_standardised_error": [0.5, 0.6, 0.2]})
    points = points.assign(is_complete=True, multiply_adds=1.0, latency_ms=1.0)
    sweep = SweepFiles(tmp_path, {"metric": "standardised_error"}, points)
    assert sweep.find_fronts(points)["parameters"] == [0, 2]


def test_points_are_means_over_finished_seeds(sweep: Path) -> None:
    files = read_sweep(sweep)
    assert len(files.rows) == 27
    assert len(files.points) == 9
    points = files.points
    assert list(points["is_complete"]) == [False, *[True] * 5, False, True, True]
    assert list(points["seeds"]) == [2, *[3] * 5, 2, 3, 3]
    values = files.rows["val_average_precision"].iloc[-3:]
    assert points["val_average_precision"].iloc[-1] == pytest.approx(np.mean(values))
    assert points["val_average_precision_sd"].iloc[-1] == pytest.approx(np.std(values, ddof=1))
    assert not points["seconds"].isna().any()


def test_a_sweep_that_resumes_with_another_key_shows_what_it_had_before(sweep: Path) -> None:
    config = yaml.safe_load((sweep / "sweep.yaml").read_text())
    config["grid"] = {"model.width": [8, 16, 32], "method.decay": [0.9, 0.99]}
    (sweep / "sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    files = read_sweep(sweep)
    assert files.keys == ["model.width", "method.alpha"]
    assert len(files.points) == 9


def test_the_same_run_twice_is_one_seed(sweep: Path) -> None:
    lines = (sweep / "results.csv").read_text().splitlines()
    again = lines[4].replace("seed0,finished", "seed0-again,finished")
    (sweep / "results.csv").write_text("\n".join([*lines, again]) + "\n")
    assert again != lines[4]
    assert list(read_sweep(sweep).points["trials"]) == [3] * 9


def test_the_page_is_one_file_with_every_trial_and_every_reason(sweep: Path) -> None:
    page = report_sweep(sweep)
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert text.count("<svg") == 1
    for trial in read_sweep(sweep).rows["trial"]:
        assert trial in text
    assert "The loss of task &#39;Men&#39; is &lt;not&gt; finite." in text
    picture = imread(sweep / "pareto.png")
    assert picture.shape[1] > 1500
    assert (picture[:, :, :3].std(axis=2) > 0.05).mean() > 0.001  # something in colour: points


def test_a_shared_beginning_counts_once_in_the_time_of_all_trials(sweep: Path) -> None:
    assert "<b>27 min</b><span>of training in all trials" in report_sweep(sweep).read_text()
    for directory in read_sweep(sweep).rows["directory"].iloc[-4:]:
        files = RunDirectory(Path(directory))
        files.path.mkdir()
        write_family(files, {}, Origin("leader", 10, 45.0))
    assert "<b>24 min</b><span>of training in all trials" in report_sweep(sweep).read_text()


def test_a_sweep_without_a_finished_trial_has_a_report_too(sweep: Path) -> None:
    lines = (sweep / "results.csv").read_text().splitlines()
    (sweep / "results.csv").write_text("\n".join(lines[:2]) + "\n")  # the failed one
    assert "No trial has finished yet" in report_sweep(sweep).read_text()
    assert (sweep / "pareto.png").exists()


def test_a_value_that_is_no_number_is_told_in_one_sentence(sweep: Path) -> None:
    file = sweep / "results.csv"
    lines = file.read_text().splitlines()
    lines[3] = lines[3].replace(",60,", ",sixty,")
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"should have numbers behind the seed.*sixty"):
        report_sweep(sweep)


def test_a_sweep_without_results_is_told_in_one_sentence(sweep: Path) -> None:
    (sweep / "results.csv").unlink()
    with pytest.raises(UserError, match=r"has no results\.csv yet"):
        report_sweep(sweep)
    (sweep / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="should have rows with reason, seed, status, trial"):
        report_sweep(sweep)


def test_a_setting_whose_metric_is_undefined_for_a_seed_is_never_best(sweep: Path) -> None:
    rows = pandas.read_csv(sweep / "results.csv")
    rows.loc[rows["trial"] == "width32-alpha2-seed0", "val_average_precision"] = np.nan
    rows.to_csv(sweep / "results.csv", index=False)
    files = read_sweep(sweep)
    fronts = files.find_fronts(files.points)
    assert all(8 not in front for front in fronts.values())
    assert 7 in fronts["parameters"]


def test_a_sweep_over_the_seed_alone_is_one_point(sweep: Path) -> None:
    rows = (
        pandas.read_csv(sweep / "results.csv")
        .iloc[-3:]
        .drop(columns=["model.width", "method.alpha"])
    )
    rows.to_csv(sweep / "results.csv", index=False)
    points = read_sweep(sweep).points
    assert (len(points), points["seeds"][0], points["is_complete"][0]) == (1, 3, True)
    assert "over the seed alone" in report_sweep(sweep).read_text()


def test_a_page_of_a_sweep_is_compared_with_no_run(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").touch()
    ended = run_command(["report", str(tmp_path), "--against", "runs/thin"])
    assert_one_sentence(ended, 2, ("--against is for the page of one run",))
