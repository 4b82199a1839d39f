"""What the report of a sweep shows: the rows of results.csv, gathered over seeds into points, and which points are best.

Points are chosen on val and reported on test. A point of which a seed is missing never counts as best: the seeds that a sweep
stopped early or that failed are not the good ones.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distbranch.errors import UserError
from distbranch.permissions import denied
from distbranch.report.console import spread

COSTS = {
    "parameters": "Parameters",
    "multiply_adds": "Multiply-adds per image",
    "latency_ms": "Latency of one image, ms",
}
FINISHED = "finished"
Row = Mapping[str, str]


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; no deviation of one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Point:
    """One setting with all its seeds."""

    setting: dict[str, str]  # dotted key: value
    rows: tuple[Row, ...]

    @property
    def finished(self) -> list[Row]:
        """The seeds that reached the end."""
        return [row for row in self.rows if row["status"] == FINISHED]

    @property
    def is_complete(self) -> bool:
        """Whether all its seeds reached the end."""
        return len(self.finished) == len(self.rows)

    def is_known(self, column: str) -> bool:
        """Whether every finished seed has a value there: one without (an undefined metric) cannot be averaged away."""
        return all(row.get(column) for row in self.finished)

    def spread(self, column: str) -> Spread | None:
        """A column over the finished seeds that have it; None where it is unknown."""
        values = [float(row[column]) for row in self.finished if row.get(column)]
        mean, deviation = spread(values)
        return None if mean is None else Spread(mean, deviation)


@dataclass(frozen=True)
class SweepFiles:
    """One sweep: its configuration, its rows, its points."""

    directory: Path
    config: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def keys(self) -> list[str]:
        """What was varied when the rows were written, without the seed: the variant if there are some, then dotted keys.

        A sweep that goes on with more keys says so in its configuration at once, and in its rows when it ends.
        """
        columns = list(self.rows[0])
        return columns[columns.index("reason") + 1 : columns.index("seed")]

    @property
    def metric(self) -> str:
        """What is compared."""
        return str(self.config["metric"])

    @property
    def points(self) -> list[Point]:
        """One per setting, in the order of the rows; a setting that was trained twice with one seed has that seed once."""
        keys = self.keys
        gathered: dict[tuple[str, ...], dict[str, Row]] = {}
        for row in self.rows:
            by_seed = gathered.setdefault(tuple(row[key] for key in keys), {})
            # the first one counts
            by_seed.setdefault(row["seed"], row)
        points = []
        for values, by_seed in gathered.items():
            setting = dict(zip(keys, values, strict=True))
            points.append(Point(setting, tuple(by_seed.values())))
        return points

    def fronts(self) -> dict[str, list[int]]:
        """The numbers of the points on the front of every cost, chosen on val."""
        points = self.points
        return {cost: pareto_front(points, cost, f"val_{self.metric}") for cost in COSTS}

    @property
    def shown_split(self) -> str:
        """Test where it was evaluated, else val."""
        return "test" if any(row.get(f"test_{self.metric}") for row in self.rows) else "val"


def is_sweep(directory: Path) -> bool:
    """Whether this is the directory of a sweep, and not that of a run."""
    return (directory / "sweep.yaml").exists()


def read_sweep(directory: Path | str) -> SweepFiles:
    """Everything a report shows; UserError if the sweep has no results yet or they are damaged."""
    path = Path(directory)
    try:
        config = yaml.safe_load((path / "sweep.yaml").read_text(encoding="utf-8"))
        with (path / "results.csv").open(newline="", encoding="utf-8") as file:
            rows = tuple(csv.DictReader(file))
    except FileNotFoundError as error:
        raise UserError(
            f"The sweep {path} has no {Path(error.filename).name} yet: `distbranch sweep` writes it when it ends or is stopped."
        ) from None
    except PermissionError as error:
        raise denied(error) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The files of the sweep {path} cannot be read ({' '.join(str(error).split())}).") from None
    # what the page cannot do without; all other columns depend on the sweep
    needed = {"trial", "status", "reason", "seed"}
    if not rows or not needed <= rows[0].keys():
        raise UserError(
            f"{path / 'results.csv'} should have rows with {', '.join(sorted(needed))}; run the sweep again."
        )
    return SweepFiles(path, config, rows)


def pareto_front(points: Sequence[Point], cost: str, value: str) -> list[int]:
    """The points than which none is both as cheap and as good and better in one of the two, cheapest first.

    Args:
        points: those with a missing seed, cost or value are left out.
        cost: a column, smaller is better.
        value: a column, larger is better.
    """
    known = []
    for number, point in enumerate(points):
        price, worth = point.spread(cost), point.spread(value)
        if point.is_complete and point.is_known(value) and price is not None and worth is not None:
            known.append((price.mean, -worth.mean, number))
    front, best = [], float("inf")
    # from the cheapest on: who is no better than a cheaper one is dominated
    for _, loss, number in sorted(known):
        if loss < best:
            front.append(number)
            best = loss
    return front
