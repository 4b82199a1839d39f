"""A run in a bucket on a Ray cluster whose nodes share no folder, neither with each other nor with the driver."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rank_server import Ended, RankServer
from ray_faults import Fault, await_fault, plan_faults, work
from ray_world import RayWorld
from s3_server import BUCKET, S3Server
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny

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


def test_a_run_in_a_bucket_goes_on_when_the_node_of_rank_0_dies_and_its_driver_sees_the_result(
    tiny_data: Path,
    store: S3Server,
    world: RayWorld,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dotted = {"launch.workers": 2, "launch.address": world.address, "launch.placement": "spread"}
    config = config_of(tiny_data, f"s3://{BUCKET}/runs", **dotted)
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
    assert_same_content(copy, undisturbed(2))
    assert [line["iteration"] for line in lines_of(copy / "metrics.jsonl", "resumed")] == [21]
    assert len(list(tmp_path.glob("node-*/distbranch/training/*/tiny/model"))) == 1
