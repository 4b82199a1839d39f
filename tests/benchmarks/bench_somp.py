"""What choosing filters costs: SOMP by outer products against the pursuit as it is defined, on one core.

`python tests/benchmarks/bench_somp.py`
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np
from command_line import run_as_command
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from distbranch.branching.somp import select_rows
from distbranch.cli.terminal import show_rows

# A layer of conv4 as it stands in VGG-16; fc6 behind 32 channels at 7x7 positions. The definition would take minutes for the
# 64 rows of the latter, so it chooses only the first few.
CASES = ((512, 4608, 32, 32), (4096, 1568, 64, 3))


@dataclass(frozen=True)
class SompCost:
    """Seconds to choose `num_rows` rows of a matrix [d, n], and of the naive form for `naive_rows` of them."""

    matrix: str
    num_rows: int
    seconds: float
    naive_rows: int
    naive_seconds: float
    equal_rows: bool

    @property
    def naive_all_seconds(self) -> float:
        """What the naive form would take for all rows, if each took as long as those that it chose."""
        return self.naive_seconds * self.num_rows / self.naive_rows


def bench_somp(
    cases: tuple[tuple[int, int, int, int], ...] = CASES, *, seed: int = 0
) -> list[SompCost]:
    """One row per case (d, n, rows, rows of the naive form), on normal random numbers in float32 and one thread."""
    with threadpool_limits(1):
        return [_bench_one(*case, seed) for case in cases]


def _bench_one(d: int, n: int, num_rows: int, naive_rows: int, seed: int) -> SompCost:
    weight = np.random.default_rng(seed).standard_normal((d, n), dtype=np.float32)
    began = time.perf_counter()
    rows = select_rows(weight, num_rows)
    chosen = time.perf_counter()
    naive = select_rows_naively(weight.astype(np.float64), naive_rows)
    ended = time.perf_counter()
    return SompCost(
        f"{d} x {n}",
        num_rows,
        chosen - began,
        naive_rows,
        ended - chosen,
        rows[:naive_rows] == naive,
    )


def select_rows_naively(weight: NDArray[np.float64], num_rows: int) -> list[int]:
    """The pursuit as it is defined: a least-squares problem and the product of residual and rows at every step."""
    norms = np.linalg.norm(weight, axis=1)
    chosen: list[int] = []
    residual = weight
    while len(chosen) < num_rows:
        scores = np.linalg.norm(residual @ weight.T, axis=0) / norms
        scores[chosen] = -1
        chosen.append(int(np.argmax(scores)))
        solution = np.linalg.lstsq(weight[chosen].T, weight.T, rcond=None)[0]
        residual = weight - solution.T @ weight[chosen]
    return chosen


def main() -> None:
    """What choosing filters by SOMP costs on one core, against the pursuit as it is defined (for fewer rows where that is slow)."""
    show_rows(
        [{**asdict(cost), "naive_all_seconds": cost.naive_all_seconds} for cost in bench_somp()]
    )


if __name__ == "__main__":
    run_as_command(main)
