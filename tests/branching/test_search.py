"""How a grouping is searched for: all partitions of few branches, no more groups than can win, and moves of single branches."""

from collections.abc import Iterator

import numpy as np
import pytest

from distbranch.branching.decision import ALL_PARTITIONS, WITH_MOVES, Candidates, choose_groups
from distbranch.branching.grouping import Groups, cluster_branches, separation_cost
from distbranch.branching.search import MOST_BRANCHES, Moves, find_best_partitions, move_branches

BELL = (1, 2, 5, 15, 52, 203, 877, 4140)


def affinity_of(count: int, seed: int, *, ties: bool = False) -> np.ndarray:
    """Symmetric; the diagonal is below 1, as for branches of several tasks."""
    draw = np.random.default_rng(seed)
    matrix = draw.integers(2, 7, (count, count)) / 8 if ties else draw.uniform(0.2, 0.8, (count, count))
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 0.875 if ties else draw.uniform(0.85, 1, count))
    return matrix


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


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", range(1, 8))
def test_of_few_branches_the_decision_is_the_best_of_all_partitions(count: int, ties: bool) -> None:
    every = sorted(canonical(groups) for groups in partitions(list(range(count))))
    assert len(every) == BELL[count - 1]
    for seed in range(3):
        a = affinity_of(count, seed, ties=ties)
        separation = {groups: separation_cost(a, groups) for groups in every}
        for alpha, cap in ((0.0, None), (0.05, None), (1.0, None), (9.0, None), (9.0, 2)):
            found = choose_groups(a, alpha=alpha, pools_above=1, max_groups=cap)
            total = {g: (len(g) - 1) / 32 + alpha * separation[g] for g in every if len(g) <= (cap or count)}
            least = min(total.values())
            tied = [groups for groups, cost in total.items() if cost <= least + 1e-12]
            assert found.groups == min(tied, key=lambda groups: (len(groups), groups)), (
                "the fewest groups, then the first"
            )
            for d, cost in found.costs.items():
                assert cost == pytest.approx(min(cost for groups, cost in total.items() if len(groups) == d), abs=1e-12)
            assert len(found.costs) == min(cap or count, count)
            assert (found.search, found.num_moves) == (ALL_PARTITIONS, 0)


def test_eight_branches_have_all_their_partitions_and_nine_are_clustered() -> None:
    a = affinity_of(8, 0)
    assert sum(1 for _ in partitions(list(range(8)))) == BELL[7]
    for d, groups in find_best_partitions(a, 8).items():
        assert len(groups) == d
        assert separation_cost(a, groups) <= min(
            separation_cost(a, found) for number, found in cluster_branches(a, 8, seed=0) if number == d
        )
    assert choose_groups(a, alpha=1.0, pools_above=0).search == ALL_PARTITIONS
    assert choose_groups(affinity_of(MOST_BRANCHES + 1, 0), alpha=1.0, pools_above=0).search == WITH_MOVES


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("alpha", "pools"), [(0.02, 0), (0.3, 1), (1.0, 0), (2.0, 2), (40.0, 0)])
def test_what_is_not_tried_could_not_have_won(alpha: float, pools: int, seed: int) -> None:
    count = 9 + 4 * seed
    a = affinity_of(count, seed, ties=seed % 2 == 0)
    unpruned = dict(cluster_branches(a, count, seed=0))
    total = {d: (d - 1) / 64 * 2**pools + alpha * separation_cost(a, groups) for d, groups in unpruned.items()}
    chosen = min(d for d, cost in total.items() if cost <= min(total.values()) + 1e-12)
    found = choose_groups(a, alpha=alpha, pools_above=pools)
    groups, num_moves = move_branches(a, unpruned[chosen])
    assert (found.groups, found.num_moves) == (groups, num_moves), "the same as if all numbers of groups had been tried"
    for d in total.keys() - found.costs.keys():
        assert total[d] > min(found.costs.values())
    bound = 1 + total[1] / (2**pools / 64)
    assert all(d <= bound + 1e-9 for d in found.costs)


def test_many_tasks_are_decided_upon_with_few_clusterings() -> None:
    found = choose_groups(affinity_of(120, 1), alpha=0.2, pools_above=1)
    assert max(found.costs) <= 1 + found.costs[1] * 32 < 8


def test_candidates_are_shared_by_decisions_at_other_prices_in_any_order() -> None:
    a = affinity_of(20, 3)
    settings = [
        {"alpha": alpha, "pools_above": pools, "max_groups": cap}
        for alpha in (0.1, 3.0, 0.5) for pools in (0, 2) for cap in (None, 4, 1)
    ]  # fmt: skip
    shared = Candidates(a, seed=5)
    for given in (*settings, *settings[::-1]):
        assert shared.choose(**given) == choose_groups(a, seed=5, **given)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_table_of_moves_is_the_cost_of_every_grouping_one_move_away(symmetric: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    a = affinity_of(11, seed, ties=seed % 2 == 0)
    a = a if symmetric else a + np.triu(draw.uniform(0, 0.1, a.shape), 1)
    labels = draw.permutation([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 4])
    moves = Moves(a, tuple(tuple(np.flatnonzero(labels == group)) for group in range(5)))
    for _ in range(6):
        assert moves.cost == pytest.approx(separation_cost(a, moves.members), abs=1e-12)
        table = moves.costs_after()
        for branch in range(11):
            for group in range(5):
                after = moves.labels.copy()
                after[branch] = group
                others = [np.flatnonzero(after == number) for number in range(5)]
                if group == moves.labels[branch] or not all(len(one) for one in others):
                    assert table[branch, group] == np.inf
                else:
                    assert table[branch, group] == pytest.approx(separation_cost(a, others), abs=1e-12)
                    closeness = sum(a[np.ix_(one, one)].min(axis=1).sum() for one in others)
                    assert moves.closeness_after()[branch, group] == pytest.approx(closeness, abs=1e-12)
        moves.move(*map(int, draw.permutation(np.argwhere(np.isfinite(table)))[0]))


@pytest.mark.parametrize("seed", range(5))
def test_moves_put_back_what_was_put_into_the_wrong_groups(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.permutation(np.repeat(np.arange(4), 6))
    noise = draw.normal(0, 0.01, (24, 24))
    a = np.where(truth[:, None] == truth, 0.9, 0.4) + (noise + noise.T) / 2
    np.fill_diagonal(a, 1.0)
    planted = canonical([list(np.flatnonzero(truth == group)) for group in range(4)])
    wrong = truth.copy()
    wrong[draw.choice(24, 2, replace=False)] = draw.integers(0, 4, 2)
    given = canonical([list(np.flatnonzero(wrong == group)) for group in range(4)])
    found, num_moves = move_branches(a, given)
    assert found == planted
    assert num_moves == (wrong != truth).sum()


@pytest.mark.parametrize("count", [9, 30])
def test_after_the_last_move_none_helps_and_the_number_of_groups_is_the_same(count: int) -> None:
    a = affinity_of(count, 1)
    for d, groups in cluster_branches(a, count, seed=0):
        found, num_moves = move_branches(a, groups)
        assert len(found) == d
        assert move_branches(a, found) == (found, 0)
        assert (separation_cost(a, found) < separation_cost(a, groups)) == (num_moves > 0)


@pytest.mark.parametrize("seed", range(10))
def test_moves_never_trade_the_closeness_of_branches_for_small_groups(seed: int) -> None:
    # Eight planted groups of five with weak affinities, as of faces: by Eq. 11 alone seven of them would end as single tasks.
    draw = np.random.default_rng(seed)
    truth = np.repeat(np.arange(8), 5)
    a = 0.5 + 0.08 * (truth[:, None] == truth) + draw.normal(0, 0.01, (40, 40))
    a = (a + a.T) / 2
    np.fill_diagonal(a, 1.0)
    found, num_moves = move_branches(a, tuple(tuple(range(first, first + 5)) for first in range(0, 40, 5)))
    assert sorted(map(len, found)) == [5] * 8
    assert num_moves == 0
