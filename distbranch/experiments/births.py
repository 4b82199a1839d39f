"""What late birth costs: one tree trained from scratch, and the same tree taken at later steps of a run that begins thin."""

from collections.abc import Sequence
from pathlib import Path

import pandas

from distbranch.config.sweep import Setting
from distbranch.errors import UsageError
from distbranch.experiments.analyses import compare_methods
from distbranch.experiments.designs import (
    METRIC,
    OF_BEGINNINGS,
    THIN,
    load_run_config,
    make_thin_variant,
)
from distbranch.experiments.runner import Experiment, Findings, Variants
from distbranch.experiments.runs import SPLITS, Runs, tabulate_runs

SCRATCH = "scratch"
# What can be wrong with branches that are born late, each beside plain copies: what their optimiser remembers of the tasks that
# they lost, their weights, or the learning rate that they meet.
BIRTHS: Variants = {
    "copies": {},
    "forgetful": {"optim.inherited_steps": 10},
    "perturbed": {"method.birth": "perturbed"},
    "fresh": {"method.birth": "fresh"},
    "restart": {"optim.when_widened": "restart"},
}


def design_births(
    config: Path, groups: Path, steps: Sequence[int], overrides: Sequence[str], *, split: str
) -> Experiment:
    """A given tree from scratch, taken at every one of `steps` in every way of `BIRTHS`, and the thin network without it.

    Args:
        config: whose network and recipe all of them have, whatever its method.
        groups: the directory of a finished run, or its tree.json.
        steps: optimiser steps at which the tree is taken.
        overrides: `key=value`, for all runs.
        split: `val` or `test`, of what is shown; births.csv has both.

    Raises:
        UsageError: a step that is not within the run.
    """

    def analyse(runs: Runs) -> Findings:
        values = tabulate_runs(runs)
        tables = {part: compare_methods(values, METRIC, part) for part in SPLITS}
        note = (
            f"One tree on {split}, from scratch and taken at later steps: differences are against {SCRATCH}, paired by seed and task. "
            "A few seeds understate how much a repetition differs."
        )
        csv = pandas.concat(tables, names=["split"]).reset_index("split")
        return Findings([note], tables[split], {"births.csv": csv})

    return Experiment(
        name=f"births-{config.stem}",
        about={"experiment": "births", "groups": str(groups.absolute()), "split": split},
        variants=make_births(config, groups, steps, overrides),
        analyse=analyse,
        splits=(split,),
        metric=METRIC,
        derived=OF_BEGINNINGS,
    )


def make_births(
    config: Path, groups: Path, steps: Sequence[int], overrides: Sequence[str]
) -> Variants:
    """A variant per way and step, such as `copies-300`; first the one that all are compared with.

    Raises:
        UsageError: a step that is not within the run.
    """
    iterations = load_run_config(config, overrides).train.iterations
    wrong = [step for step in steps if not 0 < step < iterations]
    if wrong:
        raise UsageError(
            f"--at should be steps from 1 to {iterations - 1:,}, for {config} trains for {iterations:,}, found {wrong}."
        )
    thin = make_thin_variant(config, overrides)
    thin |= {"optim.when_widened": "continue", "optim.inherited_steps": None}
    base: Setting = {**thin, "method.groups": str(groups.absolute())}
    found = {SCRATCH: base, THIN: thin}
    for step in sorted(set(steps)):
        for name, own in BIRTHS.items():
            found[f"{name}-{step}"] = {**base, "method.widen_at": step, **own}
    return found
