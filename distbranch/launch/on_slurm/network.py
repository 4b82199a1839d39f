"""Addresses and ports of a job's nodes: which interface lies between them, and a port that no other job wants."""

import os
import socket
from dataclasses import dataclass

import psutil

from distbranch.errors import UserError

FIRST_PORT, NUM_PORTS = 20_000, 12_000  # below those that the system gives out by itself
PORTS_PER_JOB = 8
ATTEMPTS = 200


@dataclass(frozen=True)
class Interface:
    """A network interface of this node (its name may be unknown) and its address."""

    name: str
    address: str


def address_of_this_node() -> str:
    """The address by which the other nodes of the job reach this one.

    Slurm's own word is best, then what the host's name stands for, then any address that is not of this machine alone.
    """
    own = {address: name for name, address in _interfaces()}
    candidates = [os.environ.get("SLURM_LAUNCH_NODE_IPADDR", ""), _resolved(socket.gethostname())]
    outward = [address for address in (*candidates, *own) if address in own and not address.startswith("127.")]
    return outward[0] if outward else "127.0.0.1"


def interface_towards(address: str) -> Interface:
    """The interface of this node from which `host` or `host:port` is reached."""
    host = address.partition(":")[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: it only chooses the route
        own = str(probe.getsockname()[0])
    names = {found: name for name, found in _interfaces()}
    return Interface(names.get(own, ""), own)


def free_port(job: int, number: int) -> int:
    """A free port of this node that is derived from the job's number, so that jobs do not ask for the same.

    Raises:
        UserError: none of many is free.
    """
    for attempt in range(ATTEMPTS):
        port = FIRST_PORT + (job * PORTS_PER_JOB + number + attempt * 1009) % NUM_PORTS
        if is_free(port):
            return port
    raise UserError(f"No port of {socket.gethostname()} between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS} is free.")


def is_free(port: int) -> bool:
    """Whether nobody listens at this port, on any address of this node."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _interfaces() -> list[tuple[str, str]]:
    """Name and IPv4 address of every interface that is up."""
    up = psutil.net_if_stats()
    return [
        (name, one.address)
        for name, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if one.family == socket.AF_INET and name in up and up[name].isup
    ]


def _resolved(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""
