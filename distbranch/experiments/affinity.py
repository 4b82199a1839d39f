"""Agreement or phi? Trees grown with either kind of affinity, compared at matched numbers of weights, task by task.

A branching factor gives either kind another number of weights, so a line is drawn through the networks of each kind (linear in
the logarithm of the weights) and the two are compared at every network that lies within the other's line, seed by seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.engine.metrics import Report
from distbranch.errors import UsageError
from distbranch.experiments.comparison import (
    Run,
    Runs,
    check_defined,
    check_grows,
    config_of,
    experiment_sweep,
    run_experiment,
    write_csv,
    write_text,
)
from distbranch.experiments.equal_cost import line_at
from distbranch.experiments.place import check_place, record_place
from distbranch.experiments.table import table_markdown
from distbranch.report.console import amount, markdown_table, spread
from distbranch.report.experiment_figures import Spot, draw_kinds, save_figure

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
        always = all(np.sign(value) == np.sign(self.mean) for value in self.differences)
        return KINDS[self.mean > 0] + ("" if always else ", not in every seed")


def compare_affinities(
    config: Path,
    alphas: Sequence[float],
    seeds: Sequence[int],
    overrides: Sequence[str],
    *,
    split: str,
    name: str | None,
    jobs: int | None,
    report: Report,
) -> tuple[list[Winner], Path]:
    """Grow trees of both kinds for every alpha; who wins on which task, and where tables and pictures are.

    Args:
        config: of a run of method.name=branching; all its trees begin as one run.
        alphas: branching factors.
        seeds: of every tree.
        overrides: `key=value`, for all runs.
        split: `val` or `test`.
        name: of the experiment's directory; `affinity-<config>` if None.
        jobs: runs at the same time.
        report: told what happens.

    Raises:
        UsageError: fewer than two branching factors, or the runs would take no decision.
        UserError: a run failed.
    """
    named = affinity_variants(config, alphas)
    check_grows(config, config_of(config, overrides))
    sweep = experiment_sweep(name or f"affinity-{config.stem}", named, overrides, seeds=seeds, jobs=jobs)
    about = {"experiment": "affinity", "split": split}
    check_place(sweep, about)
    runs = run_experiment(sweep, report, splits=(split,))
    record_place(sweep, about)
    check_defined(runs, METRIC, (split,))
    lines = lines_of(runs)
    means, winners = mean_differences(lines, split), winners_of(lines, split)
    write_csv(sweep.path, "tasks.csv", _rows(winners))
    text = f"{table_markdown(runs, sweep)}\n{winners_markdown(means, winners, split)}"
    write_text(sweep.path, "table.md", text)
    spots = {
        kind: [Spot(f"\u03b1 {alpha}", _costs(members), _value(members, split)) for alpha, members in by_alpha.items()]
        for kind, by_alpha in lines.items()
    }
    percent = {winner.task: [100 * value for value in winner.differences] for winner in winners}
    figure = draw_kinds(spots, percent, metric=METRIC, split=split, between="phi less agreement at equal weights")
    save_figure(figure, sweep.path / "affinity.png")
    return winners, sweep.path


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


def lines_of(runs: Runs) -> dict[str, dict[str, Sequence[Run]]]:
    """The variants by kind and branching factor."""
    return {
        kind: {name.removeprefix(f"{kind}-alpha"): runs[name] for name in runs if name.startswith(f"{kind}-alpha")}
        for kind in KINDS
    }


def mean_differences(lines: Lines, split: str) -> list[float]:
    """Phi less agreement at equal weights of the mean over tasks, one per seed where the lines overlap."""
    return [
        value for one in _by_seed(lines) if (value := _difference(one, lambda run: run.mean(METRIC, split))) is not None
    ]


def winners_of(lines: Lines, split: str) -> list[Winner]:
    """The difference of every task, largest first; empty where no seed has lines that overlap."""

    def value_of(task: str) -> Callable[[Run], float | None]:
        return lambda run: run.tasks(METRIC, split)[task]

    found: dict[str, list[float]] = {}
    for one in _by_seed(lines):
        tasks = set.intersection(*(set(run.tasks(METRIC, split)) for runs in one.values() for run in runs))
        for task in tasks:
            value = _difference(one, value_of(task))
            if value is not None:
                found.setdefault(task, []).append(value)
    winners = [Winner(task, tuple(values)) for task, values in found.items()]
    return sorted(winners, key=lambda winner: (-winner.mean, winner.task))


def _by_seed(lines: Lines) -> list[dict[str, list[Run]]]:
    """For every seed the runs of each kind."""
    seeds = sorted({run.seed for by_alpha in lines.values() for runs in by_alpha.values() for run in runs})
    return [
        {
            kind: [run for runs in by_alpha.values() for run in runs if run.seed == seed]
            for kind, by_alpha in lines.items()
        }
        for seed in seeds
    ]


def _difference(one: Mapping[str, Sequence[Run]], value: Callable[[Run], float | None]) -> float | None:
    """Phi less agreement: the mean over all networks of one seed whose weights lie within the other kind's line."""
    points = {kind: [(run.summary["weights"], value(run)) for run in runs] for kind, runs in one.items()}
    known = {kind: [(cost, worth) for cost, worth in found if worth is not None] for kind, found in points.items()}
    differences = []
    for sign, own, other in ((-1.0, KINDS[0], KINDS[1]), (1.0, KINDS[1], KINDS[0])):
        for cost, worth in known[own]:
            across = line_at(cost, known[other])
            if across is not None:
                differences.append(sign * (worth - across))
    return float(np.mean(differences)) if differences else None


def winners_markdown(means: Sequence[float], winners: Sequence[Winner], split: str) -> str:
    """Who wins on the mean and on how many tasks, then every task."""
    head = f"## Agreement against phi at equal weights on {split}\n\n"
    if not winners:
        return f"{head}The lines of the two kinds have no number of weights in common: give more --alphas.\n"
    counts = {kind: sum(KINDS[winner.mean > 0] == kind for winner in winners if winner.mean) for kind in KINDS}
    surely = {kind: sum(winner.kind == kind for winner in winners) for kind in KINDS}
    sentence = (
        f"{METRIC.replace('_', ' ').capitalize()}, phi less agreement, mean over tasks: "
        f"{amount(*spread(means), scale=100, decimals=2)} points over {len(means)} seed(s). Phi is higher on {counts['phi']} of "
        f"{len(winners)} tasks ({surely['phi']} in every seed), agreement on {counts['agreement']} ({surely['agreement']} in every "
        "seed). Compared at every network of one kind that lies within the line of the other; lines are linear in the logarithm "
        "of the weights."
    )
    rows = [
        [winner.task, amount(*spread(winner.differences), scale=100, decimals=2), winner.kind] for winner in winners
    ]
    return f"{head}{sentence}\n\n{markdown_table(['task', 'phi less agreement, points', 'higher'], rows)}"


def _rows(winners: Sequence[Winner]) -> list[dict[str, Any]]:
    return [
        {"task": winner.task, "phi_less_agreement": winner.mean, "higher": winner.kind}
        | {f"difference_{number}": value for number, value in enumerate(winner.differences)}
        for winner in winners
    ]


def _costs(runs: Sequence[Run]) -> dict[str, tuple[float | None, float | None]]:
    return {"weights": spread([run.summary["weights"] for run in runs])}


def _value(runs: Sequence[Run], split: str) -> tuple[float | None, float | None]:
    return spread([run.mean(METRIC, split) for run in runs])
