"""Does a pretrained beginning help? The same run begun by SOMP, by largest norm, by lot and at random (figure 5 of the paper)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import load_config
from distbranch.config.sweep import SweepConfig
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.experiments.runner import Experiment, Findings, load_run_config
from distbranch.experiments.runs import Run, Runs, find_first_reach, pair_by_seed
from distbranch.report.console import amount, markdown_table, spread
from distbranch.report.experiment_figures import Course, draw_courses

METRIC = "average_precision"
RANDOM, SHORT = "random", "somp-two-thirds"
FROM_WIDE = ("somp", "largest-norm", "random-rows")
DERIVED = ("train.evaluate_every", "train.iterations", "optim.decay_every")
NUM_EVALUATIONS = 20  # where the configuration names no number


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


def design_initialisation(config: Path, pretrained: Path, overrides: Sequence[str], *, two_thirds: bool) -> Experiment:
    """The run with every beginning; found: [Pace, ...].

    Args:
        config: of the run.
        pretrained: VGG-16 weights or the directory of a finished wide run.
        overrides: `key=value`, for all runs.
        two_thirds: train the SOMP beginning with two thirds of the iterations too, on a schedule of that length.

    Raises:
        UserError: the pretrained network leaves nothing to choose.
    """

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        del sweep
        found = [measure_pace(beginning, members, runs[RANDOM]) for beginning, members in runs.items()]
        courses = [_make_course(beginning, members) for beginning, members in runs.items()]
        goal = next(one.last[0] for one in found if one.beginning == RANDOM)
        goal_name = "last value of the random beginning"
        return Findings(
            found,
            pace_rows(found),
            pace_markdown(found, runs),
            tables={"curves.csv": _make_rows(runs)},
            figures={"initialisation.png": draw_courses(courses, metric=METRIC, goal=goal, goal_name=goal_name)},
        )

    _check_wider(config, pretrained, overrides)
    return Experiment(
        name=f"initialisation-{config.stem}",
        about={"experiment": "initialisation"},
        variants=beginning_variants(config, pretrained, overrides, two_thirds=two_thirds),
        analyse=analyse,
        splits=("val",),
        metric=METRIC,
        derived=DERIVED,
    )


def _check_wider(config: Path, pretrained: Path, overrides: Sequence[str]) -> None:
    """Of a network of the same widths every choice would be the whole of it; all else is checked when it is read."""
    own = load_run_config(config, overrides).model
    file = RunDirectory(pretrained).config
    if file.exists() and load_config(file).model == own:
        raise UserError(
            f"The network in {pretrained} should be wider than those of {config}, for filters are chosen from it, but both are of "
            f"{own.width_text}. Give a wider one, or a smaller model.width."
        )


def beginning_variants(
    config: Path, pretrained: Path, overrides: Sequence[str], *, two_thirds: bool
) -> dict[str, dict[str, Any]]:
    """One variant per beginning, evaluated on val often enough to see when it reaches what."""
    chosen = load_run_config(config, overrides)
    train = chosen.train
    optim = chosen.optim
    every = train.evaluate_every
    if not every:
        every = max(1, train.iterations // NUM_EVALUATIONS)
    elif not any(text.startswith("train.evaluate_every=") for text in overrides):
        # A shorter run keeps the number of points of the curve that its config has, for its pace is read off that curve.
        every = max(1, every * train.iterations // load_run_config(config, []).train.iterations)
    base = {"base": str(config.absolute()), "train.evaluate_every": every}
    wide = {name: {**base, "method.init": name, "method.pretrained": str(pretrained.absolute())} for name in FROM_WIDE}
    found = {**wide, RANDOM: {**base, "method.init": RANDOM, "method.pretrained": None}}
    if two_thirds:
        found[SHORT] = {**wide["somp"], "train.iterations": round(train.iterations * 2 / 3)}
        if optim.schedule == "step":
            found[SHORT]["optim.decay_every"] = max(1, round(optim.decay_every * 2 / 3))
    return found


def measure_pace(beginning: str, runs: Sequence[Run], random: Sequence[Run]) -> Pace:
    """When a beginning first reached what the random beginning of the same seed had at its end."""
    reached = []
    for run, other in pair_by_seed(runs, random):
        goals = other.read_curve(METRIC)
        iteration = find_first_reach(run.read_curve(METRIC), goals[-1][1]) if goals else None
        if iteration is not None:
            reached.append(iteration)
    last = []
    for run in runs:
        curve = run.read_curve(METRIC)
        last.append(curve[-1][1] if curve else None)
    mean = float(np.mean(reached)) if reached else None
    share = None if mean is None else mean / random[0].config.train.iterations
    return Pace(beginning, spread(last), len(runs), len(reached), mean, share)


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


def _make_course(beginning: str, runs: Sequence[Run]) -> Course:
    losses = []
    values = []
    for run in runs:
        loss_at = {line["iteration"]: line["loss"] for line in run.read_log("train") if line.get("loss") is not None}
        steps = sorted(loss_at)
        losses.append((steps, [loss_at[step] for step in steps]))
        curve = run.read_curve(METRIC)
        values.append(([step for step, _ in curve], [value for _, value in curve]))
    return Course(beginning, losses, values)


def _make_rows(runs: Runs) -> list[Mapping[str, Any]]:
    return [
        {"beginning": beginning, "seed": run.seed, "iteration": iteration, f"val_{METRIC}": value}
        for beginning, members in runs.items()
        for run in members
        for iteration, value in run.read_curve(METRIC)
    ]
