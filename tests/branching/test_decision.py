"""What holds of every decision: properties over tables of affinities, and the best of all partitions where they can be tried."""

from collections.abc import Iterator

import numpy as np
import pytest
from matrices import ALL, LARGE, SMALL, planted, uniform

from distbranch.branching.decision import (
    ALL_PARTITIONS,
    MOST_BRANCHES,
    WITH_MOVES,
    Decision,
    choose_groups,
    find_best_partitions,
    move_branches,
)
from distbranch.branching.grouping import Groups, cluster_branches, separation_cost

pytestmark = pytest.mark.filterwarnings("error")  # a matrix of any kind is decided upon without one
BELL = (1, 2, 5, 15, 52, 203, 877, 4140)  # how many partitions there are of 1 to 8 branches
ALPHAS = (0.0, 0.02, 0.3, 1.0, 2.0, 9.0, 40.0)
every_matrix = pytest.mark.parametrize("a", ALL.values(), ids=ALL)
small_matrix = pytest.mark.parametrize("a", SMALL.values(), ids=SMALL)
large_matrix = pytest.mark.parametrize("a", LARGE.values(), ids=LARGE)


def decisions(a: np.ndarray) -> Iterator[tuple[Decision, float, float, int]]:
    """At many prices and caps: the decision, alpha, the price of one more branch, and the cap."""
    for alpha in ALPHAS:
        for pools in (0, 2):
            for cap in (None, 1, 3):
                found = choose_groups(a, alpha=alpha, pools_above=pools, max_groups=cap)
                yield found, alpha, 2**pools / 64, cap or len(a)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, *rest = items
    for smaller in partitions(rest):
        yield [[first], *smaller]
        for number in range(len(smaller)):
            yield [*smaller[:number], [first, *smaller[number]], *smaller[number + 1 :]]


def canonical(groups: list[list[int]]) -> Groups:
    return tuple(sorted(tuple(sorted(group)) for group in groups))


@every_matrix
def test_the_groups_are_a_partition_of_the_branches_within_the_cap(a: np.ndarray) -> None:
    for found, _, _, cap in decisions(a):
        assert sorted(branch for group in found.groups for branch in group) == list(range(len(a)))
        assert all(found.groups)
        assert list(found.groups) == sorted(found.groups), "sorted by first member"
        assert found.num_groups == len(found.groups) <= cap
        assert max(found.costs) <= cap


@every_matrix
def test_the_cost_equals_equation_9_and_the_least_wins_with_the_fewest_groups_on_ties(
    a: np.ndarray,
) -> None:
    for found, alpha, price, _ in decisions(a):
        assert found.separation[found.num_groups] == pytest.approx(
            separation_cost(a, found.groups), abs=1e-12
        )
        for d, cost in found.costs.items():
            assert cost == pytest.approx((d - 1) * price + alpha * found.separation[d], abs=1e-12)
        least = min(found.costs.values())
        assert found.costs[found.num_groups] <= least + 1e-12
        if found.num_moves == 0:
            assert found.num_groups == min(
                d for d, cost in found.costs.items() if cost <= least + 1e-12
            )


@every_matrix
def test_a_larger_alpha_never_gives_fewer_groups_and_a_higher_price_never_more(
    a: np.ndarray,
) -> None:
    counts = np.array(
        [
            [choose_groups(a, alpha=alpha, pools_above=pools).num_groups for alpha in ALPHAS]
            for pools in range(6)
        ]
    )  # fmt: skip
    assert (np.diff(counts, axis=1) >= 0).all()
    assert (np.diff(counts, axis=0) <= 0).all()
    assert (counts[:, 0] == 1).all(), "of no weight, separation buys no branch"


@every_matrix
def test_a_smaller_cap_never_costs_less(a: np.ndarray) -> None:
    clustered = dict(cluster_branches(a, len(a), seed=0))
    costs = []
    for cap in range(1, len(a) + 1):
        found = choose_groups(a, alpha=2.0, pools_above=0, max_groups=cap)
        costs.append(found.costs[found.num_groups])
        groups = [(d, groups) for d, groups in clustered.items() if d <= cap]
        assert (
            costs[-1] <= min((d - 1) / 64 + 2.0 * separation_cost(a, g) for d, g in groups) + 1e-12
        )
    if len(a) <= MOST_BRANCHES:
        assert costs == sorted(costs, reverse=True)


@every_matrix
def test_the_same_arguments_give_the_same_decision(a: np.ndarray) -> None:
    for given in (
        {"alpha": 3.0, "pools_above": 2},
        {"alpha": 0.5, "pools_above": 0, "max_groups": 4},
    ):
        assert choose_groups(a, seed=5, **given) == choose_groups(a.copy(), seed=5, **given)


@every_matrix
def test_where_a_branch_costs_nothing_ties_go_to_the_fewest_groups(a: np.ndarray) -> None:
    assert choose_groups(a, alpha=0.0, pools_above=0, unit_cost=0.0).num_groups == 1
    assert choose_groups(np.ones_like(a), alpha=2.0, pools_above=0, unit_cost=0.0).num_groups == 1


@small_matrix
def test_of_few_branches_the_decision_is_the_best_of_all_partitions(a: np.ndarray) -> None:
    every = sorted(canonical(groups) for groups in partitions(list(range(len(a)))))
    assert len(every) == BELL[len(a) - 1]
    separation = {groups: separation_cost(a, groups) for groups in every}
    for found, alpha, price, cap in decisions(a):
        total = {g: (len(g) - 1) * price + alpha * separation[g] for g in every if len(g) <= cap}
        least = min(total.values())
        tied = [groups for groups, cost in total.items() if cost <= least + 1e-12]
        fewest = min(map(len, tied))
        of_so_many = {g: separation[g] for g in every if len(g) == fewest}
        nearest = [g for g, cost in of_so_many.items() if cost <= min(of_so_many.values()) + 1e-12]
        assert found.groups == min(nearest), "the fewest groups, then the first"
        for d, cost in found.costs.items():
            assert cost == pytest.approx(
                min(cost for groups, cost in total.items() if len(groups) == d), abs=1e-12
            )
        assert len(found.costs) == min(cap, len(a))
        assert (found.search, found.num_moves) == (ALL_PARTITIONS, 0)


@pytest.mark.parametrize(
    ("a", "alphas"),
    [
        *[(uniform(count, count), ALPHAS) for count in (2, 5, 7)],
        (planted([4, 4, 4], 0.9, 0.4)[0], (0.02, 0.3)),
        (planted([8, 8, 8, 2], 0.9, 0.4)[0], (0.02, 0.3)),
    ],
)
def test_permuting_the_branches_permutes_the_groups(
    a: np.ndarray, alphas: tuple[float, ...]
) -> None:
    order = np.random.default_rng(3).permutation(len(a))
    for alpha in alphas:
        found = choose_groups(a, alpha=alpha, pools_above=0)
        permuted = choose_groups(a[np.ix_(order, order)], alpha=alpha, pools_above=0)
        assert (
            canonical([[int(order[branch]) for branch in group] for group in permuted.groups])
            == found.groups
        )


def test_eight_branches_have_all_their_partitions_and_nine_are_clustered() -> None:
    a = uniform(8, 0)
    assert sum(1 for _ in partitions(list(range(8)))) == BELL[7]
    best = find_best_partitions(a, 8)
    for d, groups in cluster_branches(a, 8, seed=0):
        assert separation_cost(a, best[d]) <= separation_cost(a, groups)
    assert choose_groups(a, alpha=1.0, pools_above=0).search == ALL_PARTITIONS
    assert (
        choose_groups(uniform(MOST_BRANCHES + 1, 0), alpha=1.0, pools_above=0).search == WITH_MOVES
    )


@large_matrix
def test_what_is_not_tried_could_not_have_won(a: np.ndarray) -> None:
    unpruned = dict(cluster_branches(a, len(a), seed=0))
    separation = {d: separation_cost(a, groups) for d, groups in unpruned.items()}
    for found, alpha, price, cap in decisions(a):
        total = {d: (d - 1) * price + alpha * separation[d] for d in unpruned if d <= cap}
        chosen = min(d for d, cost in total.items() if cost <= min(total.values()) + 1e-12)
        groups, num_moves = move_branches(a, unpruned[chosen])
        assert (found.groups, found.num_moves) == (groups, num_moves), (
            "the same as if all numbers had been tried"
        )
        for d in total.keys() - found.costs.keys():
            assert total[d] > min(found.costs.values())
        assert all(d <= 1 + total[1] / price + 1e-9 for d in found.costs)


def test_many_tasks_are_decided_upon_with_few_clusterings() -> None:
    found = choose_groups(uniform(120, 1), alpha=0.2, pools_above=1)
    assert max(found.costs) <= 1 + found.costs[1] * 32 < 8


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found_in_any_order(seed: int) -> None:
    a, truth = planted([4, 9, 5, 12, 10], 0.95, 0.5, seed)
    expected = canonical([list(np.flatnonzero(truth == group)) for group in range(5)])
    assert choose_groups(a, alpha=1.0, pools_above=0, seed=seed).groups == expected


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match="square matrix"):
        choose_groups(np.ones((2, 3)), alpha=1.0, pools_above=0)
