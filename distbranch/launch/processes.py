"""What launchers do again and again: wait in turns, find a free port, end processes, and leave the environment as it was."""

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

from distbranch.errors import UserError

SECONDS_TO_DIE = 5  # of what was killed
SECONDS_TO_BE_NAMED = 10  # milliseconds, but on a machine that does much else
# Below those that the system gives to any connection: one of these could take a port before Ray, which starts for seconds, has it.
PORTS = range(20_000, 32_000)
ATTEMPTS = 200


def look_until(patience_s: float, pause_s: float) -> Iterator[None]:
    """Turns of a loop that looks for something, with pauses between them, until the patience is at its end; one at least."""
    end = time.monotonic() + patience_s
    yield
    while time.monotonic() < end:
        time.sleep(pause_s)
        yield


def wait_for_command_line(process: subprocess.Popen[bytes]) -> None:
    """Wait until others see the command line of a process that was just started: the kernel shows an empty one at first."""
    for _ in look_until(SECONDS_TO_BE_NAMED, 0.001):
        with suppress(psutil.Error):  # it may end at this very moment
            if process.poll() is not None or psutil.Process(process.pid).cmdline():
                return


def find_free_port(wanted: int | None = None) -> int:
    """The port that is wanted, or else one of PORTS, at which nobody listens, on any address of this node.

    Raises:
        UserError: the one that is wanted is in use, or so are many of PORTS.
    """
    candidates = random.sample(PORTS, ATTEMPTS) if wanted is None else [wanted]
    for port in candidates:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    host = socket.gethostname()
    if wanted is not None:
        raise UserError(
            f"The port {wanted} of {host} is in use. Give another --port, or leave it out."
        )
    raise UserError(
        f"No port of {host} from {PORTS[0]} to {PORTS[-1]} is free, of {ATTEMPTS} that were tried."
    )


def end_processes(processes: Iterable[psutil.Process], patience_s: float = 0) -> None:
    """Kill those that have not ended by themselves within so many seconds."""
    alive = psutil.wait_procs(processes, timeout=patience_s)[1]
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=SECONDS_TO_DIE)


def end_process_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # Listed before its end, for afterwards nobody knows whose they were.
        end_processes([process, *process.children(recursive=True)])


@contextmanager
def restored_environment(without: Iterable[str] = ()) -> Iterator[None]:
    """The environment without some variables; afterwards it is what it was, whatever changed in it meanwhile."""
    before = dict(os.environ)
    for name in without:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
