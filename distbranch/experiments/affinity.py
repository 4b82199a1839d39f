"""Agreement or phi? Trees grown with either kind of affinity, compared at matched numbers of weights, task by task.

A branching factor gives either kind another number of weights, so a line is drawn through the networks of each kind (linear in
the logarithm of the weights) and the two are compared at every network that lies within the other's line, seed by seed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from distbranch.config.sweep import SweepConfig
from distbranch.errors import UsageError
from distbranch.experiments.runner import Experiment, Findings, check_grows, load_run_config
from distbranch.experiments.runs import (
    MEAN,
    Runs,
    format_spread,
    interpolate_at_cost,
    make_spots,
    rows_markdown,
    select_means,
    select_values,
    tabulate_runs,
)
from distbranch.experiments.table import table_markdown
from distbranch.report.console import compute_spread, format_amount
from distbranch.report.experiment_figures import Spot, draw_kinds

METRIC = "average_precision"
KINDS = ("agreement", "phi")
BETWEEN = "phi less agreement, points"


def design_affinity(config: Path, alphas: Sequence[float], overrides: Sequence[str], *, split: str) -> Experiment:
    """Trees of both kinds for every alpha.

    Args:
        config: of a run of method.name=branching; all its trees begin as one run.
        alphas: branching factors.
        overrides: `key=value`, for all runs.
        split: `val` or `test`.

    Raises:
        UsageError: fewer than two branching factors, or the runs would take no decision.
    """

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        values = tabulate_runs(runs)
        differences = measure_differences(values, split)
        found = rank_winners(differences)
        shown = []
        points = {}
        for _, row in found.iterrows():
            shown.append({"task": row["task"], BETWEEN: 100 * row["phi_less_agreement"], "higher": row["higher"]})
            points[row["task"]] = list(100 * differences.loc[row["task"]].dropna())
        figure = draw_kinds(
            _make_lines(select_means(values, METRIC, split)),
            points,
            metric=METRIC,
            split=split,
            between="phi less agreement at equal weights",
        )
        return Findings(
            shown,
            f"{table_markdown(runs, sweep)}\n{winners_markdown(differences, found, split)}",
            tables={"tasks.csv": found.drop(columns="phi_less_agreement_sd")},
            figures={"affinity.png": figure},
        )

    variants = affinity_variants(config, alphas)
    check_grows(config, load_run_config(config, overrides))
    return Experiment(
        name=f"affinity-{config.stem}",
        about={"experiment": "affinity", "split": split},
        variants=variants,
        analyse=analyse,
        splits=(split,),
        metric=METRIC,
    )


def affinity_variants(config: Path, alphas: Sequence[float]) -> dict[str, dict[str, Any]]:
    """One variant per kind and branching factor."""
    if len(set(alphas)) < 2:
        raise UsageError(
            "Give at least two different --alphas: a line through one network cannot be compared at other sizes."
        )
    base = {"base": str(config.absolute())}
    return {
        f"{kind}-alpha{alpha:g}": {**base, "method.affinity": kind, "method.alpha": alpha}
        for kind in KINDS
        for alpha in sorted(set(alphas))
    }


def measure_differences(values: pandas.DataFrame, split: str) -> pandas.DataFrame:
    """Phi less agreement at equal weights: [T + 1, seeds], in 0..1, NaN where the lines do not overlap.

    The row `MEAN` is of the mean over tasks.
    """
    points = select_values(values, METRIC, split)
    points = points.assign(kind=points["variant"].str.partition("-alpha")[0])
    differences = points.groupby(["task", "seed"], sort=False).apply(_measure_difference)
    return differences.unstack("seed")


def _measure_difference(points: pandas.DataFrame) -> float:
    """Phi less agreement: the mean over all networks of one seed whose weights lie within the other kind's line."""
    # A task that some network lacks has other lines than the rest; only a mean may do without a network.
    if points.name[0] != MEAN and points["value"].isna().any():
        return np.nan
    lines = {kind: part.set_index("weights")["value"].dropna() for kind, part in points.groupby("kind")}
    agreement, phi = (lines[kind] for kind in KINDS)
    below = [interpolate_at_cost(cost, phi) - value for cost, value in agreement.items()]
    above = [value - interpolate_at_cost(cost, agreement) for cost, value in phi.items()]
    return float(pandas.Series(below + above, dtype=float).mean())


def rank_winners(differences: pandas.DataFrame) -> pandas.DataFrame:
    """The tasks, that with the largest difference first; none where no seed has lines that overlap.

    Returns:
        task, phi_less_agreement (mean over seeds, in 0..1) and its `_sd`, higher (who wins, and whether in every seed),
        difference_0, ... of every seed.
    """
    rows = []
    for task, of_seeds in differences.drop(index=MEAN).iterrows():
        known = of_seeds.dropna()
        if known.empty:
            continue
        mean = known.mean()
        winner = "neither"
        if mean:
            winner = KINDS[int(mean > 0)]
        if mean and (np.sign(known) != np.sign(mean)).any():
            winner += ", not in every seed"
        row = {"task": task, "phi_less_agreement": mean, "phi_less_agreement_sd": known.std(), "higher": winner}
        rows.append(row | {f"difference_{number}": value for number, value in enumerate(known)})
    columns = None if rows else ["task", "phi_less_agreement", "phi_less_agreement_sd", "higher"]
    found = pandas.DataFrame(rows, columns=columns)
    return found.sort_values(["phi_less_agreement", "task"], ascending=[False, True])


def _make_lines(means: pandas.DataFrame) -> dict[str, list[Spot]]:
    """The networks of either kind, named after their branching factor."""
    lines: dict[str, list[Spot]] = {kind: [] for kind in KINDS}
    for spot in make_spots(means, means["variant"].unique()):
        kind, _, alpha = spot.name.partition("-alpha")
        lines[kind].append(replace(spot, name=f"\u03b1 {alpha}"))
    return lines


def winners_markdown(differences: pandas.DataFrame, winners: pandas.DataFrame, split: str) -> str:
    """Who wins on the mean and on how many tasks, then every task."""
    head = f"## Agreement against phi at equal weights on {split}\n\n"
    if winners.empty:
        return f"{head}The lines of the two kinds have no number of weights in common: give more --alphas.\n"
    means = differences.loc[MEAN].dropna()
    phi = (winners["phi_less_agreement"] > 0).sum()
    agreement = (winners["phi_less_agreement"] < 0).sum()
    always = winners["higher"].value_counts()
    sentence = (
        f"{METRIC.replace('_', ' ').capitalize()}, phi less agreement, mean over tasks: "
        f"{format_amount(*compute_spread(list(means)), scale=100, decimals=2)} points over {len(means)} seed(s). Phi is higher on {phi} of "
        f"{len(winners)} tasks ({always.get('phi', 0)} in every seed), agreement on {agreement} ({always.get('agreement', 0)} in "
        "every seed). Compared at every network of one kind that lies within the line of the other; lines are linear in the "
        "logarithm of the weights."
    )
    rows = []
    for _, row in winners.iterrows():
        points = format_spread(row, "phi_less_agreement", decimals=2)
        rows.append({"task": row["task"], BETWEEN: points, "higher": row["higher"]})
    return f"{head}{sentence}\n\n{rows_markdown(rows)}"
