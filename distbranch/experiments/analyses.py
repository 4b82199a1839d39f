"""What is read off finished runs: differences against a reference, values at equal cost, the pace of curves; and all of it as text.

Every analysis takes the long table of `tabulate_runs` (or a part of it) and gives a table, with values in 0..1, NaN where nothing
can be said, and spreads over repetitions in `<column>_sd`. `format_table` makes text of any of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas
from pandas import DataFrame
from rich.table import Table
from scipy.stats import wilcoxon

from distbranch.experiments.intervals import (
    LEVEL,
    OF_DIFFERENCES,
    interval_over_seeds,
    measure_differences,
)
from distbranch.experiments.pairs import subtract_by_seed
from distbranch.experiments.runs import COSTS, SPLITS, pivot_tasks, select_means
from distbranch.metrics import DELTA, list_dense_metrics, list_metrics
from distbranch.report.console import (
    UNDEFINED,
    compute_spread,
    describe_metric,
    format_amount,
    format_difference,
    format_size,
    format_value,
    name_difference,
)
from distbranch.report.cost_figures import Spot
from distbranch.report.tables import render_markdown, render_rich

SIGNIFICANT = 0.05  # as is usual; no sentence hangs on it alone, for it says p
# How columns are shown: these as differences of the metric, these in percent, every metric (also with a split before it) in its
# unit, and all others as numbers, with so many decimals if they are no counts.
POINTS = ("difference", "lowest", "highest")
INTERVAL = "low"  # shown as `0.80 to 3.00` with the end that stands beside it
# What columns end with that are in files alone, or told by another one.
BESIDE = ("_sd", "high", "_over_tasks")
PERCENT = ("last", *(f"{split}_{DELTA}" for split in SPLITS))
SIGNED = {DELTA: "Delta %", "delta_first": "first %"}  # in percent, with their heads
SIZES = ("cost", "parameters", *COSTS)
DECIMALS = {"share": 2, "adjusted_rand_index": 3, "rank_correlation": 3}


# ---- differences


def compare_methods(values: DataFrame, metric: str, split: str) -> DataFrame:
    """Means over seeds, and differences against the first method, paired by seed and task.

    Returns:
        A row per method: method, seeds, the metric, then what `summarise_differences` says (paired_seeds are its repetitions), and
        multiply_adds.
    """
    means = select_means(values, metric, split).groupby("variant", sort=False)
    table = means["value"].agg(**{"seeds": "size", metric: "mean", f"{metric}_sd": "std"})
    reference, *others = table.index
    known = pivot_tasks(values, metric, split)
    found = {
        method: summarise_differences(subtract_by_seed(known, method, reference))
        for method in others
    }
    table = table.join(DataFrame(found, index=[*OF_DIFFERENCES, "p_value"]).T)
    table["multiply_adds"] = means["multiply_adds"].mean()
    return table.rename(columns={"repetitions": "paired_seeds"}).rename_axis("method").reset_index()


def summarise_differences(differences: DataFrame) -> dict[str, Any]:
    """What one table of differences says, [tasks, repetitions] (over seeds, or over permutations of a tree).

    Returns:
        What `measure_differences` does; how many repetitions are above zero; the tasks, and how many are always higher or lower; the
        p-value of a two-sided Wilcoxon signed-rank test over tasks, and whether its ranks point upwards, which may differ from the
        mean where few tasks differ much.
    """
    differences = differences.dropna(axis="index", how="all")
    found = measure_differences(differences)
    if not found["repetitions"]:
        return found
    of_tasks = differences.mean(axis="columns")
    found["repetitions_higher"] = int((differences.mean(axis="index") > 0).sum())
    found["tasks"] = len(of_tasks)
    for name, signed in (("higher", differences), ("lower", -differences)):
        # What is unknown is on nobody's side.
        found[f"tasks_always_{name}"] = int((signed.fillna(1) > 0).all(axis="columns").sum())

    # Of ranks, for differences of tasks are far from normal; undefined where nothing differs.
    differs = bool(np.any(of_tasks))
    found["p_value"] = float(wilcoxon(of_tasks).pvalue) if differs else 1.0
    found["ranks_higher"] = differs and bool(wilcoxon(of_tasks, alternative="greater").pvalue < 0.5)
    return found


def tabulate_differences(differences: DataFrame) -> DataFrame:
    """A row per task, the largest mean first: task, difference and its `_sd`, lowest, highest, then every repetition."""
    table = differences.agg(["mean", "std", "min", "max"], axis="columns")
    table = table.set_axis(["difference", "difference_sd", "lowest", "highest"], axis="columns")
    # With every repetition beside its mean, for whoever wants another statistic.
    table = table.join(differences).sort_values("difference", ascending=False, kind="stable")
    return table.rename_axis("task").reset_index()


def describe_differences(
    differences: DataFrame, metric: str, *, one: str, other: str, repetition: str
) -> str:
    """One sentence about `one` less `other`: what was seen, and what may be said of it."""
    found = summarise_differences(differences)
    name = list_metrics()[metric].title
    if not found["repetitions"]:
        return f"{name}, {one} less {other}: nothing can be compared."
    unit = name_difference(metric)
    seen = (
        f"{name}, {one} less {other}: {' '.join([format_cell('difference', found, metric), unit]).strip()} in the mean, above zero in "
        f"{found['repetitions_higher']} of {found['repetitions']} {repetition}. {one.capitalize()} is higher on "
        f"{found['tasks_higher']} of {found['tasks']} tasks ({found['tasks_always_higher']} in all {repetition}) and lower on "
        f"{found['tasks_lower']} ({found['tasks_always_lower']}). Wilcoxon signed-rank test over tasks, two-sided: "
        f"p = {found['p_value']:.2g}: "
    )
    if found["p_value"] >= SIGNIFICANT:
        return f"{seen}no difference is shown."
    is_better = found["ranks_higher"] != list_metrics()[metric].lower_is_better
    better = one if is_better else other
    seen += f"by the ranks of the tasks {better} is better"
    if found["ranks_higher"] != (found["difference"] > 0):
        seen += ", though by the mean it is the other way round: few tasks differ much"
    return f"{seen}."


# ---- at equal cost


def compare_at_equal_cost(points: DataFrame, line: DataFrame, cost: str) -> DataFrame:
    """Values beside the line of the same seed and task at the same cost.

    Args:
        points: rows of the long table, of one metric and split.
        line: the same, of the networks through which the line is drawn.
        cost: one of `COSTS`.

    Returns:
        The points with the columns line_value and difference, NaN beyond the ends of the line.
    """
    # Seed by seed: what seeds have in common (their data order, their first weights) cancels in the difference.
    lines = {key: part.set_index(cost)["value"] for key, part in line.groupby(["seed", "task"])}
    nothing = pandas.Series(dtype=float)
    values = []
    for price, seed, task in zip(points[cost], points["seed"], points["task"], strict=True):
        values.append(interpolate_at_cost(price, lines.get((seed, task), nothing)))
    return points.assign(line_value=values, difference=points["value"] - values)


def interpolate_at_cost(cost: float, line: pandas.Series) -> float:
    """The value at a cost, linear in its logarithm between the two neighbours; NaN beyond the ends of the line.

    Args:
        cost: positive.
        line: values by their costs, in any order; those of one cost are averaged.
    """
    points = line.groupby(level=0).mean().dropna()
    if points.empty or not points.index[0] <= cost <= points.index[-1]:
        return np.nan
    # Costs span decades, and a metric rises about evenly with every doubling.
    return float(np.interp(np.log(cost), np.log(points.index), points))


def tabulate_equal_cost(
    means: DataFrame, lines: Mapping[str, Iterable[str]], metric: str
) -> DataFrame:
    """Every other network beside the lines of plain ones, at equal multiply-adds and at equal weights.

    Args:
        means: from `select_means`.
        lines: {line: its networks}; those of the first line are beside no other, those of a later one beside the lines before it.
        metric: that of the means.

    Returns:
        A row per line, cost and network: network, line, cost, own_cost, the metric, line_<metric> (of the line at the same cost)
        and difference, each a mean over seeds with its `_sd`, and low and high, the interval of the difference over seeds.
    """
    tables = []
    points = means
    shown = ["own_cost", metric, f"line_{metric}", "difference"]
    for line, members in lines.items():
        is_on_line = means["variant"].isin(list(members))
        points = points[~points["variant"].isin(list(members))]
        for cost in COSTS:
            found = compare_at_equal_cost(points, means[is_on_line], cost)
            found[shown] = found[[cost, "value", "line_value", "difference"]]
            of_network = found[["variant", *shown]].groupby("variant", sort=False)
            # A mean over some seeds only would compare different sets of runs: NaN is not skipped.
            mean = of_network.agg(lambda values: values.mean(skipna=False))
            deviation = of_network.agg(lambda values: values.std(skipna=False))
            ends = [interval_over_seeds(values) for _, values in of_network["difference"]]
            table = mean.join(deviation.add_suffix("_sd"))
            table[["low", "high"]] = np.reshape(ends, (-1, 2))
            table.insert(0, "line", line)
            table.insert(1, "cost", cost)
            tables.append(table)
    return pandas.concat(tables).rename_axis("network").reset_index()


# ---- the pace of curves


def measure_pace(curves: DataFrame, reference: str, iterations: int) -> DataFrame:
    """When every variant first reached what the reference of the same seed had at its end.

    Args:
        curves: see `read_curves`.
        reference: a variant.
        iterations: of a whole run.

    Returns:
        A row per variant: variant, last (the last value), seeds, reached (by how many), iterations (mean over the seeds that
        reached it, on a straight line between two evaluations) and their share of all.
    """
    of_run = curves.groupby(["variant", "seed"], sort=False)
    last = of_run["value"].last()
    goals = last[reference]
    first = pandas.Series(
        {key: find_first_reach(curve, goals.get(key[1], np.nan)) for key, curve in of_run}
    )
    table = DataFrame({"last": last, "first": first}).groupby(level=0, sort=False)
    found = table["last"].agg(last="mean", last_sd="std", seeds="size")
    found["reached"] = table["first"].count()
    found["iterations"] = table["first"].mean()
    found["share"] = found["iterations"] / iterations
    return found.rename_axis("variant").reset_index()


def find_first_reach(curve: DataFrame, goal: float) -> float:
    """The first iteration at which a curve is at the goal, on straight lines between its points; NaN if it never is."""
    iterations = curve["iteration"].to_numpy(float)
    values = curve["value"].to_numpy(float)
    reached = np.flatnonzero(values >= goal)
    if not reached.size:
        return np.nan
    # Between the evaluation before and this one; at the first evaluation nothing lies before.
    first = reached[0]
    around = slice(max(first - 1, 0), first + 1)
    return float(np.interp(goal, values[around], iterations[around]))


# ---- for people


def format_signed_percent(share: float) -> str:
    """`+1.2` of 0.012; a dash for NaN."""
    if pandas.isna(share):
        return UNDEFINED
    return f"{100 * share:+.1f}"


def format_table(table: DataFrame, metric: str | None = None) -> list[dict[str, str]]:
    """Any of the tables as rows of text: values with their spread, metrics in their unit, differences in points.

    Args:
        table: of an analysis.
        metric: of the differences; a share if None. A column `metric` says it row by row, with the unit where rows have several.
    """
    columns = [column for column in table.columns if not column.endswith(BESIDE)]
    units = {name_difference(one) for one in table.get("metric", [metric or ""])}
    unit = "" if len(units) > 1 else "".join(units)
    rows = []
    for row in table.to_dict("records"):
        own = row.get("metric", metric)
        cells = {_make_heading(name, unit): format_cell(name, row, own) for name in columns}
        if len(units) > 1:
            cells["metric"] = ", ".join(filter(None, (own, name_difference(own))))
        rows.append(cells)
    return rows


def make_table(table: DataFrame, metric: str | None = None, *, title: str = "") -> Table:
    """The same for a terminal; the first columns are names, as far as they are text."""
    num_names = 0
    while isinstance(table.iloc[0, num_names], str):
        num_names += 1
    cells = DataFrame(format_table(table, metric))
    # A head loses the unit of shares at its end, and this one is nothing without it.
    interval = _make_heading(INTERVAL, "")
    cells = cells.rename(columns={interval: f"{interval} interval"})
    return render_rich(cells, title, num_names=num_names)


def format_markdown(table: DataFrame, metric: str | None = None) -> str:
    """The same in Markdown."""
    return render_markdown(DataFrame(format_table(table, metric)))


def _make_heading(column: str, unit: str) -> str:
    """What stands over a column; `unit` is that of differences."""
    if column == INTERVAL:
        return f"{LEVEL} %"
    if column in SIGNED:
        return SIGNED[column]
    heading = column.replace("_", " ")
    if column in POINTS:
        return ", ".join(filter(None, (heading, unit)))
    if column.startswith("backbone_"):
        return f"{heading.removeprefix('backbone ')} without heads"
    found = _find_metric(column)
    if column.endswith(PERCENT):
        return f"{heading} %"
    if found is None:
        return heading
    if found in list_dense_metrics():
        return f"{heading.removesuffix(found.replace('_', ' '))}{describe_metric(found)}"
    if list_metrics()[found].unit == "%":
        return f"{heading} %"
    return heading


def _find_metric(column: str) -> str | None:
    """The metric that a column holds, as its name or the end of it: `val_accuracy`, `line_miou`."""
    found = [name for name in list_metrics() if f"_{column}".endswith(f"_{name}")]
    return max(found, key=len, default=None)


def format_cell(column: str, row: Mapping[str, Any], metric: str | None = None) -> str:
    """A value of a row with its `_sd`, such as `74.5 ± 0.7`; a dash for NaN."""
    value = row[column]
    if pandas.isna(value):
        return UNDEFINED
    if isinstance(value, str):
        return value
    deviation = np.nan_to_num(row.get(f"{column}_sd", 0.0))
    compared = metric or ""
    if column == INTERVAL:
        both = (value, row["high"])
        largest = max(map(abs, both))
        ends = [format_difference(compared, end, largest=largest) for end in both]
        return " to ".join(end if end.startswith("-") else f"+{end}" for end in ends)
    if column in POINTS:
        text = format_difference(compared, value, deviation)
        return f"+{text}" if value >= 0 else text
    if column in SIGNED:
        text = format_amount(value, deviation, scale=100, decimals=1)
        return f"+{text}" if value >= 0 else text
    if column.endswith(PERCENT):
        return format_amount(value, deviation, scale=100, decimals=1)
    if column.endswith(SIZES):
        return format_size(value)
    if column == "p_value":
        return f"{value:.2g}"  # its order counts, however small it is
    found = _find_metric(column)
    if found is not None:
        return format_value(found, value, deviation)
    return format_amount(value, None, decimals=DECIMALS.get(column, 0))


def make_spots(means: DataFrame, variants: Iterable[str], *, prefix: str = "") -> list[Spot]:
    """The networks in a diagram of value against cost, their names without a prefix that they have in common."""
    spots = []
    for variant in variants:
        own = means.query("variant == @variant")
        costs = {cost: compute_spread(list(own[cost])) for cost in COSTS}
        value = compute_spread(list(own["value"].dropna()))
        spots.append(Spot(variant.removeprefix(prefix), costs, value))
    return spots
