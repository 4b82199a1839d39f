"""Moves of single branches: what they would cost, where they end, and what they mend."""

import numpy as np
import pytest
from matrices import LARGE, planted

from distbranch.branching.decision import move_branches, tabulate_moves
from distbranch.branching.grouping import Groups, cluster_branches, separation_cost

large_matrix = pytest.mark.parametrize("a", LARGE.values(), ids=LARGE)


def groups_of(labels: np.ndarray) -> Groups:
    found = [tuple(np.flatnonzero(labels == group).tolist()) for group in range(labels.max() + 1)]
    return tuple(sorted(found))


def closeness_of(a: np.ndarray, groups: Groups) -> float:
    return sum(a[np.ix_(group, group)].min(axis=1).sum() for group in groups)


@pytest.mark.parametrize("symmetric", [True, False])
@large_matrix
def test_the_table_of_moves_is_the_cost_of_every_grouping_one_move_away(
    a: np.ndarray, symmetric: bool
) -> None:
    draw = np.random.default_rng(0)
    a = a[:11, :11]
    if not symmetric:
        a = a + np.triu(draw.uniform(0, 0.1, a.shape), 1)
    count = len(a)
    labels = draw.permutation([0, 0, 0, 1, 1, 1, 2, 2, 3, 0, 1][:count])
    for _ in range(3):
        costs, gains = tabulate_moves(a, labels)
        for branch, group in np.ndindex(costs.shape):
            after = labels.copy()
            after[branch] = group
            if group == labels[branch] or len(set(after)) < 4:
                assert costs[branch, group] == np.inf
                continue
            assert costs[branch, group] == pytest.approx(
                separation_cost(a, groups_of(after)), abs=1e-12
            )
            gained = closeness_of(a, groups_of(after)) - closeness_of(a, groups_of(labels))
            assert gains[branch, group] == pytest.approx(gained, abs=1e-12)
        branch, group = draw.permutation(np.argwhere(np.isfinite(costs)))[0]
        labels[branch] = group


@large_matrix
def test_moves_lower_the_cost_keep_number_and_closeness_and_end_where_none_helps(
    a: np.ndarray,
) -> None:
    for d, groups in cluster_branches(a, len(a), seed=0):
        found, num_moves = move_branches(a, groups)
        assert len(found) == d
        assert move_branches(a, found) == (found, 0)
        assert closeness_of(a, found) >= closeness_of(a, groups) - (num_moves + 1) * 1e-12
        gained = separation_cost(a, groups) - separation_cost(a, found)
        assert gained > 0 if num_moves else found == groups


@pytest.mark.parametrize("seed", range(5))
def test_moves_put_back_what_was_put_into_the_wrong_groups(seed: int) -> None:
    a, truth = planted([6] * 4, 0.9, 0.4, seed)
    draw = np.random.default_rng(seed)
    wrong = truth.copy()
    wrong[draw.choice(24, 2, replace=False)] = draw.integers(0, 4, 2)
    found, num_moves = move_branches(a, groups_of(wrong))
    assert found == groups_of(truth)
    assert num_moves == (wrong != truth).sum()


@pytest.mark.parametrize("seed", range(10))
def test_moves_never_trade_the_closeness_of_branches_for_small_groups(seed: int) -> None:
    # Eight planted groups of five with weak affinities, as of faces: by Eq. 11 alone seven of them would end as single tasks.
    a, truth = planted([5] * 8, 0.58, 0.5, seed)
    assert move_branches(a, groups_of(truth)) == (groups_of(truth), 0)
