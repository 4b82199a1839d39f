"""Differences of two networks each, paired by seed and task: every pair as a table, those that are asked for as sentences."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas
from pandas import DataFrame

from distbranch.experiments.intervals import LEVEL, OF_DIFFERENCES, measure_differences
from distbranch.experiments.runs import SPLITS, pivot_tasks
from distbranch.metrics import list_metrics
from distbranch.report.console import format_difference, get_scale, name_difference

Pair = tuple[str, str]  # a network, and that with which it is compared


def subtract_by_seed(known: DataFrame, network: str, against: str) -> DataFrame:
    """The differences [tasks, seeds] of two networks, of tasks and seeds that both have.

    Args:
        known: from `pivot_tasks`.
        network: a variant.
        against: the one that is subtracted.
    """
    if network not in known or against not in known:
        return DataFrame()
    differences = known[network] - known[against]
    # Seeds that only one of the two has are no pairs.
    return differences.dropna(axis="columns", how="all").dropna(axis="index", how="all")


def compare_pairs(values: DataFrame, pairs: Sequence[Pair], metric: str, split: str) -> DataFrame:
    """A row per pair: network, against, then what `measure_differences` tells; values from `tabulate_runs`."""
    known = pivot_tasks(values, metric, split)
    rows = []
    for network, against in pairs:
        found = measure_differences(subtract_by_seed(known, network, against))
        rows.append({"network": network, "against": against, **found})
    return DataFrame(rows, columns=["network", "against", *OF_DIFFERENCES])


def tabulate_pairs(values: DataFrame, variants: Sequence[str], metric: str) -> dict[str, DataFrame]:
    """differences.csv: the differences of every two variants on both splits, the later one less the earlier."""
    pairs = [(later, earlier) for earlier, later in combinations(variants, 2)]
    tables = {split: compare_pairs(values, pairs, metric, split) for split in SPLITS}
    table = pandas.concat(tables, names=["split"]).reset_index("split")
    table.insert(1, "metric", metric)
    return {"differences.csv": table}


def describe_against(
    values: DataFrame, variants: Sequence[str], against: Sequence[str], metric: str, split: str
) -> list[str]:
    """A sentence per variant and reference, and what the intervals in them are."""
    pairs = [(name, other) for other in against for name in variants if name != other]
    found = compare_pairs(values, pairs, metric, split)
    sentences = [f"{describe_pair(row, metric)}." for row in found.to_dict("records")]
    if sentences:
        sentences.append(
            f"{list_metrics()[metric].title} on {split}{_describe_side(metric)}, mean over tasks, paired by seed and task; "
            f"{LEVEL} % intervals are Student's t over seeds, for these tasks. In differences.csv is every pair, with the "
            "wider interval for other tasks of their kind."
        )
    return sentences


def _describe_side(metric: str) -> str:
    return " (less is better)" * list_metrics()[metric].lower_is_better


def describe_pair(row: Mapping[str, Any], metric: str) -> str:
    """`anew-4 is 1.9 points above thin-32 (95 %: 0.8 to 3.0, 5 seeds)`, from a row of `compare_pairs`."""
    network, against, seeds = row["network"], row["against"], row["repetitions"]
    if not seeds:
        return (
            f"{network} and {against} have no seed and task in common, so they cannot be compared"
        )
    points = row["difference"]
    ends = [row["low"], row["high"]]
    side = "above"
    if points < 0:
        side = "below"
        ends = [-end for end in reversed(ends)]
    sure = "1 seed: no interval"
    if not pandas.isna(ends[0]):
        sure = f"{LEVEL} %: {_write(metric, ends[0])} to {_write(metric, ends[1])}, {seeds} seeds"
    amount = f"{_write(metric, abs(points))} {name_difference(metric)}".rstrip()
    return f"{network} is {amount} {side} {against} ({sure})"


def _write(metric: str, value: float) -> str:
    """With a decimal less than in tables where it is a share."""
    if get_scale(metric) == 100:
        return f"{100 * value:.1f}"
    return format_difference(metric, value)
