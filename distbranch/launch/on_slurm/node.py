"""A node of a job of Slurm: where its task stands, how tasks speak with each other (by files), its addresses and free ports."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil

from distbranch.errors import UserError
from distbranch.launch.ray_folder import choose_ray_folder

SECONDS_BETWEEN_LOOKS = 0.2
FIRST_PORT, NUM_PORTS = 20_000, 12_000  # below those that the system gives out by itself
PORTS_PER_JOB = 8
ATTEMPTS = 200
PORTS_APART = 1009  # a prime, so that the next attempt does not meet the ports of the next job


@dataclass(frozen=True)
class Place:
    """Where a task stands in its job, and the files through which tasks speak with each other."""

    run_directory: Path
    job_id: str  # of Slurm; empty without it
    number: int  # of the job, which ports and folders are derived from
    attempt: int  # how often the job was requeued
    task: int
    num_nodes: int

    @classmethod
    def from_environment(cls, run_directory: str) -> "Place":
        """From the environment that Slurm or submitit gives."""
        given = os.environ
        # Without Slurm (--executor local) submitit numbers the job by a process, and there is one task.
        number = int(given.get("SLURM_JOB_ID", given.get("SUBMITIT_LOCAL_JOB_ID", os.getpid())))
        return cls(
            Path(run_directory),
            given.get("SLURM_JOB_ID", ""),
            number,
            int(given.get("SLURM_RESTART_COUNT", "0")),
            int(given.get("SLURM_PROCID", "0")),
            int(given.get("SLURM_JOB_NUM_NODES", "1")) if "SLURM_JOB_ID" in given else 1,
        )

    @property
    def is_first(self) -> bool:
        """Whether this is task 0, which leads."""
        return self.task == 0

    @cached_property
    def scratch(self) -> Path:
        """A folder of this task on the node's own disk; short, for sockets have short names, and Ray may make one in it.

        Raises:
            UserError: there is none in which Ray's sockets have room.
        """
        return choose_ray_folder() / f"db{self.number}-{self.task}"

    @property
    def shared(self) -> Path:
        """A folder of this attempt of the job that all its tasks see and only their owner can read."""
        return self.run_directory / "slurm" / f"job-{self.number}-{self.attempt}"

    def log(self, name: str) -> Path:
        """Where a child's own words go."""
        return self.shared / f"{name}.log"

    @contextmanager
    def create_folders(self) -> Iterator[None]:
        """Make both folders; at the end the one of this node is removed, and task 0 says that it is over."""
        shutil.rmtree(self.scratch, ignore_errors=True)  # of an attempt that was killed
        self.scratch.mkdir(mode=0o700)
        self.shared.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            yield
        finally:
            if self.is_first:
                self.announce_end()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def announce_cluster(self, word: Mapping[str, str]) -> None:
        """Say to the other tasks where the cluster is."""
        # Renamed into its place, so that nobody reads half of it; the token is the owner's alone from the first byte.
        aside = self.shared / ".cluster"
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(word, file)
        aside.rename(self.shared / "cluster.json")

    def wait_for_cluster(self, seconds: float) -> dict[str, str] | None:
        """What task 0 told; None if it ended before.

        Raises:
            UserError: it said nothing for so long.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.is_over():
                return None
            with suppress(FileNotFoundError):
                told: dict[str, str] = json.loads((self.shared / "cluster.json").read_text())
                return told
            time.sleep(SECONDS_BETWEEN_LOOKS)
        raise UserError(
            f"The first node of the job said nothing for {seconds:.0f} s in {self.shared}; see its log there."
        )

    def is_over(self) -> bool:
        """Whether task 0 has ended."""
        return "over" in os.listdir(self.shared)  # a listing is fresh where a look at one file may be remembered (NFS)

    def announce_end(self) -> None:
        """Let the other tasks end, and forget the token."""
        with suppress(OSError):
            (self.shared / "cluster.json").unlink(missing_ok=True)
            (self.shared / "over").touch()


@dataclass(frozen=True)
class Interface:
    """A network interface of this node (its name may be unknown) and its address."""

    name: str
    address: str


def find_own_address() -> str:
    """The address by which the other nodes of the job reach this one.

    Slurm's own word is best, then what the host's name stands for, then any address that is not of this machine alone.
    """
    own = {address: name for name, address in _list_interfaces()}
    candidates = [os.environ.get("SLURM_LAUNCH_NODE_IPADDR", ""), _resolve_host(socket.gethostname())]
    outward = [address for address in (*candidates, *own) if address in own and not address.startswith("127.")]
    return outward[0] if outward else "127.0.0.1"


def find_interface_towards(address: str) -> Interface:
    """The interface of this node from which `host` or `host:port` is reached."""
    host = address.partition(":")[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: it only chooses the route
        own = str(probe.getsockname()[0])
    names = {found: name for name, found in _list_interfaces()}
    return Interface(names.get(own, ""), own)


def find_free_port(job: int, number: int) -> int:
    """A free port of this node that is derived from the job's number, so that jobs do not ask for the same.

    Raises:
        UserError: none of many is free.
    """
    for attempt in range(ATTEMPTS):
        port = FIRST_PORT + (job * PORTS_PER_JOB + number + attempt * PORTS_APART) % NUM_PORTS
        if is_free_port(port):
            return port
    raise UserError(f"No port of {socket.gethostname()} between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS} is free.")


def is_free_port(port: int) -> bool:
    """Whether nobody listens at this port, on any address of this node."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _list_interfaces() -> list[tuple[str, str]]:
    """Name and IPv4 address of every interface that is up."""
    states = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        if name in states and states[name].isup:
            found += [(name, one.address) for one in addresses if one.family == socket.AF_INET]
    return found


def _resolve_host(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""
