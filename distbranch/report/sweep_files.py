"""What the report of a sweep shows: the rows of results.csv, gathered over seeds into points, and which points are best.

Points are chosen on val and reported on test. A point of which a seed is missing never counts as best: the seeds that a sweep
stopped early or that failed are not the good ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from distbranch.errors import UserError
from distbranch.metrics import list_metrics
from distbranch.permissions import make_denied_error
from distbranch.report.console import SIZES, compute_seed_means, format_column

COSTS = {
    "parameters": "Parameters",
    "multiply_adds": "Multiply-adds per image",
    "latency_ms": "Latency of one image, ms",
}
# Two more, that a search may weigh against the metric; elsewhere a page has panels enough without them.
SEARCHED_COSTS = {"weights": "Weights", "folded_weights": "Weights, folded"}
LATENCY = "latency_ms"
INTERVAL = ("latency_low_ms", "latency_high_ms")  # that holds the true median 96 times of 100
FINISHED = "finished"
FRONT = "●"  # the mark of a point on a front
TIED = "○"  # of one that is on the front of latency, but perhaps only because measuring is noisy
# what the page cannot do without; all other columns depend on the sweep
NEEDED = ("reason", "seed", "status", "trial")


@dataclass(frozen=True)
class SweepFiles:
    """One sweep: its configuration and its rows, numbers behind the column `seed` and text in all others."""

    directory: Path
    config: dict[str, Any]
    rows: pandas.DataFrame

    @property
    def keys(self) -> list[str]:
        """What was varied when the rows were written, without the seed: the variant if there are some, then dotted keys.

        A sweep resumed with more keys says so in its configuration at once, and in its rows when it ends.
        """
        columns = list(self.rows.columns)
        return columns[columns.index("reason") + 1 : columns.index("seed")]

    @property
    def metric(self) -> str:
        """What is compared."""
        return str(self.config["metric"])

    @property
    def unit(self) -> str:
        """The sign behind its values: % of a share, else empty."""
        return list_metrics()[self.metric].unit

    @property
    def shown_split(self) -> str:
        """Test where it was evaluated, else val."""
        column = f"test_{self.metric}"
        is_known = column in self.rows and self.rows[column].notna().any()
        return "test" if is_known else "val"

    @property
    def points(self) -> pandas.DataFrame:
        """A row per setting, in the order of the rows: its keys, `trials`, `seeds` that finished, means over these and `_sd`.

        `is_complete`: all its seeds finished, and none lacks the metric (an undefined one cannot be averaged away).
        """
        # a setting that was trained twice with one seed has that seed once: the first one counts
        rows = self.rows.drop_duplicates([*self.keys, "seed"])
        # a sweep over the seed alone is one setting
        keys: Any = self.keys or (lambda _: 0)
        numbers = rows.select_dtypes("number").columns
        finished = rows[rows["status"] == FINISHED].groupby(keys, sort=False)

        points = rows.groupby(keys, sort=False).agg(trials=("seed", "size"))
        points = points.join(finished.size().rename("seeds"))
        points = points.join(compute_seed_means(finished[numbers])).copy()
        known = finished[f"val_{self.metric}"].count().reindex(points.index)
        points["is_complete"] = known == points["trials"]
        points = points.fillna({"seeds": 0}).astype({"seeds": int})
        # Copied into one piece here and above, for pandas warns of hundreds of columns in as many.
        return points.copy().reset_index()

    @property
    def costs(self) -> dict[str, str]:
        """The costs that are shown, with their titles: what the search weighed against the metric comes first."""
        titles = {**COSTS, **SEARCHED_COSTS}
        searched = self.config.get("cost")
        shown = dict.fromkeys([*filter(None, [searched]), *COSTS])
        return {cost: titles[cost] for cost in shown}

    def find_fronts(self, points: pandas.DataFrame) -> dict[str, list[int]]:
        """The numbers of the points on the front of every cost, chosen on val."""
        value = f"val_{self.metric}"
        signed = self._make_more_better(points)
        return {cost: find_pareto_front(signed, cost, value) for cost in self.costs}

    def find_ties(self, points: pandas.DataFrame) -> list[int]:
        """The numbers of the points on the front of latency that a better one may be as fast as, by what was measured."""
        value = f"val_{self.metric}"
        signed = self._make_more_better(points)
        front = signed.loc[find_pareto_front(signed, LATENCY, value)]
        low, high = INTERVAL
        # Whoever is better and not on the front is as slow as one of the front that is better, or slower.
        return [
            int(number)
            for number, point in front.iterrows()
            if (front[low][front[value] > point[value]] <= point[high]).any()
        ]

    def find_best(self, points: pandas.DataFrame) -> int | None:
        """The number of the best point on val; None if none is complete."""
        return next(iter(self.rank_points(points)), None)

    def rank_points(self, points: pandas.DataFrame) -> list[int]:
        """The numbers of the complete points, the best on val first."""
        known = self._make_more_better(points[points["is_complete"]])[f"val_{self.metric}"]
        return list(map(int, known.sort_values(ascending=False, kind="stable").index))

    def _make_more_better(self, points: pandas.DataFrame) -> pandas.DataFrame:
        value = f"val_{self.metric}"
        if list_metrics()[self.metric].lower_is_better:
            return points.assign(**{value: -points[value]})
        return points


def is_sweep(directory: Path) -> bool:
    """Whether this is the directory of a sweep, and not that of a run."""
    return (directory / "sweep.yaml").exists()


def read_sweep(directory: Path | str) -> SweepFiles:
    """Everything a report shows; UserError if the sweep has no results yet or they are damaged."""
    path = Path(directory)
    try:
        config = yaml.safe_load((path / "sweep.yaml").read_text(encoding="utf-8"))
        # as text: a setting stays as it was written, and an empty cell is the key's `none`
        rows = pandas.read_csv(path / "results.csv", dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UserError(
            f"The sweep {path} has no {name} yet: `distbranch sweep` writes it when it ends or is stopped."
        ) from None
    except PermissionError as error:
        raise make_denied_error(error) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The files of the sweep {path} cannot be read ({reason}).") from None
    if rows.empty or not set(NEEDED) <= set(rows.columns):
        raise UserError(
            f"{path / 'results.csv'} should have rows with {', '.join(NEEDED)}; run the sweep again."
        )
    if config["metric"] not in list_metrics():
        raise UserError(
            f"The sweep {path} compares {config['metric']}, which no kind of task has. Load the file that adds it, as for the sweep: "
            f"distbranch --plugin FILE report {path}."
        )
    # a metric or a cost that the sweep did not write has no value
    for column in (
        *COSTS,
        *SEARCHED_COSTS,
        *INTERVAL,
        f"val_{config['metric']}",
        f"test_{config['metric']}",
        "seconds",
    ):
        if column not in rows:
            rows[column] = ""
    behind_seed = rows.columns.get_loc("seed") + 1
    numbers = rows.columns[behind_seed:].drop("directory", errors="ignore")
    try:
        rows[numbers] = rows[numbers].apply(pandas.to_numeric)
    except ValueError as error:
        raise UserError(
            f"{path / 'results.csv'} should have numbers behind the seed, but it is damaged ({error}); run the sweep again."
        ) from None
    return SweepFiles(path, config, rows)


def find_pareto_front(points: pandas.DataFrame, cost: str, value: str) -> list[int]:
    """The points than which none is both as cheap and as good and better in one of the two, cheapest first.

    Args:
        points: those that are not complete or have no cost or value are left out.
        cost: a column, smaller is better.
        value: a column, larger is better.
    """
    known = points[points["is_complete"]].dropna(subset=[cost, value])
    known = known.sort_values([cost, value], ascending=[True, False])
    # from the cheapest on: who is no better than a cheaper one is dominated
    best_before = known[value].cummax().shift(fill_value=float("-inf"))
    return list(known.index[known[value] > best_before])


def tabulate_points(sweep: SweepFiles, points: pandas.DataFrame) -> pandas.DataFrame:
    """The points as text, each cost on whose front they are with a mark."""
    fronts = sweep.find_fronts(points)
    ties = sweep.find_ties(points)
    cells = pandas.DataFrame({"no.": (points.index + 1).astype(str)})
    for key in sweep.keys:
        cells[key] = points[key].map(format_setting)
    seeds = points["seeds"].astype(str)
    is_whole = points["seeds"] == points["trials"]
    cells["seeds"] = seeds.where(is_whole, seeds + " of " + points["trials"].astype(str))
    for split in ("val", "test"):
        cells[f"{split} {sweep.unit}".rstrip()] = format_column(points, f"{split}_{sweep.metric}")
    for cost, front in fronts.items():
        texts = format_column(points, cost)
        for number in front:
            mark = TIED if cost == LATENCY and number in ties else FRONT
            texts[number] = f"{mark} {texts[number]}"
        # latency is known only where it was measured
        if points[cost].notna().any():
            cells[SIZES[cost]] = texts
    # only now, as the last parts of two keys may be the same word
    return cells.rename(columns=dict(zip(sweep.keys, map(shorten_key, sweep.keys), strict=True)))


def shorten_key(key: str) -> str:
    """The last part of a dotted key, as a word."""
    return key.rpartition(".")[2].replace("_", " ")


def format_setting(value: str) -> str:
    """The value of a key: 1.0 as 1; an empty cell is the key's `none`."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value or "none"
