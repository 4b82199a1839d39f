"""Runs on several hosts with addresses of their own: the right network interface, shared storage, and a host that dies."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from net_hosts import INTERFACE, Hosts, require_hosts
from rank_server import RankServer
from ray_faults import Fault, await_fault, plan_faults, start
from ray_world import environment_of, token_file
from tiny_runs import ITERATIONS, assert_same_content, config_of, lines_of

pytestmark = pytest.mark.cluster
HEAD, PORT, NUM_CPUS = 0, 6379, (0, 1, 1, 1)
BLIND = 3  # this host has a folder of its own where the others share one
SECONDS_TO_START = 60


class RayHosts:
    """A Ray cluster on four hosts, started as on real ones: `ray start` on each, with one token."""

    def __init__(self, folder: Path) -> None:
        self.hosts = Hosts(len(NUM_CPUS))
        self.environment = environment_of(token_file(folder))
        self.address = f"{self.hosts.address(HEAD)}:{PORT}"
        self.shared, self.folder = folder / "shared", folder
        self.shared.mkdir()
        self.scratch = tempfile.TemporaryDirectory(prefix="rh")
        self.head = self.hosts.names[HEAD]
        for number in range(len(NUM_CPUS)):
            self._start(number)

    def _start(self, number: int) -> None:
        own = (
            f"--node-ip-address={self.hosts.address(number)} --num-cpus={NUM_CPUS[number]} --block"
        )
        head = f"--head --port={PORT} --include-dashboard=false --temp-dir={self.scratch.name}"
        ray = f"exec ray start {own} {head if number == HEAD else f'--address={self.address}'}"
        hidden = f"mount -t tmpfs none {self.shared} && " if number == BLIND else ""
        log = self.folder / f"host-{number}.log"
        self.hosts.start(
            number, ["unshare", "--mount", "sh", "-c", hidden + ray], self.environment, log
        )
        deadline = time.monotonic() + SECONDS_TO_START
        while "started." not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        """End all hosts."""
        self.hosts.stop()
        self.scratch.cleanup()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    require_hosts()
    hosts = RayHosts(tmp_path_factory.mktemp("hosts"))
    yield hosts
    hosts.stop()


def test_a_host_that_does_not_see_the_run_directory_is_named_before_anything_starts(
    cluster: RayHosts, ranks: RankServer, tiny_data: Path
) -> None:
    config = config_of(
        tiny_data, cluster.shared, **{"launch.workers": 2, "launch.address": cluster.address}
    )
    ended = start(ranks, config, cluster.environment, host=cluster.head).result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "failed"
    assert (
        f"The node {socket.gethostname()} ({cluster.hosts.address(BLIND)})"
        in ended.value["message"]
    )
    assert f"does not see the run directory {cluster.shared / 'tiny'}" in ended.value["message"]
    assert not (cluster.shared / "tiny" / "ray").exists()


def test_a_run_whose_host_dies_resumes_on_another_one_with_the_same_bits(
    cluster: RayHosts,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    changes = {"launch.workers": 2, "launch.address": cluster.address, "launch.placement": "spread"}
    changes["launch.timeout_min"] = (
        3  # longer than Ray takes on busy cores to see that the host is gone
    )
    fault = Fault("wait", rank=1, step=33)
    plan_faults(tmp_path, [fault])
    training = start(
        ranks, config_of(tiny_data, tmp_path, **changes), cluster.environment, host=cluster.head
    )
    worker = await_fault(tmp_path, fault, training)
    names = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    assert not [
        name for name in names if name.startswith(b"GLOO_SOCKET_IFNAME")
    ]  # nobody told it the interface
    dead = cluster.hosts.host_of(worker)
    cluster.hosts.kill(dead)
    ended = training.result()[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert_same_content(tmp_path / "tiny", undisturbed(2))
    last = max(step for step in (*range(0, fault.step, 5), *range(0, fault.step, 7)))
    resumed = lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")
    assert [(line["iteration"], line["world_size"]) for line in resumed] == [(last, 2)]
    print(f"seconds to the first new step: {resumed[0]['seconds_to_first_step']}")
    steps = [line["step"] for line in lines_of(tmp_path / "steps.jsonl") if line["rank"] == 0]
    assert {step for step in range(1, ITERATIONS + 1) if steps.count(step) > 1} <= set(
        range(last + 1, fault.step + 1)
    )
    used = {line["group"].partition(":")[0] for line in lines_of(tmp_path / "steps.jsonl")}
    assert used <= {cluster.hosts.address(number) for number in range(1, len(NUM_CPUS))}


def test_the_interface_is_the_one_that_carries_the_nodes_address() -> None:
    from distbranch.launch.interfaces import find_interface

    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("203.0.113.7") is None
    assert INTERFACE not in os.listdir("/sys/class/net")
