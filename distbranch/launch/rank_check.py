"""Where the ranks of `distbranch doctor --ranks` come from: torchrun, srun, or processes of this machine; and the table they make."""

import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

from distbranch.engine.process_group import num_started_ranks
from distbranch.engine.rank_check import BYTES_OF_LINK, MIB, RankReport, check_ranks, find_slowest
from distbranch.errors import UserError
from distbranch.launch.interfaces import find_interface
from distbranch.launch.on_slurm.node import find_address_towards
from distbranch.launch.on_slurm.queue import call_slurm
from distbranch.launch.processes import PORTS, find_free_port

SECONDS_TO_COME = (
    120.0  # torch takes a minute to import from a file system that all nodes read at once
)


def measure_ranks(num_ranks: int) -> RankReport | None:
    """What the ranks measured, on rank 0 of those that torchrun or srun started; None on the others, and if they are started here.

    Of srun's tasks, one on each node, each starts its part of them here.

    Raises:
        UserError: not all came, or they cannot talk to each other.
    """
    is_of_srun = take_place_of_srun()
    num_tasks = int(os.environ["WORLD_SIZE"]) if is_of_srun else 1
    is_one_per_node = is_of_srun and os.environ["LOCAL_WORLD_SIZE"] == "1"
    if "RANK" not in os.environ or (is_one_per_node and num_ranks % num_tasks == 0):
        _run_here(num_ranks, num_tasks)
        return None
    num_started_ranks()  # says what is wrong with the variables
    report = check_ranks(num_ranks, patience_s=SECONDS_TO_COME)
    return report if os.environ["RANK"] == "0" else None


def take_place_of_srun() -> bool:
    """Under srun, set the variables of torchrun from those of Slurm; whether this is one of its tasks."""
    given = os.environ
    # In a batch script SLURM_PROCID is 0 too; only srun says how many tasks its step has.
    if "RANK" in given or "SLURM_STEP_NUM_TASKS" not in given:
        return False
    address = _find_first_node()
    number = int(given["SLURM_JOB_ID"]) * 7 + int(given["SLURM_STEP_ID"])
    given["RANK"] = given["SLURM_PROCID"]
    given["WORLD_SIZE"] = given["SLURM_STEP_NUM_TASKS"]
    given["LOCAL_RANK"] = given["SLURM_LOCALID"]
    given["LOCAL_WORLD_SIZE"] = str(_count_tasks_here())
    given["MASTER_ADDR"] = address
    # Every task finds the same by itself.
    given["MASTER_PORT"] = str(PORTS[number % len(PORTS)])
    name = find_interface(find_address_towards(address))
    if name is not None:
        given.setdefault("GLOO_SOCKET_IFNAME", name)
    return True


def _find_first_node() -> str:
    """The address of the step's first node, where its task 0 is."""
    with suppress(
        UserError
    ):  # no scontrol in a container: the node of srun is the first one in a job
        name = call_slurm("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"])
        words = call_slurm("scontrol", "show", "node", "-o", name.split()[0]).split()
        return dict(word.partition("=")[::2] for word in words)["NodeAddr"]
    return os.environ["SLURM_LAUNCH_NODE_IPADDR"]


def _count_tasks_here() -> int:
    """How many tasks of the step are on this node, of a list such as `4(x2),3`."""
    counts: list[int] = []
    for part in os.environ["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts[int(os.environ["SLURM_NODEID"])]


def _run_here(num_ranks: int, num_tasks: int) -> None:
    """Start the ranks of this task as processes of this machine, which print their table; wait for them.

    Raises:
        UserError: some failed, which have said why.
    """
    given = dict(os.environ)
    if num_tasks == 1:
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port()), "RANK": "0"}
    num_here = num_ranks // num_tasks
    first = int(given["RANK"]) * num_here
    given |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_here)}
    command = [sys.executable, "-m", "distbranch", "doctor", "--ranks", str(num_ranks)]
    ranks = []
    for local in range(num_here):
        own = {"RANK": str(first + local), "LOCAL_RANK": str(local)}
        ranks.append(subprocess.Popen(command, env={**given, **own}))
    try:
        failed = [rank for rank, process in enumerate(ranks, start=first) if process.wait()]
    finally:
        for process in ranks:
            process.kill()
    if failed:
        raise UserError(
            f"{len(failed)} of {num_ranks} ranks failed: {', '.join(map(str, failed))}."
        )


def describe_report(report: RankReport) -> list[dict[str, Any]]:
    """The rows of the table: sums by size, then who is slow."""
    rows = []
    for num_bytes, seconds in report.sums:
        rate = report.bus_bandwidth(num_bytes, seconds)
        rows.append(_make_row(f"sum of {_write_bytes(num_bytes)}", seconds, _write_rate(rate)))

    products = report.products_by_host()
    host, factor = find_slowest(products)
    rows.append(_make_row("matrix product, slowest host", products[host], host, factor))

    of_hosts = report.links_by_host()
    message = f"message of {_write_bytes(BYTES_OF_LINK)}"
    if len(of_hosts) > 2:  # of two each has the same link
        host, factor = find_slowest(of_hosts)
        rows.append(_make_row(f"{message}, slowest host", of_hosts[host], host, factor))
    of_pairs = {_name_pair(report, link.ranks): link.seconds for link in report.links}
    pair, factor = find_slowest(of_pairs)
    rows.append(_make_row(f"{message}, slowest pair", of_pairs[pair], pair, factor))
    return rows


def _name_pair(report: RankReport, pair: tuple[int, int]) -> str:
    hosts = " and ".join(dict.fromkeys(report.hosts[rank] for rank in pair))
    return f"ranks {pair[0]} and {pair[1]} on {hosts}"


def describe_title(report: RankReport) -> str:
    """Who was measured."""
    hosts = len(set(report.hosts))
    return f"{len(report.hosts)} ranks on {hosts} host(s), {report.device}, {report.backend}"


def _make_row(what: str, seconds: float, found: str, factor: float | None = None) -> dict[str, Any]:
    compared = "" if factor is None else f"{factor:.1f} times"
    return {
        "what": what,
        "time": _write_time(seconds),
        "found": found,
        "against the others": compared,
    }


def _write_time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def _write_bytes(num_bytes: int) -> str:
    return f"{num_bytes // MIB} MiB" if num_bytes >= MIB else f"{num_bytes // 1024} KiB"


def _write_rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.3g} GB/s"
