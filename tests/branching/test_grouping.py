"""Affinity between branches, the cost of a grouping and the clustering, against loops written from the equations."""

import numpy as np
import pytest
from matrices import ALL, planted, uniform
from sklearn.manifold import spectral_embedding as sklearn_embedding

from distbranch.branching.grouping import (
    branch_affinity,
    cluster_branches,
    separation_cost,
    spectral_embedding,
)

pytestmark = pytest.mark.filterwarnings("error")
BRANCHES = [
    (1, [[0]]),
    (2, [[1], [0]]),
    (2, [[0, 1]]),
    (9, [[0, 4], [1], [2, 3, 8, 5], [6, 7]]),
    (200, [list(range(k, 200, 7)) for k in range(7)]),
]


@pytest.mark.parametrize(("count", "branches"), BRANCHES)
def test_branch_affinity_equals_equations_7_and_8(count: int, branches: list[list[int]]) -> None:
    a = uniform(count, 0)
    found = branch_affinity(a, branches)
    for k, one in enumerate(branches):
        for m, other in enumerate(branches):
            forth = np.mean([min(a[i, j] for j in other) for i in one])
            back = np.mean([min(a[i, j] for i in one) for j in other])
            assert found[k, m] == pytest.approx((forth + back) / 2, abs=1e-12)


@pytest.mark.parametrize("a", ALL.values(), ids=ALL)
def test_branch_affinity_of_single_tasks_is_the_affinity_of_tasks(a: np.ndarray) -> None:
    np.testing.assert_array_equal(branch_affinity(a, [[task] for task in range(len(a))]), a)


@pytest.mark.parametrize(("count", "groups"), BRANCHES)
def test_separation_cost_equals_equations_10_and_11(count: int, groups: list[list[int]]) -> None:
    a = uniform(count, 0)
    expected = np.mean(
        [1 - np.mean([min(a[k, m] for m in group) for k in group]) for group in groups]
    )
    assert separation_cost(a, groups) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("a", ALL.values(), ids=ALL)
def test_clustering_gives_one_partition_without_an_empty_group_per_number_of_groups(
    a: np.ndarray,
) -> None:
    found = dict(cluster_branches(a, len(a), seed=0))
    assert {1, len(a)} <= found.keys() <= set(range(1, len(a) + 1))
    for d, groups in found.items():
        assert len(groups) == d
        assert all(groups)
        assert sorted(branch for group in groups for branch in group) == list(range(len(a)))
        assert list(groups) == sorted(groups), "sorted by first member"


@pytest.mark.parametrize("count", [3, 10, 40])
def test_the_embedding_is_that_of_scikit_learn(count: int) -> None:
    a = uniform(count, count)
    theirs = sklearn_embedding(
        a, n_components=count, eigen_solver="lobpcg", random_state=0, drop_first=False
    )
    np.testing.assert_allclose(np.abs(spectral_embedding(a)), np.abs(theirs), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_clustering_into_as_many_groups_as_were_planted_finds_them(seed: int) -> None:
    a, truth = planted([4, 9, 5, 12, 10], 0.95, 0.5, seed)
    groups = dict(cluster_branches(a, 5, seed=seed))[5]
    assert all(len(set(truth[list(group)])) == 1 for group in groups)
