"""Numbers and ordered classes from a table to a report, by a run in a bucket on a Ray cluster whose nodes share no folder, neither
with each other nor with the driver.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from circle_table import write_circles
from rank_server import Ended, RankServer
from ray_faults import Fault, await_fault, plan_faults, work
from ray_world import RayWorld
from s3_server import BUCKET, S3Server
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny
from tiny_world import run_command

from distbranch.config import load_config

pytestmark = pytest.mark.cluster


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3Server]:
    """An S3 store with one bucket."""
    server = S3Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[RayWorld]:
    """A head without CPUs."""
    cluster = RayWorld(tmp_path)
    yield cluster
    cluster.stop()


def drive(config: Mapping[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """A job: the driver."""
    from distbranch.launch.on_ray import train as ray_train

    os.environ.update(environment)
    ray_train.train_worker = work
    return train_tiny(config)


def run(*arguments: object) -> str:
    """What a command says, which must end well."""
    ended = run_command(list(map(str, arguments)))
    assert ended.code == 0, ended.err
    return ended.out


def test_numbers_of_a_table_train_in_a_bucket_also_when_the_node_of_rank_0_dies_and_its_driver_reports_them(
    store: S3Server,
    world: RayWorld,
    ranks: RankServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data"
    options = write_circles(tmp_path / "circles", train=100, val=24, test=24)
    told = run("data", "pack", "csv", data, *options)
    assert "2 number (radius: " in told
    assert "2 ordinal (count: 1 < 2 < 3, size: small < medium < large)" in told
    assert "148 samples" in run("data", "check", data)

    # Two ranks without Ray and without a bucket.
    plain = config_of(data, tmp_path / "plain", **{"launch.workers": 2})
    undisturbed = ranks.call_all(train_tiny, 2, config=plain)
    assert {one["end"] for one in undisturbed} == {"done"}, undisturbed

    dotted = {"launch.workers": 2, "launch.address": world.address, "launch.placement": "spread"}
    config = config_of(data, f"s3://{BUCKET}/runs", **dotted, track=["tensorboard"])
    here = store.environment(tmp_path / "driver")
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    copy = load_config(config).run_directory

    def driven() -> Ended:
        return ranks.run(
            drive, config=config, environment={**here, **world.environment}, timeout_s=200
        )[0]

    plan_faults(copy.parent)
    world.add_node(environment=store.environment(tmp_path / "node-0"))
    lost = world.add_node(
        environment={**store.environment(tmp_path), "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    )
    ended = driven()
    assert ended.value is not None, ended.output
    said = (
        "The node ",
        f"The run directory s3://{BUCKET}/runs/tiny cannot be written",
        "Could not connect",
    )
    assert not [words for words in said if words not in ended.value["message"]], ended.value
    world.remove_node(lost)

    fault = Fault("wait", rank=0, step=24)
    plan_faults(copy.parent, [fault])
    for number in (1, 2):
        world.add_node(environment=store.environment(tmp_path / f"node-{number}"))
    with ThreadPoolExecutor(1) as executor:
        training = executor.submit(driven)
        world.remove_node(world.node_of(await_fault(copy.parent, fault, training)))
        ended = training.result()
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert {event["kind"] for event in ended.value["events"]} >= {
        "decision",
        "evaluation",
        "resumed",
    }
    assert_same_content(copy, tmp_path / "plain" / "tiny")
    assert [line["iteration"] for line in lines_of(copy / "metrics.jsonl", "resumed")] == [21]
    assert len(list(tmp_path.glob("node-*/distbranch/training/*/tiny/model"))) == 1

    # What a person does with it.
    result = json.loads((copy / "result.json").read_text())
    scores = result["metrics"]["test"]
    assert scores["units"] == {"radius": "px", "weight": "g", "count": "steps", "size": "steps"}
    assert scores["tasks"]["weight"]["num_labelled"] == 24
    assert "standardised_error" in scores["mean"]
    assert "mean_absolute_error" not in scores["mean"]
    shown = run("evaluate", copy, "--split", "test")
    assert f"{scores['tasks']['radius']['mean_absolute_error']:.2f}"[:3] in shown
    predicted = run("predict", copy, tmp_path / "circles/images", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(predicted)))
    assert len(rows) == 148
    weights = [float(row["weight"]) for row in rows]
    assert 100 < sum(weights) / len(weights) < 10_000
    exported = tmp_path / "circles.onnx"
    run("export", copy, "--format", "onnx", "--out", exported)
    assert exported.stat().st_size > 0
    run("report", copy)
    page = (copy / "report.html").read_text()
    assert "Mean absolute error" in page or "mean absolute error" in page
    assert "mean absolute error %" not in page
