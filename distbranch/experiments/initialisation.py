"""Does a pretrained beginning help? The same run begun by SOMP, by largest norm, by lot and at random (figure 5 of the paper)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from distbranch.config import Config, load_config
from distbranch.config.sweep import SweepConfig
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.experiments.runner import Experiment, Findings, load_run_config
from distbranch.experiments.runs import (
    Run,
    Runs,
    find_first_reach,
    format_number,
    format_spread,
    read_curves,
    rows_markdown,
)
from distbranch.report.experiment_figures import Course, draw_courses

METRIC = "average_precision"
RANDOM, SHORT = "random", "somp-two-thirds"
FROM_WIDE = ("somp", "largest-norm", "random-rows")
DERIVED = ("train.evaluate_every", "train.iterations", "optim.decay_every")
NUM_EVALUATIONS = 20  # where the configuration names no number


def design_initialisation(config: Path, pretrained: Path, overrides: Sequence[str], *, two_thirds: bool) -> Experiment:
    """The run with every beginning.

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
        config = runs[RANDOM][0].config
        curves = read_curves(runs, METRIC)
        found = measure_pace(curves, config.train.iterations)
        courses = [_make_course(beginning, members, curves) for beginning, members in runs.items()]
        goal = found.set_index("beginning").loc[RANDOM, "last"]
        goal_name = "last value of the random beginning"
        return Findings(
            pace_rows(found),
            pace_markdown(found, config),
            tables={"curves.csv": curves.rename(columns={"variant": "beginning", "value": f"val_{METRIC}"})},
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


def measure_pace(curves: pandas.DataFrame, iterations: int) -> pandas.DataFrame:
    """When every beginning first reached what the random beginning of the same seed had at its end.

    Args:
        curves: see `read_curves`.
        iterations: of a whole run.

    Returns:
        A row per beginning: beginning, last (the last value on val, mean over seeds in 0..1) and its `_sd`, num_seeds, num_reached,
        iterations (mean over the seeds that reached it, on a straight line between two evaluations) and their share of all.
    """
    of_run = curves.groupby(["variant", "seed"], sort=False)
    last = of_run["value"].last()
    goals = last[RANDOM]
    first = pandas.Series({key: find_first_reach(curve, goals.get(key[1], np.nan)) for key, curve in of_run})
    table = pandas.DataFrame({"last": last, "reached": first}).groupby(level=0, sort=False)
    found = table["last"].agg(last="mean", last_sd="std", num_seeds="size")
    found["num_reached"] = table["reached"].count()
    found["iterations"] = table["reached"].mean()
    found["share"] = found["iterations"] / iterations
    return found.rename_axis("beginning").reset_index()


def pace_markdown(found: pandas.DataFrame, config: Config) -> str:
    """A row per beginning, and whether SOMP kept what the paper saw."""
    schedule = f"{config.optim.schedule} schedule of {config.train.iterations:,} iterations"
    note = (
        f"Identical conditions but for the first weights ({schedule}, evaluated every {config.train.evaluate_every}). It: the last "
        "average precision on val of the random beginning of the same seed. Values in the middle of a schedule whose learning "
        f"rate still falls are lower than a schedule that ends there would give: `{SHORT}` (--two-thirds) has one of its own."
    )
    return f"# Beginnings of {config.run_directory.parent.name}\n\n{note}\n\n{rows_markdown(pace_rows(found))}"


def pace_rows(found: pandas.DataFrame) -> list[dict[str, str]]:
    """A row per beginning, as text."""
    rows = []
    for _, row in found.iterrows():
        rows.append(
            {
                "beginning": row["beginning"],
                "last average precision on val %": format_spread(row, "last"),
                "seeds that reached it": f"{row['num_reached']} of {row['num_seeds']}",
                "iterations until then": format_number(row["iterations"]),
                "share of all": format_number(row["share"], decimals=2),
            }
        )
    return rows


def _make_course(beginning: str, runs: Sequence[Run], curves: pandas.DataFrame) -> Course:
    losses = []
    values = []
    for run in runs:
        loss_at = {line["iteration"]: line["loss"] for line in run.read_log("train") if line.get("loss") is not None}
        steps = sorted(loss_at)
        losses.append((steps, [loss_at[step] for step in steps]))
        curve = curves[(curves["variant"] == beginning) & (curves["seed"] == run.seed)]
        values.append((list(curve["iteration"]), list(curve["value"])))
    return Course(beginning, losses, values)
