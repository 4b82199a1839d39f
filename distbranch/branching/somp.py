"""Simultaneous orthogonal matching pursuit (Eq. 2, Algorithm 2): the rows of a matrix that best reconstruct all its rows.

With R the rows less their projection on the chosen ones, all that the pursuit needs is H = R W^T = R R^T. It begins as W W^T, and
choosing row j takes one outer product from it, H <- H - h_j h_j^T / H_jj, so no least-squares problem is ever solved.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distbranch.branching.grouping import Matrix, Vector

SPENT = 1e-12  # of a row's squared norm: with so little left, the row lies in the span of the chosen ones
TIED = 1e-9  # scores that differ by less, relatively, are equal


class Selection(NamedTuple):
    """Chosen rows in order of choice; the last `num_filled` were taken for their norm, as the rank was exhausted."""

    rows: tuple[int, ...]
    num_filled: int


def select_rows(weight: ArrayLike, num_rows: int) -> list[int]:
    """The rows of `weight` [d, n] that best reconstruct all of them, greedily, in order of choice; first index on ties.

    Warns (RuntimeWarning) if the numerical rank is exhausted before; the rest are then the unused rows of largest norm.

    Raises:
        ValueError: not a matrix of finite numbers, or not 1 <= num_rows <= d.
    """
    rows, num_filled = orthogonal_matching_pursuit(weight, num_rows)
    if num_filled:
        warnings.warn(
            f"The matrix has only {num_rows - num_filled} independent rows of the {num_rows} wanted; "
            f"the last {num_filled} are the unused ones of largest norm.",
            RuntimeWarning,
            stacklevel=2,
        )
    return list(rows)


def orthogonal_matching_pursuit(weight: ArrayLike, num_rows: int) -> Selection:
    """`select_rows` that tells in its result, not by a warning, how many rows were filled in."""
    matrix = _check_matrix(weight, num_rows)
    squares = _square_norms(matrix)
    chosen = _run_pursuit(matrix @ matrix.T, squares, num_rows)

    # Never random rows: those of largest norm carry most of what the wide layer answers.
    by_norm = np.argsort(-squares, kind="stable").tolist()
    unused = [row for row in by_norm if row not in chosen]
    fill = unused[: num_rows - len(chosen)]
    return Selection((*chosen, *fill), len(fill))


def select_largest_rows(weight: ArrayLike, num_rows: int) -> list[int]:
    """The rows of `weight` [d, n] of largest norm, largest first: what SOMP is compared with.

    Raises:
        ValueError: as for `select_rows`.
    """
    squares = _square_norms(_check_matrix(weight, num_rows))
    rows: list[int] = np.argsort(-squares, kind="stable")[:num_rows].tolist()
    return rows


def _check_matrix(weight: ArrayLike, num_rows: int) -> Matrix:
    """In float64, scaled to a largest value of 1, which changes no choice and keeps fourth powers in range."""
    matrix = np.asarray(weight, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(
            f"Rows are chosen from a matrix [d, n] without a NaN or an infinity, found shape {list(matrix.shape)}. "
            "Flatten the kernels, and look for weights that diverged."
        )
    if not 1 <= num_rows <= len(matrix):
        raise ValueError(
            f"From {len(matrix)} rows, between 1 and {len(matrix)} can be chosen, found {num_rows}."
        )
    largest = np.abs(matrix).max(initial=0.0)
    if largest > 0:
        matrix = matrix / largest
    return matrix


def _square_norms(matrix: Matrix) -> Vector:
    """The squared norm of every row [d]."""
    squares: Vector = np.einsum("ij,ij->i", matrix, matrix)
    return squares


def _run_pursuit(residual: Matrix, squares: Vector, num_rows: int) -> list[int]:
    """Up to `num_rows` rows, fewer where no row is left outside the span of the chosen ones.

    Args:
        residual: H = W W^T [d, d], which is overwritten.
        squares: ||w_j||^2 [d].
        num_rows: d'.
    """
    chosen: list[int] = []
    while len(chosen) < num_rows:
        # The diagonal of H is what is left of every row.
        candidates: NDArray[np.bool_] = np.diag(residual) > SPENT * squares
        candidates[chosen] = False
        if not candidates.any():
            break

        # Eq. 2: the row with the largest ||R w_j|| / ||w_j||, squared.
        scores = np.full(len(squares), -1.0)
        norms = _square_norms(residual)
        scores[candidates] = norms[candidates] / squares[candidates]
        tied = scores >= (1 - TIED) * scores.max()
        row = int(tied.argmax())
        chosen.append(row)

        # H <- H - h_j h_j^T / H_jj
        column = residual[row].copy()
        residual -= np.outer(column, column / column[row])
    return chosen
