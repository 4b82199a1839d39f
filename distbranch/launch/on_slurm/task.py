"""What a job of Slurm does on each of its nodes: run its command here, or be a part of a Ray cluster of the job's own.

Task 0 starts the head, says through a file that only its owner can read where it is and with which token, and runs the
command in a child process; the others join. Slurm sends its signals to every process of a job. Children of a task do not
receive them (the signals are blocked, which children inherit): the task asks the run or sweep to stop, and ends its children
when everything is saved.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from distbranch.engine.cores import num_cores
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.launch.on_ray.address import VARIABLE, find_last_line
from distbranch.launch.on_slurm.containers import use_scontrol_of_batch_script
from distbranch.launch.on_slurm.hold_signals import HELD
from distbranch.launch.on_slurm.local_job import EXIT_CODE, write_exit_code
from distbranch.launch.on_slurm.node import (
    SECONDS_BETWEEN_LOOKS,
    Place,
    count_gpus_of_this_node,
    find_address_towards,
    find_own_address,
    make_environment,
)
from distbranch.launch.on_slurm.queue import call_slurm, is_preempted
from distbranch.launch.processes import end_process_tree, find_free_port, look_until
from distbranch.launch.stopping import EXIT_PREEMPTED
from distbranch.signals import hidden_from_children
from distbranch.streams import tolerate_any_text

SECONDS_OF_KILL_WAIT = 25  # Slurm's KillWait is 30 by default
MINUTES_TO_JOIN = (
    5  # nodes of one job begin within seconds, but an image or a module may load slowly on some
)
SECONDS_TO_START = (
    120  # of the head, which imports Ray from a file system that all nodes read at once
)
RESTARTS_OF_RAY = 3
RAY_HAS_JOINED = b"Ray runtime started"  # in the words of `ray start`, once the head knows the node
Child = subprocess.Popen[bytes]


@dataclass
class Task:
    """One task of the job, as submitit calls it on every node; `checkpoint` is called before it is put back into the queue.

    Args:
        words: of the command, after `distbranch`.
        folder: of the job's files, which all nodes see.
        directory: of the run or sweep, in which the word to stop is written; None: the command saves nothing on its way, so that
            it is not put back into the queue.
        here: the current folder of the command, which the first node sees; that of the task if None.
        gpus_per_node: that Slurm gives.
        cpus_per_node: that Slurm gives; all of its allocation if None.
        seconds_to_save: from SIGUSR2 on.
        port: of the Ray head; a free one if None.
    """

    words: Sequence[str]
    folder: str
    directory: str | None = None
    here: str | None = None
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    seconds_to_save: float = 70.0
    port: int | None = None
    driver: Child | None = None
    asked_at: float | None = None  # to end, by SIGTERM
    is_done: bool = False  # the command has ended well, so there is nothing to save

    def __call__(self) -> int:
        """Take part in the command until it ends; its exit code."""
        import submitit

        tolerate_any_text()
        use_scontrol_of_batch_script()
        signal.signal(signal.SIGTERM, self._receive_sigterm)
        if (
            self.directory is None
        ):  # the warning before the time limit helps no command that saves nothing
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)  # those that came too early act here
        place = Place.from_environment(self.folder)
        if place.is_first:
            (place.folder / EXIT_CODE).unlink(missing_ok=True)  # of an attempt before
        try:
            with place.create_folders():
                self._check_gpus()
                # One node needs no cluster that others join: its ranks start one of their own. What trains nothing has no ranks of
                # Ray: with several nodes each runs it.
                is_alone = place.num_nodes == 1 or self.directory is None
                code = self._run_command(place) if is_alone else self._run_with_ray(place)
        except UserError as error:
            sys.stdout.write(f"Error: {error}\n")  # the log of the job is its terminal
            code = 1
        except (
            submitit.core.utils.UncompletedJobError
        ):  # by the time it was asked to save itself the command had ended well
            if not self.is_done:
                raise
            code = 0
        return self._finish(place, code)

    def checkpoint(self) -> Any:
        """Save everything; what is to be called when the job runs again, or None if the command has ended well."""
        import submitit

        # Called by submitit within its signal handler, so the word to stop is a file.
        for _ in look_until(self.seconds_to_save, SECONDS_BETWEEN_LOOKS):
            if self.driver is None or self.driver.poll() is not None:
                break
            self._request_stop()
        self.is_done = self.is_done or (self.driver is not None and self.driver.poll() == 0)
        if self.is_done:
            return None
        Place.from_environment(self.folder).announce_end()
        return submitit.helpers.DelayedSubmission(replace(self, driver=None, asked_at=None))

    def _receive_sigterm(self, _: int, __: FrameType | None) -> None:
        """SIGTERM: scancel, or the grace before a preemption."""
        self.asked_at = self.asked_at or time.monotonic()

    def _request_stop(self) -> None:
        if self.directory is not None:
            with suppress(OSError):
                RunDirectory(Path(self.directory)).stop_word.touch()

    def _check_gpus(self) -> None:
        """A site's default, or --exclusive, may bring GPUs that nobody asked for: they should not stay idle."""
        found = count_gpus_of_this_node()
        if found is not None and found != self.gpus_per_node:
            raise UserError(
                f"Slurm gave the job {found} GPU(s) on {socket.gethostname()}, of which its ranks would use {self.gpus_per_node}: "
                f"submit it with --gpus-per-node {found}, or without what brings them (--exclusive, a partition of GPUs)."
            )

    def _run_with_ray(self, place: Place) -> int:
        """Be a node of the job's Ray cluster, and a new one if that ends early; task 0 is its head and runs the command."""
        for _ in range(RESTARTS_OF_RAY):
            if place.is_first:
                own = find_own_address()
                # Another port each time, for somebody may take one between the look and the start.
                port = find_free_port(self.port)
                cluster = {"address": f"{own}:{port}", "token": secrets.token_hex(32)}
                options = [
                    "--head",
                    f"--port={port}",
                    f"--ray-client-server-port={find_free_port()}",
                ]
                # A part of the dashboard runs all the same, and wants its port.
                options += ["--include-dashboard=false", f"--dashboard-port={find_free_port()}"]
            else:
                told = place.wait_for_cluster(60 * MINUTES_TO_JOIN)
                if told is None:  # task 0 ended before this one began
                    return 0
                cluster = told
                own = find_address_towards(cluster["address"].partition(":")[0])
                options = [f"--address={cluster['address']}"]

            command = self._make_ray_command(place, own, options)
            with (
                place.ray_log.open("ab") as log,
                _start_child(command, make_environment(place, cluster), log) as ray,
            ):
                code = (
                    self._lead(place, cluster, ray) if place.is_first else self._follow(place, ray)
                )
            if code is not None:
                return code
        place.announce("lost")
        last = find_last_line(place.ray_log.read_text(errors="replace"), "it said nothing")
        raise UserError(f"Ray ended {RESTARTS_OF_RAY} times on {socket.gethostname()}: {last}")

    def _lead(self, place: Place, cluster: Mapping[str, str], ray: Child) -> int | None:
        """Run the command as soon as this node's Ray, the head, answers; None if it ended before."""
        host, _, port = cluster["address"].partition(":")
        for _ in look_until(SECONDS_TO_START, SECONDS_BETWEEN_LOOKS):
            if self.asked_at is not None:
                return EXIT_PREEMPTED
            if ray.poll() is not None:
                return None
            with suppress(OSError):
                socket.create_connection((host, int(port)), timeout=1).close()
                break
        else:
            return None
        place.announce_cluster(cluster)  # the other tasks may join from now on
        if not self._is_run and not self._wait_for_nodes(place):
            return EXIT_PREEMPTED
        return self._run_command(place, cluster)

    def _wait_for_nodes(self, place: Place) -> bool:
        """Wait until all nodes are a part of the cluster, for a sweep counts once what fits there; False if asked to end.

        Whoever is late all the same is used once it is there, or is lost.
        """
        for _ in look_until(60 * MINUTES_TO_JOIN, SECONDS_BETWEEN_LOOKS):
            if self.asked_at is not None:
                return False
            if 1 + place.count_nodes("joined") + place.count_nodes("lost") >= place.num_nodes:
                break
        num_joined = 1 + place.count_nodes("joined")
        if num_joined < place.num_nodes:
            sys.stdout.write(
                f"{num_joined} of {place.num_nodes} nodes have joined, see the logs of the others; the command begins.\n"
            )
        return True

    def _follow(self, place: Place, ray: Child) -> int | None:
        """Keep this node's Ray until task 0 says that it is over; None if it ended before."""
        has_joined = False
        while not place.is_over():
            if not has_joined and RAY_HAS_JOINED in place.ray_log.read_bytes():
                has_joined = True
                place.announce("joined")
            if ray.poll() is not None:
                # The head ends just before task 0 says so.
                return 0 if place.is_over() else None
            if self._is_late():
                return EXIT_PREEMPTED
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return 0

    @property
    def _is_run(self) -> bool:
        """Whether the command trains one run, which itself waits for the nodes and says what they lack."""
        return self.words[0] == "train"

    def _run_command(self, place: Place, cluster: Mapping[str, str] | None = None) -> int:
        command = [sys.executable, "-m", "distbranch", *self.words]
        if self._is_run and cluster is not None:
            command += [
                f"launch.address={cluster['address']}",
                f"launch.wait_for_nodes_min={MINUTES_TO_JOIN}",
            ]
        if self.here is not None and not os.path.isdir(self.here):
            raise UserError(
                f"The job was submitted from {self.here}, which {socket.gethostname()} does not see. Submit it from a folder on storage "
                "that all nodes share."
            )
        environment = make_environment(place, cluster)
        # Never that of whoever submitted the job, which the environment may still name.
        environment[VARIABLE] = "local" if cluster is None else cluster["address"]
        with _start_child(command, environment, here=self.here) as self.driver:
            while self.driver.poll() is None and not self._is_late():
                if self.asked_at is not None:
                    if self.directory is None:
                        break
                    self._request_stop()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            code = self.driver.poll()
        self.is_done = code == 0
        self.driver = None
        if self.directory is None and self.asked_at is not None and not self.is_done:
            raise UserError(
                f"The job was ended before `distbranch {self.words[0]}` had, which begins anew when it is submitted again. Where its "
                "time was over, give a longer --time."
            )
        return 1 if code is None or code < 0 else code

    def _is_late(self) -> bool:
        """Whether Slurm is about to kill everything."""
        return self.asked_at is not None and time.monotonic() - self.asked_at > SECONDS_OF_KILL_WAIT

    def _make_ray_command(self, place: Place, address: str, options: Sequence[str]) -> list[str]:
        """`ray start`, with everything its own, so that other jobs on the node are not disturbed."""
        cpus = self.cpus_per_node or int(os.environ.get("SLURM_CPUS_ON_NODE", num_cores()))
        return [
            *(
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--block",
                "--disable-usage-stats",
            ),
            f"--node-ip-address={address}",
            f"--num-cpus={cpus}",
            f"--num-gpus={self.gpus_per_node}",
            f"--temp-dir={place.scratch}",
            "--object-store-memory=200000000",  # weights do not travel through it
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--dashboard-agent-listen-port=0",
            "--include-log-monitor=false",  # its driver asks for no worker's log
            *options,
        ]

    def _finish(self, place: Place, code: int) -> int:
        """Say how the task ends: 0 when the run is finished or saved, else Slurm shall show the job as failed."""
        if (
            code == 0
        ):  # nothing is left to save, and a signal to the interpreter at its end would fail the job
            for one in HELD:
                signal.signal(one, signal.SIG_IGN)
        if not place.is_first:
            return code
        with suppress(OSError):
            write_exit_code(place.folder, code)
        # SIGTERM comes from scancel too, and such a job should not run again.
        if self.asked_at is not None and is_preempted(place.job_id):
            call_slurm("scontrol", "requeue", place.job_id)
        if code not in (0, EXIT_PREEMPTED):
            sys.exit(code)  # no exception: its traceback says nothing more
        return code


@contextmanager
def _start_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Any = None,
    *,
    here: str | None = None,
) -> Iterator[Child]:
    """A child process that no signal of Slurm reaches; at the end it and all that it started are ended, nothing else is.

    Its words go into `log`, an open file, or to where those of this process go.
    """
    errors = None if log is None else subprocess.STDOUT
    with hidden_from_children():
        child = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=log,
            stderr=errors,
            cwd=here,
        )
    try:
        yield child
    finally:
        end_process_tree(child.pid)
        child.wait()
