"""Agreement or phi? Trees grown with either kind of affinity, compared at matched numbers of weights, task by task.

A branching factor gives either kind another number of weights, so a line is drawn through the networks of each kind (linear in
the logarithm of the weights) and the two are compared at every network that lies within the other's line, seed by seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config.sweep import SweepConfig
from distbranch.errors import UsageError
from distbranch.experiments.runner import Experiment, Findings, check_grows, load_run_config
from distbranch.experiments.runs import Run, Runs, interpolate_at_cost, make_spot
from distbranch.experiments.table import table_markdown
from distbranch.report.console import amount, markdown_table, spread
from distbranch.report.experiment_figures import draw_kinds

METRIC = "average_precision"
KINDS = ("agreement", "phi")
Lines = Mapping[str, Mapping[str, Sequence[Run]]]  # {kind: {alpha: runs}}


@dataclass(frozen=True)
class Winner:
    """A task: how much higher its value is with phi than with agreement at the same number of weights, in 0..1 per seed."""

    task: str
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.differences))

    @property
    def kind(self) -> str:
        """Who wins, and whether in every seed."""
        if not self.mean:
            return "neither"
        in_every_seed = all(np.sign(value) == np.sign(self.mean) for value in self.differences)
        winner = KINDS[self.mean > 0]
        return winner if in_every_seed else f"{winner}, not in every seed"


def design_affinity(config: Path, alphas: Sequence[float], overrides: Sequence[str], *, split: str) -> Experiment:
    """Trees of both kinds for every alpha; found: [Winner, ...].

    Args:
        config: of a run of method.name=branching; all its trees begin as one run.
        alphas: branching factors.
        overrides: `key=value`, for all runs.
        split: `val` or `test`.

    Raises:
        UsageError: fewer than two branching factors, or the runs would take no decision.
    """

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        lines = collect_lines(runs)
        means = measure_mean_differences(lines, split)
        winners = rank_winners(lines, split)
        shown = []
        rows = []
        for one in winners:
            shown.append({"task": one.task, "phi less agreement, points": 100 * one.mean, "higher": one.kind})
            of_seeds = {f"difference_{number}": value for number, value in enumerate(one.differences)}
            rows.append({"task": one.task, "phi_less_agreement": one.mean, "higher": one.kind, **of_seeds})
        spots = {}
        for kind, by_alpha in lines.items():
            spots[kind] = [
                make_spot(f"\u03b1 {alpha}", members, ["weights"], METRIC, split) for alpha, members in by_alpha.items()
            ]
        points = {one.task: [100 * value for value in one.differences] for one in winners}
        between = "phi less agreement at equal weights"
        return Findings(
            winners,
            shown,
            f"{table_markdown(runs, sweep)}\n{winners_markdown(means, winners, split)}",
            tables={"tasks.csv": rows},
            figures={"affinity.png": draw_kinds(spots, points, metric=METRIC, split=split, between=between)},
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


def collect_lines(runs: Runs) -> dict[str, dict[str, Sequence[Run]]]:
    """The variants by kind and branching factor."""
    lines: dict[str, dict[str, Sequence[Run]]] = {kind: {} for kind in KINDS}
    for variant, members in runs.items():
        kind, _, alpha = variant.partition("-alpha")
        lines[kind][alpha] = members
    return lines


def measure_mean_differences(lines: Lines, split: str) -> list[float]:
    """Phi less agreement at equal weights of the mean over tasks, one per seed where the lines overlap."""
    found = [_measure_difference(one, lambda run: run.get_mean(METRIC, split)) for one in _lines_by_seed(lines)]
    return [value for value in found if value is not None]


def rank_winners(lines: Lines, split: str) -> list[Winner]:
    """The difference of every task, largest first; empty where no seed has lines that overlap."""

    def value_of(task: str) -> Callable[[Run], float | None]:
        return lambda run: run.get_task_values(METRIC, split)[task]

    found: dict[str, list[float]] = {}
    for one in _lines_by_seed(lines):
        every = [set(run.get_task_values(METRIC, split)) for runs in one.values() for run in runs]
        for task in set.intersection(*every):
            value = _measure_difference(one, value_of(task))
            if value is not None:
                found.setdefault(task, []).append(value)
    winners = [Winner(task, tuple(values)) for task, values in found.items()]
    return sorted(winners, key=lambda winner: (-winner.mean, winner.task))


def _lines_by_seed(lines: Lines) -> list[dict[str, list[Run]]]:
    """For every seed the runs of each kind."""
    by_seed: dict[int, dict[str, list[Run]]] = {}
    for kind, by_alpha in lines.items():
        for runs in by_alpha.values():
            for run in runs:
                of_seed = by_seed.setdefault(run.seed, {each: [] for each in KINDS})
                of_seed[kind].append(run)
    return [by_seed[seed] for seed in sorted(by_seed)]


def _measure_difference(one: Mapping[str, Sequence[Run]], value_of: Callable[[Run], float | None]) -> float | None:
    """Phi less agreement: the mean over all networks of one seed whose weights lie within the other kind's line."""
    lines: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for kind, runs in one.items():
        for run in runs:
            value = value_of(run)
            if value is not None:
                lines[kind].append((run.summary["weights"], value))
    agreement, phi = (lines[kind] for kind in KINDS)
    differences = []
    for sign, own, other in ((-1.0, agreement, phi), (1.0, phi, agreement)):
        for cost, value in own:
            across = interpolate_at_cost(cost, other)
            if across is not None:
                differences.append(sign * (value - across))
    return float(np.mean(differences)) if differences else None


def winners_markdown(means: Sequence[float], winners: Sequence[Winner], split: str) -> str:
    """Who wins on the mean and on how many tasks, then every task."""
    head = f"## Agreement against phi at equal weights on {split}\n\n"
    if not winners:
        return f"{head}The lines of the two kinds have no number of weights in common: give more --alphas.\n"
    phi = sum(winner.mean > 0 for winner in winners)
    agreement = sum(winner.mean < 0 for winner in winners)
    always = {kind: sum(winner.kind == kind for winner in winners) for kind in KINDS}
    sentence = (
        f"{METRIC.replace('_', ' ').capitalize()}, phi less agreement, mean over tasks: "
        f"{amount(*spread(means), scale=100, decimals=2)} points over {len(means)} seed(s). Phi is higher on {phi} of "
        f"{len(winners)} tasks ({always['phi']} in every seed), agreement on {agreement} ({always['agreement']} in every "
        "seed). Compared at every network of one kind that lies within the line of the other; lines are linear in the logarithm "
        "of the weights."
    )
    rows = []
    for winner in winners:
        points = amount(*spread(winner.differences), scale=100, decimals=2)
        rows.append([winner.task, points, winner.kind])
    return f"{head}{sentence}\n\n{markdown_table(['task', 'phi less agreement, points', 'higher'], rows)}"
