"""Grouping and the number of branches, against loops written from the equations and against planted groups."""

import warnings

import numpy as np
import pytest
from sklearn.manifold import spectral_embedding as sklearn_embedding
from sklearn.metrics import adjusted_rand_score

from distbranch.branching.decision import choose_groups
from distbranch.branching.grouping import branch_affinity, cluster_branches, separation_cost, spectral_embedding


def random_affinity(count: int, seed: int = 0) -> np.ndarray:
    """Symmetric, with many ties, diagonal 1."""
    matrix = np.random.default_rng(seed).integers(0, 9, (count, count)) / 8
    matrix = np.maximum(matrix, matrix.T)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def planted_affinity(sizes: list[int], within: float, between: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(seed)
    rng.shuffle(truth)
    noise = rng.normal(0, 0.01, (len(truth), len(truth)))
    matrix = np.where(truth[:, None] == truth, within, between) + (noise + noise.T) / 2
    np.fill_diagonal(matrix, 1.0)
    return matrix.clip(0, 1), truth


def labels_of(groups: tuple[tuple[int, ...], ...], count: int) -> np.ndarray:
    labels = np.empty(count, dtype=int)
    for number, group in enumerate(groups):
        labels[list(group)] = number
    return labels


@pytest.mark.parametrize(
    ("count", "branches"),
    [
        (1, [[0]]),
        (2, [[0], [1]]),
        (2, [[0, 1]]),
        (9, [[0, 4], [1], [2, 3, 8, 5], [6, 7]]),
        (200, [list(range(k, 200, 7)) for k in range(7)]),
    ],
)
def test_branch_affinity_equals_equations_7_and_8(count: int, branches: list[list[int]]) -> None:
    a = random_affinity(count)
    found = branch_affinity(a, branches)
    for k, one in enumerate(branches):
        for m, other in enumerate(branches):
            forth = np.mean([min(a[i, j] for j in other) for i in one])
            back = np.mean([min(a[i, j] for i in one) for j in other])
            assert found[k, m] == pytest.approx((forth + back) / 2, abs=1e-12)


def test_branch_affinity_of_single_tasks_is_the_affinity_of_tasks() -> None:
    a = random_affinity(12)
    np.testing.assert_array_equal(branch_affinity(a, [[task] for task in range(12)]), a)


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (1, [[0]]),
        (2, [[0, 1]]),
        (2, [[1], [0]]),
        (9, [[0, 4], [1], [2, 3, 8, 5], [6, 7]]),
        (200, [list(range(k, 200, 7)) for k in range(7)]),
    ],
)
def test_separation_cost_equals_equations_10_and_11(count: int, groups: list[list[int]]) -> None:
    a = random_affinity(count)
    expected = np.mean([1 - np.mean([min(a[k, m] for m in group) for k in group]) for group in groups])
    assert separation_cost(a, groups) == pytest.approx(expected, abs=1e-12)


def test_the_total_cost_equals_equation_9_and_the_least_wins() -> None:
    a = random_affinity(12)
    decision = choose_groups(a, alpha=1.5, pools_above=2)
    grouped = dict(cluster_branches(a, 12, seed=0))
    grouped[decision.num_groups] = decision.groups  # the chosen one is better still than what clustering found
    for d, cost in decision.costs.items():
        assert cost == pytest.approx((d - 1) / 64 * 4 + 1.5 * separation_cost(a, grouped[d]))
        assert decision.separation[d] == pytest.approx(separation_cost(a, grouped[d]))
    assert decision.costs[decision.num_groups] == min(decision.costs.values())
    assert len(decision.groups) == decision.num_groups
    assert sorted(task for group in decision.groups for task in group) == list(range(12))


def test_ties_go_to_the_fewest_groups() -> None:
    assert choose_groups(np.ones((6, 6)), alpha=2.0, pools_above=0, unit_cost=0.0).num_groups == 1
    assert choose_groups(random_affinity(6), alpha=0.0, pools_above=0, unit_cost=0.0).num_groups == 1


def test_one_and_two_branches_need_no_clustering() -> None:
    assert choose_groups(np.ones((1, 1)), alpha=9.0, pools_above=0).groups == ((0,),)
    apart = np.array([[1.0, 0.1], [0.1, 1.0]])
    assert choose_groups(apart, alpha=1.0, pools_above=0).groups == ((0,), (1,))
    assert choose_groups(apart, alpha=0.001, pools_above=0).groups == ((0, 1),)


def test_no_more_groups_than_the_limit() -> None:
    a, _ = planted_affinity([3] * 5, 0.9, 0.2)
    assert max(choose_groups(a, alpha=9.0, pools_above=0, max_groups=3).costs) == 3
    assert choose_groups(a, alpha=9.0, pools_above=0, max_groups=1).num_groups == 1


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found(seed: int) -> None:
    a, truth = planted_affinity([4, 9, 5, 12, 10], 0.95, 0.5, seed)
    decision = choose_groups(a, alpha=1.0, pools_above=0, seed=seed)
    assert decision.num_groups == 5
    assert adjusted_rand_score(truth, labels_of(decision.groups, len(truth))) == 1.0


def test_the_same_arguments_give_the_same_decision_and_a_permutation_the_permuted_one() -> None:
    a, truth = planted_affinity([6, 8, 7], 0.95, 0.4)
    first, again = choose_groups(a, alpha=1.0, pools_above=0), choose_groups(a, alpha=1.0, pools_above=0)
    assert first == again
    order = np.random.default_rng(3).permutation(len(a))
    permuted = choose_groups(a[np.ix_(order, order)], alpha=1.0, pools_above=0)
    assert adjusted_rand_score(truth[order], labels_of(permuted.groups, len(a))) == 1.0


def test_a_labelling_with_an_empty_group_does_not_count() -> None:
    a = np.ones((8, 8))
    a[:4, 4:] = a[4:, :4] = 0.0  # two groups of equal branches: no third one can be told apart by the first components
    for d, groups in cluster_branches(a, 8, seed=0):
        assert len(groups) == d
        assert all(groups)


@pytest.mark.parametrize("count", [3, 10, 40])
def test_the_embedding_is_that_of_scikit_learn(count: int) -> None:
    a = np.random.default_rng(count).random((count, count)) + 0.1
    a = (a + a.T) / 2
    theirs = sklearn_embedding(a, n_components=count, eigen_solver="lobpcg", random_state=0, drop_first=False)
    ours = spectral_embedding(a)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)


def test_a_graph_in_pieces_and_a_branch_like_no_other_are_grouped_without_warnings() -> None:
    a = np.eye(6)
    a[:3, :3] = 0.9
    np.fill_diagonal(a, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decision = choose_groups(a, alpha=1.0, pools_above=0)
    assert (0, 1, 2) in decision.groups


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match="square matrix"):
        choose_groups(np.ones((2, 3)), alpha=1.0, pools_above=0)
