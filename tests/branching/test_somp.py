"""The pursuit chooses what a slow one with least squares chooses, finds planted rows, and says when the rank ends."""

import warnings

import numpy as np
import pytest
from bench_somp import select_rows_naively

from distbranch.branching.somp import orthogonal_matching_pursuit, select_largest_rows, select_rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("d", "n", "num_rows"), [(12, 40, 12), (60, 27, 25), (128, 64, 40), (300, 48, 30)]
)
def test_rows_are_those_of_a_pursuit_with_least_squares(
    d: int, n: int, num_rows: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    weight = (
        draw.standard_normal((d, n))
        * draw.lognormal(0, 1, (d, 1))
        @ np.diag(draw.lognormal(0, 1, n))
    )
    assert select_rows(weight, num_rows) == select_rows_naively(weight, num_rows)


@pytest.mark.parametrize("scale", [1e-120, 1e-30, 1.0, 1e30, 1e120])
def test_rows_do_not_depend_on_the_scale_of_the_matrix(scale: float) -> None:
    weight = np.random.default_rng(3).standard_normal((40, 30))
    assert select_rows(weight * scale, 20) == select_rows_naively(weight, 20)


def test_rows_stay_those_of_least_squares_while_the_residual_falls_by_many_orders() -> None:
    draw = np.random.default_rng(4)
    weight = draw.standard_normal((50, 12)) @ np.diag(10.0 ** -np.arange(0, 6, 0.5))
    assert select_rows(weight, 10) == select_rows_naively(weight, 10)


def test_of_planted_bundles_of_rows_one_each_is_chosen() -> None:
    draw = np.random.default_rng(0)
    directions = np.linalg.qr(draw.standard_normal((40, 9)))[0].T * draw.uniform(0.5, 5, (9, 1))
    bundle = draw.permutation(np.repeat(np.arange(9), 8))
    weight = directions[bundle] * draw.uniform(0.5, 2, (72, 1)) + 0.01 * draw.standard_normal(
        (72, 40)
    )
    assert sorted(bundle[select_rows(weight, 9)]) == list(range(9))


def test_of_equal_rows_the_first_is_chosen_and_never_its_double() -> None:
    draw = np.random.default_rng(1)
    rows = draw.standard_normal((7, 20))
    doubled = np.concatenate([rows, rows[::-1], rows * 3.0])
    assert sorted(select_rows(doubled, 7)) == list(range(7))
    assert select_rows(np.eye(6), 4) == [0, 1, 2, 3]


def test_when_the_rank_is_exhausted_the_largest_unused_rows_fill_up_and_a_warning_says_so() -> None:
    draw = np.random.default_rng(2)
    weight = draw.standard_normal((20, 3)) @ draw.standard_normal((3, 15))
    with pytest.warns(RuntimeWarning, match="only 3 independent rows of the 8 wanted; the last 5"):
        rows = select_rows(weight, 8)
    assert len(set(rows)) == 8
    assert rows[:3] == select_rows_naively(weight, 3)
    norms = np.linalg.norm(weight, axis=1)
    norms[rows[:3]] = -1
    assert rows[3:] == list(np.argsort(-norms)[:5])
    selection = orthogonal_matching_pursuit(weight, 8)
    assert selection.num_filled == 5


def test_rounding_to_float32_adds_no_rank() -> None:
    draw = np.random.default_rng(5)
    weight = (draw.standard_normal((64, 9)) @ draw.standard_normal((9, 200))).astype(np.float32)
    assert orthogonal_matching_pursuit(weight, 32).num_filled == 32 - 9


def test_as_many_rows_as_columns_exhaust_nothing() -> None:
    weight = np.random.default_rng(6).standard_normal((300, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(select_rows(weight, 64))) == 64


def test_rows_of_zeros_come_last() -> None:
    weight = np.zeros((6, 4))
    assert orthogonal_matching_pursuit(weight, 2).rows == (0, 1)
    weight[4, 1], weight[5, 2] = 1e-9, 2e-9
    selection = orthogonal_matching_pursuit(weight, 4)
    assert selection.rows == (5, 4, 0, 1)
    assert selection.num_filled == 2


def test_small_independent_rows_beside_large_ones_still_count() -> None:
    weight = np.diag([1e6, 1.0, 1e-3])
    assert orthogonal_matching_pursuit(weight, 3).rows == (0, 1, 2)
    assert orthogonal_matching_pursuit(weight, 3).num_filled == 0


def test_largest_rows_are_sorted_by_norm_and_first_on_ties() -> None:
    assert select_largest_rows([[1, 0], [0, 3], [3, 0], [2, 0]], 3) == [1, 2, 3]


@pytest.mark.parametrize("num_rows", [0, 4])
def test_more_rows_than_there_are_or_none_are_refused(num_rows: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 3"):
        select_rows(np.eye(3), num_rows)


def test_what_is_no_matrix_of_finite_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="Flatten the kernels"):
        select_rows(np.zeros((2, 3, 3, 3)), 1)
    with pytest.raises(ValueError, match="a NaN or an infinity"):
        select_rows(np.array([[1.0, np.nan]]), 1)
