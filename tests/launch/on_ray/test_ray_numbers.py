"""Numbers and ordered classes from a table to a report: trained on two Ray workers of which one is killed, to the same bits."""

import csv
import io
import json
from pathlib import Path

import pytest
from circle_table import write_circles
from rank_server import RankServer
from test_ray_training import train_on_ray
from tiny_runs import assert_same_content, config_of, train_tiny
from tiny_world import run_command

pytestmark = pytest.mark.cluster


def run(*arguments: object) -> str:
    ended = run_command(list(map(str, arguments)))
    assert ended.code == 0, ended.err
    return ended.out


def test_numbers_go_from_a_table_over_two_workers_one_of_them_killed_to_a_report(
    ranks: RankServer, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    options = write_circles(tmp_path / "circles", train=100, val=24, test=24)
    told = run("data", "pack", "csv", data, *options)
    assert "2 number (radius: " in told
    assert "2 ordinal (count: 1 < 2 < 3, size: small < medium < large)" in told
    assert "148 samples" in run("data", "check", data)

    # Two ranks without Ray, then two workers of which one is killed; a stop is tested in test_ray_training.
    plain = config_of(data, tmp_path / "plain", **{"launch.workers": 2})
    ended = ranks.call_all(train_tiny, 2, config=plain)
    assert {one["end"] for one in ended} == {"done"}, ended
    config = config_of(data, tmp_path, **{"launch.workers": 2})
    (tmp_path / "stopped").touch()
    disturbed = ranks.run(train_on_ray, config=config, marks=str(tmp_path), timeout_s=300)[0]
    assert disturbed.value is not None, disturbed.output
    assert disturbed.value["end"] == "done", disturbed.value
    assert (tmp_path / "killed").exists()
    trained = tmp_path / "tiny"
    assert_same_content(trained, tmp_path / "plain" / "tiny")

    # What a person does with it.
    result = json.loads((trained / "result.json").read_text())
    scores = result["metrics"]["test"]
    assert scores["units"] == {"radius": "px", "weight": "g", "count": "steps", "size": "steps"}
    assert scores["tasks"]["weight"]["num_labelled"] == 24
    assert "standardised_error" in scores["mean"]
    assert "mean_absolute_error" not in scores["mean"]
    shown = run("evaluate", trained, "--split", "test")
    assert f"{scores['tasks']['radius']['mean_absolute_error']:.2f}"[:3] in shown
    rows = list(
        csv.DictReader(
            io.StringIO(run("predict", trained, tmp_path / "circles/images", "--format", "csv"))
        )
    )
    assert len(rows) == 148
    weights = [float(row["weight"]) for row in rows]
    assert 100 < sum(weights) / len(weights) < 10_000
    exported = tmp_path / "circles.onnx"
    run("export", trained, "--format", "onnx", "--out", exported)
    assert exported.stat().st_size > 0
    run("report", trained)
    page = (trained / "report.html").read_text()
    assert "Mean absolute error" in page or "mean absolute error" in page
    assert "mean absolute error %" not in page
