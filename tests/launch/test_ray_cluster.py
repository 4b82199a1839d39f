"""Runs on a Ray cluster of several nodes: what is checked before they start, and what befalls them while they train."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from ray_faults import Fault, await_fault, let_go, plan_faults, start
from ray_world import RayWorld
from tiny_runs import ITERATIONS, assert_same_content, config_of, lines_of

from distbranch.data.plan import Plan
from distbranch.data.shards import read_dataset
from distbranch.engine.checkpoint import load_newest

pytestmark = pytest.mark.cluster
CHECKPOINTS = sorted({*range(0, ITERATIONS, 5), *range(0, ITERATIONS, 7)})


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
        values = {"launch.workers": 2, "launch.address": world.address, "launch.placement": "spread", **dotted}
        config = config_of(tiny_data, tmp_path, **values)
        plan_faults(Path(config["run"]["directory"]))
        return config

    return make


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return lines_of(folder / "steps.jsonl")


def test_what_can_never_run_is_refused_at_once_with_what_is_there_and_what_was_asked(
    configured: Callable[..., dict[str, Any]], world: RayWorld, ranks: RankServer, tmp_path: Path
) -> None:
    asked = {
        "4 workers": ({"launch.workers": 4}, ("4 worker(s) with 1 CPU each", "room for 2", "2 CPU on")),
        # Two nodes have two CPUs, but none has both of them.
        "a large worker": ({"launch.workers": 1, "launch.cpus_per_worker": 2}, ("room for 0", "at most 1 CPU on one")),
        "GPUs": ({"launch.device": "cuda"}, ("1 GPU", "room for 0")),
        "nodes that never come": (
            {"launch.workers": 3, "launch.wait_for_nodes_min": 0.05},
            ("3 worker(s)", "room for 2"),
        ),
        "a range": ({"launch.workers": [3, 5]}, ("3 to 5 worker(s)", "room for 2")),
    }
    for name, (dotted, words) in asked.items():
        ended = start(ranks, configured(**dotted), world.environment).result()[0]
        assert ended.value is not None, ended.output
        assert ended.value["end"] == "failed", name
        assert all(word in ended.value["message"] for word in words), ended.value["message"]
        waits = [event for event in ended.value["events"] if "Waiting for nodes" in event.get("message", "")]
        assert bool(waits) == ("launch.wait_for_nodes_min" in dotted)
    assert not (tmp_path / "tiny" / "ray").exists()


def test_a_client_without_the_token_is_refused(
    configured: Callable[..., dict[str, Any]], world: RayWorld, ranks: RankServer
) -> None:
    stranger = {key: value for key, value in world.environment.items() if not key.startswith("RAY_AUTH")}
    wrong = {**stranger, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    for environment in (stranger, wrong):
        ended = start(ranks, configured(), environment).result()[0]
        assert ended.value is not None, ended.output
        assert ended.value["end"] == "failed"
        assert "answers only to those who hold its token" in ended.value["message"]
        assert "RAY_AUTH_TOKEN_PATH" in ended.value["message"]


def test_a_run_whose_raylet_is_killed_goes_on_on_another_node_with_the_same_bits(
    configured: Callable[..., dict[str, Any]],
    world: RayWorld,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    config, fault = configured(), Fault("wait", rank=1, step=33)
    plan_faults(tmp_path, [fault])
    run = start(ranks, config, world.environment)
    worker = await_fault(tmp_path, fault)
    world.add_node()
    world.remove_node(world.node_of(worker))
    ended = run.result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert_same_content(tmp_path / "tiny", undisturbed(2))
    last = max(step for step in CHECKPOINTS if step < fault.step)
    resumed = lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")
    assert [(line["iteration"], line["world_size"]) for line in resumed] == [(last, 2)]
    print(f"seconds to the first new step: {resumed[0]['seconds_to_first_step']}")
    assert 0 < resumed[0]["seconds_to_first_step"] < 90
    steps = [line["step"] for line in steps_of(tmp_path) if line["rank"] == 0]
    assert {step for step in steps if steps.count(step) > 1} <= set(range(last + 1, fault.step + 1))


def test_trouble_after_trouble_stops_all_ranks_with_one_message_and_the_same_command_goes_on_to_the_same_bits(
    configured: Callable[..., dict[str, Any]],
    world: RayWorld,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    host = os.uname().nodename
    troubles = (
        (Fault("raise", rank=1, step=9), 1, (f"Rank 1 on {host} raised IndexError: the rank met what nobody foresaw",)),
        (Fault("sleep", rank=1, step=13), 0.15, (f"Rank 1 on {host} did not answer for 0.15 minutes",)),
        (Fault("nan", rank=1, step=20), 1, (f"is not finite at step 20 (rank 1 on {host})", "step-00000015")),
    )
    for number, (fault, timeout_min, words) in enumerate(troubles, start=1):
        config = configured(**{"launch.timeout_min": timeout_min})
        plan_faults(tmp_path, [fault])
        ended = start(ranks, config, world.environment).result()[0]
        assert ended.value is not None, ended.output
        assert ended.value["end"] == "failed"
        assert all(word in ended.value["message"] for word in words), ended.value["message"]
        # One group of workers each: nobody tries again what cannot be mended so.
        assert len({line["group"] for line in steps_of(tmp_path)}) == number
        assert steps_of(tmp_path)[-1]["step"] <= fault.step

    config, fault = configured(), Fault("wait", rank=1, step=27)
    plan_faults(tmp_path, [fault])
    run = start(ranks, config, world.environment)
    await_fault(tmp_path, fault)
    os.kill(int((tmp_path / "driver").read_text()), signal.SIGKILL)
    assert run.result()[0].exit_code == -signal.SIGKILL
    ended = start(ranks, config, world.environment).result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert_same_content(tmp_path / "tiny", undisturbed(2))
    resumed = [line["iteration"] for line in lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")]
    assert resumed == [7, 10, 15, 25]


@pytest.fixture
def small_storage(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, mounted where the run directory is to be."""
    if os.geteuid() != 0:
        message = "mounting a small file system needs root"
        if os.environ.get("DISTBRANCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path / "small"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=24m", "none", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def flip_bytes(shards: list[Path]) -> None:
    """One bit of every 64th byte: every image of a shard is another one than was packed."""
    for file in shards:
        content = bytearray(file.read_bytes())
        content[::64] = bytes(byte ^ 1 for byte in content[::64])
        with file.open("r+b") as open_file:
            open_file.write(content)


def test_failing_storage_and_damaged_shards_stop_all_ranks_with_one_message_and_nothing_is_lost(
    configured: Callable[..., dict[str, Any]],
    world: RayWorld,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tiny_data: Path,
    small_storage: Path,
    tmp_path: Path,
) -> None:
    data, filler, run = tmp_path / "data", small_storage / "filler", small_storage / "tiny"
    shutil.copytree(tiny_data, data)
    shards = [data / shard.file for shard in read_dataset(data).splits["train"].shards]
    config = configured(**{"run.directory": str(small_storage), "data.path": str(data)})

    def fill() -> None:
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)
                file.flush()

    def vanish() -> None:
        for file in shards:
            file.unlink()

    def restore() -> None:
        shutil.copytree(tiny_data, data, dirs_exist_ok=True)

    remount = ("-o", "remount,{}", str(small_storage))
    damages: tuple[tuple[int, Callable[[], Any], Callable[[], Any], str, int | None], ...] = (
        (9, fill, filler.unlink, "No space left", 7),
        (
            19,
            lambda: mount(*(text.format("ro") for text in remount)),
            lambda: mount(*(text.format("rw") for text in remount)),
            "Read-only file system",
            15,
        ),
        (24, vanish, restore, "is absent", None),
        (40, lambda: flip_bytes(shards), restore, "is not the one that was packed", None),
    )
    for step, damage, mend, words, newest in damages:
        fault = Fault("wait", rank=0, step=step)
        plan_faults(small_storage, [fault])
        training = start(ranks, config, world.environment)
        await_fault(small_storage, fault)
        let_go(small_storage, fault)  # a mark, which a full or read-only storage would not take
        damage()
        ended = training.result()[0]
        assert ended.value is not None, ended.output
        assert ended.value["end"] == "failed", words
        assert words in ended.value["message"], ended.value["message"]
        found = load_newest(run / "checkpoints")
        assert found is not None
        assert newest in (None, found.state["progress"]["iteration"])
        mend()
    plan_faults(small_storage)
    ended = start(ranks, config, world.environment).result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert_same_content(run, undisturbed(2))


def test_an_elastic_run_follows_the_nodes_and_sees_every_sample_of_the_epoch_once(
    configured: Callable[..., dict[str, Any]], world: RayWorld, ranks: RankServer, tiny_data: Path, tmp_path: Path
) -> None:
    dotted = {"launch.workers": [1, 3], "launch.resize_every_min": 0.05, "train.batch_size": 12}
    config = configured(**dotted)
    joined, left = Fault("wait", rank=0, step=8), Fault("wait", rank=2, step=19)
    plan_faults(tmp_path, [joined, left])
    run = start(ranks, config, world.environment)
    await_fault(tmp_path, joined)
    world.add_node()  # Ray sees it while the rank waits, and starts all workers anew
    worker = await_fault(tmp_path, left)
    world.remove_node(world.node_of(worker))
    ended = run.result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    sizes = [line["world_size"] for line in lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")]
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
        shares = [other for other in steps_of(folder) if (other["step"], other["group"]) == (step, line["group"])]
        assert sorted(share["rank"] for share in shares) == list(range(line["world_size"]))
        stream += sorted(index for share in shares for index in share["indices"])
    assert stream == list(range(ITERATIONS * batch_size))
    shards = read_dataset(data).splits["train"].shards
    plan = Plan([shard.num_samples for shard in shards], 3, 8)
    num_samples = sum(shard.num_samples for shard in shards)
    for epoch in range(len(stream) // num_samples):
        seen = plan.samples(epoch * num_samples, (epoch + 1) * num_samples)
        assert len(set(seen)) == num_samples
        assert {number for *_, number in seen} == {epoch}
