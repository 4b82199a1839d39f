"""Does a pretrained beginning help? The same run begun by SOMP, by largest norm, by lot and at random (figure 5 of the paper)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import load_config
from distbranch.engine.metrics import Report
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.experiments.comparison import (
    Run,
    Runs,
    check_defined,
    config_of,
    experiment_sweep,
    paired,
    run_experiment,
    write_csv,
    write_text,
)
from distbranch.experiments.place import check_place, record_place
from distbranch.report.console import amount, markdown_table, spread
from distbranch.report.experiment_figures import Course, draw_courses, save_figure

METRIC = "average_precision"
RANDOM, SHORT = "random", "somp-two-thirds"
FROM_WIDE = ("somp", "largest-norm", "random-rows")
DERIVED = ("train.evaluate_every", "train.iterations", "optim.decay_every")
NUM_EVALUATIONS = 20  # where the configuration names no number
Curve = Sequence[tuple[int, float]]  # (iteration, value)


@dataclass(frozen=True)
class Pace:
    """How a beginning fares against the random one: its last value on val, and when it first reached the random one's last.

    `iterations` are means over the seeds that reached it, read between two evaluations on a straight line.
    """

    beginning: str
    last: tuple[float | None, float | None]  # mean and deviation over seeds, in 0..1
    num_seeds: int
    num_reached: int
    iterations: float | None
    share: float | None  # of all iterations


def compare_beginnings(
    config: Path,
    pretrained: Path,
    seeds: Sequence[int],
    overrides: Sequence[str],
    *,
    two_thirds: bool,
    name: str | None,
    jobs: int | None,
    report: Report,
) -> tuple[list[Pace], Path]:
    """Train with every beginning; how they fare, and where tables and pictures are.

    Args:
        config: of the run.
        pretrained: VGG-16 weights or the directory of a finished wide run.
        seeds: of every beginning.
        overrides: `key=value`, for all runs.
        two_thirds: train the SOMP beginning with two thirds of the iterations too, on a schedule of that length.
        name: of the experiment's directory; `initialisation-<config>` if None.
        jobs: runs at the same time.
        report: told what happens.

    Raises:
        UserError: the pretrained network is absent, does not fit or leaves nothing to choose, the data have no split `val`,
            or a run failed.
    """
    _check_wider(config, pretrained, overrides)
    variants = beginning_variants(config, pretrained, overrides, two_thirds=two_thirds)
    name = name or f"initialisation-{config.stem}"
    sweep = experiment_sweep(name, variants, overrides, seeds=seeds, jobs=jobs, derived=DERIVED)
    about = {"experiment": "initialisation"}
    check_place(sweep, about)
    runs = run_experiment(sweep, report, splits=("val",))
    record_place(sweep, about)
    check_defined(runs, METRIC, ("val",))
    found = [pace(beginning, members, runs[RANDOM]) for beginning, members in runs.items()]
    write_csv(sweep.path, "curves.csv", _rows(runs))
    write_text(sweep.path, "table.md", pace_markdown(found, runs))
    courses = [_course(beginning, members) for beginning, members in runs.items()]
    goal = next(one.last[0] for one in found if one.beginning == RANDOM)
    figure = draw_courses(courses, metric=METRIC, goal=goal, goal_name="last value of the random beginning")
    save_figure(figure, sweep.path / "initialisation.png")
    return found, sweep.path


def _check_wider(config: Path, pretrained: Path, overrides: Sequence[str]) -> None:
    """Of a network of the same widths every choice would be the whole of it; all else is checked when it is read."""
    own, file = config_of(config, overrides).model, RunDirectory(pretrained).config
    if file.exists() and load_config(file).model == own:
        raise UserError(
            f"The network in {pretrained} should be wider than those of {config}, for filters are chosen from it, but both are of "
            f"{own.width_text}. Give a wider one, or a smaller model.width."
        )


def beginning_variants(
    config: Path, pretrained: Path, overrides: Sequence[str], *, two_thirds: bool
) -> dict[str, dict[str, Any]]:
    """One variant per beginning, evaluated on val often enough to see when it reaches what."""
    chosen = config_of(config, overrides)
    train, optim = chosen.train, chosen.optim
    every = train.evaluate_every or max(1, train.iterations // NUM_EVALUATIONS)
    base = {"base": str(config.absolute()), "train.evaluate_every": every}
    wide = {name: {**base, "method.init": name, "method.pretrained": str(pretrained.absolute())} for name in FROM_WIDE}
    found = {**wide, RANDOM: {**base, "method.init": RANDOM, "method.pretrained": None}}
    if two_thirds:
        found[SHORT] = {**wide["somp"], "train.iterations": round(train.iterations * 2 / 3)}
        if optim.schedule == "step":
            found[SHORT]["optim.decay_every"] = max(1, round(optim.decay_every * 2 / 3))
    return found


def pace(beginning: str, runs: Sequence[Run], random: Sequence[Run]) -> Pace:
    """When a beginning first reached what the random beginning of the same seed had at its end."""
    reached = [
        first_reach(curve_of(run), curve_of(other)[-1][1]) for run, other in paired(runs, random) if curve_of(other)
    ]
    known = [iteration for iteration in reached if iteration is not None]
    mean = float(np.mean(known)) if known else None
    total = random[0].config.train.iterations
    last = spread([curve[-1][1] for run in runs if (curve := curve_of(run))])
    return Pace(beginning, last, len(runs), len(known), mean, None if mean is None else mean / total)


def curve_of(run: Run) -> list[tuple[int, float]]:
    """The mean over tasks on val at every evaluation."""
    lines = [
        line for line in run.logged("evaluation") if line["split"] == "val" and line["mean"].get(METRIC) is not None
    ]
    by_iteration = {int(line["iteration"]): float(line["mean"][METRIC]) for line in lines}
    return sorted(by_iteration.items())


def first_reach(curve: Curve, goal: float) -> float | None:
    """The first iteration at which a curve is at the goal, on straight lines between its points; None if it never is."""
    before: tuple[int, float] | None = None
    for iteration, value in curve:
        if value >= goal:
            if before is None:
                return float(iteration)
            return before[0] + (iteration - before[0]) * (goal - before[1]) / (value - before[1])
        before = iteration, value
    return None


def pace_markdown(found: Sequence[Pace], runs: Runs) -> str:
    """A row per beginning, and whether SOMP kept what the paper saw."""
    config = runs[RANDOM][0].config
    rows = pace_rows(found)
    schedule = f"{config.optim.schedule} schedule of {config.train.iterations:,} iterations"
    note = (
        f"Identical conditions but for the first weights ({schedule}, evaluated every {config.train.evaluate_every}). It: the last "
        "average precision on val of the random beginning of the same seed. Values in the middle of a schedule whose learning "
        f"rate still falls are lower than a schedule that ends there would give: `{SHORT}` (--two-thirds) has one of its own."
    )
    table = markdown_table(list(rows[0]), [list(row.values()) for row in rows])
    return f"# Beginnings of {config.run_directory.parent.name}\n\n{note}\n\n{table}"


def pace_rows(found: Sequence[Pace]) -> list[dict[str, str]]:
    """A row per beginning, as text."""
    return [
        {
            "beginning": one.beginning,
            "last average precision on val %": amount(*one.last, scale=100, decimals=1),
            "seeds that reached it": f"{one.num_reached} of {one.num_seeds}",
            "iterations until then": amount(one.iterations, None),
            "share of all": "\u2013" if one.share is None else f"{one.share:.2f}",
        }
        for one in found
    ]


def _course(beginning: str, runs: Sequence[Run]) -> Course:
    losses = []
    for run in runs:
        by_iteration = {line["iteration"]: line["loss"] for line in run.logged("train") if line.get("loss") is not None}
        losses.append((sorted(by_iteration), [by_iteration[step] for step in sorted(by_iteration)]))
    curves = [curve_of(run) for run in runs]
    return Course(beginning, losses, [([step for step, _ in curve], [value for _, value in curve]) for curve in curves])


def _rows(runs: Runs) -> list[Mapping[str, Any]]:
    return [
        {"beginning": beginning, "seed": run.seed, "iteration": iteration, f"val_{METRIC}": value}
        for beginning, members in runs.items()
        for run in members
        for iteration, value in curve_of(run)
    ]
