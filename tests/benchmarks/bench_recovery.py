"""Seconds from the loss of a process, a worker, a node, a host or the driver to the next step of the run.

`python tests/benchmarks/bench_recovery.py --help`

Each loss is real: `kill -9` of a process, of all processes of a Ray node, or of a host with an address of its own, which falls
silent first. The run is the tests' tiny one, so what is measured is all but the steps since the last checkpoint.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
import yaml
from command_line import create_work_folder, run_as_command

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "launch" / "on_ray")]

import ray_world  # noqa: E402
from ray_world import RayWorld  # noqa: E402
from tiny_runs import config_of, lines_of, pack_tiny  # noqa: E402

from distbranch.cli.terminal import show_rows  # noqa: E402
from distbranch.engine.checkpoint import list_checkpoints  # noqa: E402
from distbranch.errors import UsageError, UserError  # noqa: E402

SECONDS_BETWEEN_LOOKS = 0.02
SECONDS_TO_WAIT = 400  # also for a crowded machine
# Of Ray's own processes; the tests' are shorter, and what a user waits for is to be measured.
PATIENCE_OF_TESTS = ("RAY_health_check_period_ms", "RAY_health_check_failure_threshold")
# What others say on the pages that are named; "not told": there is no figure there.
DOCUMENTED = (
    ("Ray Train", "all workers", "not told", "docs.ray.io: Handling Failures and Node Preemption"),
    ("torchft", "the lost replica", "not told", "the README of meta-pytorch/torchft"),
    ("Lightning", "the whole command", "not told", "lightning.ai: Fault-tolerant Training"),
)


@dataclass
class Run:
    """A run that trains without end, by the command line, and its drivers."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()  # before the command: how a host is entered
    driver: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.folder / "runs" / "tiny"

    def begin(self, **dotted: Any) -> None:
        """Write the configuration, start a driver, and wait for a checkpoint and a step after it."""
        endless = {
            "train.iterations": 10_000_000,
            "train.checkpoint_every": 10,
            "train.log_every": 1,
            "train.evaluate_every": 0,
            "method.round_iterations": 10_000_000,
            "launch.max_failures": 1000,
            "launch.timeout_min": 5,
        }
        config = config_of(self.folder / "data", self.folder / "runs", **endless, **dotted)
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(config))
        self.start_driver()
        self.wait_for(lambda: list_checkpoints(self.path / "checkpoints"), "a first checkpoint")

    def start_driver(self) -> None:
        """The command that begins the run and resumes it."""
        command = [*self.prefix, sys.executable, "-m", "distbranch", "train", "tiny.yaml"]
        with (self.folder / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )

    def measure(self, lose: Callable[[], None]) -> float:
        """Seconds from a loss to the end of the first step after it."""
        before = len(self.starts())
        began = time.monotonic()
        lose()
        self.wait_for(lambda: len(self.starts()) > before, "a step after the loss")
        seconds = time.monotonic() - began
        newest = list_checkpoints(self.path / "checkpoints")[-1]
        self.wait_for(
            lambda: list_checkpoints(self.path / "checkpoints")[-1] > newest, "a checkpoint"
        )
        return seconds

    def starts(self) -> list[dict[str, Any]]:
        """The lines that say with what the run was resumed, each written after its first step."""
        return lines_of(self.path / "metrics.jsonl", "resumed")

    def wait_for(self, ready: Callable[[], object], what: str) -> None:
        """Look again and again.

        Raises:
            UserError: it does not come.
        """
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while not ready():
            assert self.driver is not None
            if time.monotonic() > deadline or self.driver.poll() is not None:
                log = (self.folder / "driver.log").read_text(errors="replace")
                raise UserError(
                    f"The run did not come to {what}. Its log ends with:\n{log[-3000:]}"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def find_workers(self) -> list[int]:
        """The processes of its ranks under Ray."""
        found = []
        for process in psutil.process_iter():
            try:
                is_worker = "RayTrainWorker" in " ".join(process.cmdline())
                if is_worker and process.environ().get(MARK) == str(self.folder):
                    found.append(process.pid)
            except psutil.Error:  # it has ended meanwhile
                continue
        return sorted(found)

    def kill_driver(self) -> None:
        """The driver dies; the same command is given again at once."""
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        self.start_driver()

    def stop(self) -> None:
        """End it by its stop word."""
        if self.driver is None or self.driver.poll() is not None:
            return
        (self.path / "stop").touch()
        try:
            self.driver.wait(SECONDS_TO_WAIT)
        except subprocess.TimeoutExpired:
            self.driver.kill()


MARK = "DISTBRANCH_BENCH_RECOVERY"  # in the environment of all processes of a run


def lose_process(run: Run, repeats: int) -> list[float]:
    """One rank without Ray: its process is killed, and the command is given again."""
    run.begin()
    return [run.measure(run.kill_driver) for _ in range(repeats)]


def lose_worker(run: Run, repeats: int) -> list[float]:
    """Two workers of Ray on this machine, one of which is killed."""
    run.begin(**{"launch.workers": 2})
    return [
        run.measure(lambda: os.kill(run.find_workers()[-1], signal.SIGKILL)) for _ in range(repeats)
    ]


def lose_driver(run: Run, repeats: int) -> list[float]:
    """The driver of two workers of Ray on this machine is killed, and the command is given again."""
    run.begin(**{"launch.workers": 2})
    return [run.measure(run.kill_driver) for _ in range(repeats)]


def lose_node(run: Run, repeats: int) -> list[float]:
    """A node of a Ray cluster with one of two workers is killed; another one has room."""
    world = RayWorld(run.folder)
    try:
        for _ in range(3):
            world.add_node(environment={MARK: str(run.folder)})
        run.environment = {**run.environment, **world.environment}
        run.begin(**{"launch.workers": 2, "launch.address": world.address})
        found = []
        for _ in range(repeats):
            found.append(
                run.measure(lambda: world.remove_node(world.node_of(run.find_workers()[-1])))
            )
            world.add_node(environment={MARK: str(run.folder)})
        run.stop()
        return found
    finally:
        world.stop()


def lose_host(run: Run, repeats: int) -> list[float]:
    """A host of a Ray cluster with one of two workers falls silent and is gone; another one has room. Once: hosts do not return."""
    from net_hosts import Hosts
    from test_ray_hosts import HEAD, RayHosts

    assert repeats
    hosts = RayHosts(run.folder)
    hosted: Hosts = hosts.hosts
    try:
        run.environment = {**run.environment, **hosts.environment}
        run.prefix = ("nsenter", f"--net=/run/netns/{hosted.names[HEAD]}")
        run.begin(
            **{
                "launch.workers": 2,
                "launch.address": hosts.address,
                "launch.placement": "spread",
            }
        )
        found = run.measure(lambda: hosted.kill(hosted.host_of(run.find_workers()[-1])))
        run.stop()
        return [found]
    finally:
        hosts.stop()


LOSSES = {
    "process": (lose_process, "one rank, no Ray"),
    "worker": (lose_worker, "two workers on one machine"),
    "node": (lose_node, "two workers on a cluster of three nodes"),
    "host": (lose_host, "two workers on a cluster of hosts with addresses of their own"),
    "driver": (lose_driver, "two workers on one machine"),
}


@contextmanager
def _begun(folder: Path) -> Iterator[Run]:
    pack_tiny(folder / "data")
    environment = {
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "200",  # a crowded machine needs more than 30
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
        MARK: str(folder),
    }
    os.environ.update(environment)  # of nodes and hosts
    run = Run(folder, environment)
    try:
        yield run
    finally:
        run.stop()


def _measure(name: str, repeats: int, place: Path) -> dict[str, str]:
    """A row of the table."""
    work, where = LOSSES[name]
    with tempfile.TemporaryDirectory(dir=place) as own, _begun(Path(own)) as run:
        seconds = work(run, repeats)
    typer.echo(f"{name}: {', '.join(f'{one:.1f}' for one in seconds)} s", err=True)
    return {
        "lost": name,
        "of": where,
        "seconds": f"{statistics.median(seconds):.1f}",
        "least to most": f"{min(seconds):.1f} to {max(seconds):.1f}",
        "times": str(len(seconds)),
    }


def main(
    losses: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(LOSSES),
    repeats: Annotated[int, typer.Option(help="Of each loss; a host is lost once.", min=1)] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="For the runs; a temporary folder if empty.")
    ] = None,
) -> None:
    """Seconds from a loss to the next step, and what others document. Hosts need root and iproute2."""
    names = losses.split(",")
    if unknown := [name for name in names if name not in LOSSES]:
        raise UsageError(
            f"--losses should be of {', '.join(LOSSES)}, found {', '.join(unknown)}. Give one or more of these."
        )
    for name in PATIENCE_OF_TESTS:
        ray_world.SETTINGS.pop(name, None)
    rows = []
    failed = []
    with create_work_folder(folder) as place:
        for name in names:
            try:
                rows.append(_measure(name, repeats, place))
            # The others are measured all the same; a cluster of the tests that cannot start is an assertion.
            except (UserError, AssertionError) as error:
                failed.append(f"{name}: {error}")
    if rows:
        show_rows(rows)
    heads = ("system", "restarted", "seconds", "source")
    show_rows([dict(zip(heads, row, strict=True)) for row in DOCUMENTED])
    if failed:
        raise UserError("\n".join(failed))


if __name__ == "__main__":
    run_as_command(main)
