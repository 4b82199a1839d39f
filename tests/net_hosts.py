"""Hosts with addresses of their own on one machine: network namespaces joined by a bridge that lies in one more of them.

Needs root and iproute2; nothing outside the namespaces is changed.
"""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000
INTERFACE = "eth7"  # not a name that anybody would guess


def require_hosts() -> None:
    """Skip where there are none, but not in CI."""
    lacking = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if os.geteuid() == 0 and not lacking:
        return
    message = f"network namespaces need root and {', '.join(lacking) or 'nothing else'} (Debian: iproute2, util-linux)"
    if os.environ.get("DISTBRANCH_NO_SKIP"):
        pytest.fail(message)
    pytest.skip(message)


class Hosts:
    """Hosts 0, 1, ... with the addresses 10.77.0.1, 10.77.0.2, ..."""

    def __init__(self, count: int) -> None:
        prefix = f"db{os.getpid()}"
        self.names = [f"{prefix}-{number}" for number in range(count)]
        self.switch = f"{prefix}-switch"
        _ip("netns", "add", self.switch)
        self._in(self.switch, "link", "add", "br0", "type", "bridge")
        self._in(self.switch, "link", "set", "br0", "up")
        for number, name in enumerate(self.names):
            _ip("netns", "add", name)
            port = f"p{number}"
            self._in(
                self.switch,
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                INTERFACE,
                "netns",
                name,
            )
            self._in(self.switch, "link", "set", port, "master", "br0", "up")
            self._in(name, "link", "set", "lo", "up")
            self._in(name, "address", "add", f"{self.address(number)}/24", "dev", INTERFACE)
            self._in(name, "link", "set", INTERFACE, "up")
            self._in(name, "route", "add", "default", "dev", INTERFACE)
        self.processes: list[subprocess.Popen[bytes]] = []

    def address(self, number: int) -> str:
        """The IP address of a host."""
        return f"10.77.0.{number + 1}"

    def start(
        self, number: int, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        """Start a process on a host."""
        with log.open("w") as output:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.names[number]}", *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.processes.append(process)

    def host_of(self, process: int) -> int:
        """The host on which a process runs."""
        own = os.stat(f"/proc/{process}/ns/net").st_ino
        return next(
            n for n, name in enumerate(self.names) if os.stat(f"/run/netns/{name}").st_ino == own
        )

    def kill(self, number: int) -> None:
        """A host dies: it is silent at once, and all that ran there is gone."""
        self._in(self.names[number], "link", "set", INTERFACE, "down")
        found = subprocess.run(
            ["ip", "netns", "pids", self.names[number]], capture_output=True, text=True, check=True
        )
        for process in map(int, found.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        """End all that still runs there, and the hosts."""
        for number in range(len(self.names)):
            self.kill(number)
        for process in self.processes:
            process.wait(timeout=30)
        for name in (*self.names, self.switch):
            _ip("netns", "delete", name)

    def _in(self, namespace: str, *arguments: str) -> None:
        _ip("-n", namespace, *arguments)


def enter(namespace: str) -> None:
    """Make this process, which has one thread yet, one of a host."""
    with Path(f"/run/netns/{namespace}").open() as file:
        library: Any = ctypes.CDLL(None, use_errno=True)
        if library.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
