"""How fast the ranks of a job talk to each other, and which host holds the others up: a test to run before a long training.

First a roll call, then the same sums as in training, a matrix product on every rank, and messages between every two of them.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from statistics import median

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]  # torch lists it nowhere

from distbranch.config import LaunchConfig
from distbranch.engine.distributed import Ranks
from distbranch.engine.process_group import join_ranks
from distbranch.errors import SharedError, UserError

KIB, MIB = 2**10, 2**20
# Bytes and repeats: the first is a latency, the last as large as the gradients of a small network.
SUMS = ((KIB, 50), (64 * KIB, 30), (MIB, 10), (16 * MIB, 5), (64 * MIB, 3))
BYTES_OF_LINK = 4 * MIB
REPEATS_OF_LINK = 3
MOST_ROUNDS = 15  # of messages between two: in each every rank has another partner
REPEATS_OF_PRODUCT = 5
SIZE_OF_PRODUCT = {"cpu": 1024, "cuda": 8192}  # tens of milliseconds on either
SECONDS_TO_KNOW = 5
MINUTES = 5.0  # that a rank waits for a message of the others


@dataclass(frozen=True)
class Link:
    """What two ranks sent each other at the same time: seconds for `BYTES_OF_LINK` each way."""

    ranks: tuple[int, int]
    seconds: float


@dataclass(frozen=True)
class RankReport:
    """What was measured; `hosts` and `products` (seconds of the matrix product) are by rank, `sums` are pairs (bytes, seconds)."""

    backend: str
    device: str
    hosts: Sequence[str]
    sums: Sequence[tuple[int, float]]
    products: Sequence[float]
    links: Sequence[Link]

    def bus_bandwidth(self, num_bytes: int, seconds: float) -> float:
        """Bytes per second that every rank sends, as nccl-tests count them: comparable with what the network is sold for."""
        num_ranks = len(self.hosts)
        return 2 * (num_ranks - 1) / num_ranks * num_bytes / seconds

    def products_by_host(self) -> dict[str, float]:
        """Seconds of the matrix product on the slowest rank of every host."""
        return _by_host(self.hosts, self.products)

    def links_by_host(self) -> dict[str, float]:
        """Seconds of a message, of every host over its best link to another host, or between its ranks if it is alone.

        The best one: a host that is slow towards all would else slow down the median of the others too.
        """
        is_alone = len(set(self.hosts)) == 1
        best: dict[str, float] = {}
        for link in self.links:
            ends = [self.hosts[rank] for rank in link.ranks]
            if is_alone or ends[0] != ends[1]:
                for host in ends:
                    best[host] = min(link.seconds, best.get(host, link.seconds))
        return best


def _by_host(hosts: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for host, value in zip(hosts, values, strict=True):
        found[host] = max(value, found.get(host, 0.0))
    return found


def find_slowest(seconds: dict[str, float]) -> tuple[str, float]:
    """The name that took longest, and how many times the median of the others that is."""
    slowest = max(seconds, key=lambda name: seconds[name])
    others = [value for name, value in seconds.items() if name != slowest]
    return slowest, seconds[slowest] / median(others or [seconds[slowest]])


def check_ranks(num_ranks: int, *, patience_s: float) -> RankReport:
    """Measure as one of the ranks that the environment (torchrun's variables) describes; all of them must call it.

    Args:
        num_ranks: that there should be.
        patience_s: how long the others may take to come, in seconds.

    Raises:
        SharedError: some did not come, or others were started than were asked for.
        UserError: nobody is where the ranks should meet.
    """
    # The store of the roll call stays open: of rank 0's process the others may not have read everything yet.
    store = call_roll(num_ranks, patience_s=patience_s)
    launch = LaunchConfig(workers=num_ranks, timeout_min=MINUTES)
    with join_ranks(launch) as ranks:
        sums = [(num_bytes, _time_sum(ranks, num_bytes, repeats)) for num_bytes, repeats in SUMS]
        products = ranks.gather(_time_product(ranks.device))
        links = [Link(pair, seconds) for pair, seconds in _time_links(ranks)]
        found = ranks.gather((socket.gethostname(), links))
        # Both ends have measured a link, and agree but for their clocks.
        every = {link.ranks: link for _, of_rank in found for link in of_rank}
        del store
        return RankReport(
            backend=str(dist.get_backend()),
            device=ranks.device.type,
            hosts=[host for host, _ in found],
            sums=sums,
            products=products,
            links=[every[pair] for pair in sorted(every)],
        )


def call_roll(num_ranks: int, *, patience_s: float) -> Store:
    """Return when all ranks have come; the store through which they said so.

    Raises:
        SharedError: the numbers of those who have not, and where the others are.
        UserError: rank 0 is not where the ranks should meet.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size != num_ranks:
        raise SharedError(
            f"--ranks {num_ranks} should be the number of ranks that were started, found {world_size}."
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's own process answers there already.
    is_server = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = timedelta(seconds=patience_s)
    try:
        store = TCPStore(
            address, port, None, is_server, patience, wait_for_workers=False, multi_tenant=True
        )
        store.set(f"here-{rank}", socket.gethostname())
        if rank == 0:
            store.set("absent", json.dumps(_list_absent(store, num_ranks, patience_s)))
        store.wait(["absent"], 2 * patience)  # rank 0 may have begun later than this one
        absent = json.loads(store.get("absent"))
        store.set(f"knows-{rank}", "")
    except dist.DistError as error:
        raise UserError(
            f"Rank {rank} on {socket.gethostname()} should meet the others at {address}:{port} and found nobody within {patience_s:g} s "
            f"({str(error).splitlines()[0][:120]}). See that rank 0 runs there, and that no firewall lies between."
        ) from None
    if absent:
        here = sorted(set(range(num_ranks)) - set(absent))
        if rank == 0:  # the store ends with this process
            with suppress(dist.DistError):
                store.wait([f"knows-{one}" for one in here], timedelta(seconds=SECONDS_TO_KNOW))
        hosts = dict.fromkeys(store.get(f"here-{one}").decode() for one in here)
        raise SharedError(
            f"{num_ranks} ranks should come, and {len(absent)} did not within {patience_s:g} s: {', '.join(map(str, absent))}. "
            f"The others are on {', '.join(hosts)}. See what the hosts of those say, and that they reach {address}:{port}."
        )
    return store


def _list_absent(store: Store, num_ranks: int, patience_s: float) -> list[int]:
    absent = list(range(num_ranks))
    end = time.monotonic() + patience_s
    while absent and time.monotonic() < end:
        absent = [rank for rank in absent if not store.check([f"here-{rank}"])]
        time.sleep(0.1)
    return absent


def _time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _time_sum(ranks: Ranks, num_bytes: int, repeats: int) -> float:
    """The median of seconds that a sum over all ranks takes, after one that opens the connections."""
    tensor = torch.zeros(num_bytes // 4, device=ranks.device)
    _time(lambda: ranks.sum(tensor), ranks.device)
    return median(_time(lambda: ranks.sum(tensor), ranks.device) for _ in range(repeats))


def _time_product(device: torch.device) -> float:
    """The median of seconds that a product of two matrices takes, after one that wakes the device."""
    size = SIZE_OF_PRODUCT[device.type]
    matrix = torch.ones(size, size, device=device)
    multiply = partial(torch.matmul, matrix, matrix)
    _time(multiply, device)
    return median(_time(multiply, device) for _ in range(REPEATS_OF_PRODUCT))


def _time_links(ranks: Ranks) -> Iterator[tuple[tuple[int, int], float]]:
    """This rank's links: the pair of ranks, the lower one first, and the median of seconds of a message both ways."""
    sent = torch.zeros(BYTES_OF_LINK // 4, device=ranks.device)
    received = torch.empty_like(sent)

    def exchange(partner: int) -> None:
        both = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
        for work in dist.batch_isend_irecv(both):
            work.wait()

    for round_number in range(min(MOST_ROUNDS, 2 * ranks.world_size)):
        partner = find_partner(ranks.rank, round_number, ranks.world_size)
        seconds = []
        # The first opens the connection. All begin at once, else a rank would measure how late its partner is.
        for _ in range(1 + REPEATS_OF_LINK):
            dist.barrier(group=ranks.host_group)
            if partner is not None:
                seconds.append(_time(partial(exchange, partner), ranks.device))
        if partner is not None:
            pair = (min(ranks.rank, partner), max(ranks.rank, partner))
            yield pair, median(seconds[1:])


def find_partner(rank: int, round_number: int, num_ranks: int) -> int | None:
    """With whom a rank talks in a round, as in a tournament of all against all; None if it has nobody."""
    # With an odd number of ranks the one who would play the last, which is not there, waits.
    size = num_ranks + num_ranks % 2
    if round_number >= size - 1:
        return None
    last = size - 1
    if rank == last:
        partner = next(one for one in range(last) if (2 * one) % last == round_number % last)
    elif (2 * rank) % last == round_number % last:
        partner = last
    else:
        partner = (round_number - rank) % last
    return partner if partner < num_ranks else None
