"""Affinities of branches for property tests: a table of matrices, small ones (all partitions are tried) and large ones."""

import numpy as np


def mirror(matrix: np.ndarray, diagonal: np.ndarray | float = 1.0) -> np.ndarray:
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, diagonal)
    return matrix


def uniform(count: int, seed: int) -> np.ndarray:
    """The diagonal is below 1, as for branches of several tasks."""
    draw = np.random.default_rng(seed)
    return mirror(draw.uniform(0.2, 0.8, (count, count)), draw.uniform(0.85, 1, count))


def tied(count: int, seed: int) -> np.ndarray:
    """Few different values, so that many groupings cost the same."""
    return mirror(np.random.default_rng(seed).integers(2, 7, (count, count)) / 8, 0.875)


def planted(
    sizes: list[int], within: float, between: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks in mixed order, with a little noise, and the number of every branch's block."""
    draw = np.random.default_rng(seed)
    truth = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    noise = draw.normal(0, 0.01, (len(truth), len(truth)))
    blocks = np.where(truth[:, None] == truth, within, between)
    return mirror(blocks + noise).clip(0, 1), truth


def chain(count: int) -> np.ndarray:
    """Each is near its neighbours alone, so that no cut is the natural one."""
    places = np.arange(count)
    return 0.8 ** np.abs(places[:, None] - places)


def pieces(*sizes: int) -> np.ndarray:
    """Blocks without any affinity between them; one of size 1 is like no other branch."""
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return mirror(np.where(truth[:, None] == truth, 0.9, 0.0))


SMALL = {
    "one branch": np.ones((1, 1)),
    "one branch of unlike tasks": np.full((1, 1), 0.3),
    "two apart": mirror(np.full((2, 2), 0.1)),
    "two alike": np.ones((2, 2)),
    "all alike": np.ones((6, 6)),
    "none alike": np.eye(5),
    "pieces": pieces(3, 1, 2),
    "chain": chain(7),
    "blocks": planted([3, 2, 2], 0.9, 0.2)[0],
    "tiny": uniform(6, 3) * 1e-9,
    **{f"uniform {count}": uniform(count, count) for count in range(2, 8)},
    **{f"tied {count}": tied(count, count) for count in range(2, 8)},
}

LARGE = {
    "all alike": np.ones((12, 12)),
    "none alike": np.eye(11),
    "pieces": pieces(4, 1, 6, 1),
    "two equal pieces": pieces(5, 5),
    "chain": chain(20),
    "blocks": planted([4, 9, 5, 12, 10], 0.95, 0.5)[0],
    "weak blocks": planted([5] * 8, 0.58, 0.5)[0],
    "one large block": planted([20, 2, 2], 0.9, 0.3)[0],
    "tiny": uniform(10, 3) * 1e-9,
    **{f"uniform {count}": uniform(count, count) for count in (9, 13, 21, 37)},
    **{f"tied {count}": tied(count, count) for count in (9, 17, 33)},
}

ALL = {f"small: {name}": matrix for name, matrix in SMALL.items()} | {
    f"large: {name}": matrix for name, matrix in LARGE.items()
}
