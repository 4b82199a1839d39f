"""Simultaneous orthogonal matching pursuit (Eq. 2, Algorithm 2): the rows of a matrix that best reconstruct all its rows.

With R the rows less their projection on the chosen ones, all that the pursuit needs is in H = R W^T = R R^T. Choosing row j
takes one outer product from it, H <- H - h_j h_j^T / H_jj, so no least-squares problem is ever solved; and the column norms of
H follow from one product H h_j, so H itself stays W W^T and a list of the q_j = h_j / sqrt(H_jj).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distbranch.branching.grouping import Matrix

SPENT = 1e-12  # of a row's squared norm: with so little left, the row lies in the span of the chosen ones
TIED = 1e-9  # scores that differ by less, relatively, are equal
STALE = 1e-4  # a score is computed anew once the largest has fallen so far: a difference keeps its digits no longer
BLOCK = 512  # columns of H held at once

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """Chosen rows in order of choice; the last `num_filled` were taken for their norm, as the rank was exhausted."""

    rows: tuple[int, ...]
    num_filled: int

    @property
    def rank(self) -> int:
        """Rows chosen by the pursuit itself."""
        return len(self.rows) - self.num_filled


def select_rows(weight: ArrayLike, num_rows: int) -> list[int]:
    """The rows of `weight` [d, n] that best reconstruct all of them, greedily, in order of choice; first index on ties.

    Warns (RuntimeWarning) if the numerical rank is exhausted before; the rest are then the unused rows of largest norm.

    Raises:
        ValueError: not a matrix of finite numbers, or not 1 <= num_rows <= d.
    """
    selection = orthogonal_matching_pursuit(weight, num_rows)
    if selection.num_filled:
        warnings.warn(
            f"The matrix has only {selection.rank} independent rows of the {num_rows} wanted; "
            f"the last {selection.num_filled} are the unused ones of largest norm.",
            RuntimeWarning,
            stacklevel=2,
        )
    return list(selection.rows)


def orthogonal_matching_pursuit(weight: ArrayLike, num_rows: int) -> Selection:
    """`select_rows` that tells in its result, not by a warning, how many rows were filled in."""
    matrix = _check_matrix(weight, num_rows)
    squares = _square_norms(matrix)
    chosen: list[int] = []
    if squares.any():
        chosen = _run_pursuit(matrix @ matrix.T, squares, num_rows)

    # Never random rows: those of largest norm carry most of what the wide layer answers.
    unused = np.setdiff1d(np.arange(len(matrix)), chosen)
    by_norm = np.argsort(-squares[unused], kind="stable")
    fill = unused[by_norm][: num_rows - len(chosen)]
    return Selection((*chosen, *fill.tolist()), len(fill))


def select_largest_rows(weight: ArrayLike, num_rows: int) -> list[int]:
    """The rows of `weight` [d, n] of largest norm, largest first: what SOMP is compared with.

    Raises:
        ValueError: as for `select_rows`.
    """
    matrix = _check_matrix(weight, num_rows)
    by_norm = np.argsort(-_square_norms(matrix), kind="stable")
    rows: list[int] = by_norm[:num_rows].tolist()
    return rows


def _check_matrix(weight: ArrayLike, num_rows: int) -> Matrix:
    """In float64, scaled to a largest value of 1, which changes no choice and keeps fourth powers in range."""
    matrix = np.asarray(weight, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"Rows are chosen from a matrix [d, n], found {matrix.ndim} dimensions. Flatten the kernels.")
    if not np.isfinite(matrix).all():
        raise ValueError("Rows are chosen from finite numbers, found a NaN or an infinity.")
    if not 1 <= num_rows <= len(matrix):
        raise ValueError(f"From {len(matrix)} rows, between 1 and {len(matrix)} can be chosen, found {num_rows}.")
    largest = np.abs(matrix).max(initial=0.0)
    if largest > 0:
        matrix = matrix / largest
    return matrix


def _square_norms(matrix: Matrix) -> Vector:
    """The squared norm of every row [d]."""
    squares: Vector = np.einsum("ij,ij->i", matrix, matrix)
    return squares


def _run_pursuit(gram: Matrix, squares: Vector, num_rows: int) -> list[int]:
    """Up to `num_rows` rows, fewer where no row is left outside the span of the chosen ones. gram: W W^T [d, d]."""
    parts = np.zeros((len(gram), num_rows))  # q_j, one column per choice
    left = squares.copy()  # the diagonal of H
    norms = np.zeros(len(gram))  # squared norms of the columns of H
    fresh = np.inf  # the largest score when the norms were last computed and not only kept up to date
    chosen: list[int] = []
    while len(chosen) < num_rows:
        candidates = left > SPENT * squares
        candidates[chosen] = False
        if not candidates.any():
            break

        # Eq. 2: the row with the largest ||R w_j|| / ||w_j||.
        known = parts[:, : len(chosen)]
        scores = _compute_scores(norms, squares, candidates)
        if scores.max() < STALE * fresh:
            norms = _compute_column_norms(gram, known)
            scores = _compute_scores(norms, squares, candidates)
            fresh = scores.max()
        tied = scores >= (1 - TIED) * scores.max()
        row = int(tied.argmax())

        # Its column h of H, and H h.
        column = gram[row] - known @ known[row]
        column[chosen] = 0.0
        product = gram @ column - known @ (known.T @ column)

        # |H_k - h h_k / H_jj|^2 for every column k: no new product of matrices.
        pivot = column[row]
        square = column @ column
        norms += column * (column * square / pivot - 2 * product) / pivot

        part = column / np.sqrt(pivot)
        left -= part**2
        parts[:, len(chosen)] = part
        chosen.append(row)
    return chosen


def _compute_scores(norms: Vector, squares: Vector, candidates: NDArray[np.bool_]) -> Vector:
    """||R w_j||^2 / ||w_j||^2 of every candidate, -1 of the others."""
    scores = np.full(len(norms), -1.0)
    positive = np.maximum(norms[candidates], 0.0)  # rounding of the updates may bring a norm below 0
    scores[candidates] = positive / squares[candidates]
    return scores


def _compute_column_norms(gram: Matrix, parts: Matrix) -> Vector:
    """Squared norms of the columns of H = gram - parts parts^T."""
    norms = np.empty(len(gram))
    for start in range(0, len(gram), BLOCK):
        block = slice(start, start + BLOCK)
        columns = gram[block] - parts[block] @ parts.T
        norms[block] = _square_norms(columns)
    return norms
