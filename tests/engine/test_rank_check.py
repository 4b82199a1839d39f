"""What `distbranch doctor --ranks` measures between real ranks, and whom it names."""

import time

import pytest
import torch
from rank_server import RankServer

from distbranch.engine import rank_check
from distbranch.engine.rank_check import Link, RankReport, check_ranks, find_partner, find_slowest
from distbranch.errors import UserError

SLOW_RANK = 2


def measure(planted_s: float) -> RankReport:
    """A job: as one of the ranks, of which one is slow at products, and all do little."""
    import os
    import socket

    rank = int(os.environ["RANK"])
    socket.gethostname = lambda: f"host-{rank}"  # each rank a host of its own
    rank_check.SUMS = ((1024, 3), (65536, 3))
    rank_check.SIZE_OF_PRODUCT = {"cpu": 8}
    if rank == SLOW_RANK:
        multiply = torch.matmul

        def slowly(*matrices: torch.Tensor) -> torch.Tensor:
            time.sleep(planted_s)
            return multiply(*matrices)

        torch.matmul = slowly  # type: ignore[assignment]
    return check_ranks(int(os.environ["WORLD_SIZE"]), patience_s=60)


def come_or_not(absent: int, asked: int, patience_s: float) -> str:
    """A job: what a rank is told when one of them does not come."""
    import os

    if int(os.environ["RANK"]) == absent:
        return ""
    try:
        rank_check.call_roll(asked, patience_s=patience_s)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "all came"


def test_every_two_ranks_talk_once_and_each_with_one_partner_at_a_time() -> None:
    for num_ranks in range(2, 14):
        met = []
        for round_number in range(num_ranks + 2):
            partners = {one: find_partner(one, round_number, num_ranks) for one in range(num_ranks)}
            pairs = {rank: partner for rank, partner in partners.items() if partner is not None}
            assert all(pairs[partner] == rank != partner for rank, partner in pairs.items())
            met += [frozenset(pair) for pair in pairs.items()]
        assert len(met) == 2 * len(set(met)) == num_ranks * (num_ranks - 1)


def test_the_ranks_measure_the_same_and_the_slow_host_is_found(ranks: RankServer) -> None:
    reports = ranks.call_all(measure, 3, planted_s=0.5)
    for report in reports:
        assert report.hosts == ["host-0", "host-1", "host-2"]
        assert report.backend == "gloo"
        assert [link.ranks for link in report.links] == [(0, 1), (0, 2), (1, 2)]
        assert all(seconds > 0 for _, seconds in report.sums)
        slowest, factor = find_slowest(report.products_by_host())
        assert slowest == f"host-{SLOW_RANK}"
        assert factor > 2


def test_a_host_with_a_slow_cable_is_found_by_its_messages_and_not_its_partners() -> None:
    hosts = ["a", "a", "b", "b", "c", "c"]
    links = []
    for low in range(6):
        for high in range(low + 1, 6):
            is_slow = "b" in (hosts[low], hosts[high]) and hosts[low] != hosts[high]
            links.append(Link((low, high), 0.08 if is_slow else 0.01))
    report = RankReport("gloo", "cpu", hosts, [], [0.1] * 6, links)
    slowest, factor = find_slowest(report.links_by_host())
    assert slowest == "b"
    assert factor == pytest.approx(8)
    assert report.bus_bandwidth(600, 1.0) == pytest.approx(1000)


def test_a_rank_that_does_not_come_is_named_by_all_who_came(ranks: RankServer) -> None:
    told = ranks.call_all(come_or_not, 3, absent=1, asked=3, patience_s=4)
    assert told[0] == told[2]
    assert told[0].startswith(
        "SharedError: 3 ranks should come, and 1 did not within 4 s: 1. The others"
    )


def test_a_first_rank_that_does_not_come_is_missed_by_the_others(ranks: RankServer) -> None:
    _, told = ranks.call_all(come_or_not, 2, absent=0, asked=2, patience_s=2)
    assert told.startswith("UserError: Rank 1 on ")
    assert "found nobody within 2 s" in told


def test_more_ranks_asked_for_than_started_are_refused(ranks: RankServer) -> None:
    for told in ranks.call_all(come_or_not, 2, absent=-1, asked=4, patience_s=2):
        assert "--ranks 4 should be the number of ranks that were started, found 2" in told
