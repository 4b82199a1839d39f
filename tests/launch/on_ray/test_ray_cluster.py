"""Runs on a Ray cluster of several nodes: what is checked before they start, and what befalls them while they train."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from rank_server import Ended, RankServer
from ray_faults import Fault, await_fault, plan_faults, start
from ray_world import RayWorld
from tiny_runs import ITERATIONS, assert_same_content, config_of, lines_of, train_tiny

from distbranch.data.plan import Plan
from distbranch.data.shards import read_dataset
from distbranch.engine.run_directory import read_lines
from distbranch.launch.on_ray.train import NAME_OF_THREAD
from distbranch.launch.on_ray.worker import LOST_BOARD

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorld]:
    """A head without CPUs, and two nodes with one each."""
    cluster = RayWorld(tmp_path_factory.mktemp("ray"))
    cluster.add_node()
    cluster.add_node()
    yield cluster
    cluster.stop()


@pytest.fixture
def configured(tiny_data: Path, world: RayWorld, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The tiny run on two workers of the cluster, with dotted overrides."""

    def make(**dotted: Any) -> dict[str, Any]:
        values = {
            "launch.workers": 2,
            "launch.address": world.address,
            "launch.placement": "spread",
            **dotted,
        }
        config = config_of(tiny_data, tmp_path, **values)
        plan_faults(Path(config["run"]["directory"]))
        return config

    return make


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "steps.jsonl")  # where the storage was full a line may be torn


def train_one_after_the_other(
    configs: list[dict[str, Any]], environment: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A job: drivers in one process."""
    os.environ.update(environment)
    return [train_tiny(config) for config in configs]


def test_what_can_never_run_is_refused_at_once_with_what_is_there_and_what_was_asked(
    configured: Callable[..., dict[str, Any]], world: RayWorld, ranks: RankServer, tmp_path: Path
) -> None:
    asked = {
        "4 workers": (
            {"launch.workers": 4},
            ("4 worker(s) with 1 CPU each", "room for 2", "2 CPU on"),
        ),
        # Two nodes have two CPUs, but none has both of them.
        "a large worker": (
            {"launch.workers": 1, "launch.cpus_per_worker": 2},
            ("room for 0", "at most 1 CPU on one"),
        ),
        "GPUs": ({"launch.device": "cuda"}, ("1 GPU", "room for 0")),
        "nodes that never come": (
            {"launch.workers": 3, "launch.wait_for_nodes_min": 0.05},
            ("3 worker(s)", "room for 2"),
        ),
        "a range": ({"launch.workers": [3, 5]}, ("3 to 5 worker(s)", "room for 2")),
    }
    configs = [configured(**dotted) for dotted, _ in asked.values()]
    ends = ranks.call(train_one_after_the_other, configs=configs, environment=world.environment)
    for (name, (dotted, words)), ended in zip(asked.items(), ends, strict=True):
        assert ended["end"] == "failed", name
        assert all(word in ended["message"] for word in words), ended["message"]
        waits = [
            event for event in ended["events"] if "Waiting for nodes" in event.get("message", "")
        ]
        assert bool(waits) == ("launch.wait_for_nodes_min" in dotted)
    assert not (tmp_path / "tiny" / "ray").exists()


def test_a_client_without_the_token_is_refused(
    configured: Callable[..., dict[str, Any]], world: RayWorld, ranks: RankServer
) -> None:
    stranger = {
        key: value for key, value in world.environment.items() if not key.startswith("RAY_AUTH")
    }
    wrong = {**stranger, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    for environment in (stranger, wrong):
        ended = start(ranks, configured(), environment).result()[0]
        assert ended.value is not None, ended.output
        assert ended.value["end"] == "failed"
        assert "answers only to those who hold its token" in ended.value["message"]
        assert "RAY_AUTH_TOKEN_PATH" in ended.value["message"]


# Before any run loses its driver or its board: Ray keeps what an elastic run asked for until 180 s after its last word.
def test_an_elastic_run_follows_the_nodes_and_sees_every_sample_of_the_epoch_once(
    configured: Callable[..., dict[str, Any]],
    world: RayWorld,
    ranks: RankServer,
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    dotted = {"launch.workers": [1, 3], "launch.resize_every_min": 0.05, "train.batch_size": 12}
    config = configured(**dotted)
    joined, left = Fault("wait", rank=0, step=8), Fault("wait", rank=2, step=19)
    plan_faults(tmp_path, [joined, left])
    training = start(ranks, config, world.environment)
    await_fault(tmp_path, joined, training)
    world.add_node()  # Ray sees it while the rank waits, and starts all workers anew
    worker = await_fault(tmp_path, left, training)
    world.remove_node(world.node_of(worker))
    ended = training.result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    sizes = [
        line["world_size"] for line in lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")
    ]
    assert sizes[-1] == 2
    assert {line["world_size"] for line in steps_of(tmp_path)} == {2, 3}
    assert_every_sample_once(tmp_path, tiny_data, batch_size=12)


def assert_every_sample_once(folder: Path, data: Path, *, batch_size: int) -> None:
    """Of every step the last time it was done counts: the run went on from there."""
    last: dict[int, Mapping[str, Any]] = {}
    for line in sorted(steps_of(folder), key=lambda line: line["time"]):
        last[line["step"]] = line
    stream = []
    for step, line in sorted(last.items()):
        shares = [
            other
            for other in steps_of(folder)
            if (other["step"], other["group"]) == (step, line["group"])
        ]
        assert sorted(share["rank"] for share in shares) == list(range(line["world_size"]))
        stream += sorted(index for share in shares for index in share["indices"])
    assert stream == list(range(ITERATIONS * batch_size))
    shards = read_dataset(data).splits["train"].shards
    plan = Plan([shard.num_samples for shard in shards], 3, 8)
    num_samples = sum(shard.num_samples for shard in shards)
    for epoch in range(len(stream) // num_samples):
        seen = plan.list_places(epoch * num_samples, (epoch + 1) * num_samples)
        assert len(set(seen)) == num_samples
        assert {number for _, _, number, _ in seen} == {epoch}


def test_a_run_whose_board_is_lost_ends_and_says_so(
    configured: Callable[..., dict[str, Any]], world: RayWorld, ranks: RankServer, tmp_path: Path
) -> None:
    config = configured()
    plan_faults(tmp_path, [Fault("kill board", rank=0, step=9)])
    ended = start(ranks, config, world.environment).result()[0]
    assert ended.value is not None, ended.output
    assert (ended.value["end"], ended.value["message"]) == ("failed", LOST_BOARD)
    assert NAME_OF_THREAD not in ended.value["threads"]


def test_a_run_whose_rank_raises_whose_driver_and_whose_node_die_resumes_to_the_same_bits(
    configured: Callable[..., dict[str, Any]],
    world: RayWorld,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    run, host = tmp_path / "tiny", os.uname().nodename

    def begin(fault: Fault, **dotted: Any) -> "Future[list[Ended]]":
        config = configured(**dotted)
        plan_faults(tmp_path, [fault])
        return start(ranks, config, world.environment)

    # A rank raises; all other faults of a rank are caused in tests/engine, where ranks need no cluster.
    ended = begin(Fault("raise", rank=1, step=9)).result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "failed"
    words = f"Rank 1 on {host} raised IndexError: the rank met what nobody foresaw"
    assert words in ended.value["message"], ended.value["message"]
    # one group of workers: nobody tries again what cannot be mended so
    assert len({line["group"] for line in steps_of(tmp_path)}) == 1

    # The driver is killed.
    fault = Fault("wait", rank=1, step=24)
    training = begin(fault)
    await_fault(tmp_path, fault, training)
    os.kill(int((tmp_path / "driver").read_text()), signal.SIGKILL)
    assert training.result()[0].exit_code == -signal.SIGKILL

    # A raylet is killed with all its workers; another node has room.
    fault = Fault("wait", rank=1, step=39)
    training = begin(fault, **{"launch.timeout_min": 3})
    world.add_node()  # now, for from the fault on rank 0 waits, and not longer than launch.timeout_min
    worker = await_fault(tmp_path, fault, training)
    world.remove_node(world.node_of(worker))
    ended = training.result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert_same_content(run, undisturbed(2))
    resumed = lines_of(run / "metrics.jsonl", "resumed")
    assert [line["iteration"] for line in resumed] == [7, 21, 35]
    assert {line["world_size"] for line in resumed} == {2}
    again = [line for line in steps_of(tmp_path) if line["time"] > worker_died(tmp_path, fault)]
    assert min(line["step"] for line in again) == 36  # at most the steps since the last checkpoint


def worker_died(folder: Path, fault: Fault) -> float:
    return (folder / fault.mark).stat().st_mtime + 1
