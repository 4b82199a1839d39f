"""What a job of Slurm does on each of its nodes: train here, or be a part of a Ray cluster of the job's own.

Task 0 starts the head, says through a file that only its owner can read where it is and with which token, and runs the
training in a child process; the others join. Slurm sends its signals to every process of a job. Children of a task do not
receive them (the signals are blocked, which children inherit): the task asks the run to stop, and ends its children when
everything is saved.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from distbranch.engine.process_group import num_cores
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.launch.on_ray.address import find_last_line
from distbranch.launch.on_slurm.node import (
    SECONDS_BETWEEN_LOOKS,
    Place,
    find_free_port,
    find_interface_towards,
    find_own_address,
    is_free_port,
)
from distbranch.launch.on_slurm.queue import is_preempted, requeue_job
from distbranch.launch.on_slurm.resources import count_gpus_of_this_node
from distbranch.launch.stopping import EXIT_PREEMPTED
from distbranch.streams import tolerate_any_text

SIGNALS = {signal.SIGTERM, signal.SIGUSR2}
SECONDS_OF_KILL_WAIT = 25  # Slurm's KillWait is 30 by default
MINUTES_TO_JOIN = 5  # nodes of one job begin within seconds, but an image or a module may load slowly on some
SECONDS_TO_START = 120  # of the head, which imports Ray from a file system that all nodes read at once
RESTARTS_OF_RAY = 3


@dataclass
class Task:
    """One task of the job, as submitit calls it on every node; `checkpoint` is called before it is put back into the queue.

    Args:
        config: the YAML file of the run.
        run_directory: of the run.
        gpus_per_node: that Slurm gives.
        cpus_per_node: that Slurm gives; all of its allocation if None.
        seconds_to_save: from SIGUSR2 on.
        port: of the Ray head; derived from the job's number if None.
    """

    config: str
    run_directory: str
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    seconds_to_save: float = 70.0
    port: int | None = None
    _driver: int | None = field(default=None, repr=False)  # process id
    _asked_at: float | None = field(default=None, repr=False)  # to end, by SIGTERM

    def __call__(self) -> int:
        """Take part in the training until it ends; the exit code of `distbranch train`."""
        import submitit

        tolerate_any_text()
        signal.signal(signal.SIGTERM, self._receive_sigterm)
        place = Place.from_environment(self.run_directory)
        try:
            with place.create_folders():
                self._check_gpus()
                # One node needs no cluster that others join: its ranks start one of their own.
                if place.num_nodes == 1:
                    code = self._run_training(place, {}, ())
                elif place.is_first:
                    code = self._start_head_and_train(place)
                else:
                    code = self._join_cluster(place)
        except UserError as error:
            sys.stdout.write(f"Error: {error}\n")  # the log of the job is its terminal
            code = 1
        except submitit.core.utils.UncompletedJobError:  # by the time it was asked to save itself the run had finished
            if read_result(Path(self.run_directory)) is None:
                raise
            code = 0
        return self._finish(place, code)

    def checkpoint(self) -> Any:
        """Save everything; what is to be called when the job runs again, or None if the run is finished."""
        import submitit

        # Called by submitit within its signal handler, so the word to stop is a file and the end is looked up.
        end = time.monotonic() + self.seconds_to_save
        while self._driver is not None and not _has_ended(self._driver) and time.monotonic() < end:
            self._request_stop()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if read_result(Path(self.run_directory)) is not None:
            return None
        Place.from_environment(self.run_directory).announce_end()
        return submitit.helpers.DelayedSubmission(replace(self, _driver=None, _asked_at=None))

    def _receive_sigterm(self, _: int, __: FrameType | None) -> None:
        """SIGTERM: scancel, or the grace before a preemption."""
        self._asked_at = self._asked_at or time.monotonic()

    def _request_stop(self) -> None:
        with suppress(OSError):
            RunDirectory(Path(self.run_directory)).stop_word.touch()

    def _check_gpus(self) -> None:
        """A site's default, or --exclusive, may bring GPUs that nobody asked for: they should not stay idle."""
        found = count_gpus_of_this_node()
        if found is not None and found != self.gpus_per_node:
            raise UserError(
                f"Slurm gave the job {found} GPU(s) on {socket.gethostname()}, of which its ranks would use {self.gpus_per_node}: "
                f"submit it with --gpus-per-node {found}, or without what brings them (--exclusive, a partition of GPUs)."
            )

    def _start_head_and_train(self, place: Place) -> int:
        token = secrets.token_hex(32)
        address = find_own_address()
        environment = _make_environment(place, token, address)
        for attempt in range(RESTARTS_OF_RAY):
            # Another port each time, for somebody may take one between the look and the start.
            port = find_free_port(place.number, attempt) if self.port is None else self.port
            if not is_free_port(port):
                raise UserError(
                    f"The port {port} of {socket.gethostname()} is in use. Give another --port, or leave it out."
                )
            command = [
                *self._make_ray_command(place, address),
                "--head",
                f"--port={port}",
                f"--ray-client-server-port={find_free_port(place.number, attempt + RESTARTS_OF_RAY)}",
                "--include-dashboard=false",  # a part of it runs all the same, and wants its port
                f"--dashboard-port={find_free_port(place.number, 2 * RESTARTS_OF_RAY)}",
            ]
            # Train while the head lives; the other tasks may join from now on.
            with _start_child(command, environment, place.log("ray-head")) as head:
                if self._wait_for_head(head, address, port):
                    place.announce_cluster({"address": f"{address}:{port}", "token": token})
                    overrides = (f"launch.address={address}:{port}", f"launch.wait_for_nodes_min={MINUTES_TO_JOIN}")
                    return self._run_training(place, environment, overrides)
            if self._asked_at is not None:
                return EXIT_PREEMPTED
        raise UserError(f"Ray could not be started on {socket.gethostname()}: {_read_last_line(place.log('ray-head'))}")

    def _wait_for_head(self, head: "subprocess.Popen[bytes]", address: str, port: int) -> bool:
        """Whether the head begins to answer before it ends."""
        end = time.monotonic() + SECONDS_TO_START
        while head.poll() is None and self._asked_at is None and time.monotonic() < end:
            with suppress(OSError):
                socket.create_connection((address, port), timeout=1).close()
                return True
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return False

    def _join_cluster(self, place: Place) -> int:
        """Be a node of the cluster, a new one if it dies, until task 0 says that it is over."""
        cluster = place.wait_for_cluster(60 * MINUTES_TO_JOIN)
        for _ in range(RESTARTS_OF_RAY):
            # Task 0 may have ended before this one began.
            if cluster is None or place.is_over():
                return 0
            own = find_interface_towards(cluster["address"])
            environment = _make_environment(place, cluster["token"], own.address)
            command = [*self._make_ray_command(place, own.address), f"--address={cluster['address']}"]
            with _start_child(command, environment, place.log(f"ray-{place.task}")) as node:
                while not place.is_over() and node.poll() is None:
                    if self._is_late(SECONDS_OF_KILL_WAIT):
                        return EXIT_PREEMPTED
                    time.sleep(SECONDS_BETWEEN_LOOKS)
        if place.is_over():
            return 0
        raise UserError(
            f"Ray ended {RESTARTS_OF_RAY} times on {socket.gethostname()}: {_read_last_line(place.log(f'ray-{place.task}'))}"
        )

    def _run_training(self, place: Place, environment: Mapping[str, str], overrides: Sequence[str]) -> int:
        command = [sys.executable, "-m", "distbranch", "train", self.config, *overrides]
        with _start_child(command, {**_set_temporary_folders(place), **environment}, None) as driver:
            self._driver = driver.pid
            while driver.poll() is None:
                if self._asked_at is not None:
                    self._request_stop()
                    if self._is_late(SECONDS_OF_KILL_WAIT):
                        break
                time.sleep(SECONDS_BETWEEN_LOOKS)
            code = driver.poll()
        self._driver = None
        return 1 if code is None or code < 0 else code

    def _is_late(self, seconds: float) -> bool:
        return self._asked_at is not None and time.monotonic() - self._asked_at > seconds

    def _make_ray_command(self, place: Place, address: str) -> list[str]:
        """`ray start`, with everything its own, so that other jobs on the node are not disturbed."""
        cpus = self.cpus_per_node or int(os.environ.get("SLURM_CPUS_ON_NODE", num_cores()))
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            f"--node-ip-address={address}",
            f"--num-cpus={cpus}",
            f"--num-gpus={self.gpus_per_node}",
            f"--temp-dir={place.scratch}",
            "--object-store-memory=200000000",  # weights do not travel through it
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
        ]

    def _finish(self, place: Place, code: int) -> int:
        """Say how the task ends: 0 when the run is finished or saved, else Slurm shall show the job as failed."""
        if code == 0:  # nothing is left to save, and a signal to the interpreter at its end would fail the job
            for one in SIGNALS:
                signal.signal(one, signal.SIG_IGN)
        if not place.is_first:
            return code
        # SIGTERM comes from scancel too, and such a job should not run again.
        if self._asked_at is not None and place.job_id and is_preempted(place.job_id):
            requeue_job(place.job_id)
        if code not in (0, EXIT_PREEMPTED):
            sys.exit(code)  # no exception: its traceback says nothing more
        return code


@contextmanager
def _start_child(
    command: Sequence[str], environment: Mapping[str, str], log: Path | None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A child process that no signal of Slurm reaches; at the end it and all that it started are ended, nothing else is."""
    with log.open("ab") if log else nullcontext() as file:
        errors = subprocess.STDOUT if file else None
        surroundings = {**os.environ, **environment}
        child = subprocess.Popen(command, env=surroundings, stdout=file, stderr=errors, preexec_fn=_block_signals)
        try:
            yield child
        finally:
            _kill_tree(child.pid)
            child.wait()


def _block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree[1:], timeout=5)


def _has_ended(pid: int) -> bool:
    """Without taking its exit code away from whoever waits for it: this is asked within a signal handler."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _set_temporary_folders(place: Place) -> dict[str, str]:
    """All temporary files go where the task removes them; the site's TMPDIR may be too long for any socket."""
    return {"RAY_TMPDIR": str(place.scratch), "TMPDIR": str(place.scratch)}


def _make_environment(place: Place, token: str, own_address: str) -> dict[str, str]:
    """What Ray's processes on this node need to know: the token, their folder, and the network between the nodes."""
    given = _set_temporary_folders(place)
    given |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    interface = find_interface_towards(own_address).name
    if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
        given["GLOO_SOCKET_IFNAME"] = interface
    return given


def _read_last_line(file: Path) -> str:
    return find_last_line(file.read_text(errors="replace"), "it said nothing")
