"""A Ray cluster of several nodes for tests, with a token, in a process of its own; nodes come and go as a test wishes.

Run as a program it is that process: it starts nodes as `ray.cluster_utils.Cluster` does and ends with its input.
"""

import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
# Ray notices a lost node after 5 s instead of 15, and a lost worker at once. After 2 s it took nodes for lost while another started.
SETTINGS = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "10",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
}


def token_file(folder: Path) -> Path:
    """A new token, readable by its owner only."""
    file = folder / "token"
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    return file


def environment_of(token: Path) -> dict[str, str]:
    """What every node and driver of a cluster with this token needs; workers find the package and the tests' modules."""
    folders = (TESTS.parent, TESTS, TESTS / "launch", TESTS / "launch" / "on_ray")
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return {
        **SETTINGS,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": path,
    }


class RayWorld:
    """The cluster; its head has no CPUs, so that no worker comes there."""

    def __init__(self, folder: Path) -> None:
        self.environment = environment_of(token_file(folder))
        self.scratch = tempfile.TemporaryDirectory(prefix="rw")  # Ray's sockets need a short path
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.scratch.name],
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "cluster.log").open("w"),
            text=True,
        )
        self.address = self._answer()

    def add_node(self, *, num_cpus: int = 1, environment: Mapping[str, str] | None = None) -> str:
        """A new node, whose workers have this environment beside that of all; its name."""
        return self._ask("add", {"num_cpus": num_cpus, "env_vars": dict(environment or {})})

    def remove_node(self, name: str) -> None:
        """Kill -9 all processes of a node."""
        self._ask("remove", name)

    def node_of(self, process: int) -> str:
        """The name of the node whose child a process is."""
        name = self._ask("node of", process)
        assert name.startswith("node-"), (
            f"the process {process} is the child of no node that is left: {name}"
        )
        return name

    def stop(self) -> None:
        """End the cluster."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.scratch.cleanup()

    def _ask(self, what: str, value: Any) -> str:
        assert self.process.stdin is not None
        print(json.dumps([what, value]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # Ray prints there too
            if line.startswith("answer "):
                return str(json.loads(line.removeprefix("answer ")))
        raise AssertionError(f"the cluster's process ended with {self.process.wait()}")


def _serve(scratch: str) -> None:
    import psutil
    from ray.cluster_utils import Cluster

    # a cluster with another temp_dir writes its address there too, but makes no such folder on a machine that never ran Ray
    Path("/tmp/ray").mkdir(exist_ok=True)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "temp_dir": scratch,
            "dashboard_agent_listen_port": 0,
        },
    )
    nodes: dict[str, Any] = {}
    numbers = itertools.count()
    _say(cluster.address)
    for line in sys.stdin:
        what, value = json.loads(line)
        if what == "add":
            name = f"node-{next(numbers)}"  # never that of a node before, also when some have been removed
            nodes[name] = cluster.add_node(**value)
            _say(name)
        elif what == "remove":
            cluster.remove_node(nodes.pop(value), allow_graceful=False)
            _say("removed")
        elif what == "node of":
            parents = {parent.pid: parent.name() for parent in psutil.Process(value).parents()}
            raylets = {
                name: node.all_processes["raylet"][0].process for name, node in nodes.items()
            }
            found = [name for name, raylet in raylets.items() if raylet.pid in parents]
            ends = {name: (raylet.pid, raylet.poll()) for name, raylet in raylets.items()}
            _say(found[0] if found else f"its parents are {parents}, the raylets {ends}")
    cluster.shutdown()


def _say(value: Any) -> None:
    print("answer", json.dumps(value), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
