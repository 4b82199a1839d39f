"""A node of a job of Slurm: where its task stands, how tasks speak with each other (by files), and its addresses."""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import psutil

from distbranch.errors import UserError
from distbranch.launch.processes import look_until
from distbranch.launch.ray_folder import choose_ray_folder

SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Place:
    """Where a task stands in its job, and the files through which tasks speak with each other."""

    folder: Path  # in the directory on which the job works
    job_id: str
    attempt: str  # how often the job was requeued
    task: int
    num_nodes: int

    @classmethod
    def from_environment(cls, folder: str) -> "Place":
        """From the environment that Slurm gives."""
        given = os.environ
        return cls(
            Path(folder),
            given.get("SLURM_JOB_ID", "0"),
            given.get("SLURM_RESTART_COUNT", "0"),
            int(given.get("SLURM_PROCID", "0")),
            int(given.get("SLURM_JOB_NUM_NODES", "1")),
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
        return choose_ray_folder() / f"db{self.job_id}-{self.task}"

    @property
    def shared(self) -> Path:
        """A folder of this attempt of the job that all its tasks see and only their owner can read."""
        return self.folder / f"job-{self.job_id}-{self.attempt}"

    @property
    def ray_log(self) -> Path:
        """Where the words of this node's Ray go."""
        return self.shared / f"ray-{self.task}.log"

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
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(word))
        aside.rename(self.shared / "cluster.json")

    def wait_for_cluster(self, seconds: float) -> dict[str, str] | None:
        """What task 0 told; None if it ended before.

        Raises:
            UserError: it said nothing for so long.
        """
        for _ in look_until(seconds, SECONDS_BETWEEN_LOOKS):
            if self.is_over():
                return None
            with suppress(FileNotFoundError):
                told: dict[str, str] = json.loads((self.shared / "cluster.json").read_text())
                return told
        raise UserError(
            f"The first node of the job said nothing for {seconds:.0f} s in {self.shared}; see its log."
        )

    def announce(self, what: Literal["joined", "lost"]) -> None:
        """Say to task 0 that this node is a part of the cluster, or will never be one."""
        (self.shared / f"{what}-{self.task}").touch()

    def count_nodes(self, what: Literal["joined", "lost"]) -> int:
        """The other nodes that have said so."""
        return sum(name.startswith(what) for name in os.listdir(self.shared))

    def is_over(self) -> bool:
        """Whether task 0 has ended."""
        return "over" in os.listdir(
            self.shared
        )  # a listing is fresh where a look at one file may be remembered (NFS)

    def announce_end(self) -> None:
        """Let the other tasks end, and forget the token."""
        with suppress(OSError):
            (self.shared / "cluster.json").unlink(missing_ok=True)
            (self.shared / "over").touch()


def make_environment(place: Place, cluster: Mapping[str, str] | None) -> dict[str, str]:
    """What the task's children need to know: the token of the cluster, if there is one, and their folder."""
    # All temporary files go where the task removes them; the site's TMPDIR may be too long for any socket.
    given = {"RAY_TMPDIR": str(place.scratch), "TMPDIR": str(place.scratch)}
    if cluster is not None:
        given |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": cluster["token"],
            "RAY_USAGE_STATS_ENABLED": "0",
        }
    return given


def count_gpus_of_this_node() -> int | None:
    """The GPUs that Slurm gave the job on this node; None where it does not say."""
    if count := os.environ.get("SLURM_GPUS_ON_NODE"):
        return int(count)
    if numbers := os.environ.get("SLURM_JOB_GPUS"):  # alone where --exclusive brought them
        return len(numbers.split(","))
    return None


def find_own_address() -> str:
    """The address by which the other nodes of the job reach this one.

    Slurm's own word is best, then what the host's name stands for, then any address that is not of this machine alone.
    """
    states = psutil.net_if_stats()
    own = []
    for name, entries in psutil.net_if_addrs().items():
        if name in states and states[name].isup:
            own += [entry.address for entry in entries if entry.family == socket.AF_INET]
    named = [os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")]
    with suppress(OSError):
        named.append(socket.gethostbyname(socket.gethostname()))
    outward = [
        address for address in (*named, *own) if address in own and not address.startswith("127.")
    ]
    return [*outward, "127.0.0.1"][0]


def find_address_towards(host: str) -> str:
    """The address of this node from which another host is reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: it only chooses the route
        return str(probe.getsockname()[0])
