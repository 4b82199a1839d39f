"""AdaShare's last phase: one search, and policies drawn from it, each trained from fresh weights beside hard sharing.

The policy that is reported as the best one is the best on val, whatever it is on test.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pandas import DataFrame

from distbranch.config import AdaShareConfig
from distbranch.config.sweep import Setting
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError
from distbranch.experiments.designs import METRIC, load_run_config
from distbranch.experiments.runner import Experiment, Findings, build_sweep
from distbranch.experiments.runs import SPLITS, Run, Runs
from distbranch.report.experiment_figures import draw_drawn_policies
from distbranch.sweep.plan import SEED

SEARCH = "search"
SHARED = "shared"
DERIVED = ("train.iterations", *(f"adashare.{key}" for key in AdaShareConfig.model_fields))


def design_policies(
    config: Path,
    num_policies: int,
    overrides: Sequence[str],
    *,
    iterations: int | None,
    split: str,
    name: str | None = None,
) -> Experiment:
    """A search, and policies drawn from it, each trained from fresh weights beside hard sharing.

    Args:
        config: of a search.
        num_policies: how many are drawn, beside the most probable one; the paper draws 8.
        overrides: `key=value`, for all runs.
        iterations: optimiser steps of the networks trained with a policy, and of hard sharing; those of the search if None.
        split: `val` or `test`: of what is shown and drawn.
        name: of the experiment's directory, in which the search is.

    Raises:
        UsageError: the configuration is not that of a search.
    """
    chosen = load_run_config(config, overrides)
    if not chosen.searches:
        raise UsageError(
            f"{config} should be of a search, method.name=adashare without adashare.policy, "
            f"found method.name={chosen.method.name} and adashare.policy={chosen.adashare.policy}."
        )
    name = name or f"policies-{config.stem}"
    search: Setting = {"base": str(config.absolute())}
    fresh = dict(search)
    if iterations:
        fresh["train.iterations"] = iterations
    # Hard sharing reads none of these, so all such runs are the same one.
    plain = {f"adashare.{key}": value for key, value in AdaShareConfig().model_dump().items()}
    folder = build_sweep(name, {SEARCH: search}, overrides).trial_path
    given = {**fresh, "adashare.policy": str(folder / f"{SEARCH}-seed{SEED}")}
    variants = {
        SEARCH: search,
        SHARED: {**fresh, "method.name": "fixed", **plain},
        "most-probable": given,
    }
    for number in range(num_policies):
        variants[f"policy-{number}"] = {**given, "adashare.policy_number": number}

    def analyse(runs: Runs) -> Findings:
        found = tabulate_networks(runs)
        names = found["network"]
        if found["seed"].nunique() > 1:
            names = names + ", seed " + found["seed"].astype(str)
        places = zip(found["multiply_adds"], found[f"{split}_{METRIC}"], strict=True)
        spots = dict(zip(names, places, strict=True))
        best = list(names[found["best_on_val"] == "best"])
        figure = draw_drawn_policies(spots, best, metric=METRIC, split=split)
        return Findings(
            describe_policies(found, split),
            found,
            {"policies.csv": found},
            {"policies.png": figure},
        )

    return Experiment(
        name=name,
        about={"experiment": "policies", "split": split},
        variants=variants,
        analyse=analyse,
        splits=("val", split),
        metric=METRIC,
        derived=DERIVED,
    )


def tabulate_networks(runs: Runs) -> DataFrame:
    """A row per trained network, hard sharing first, seed by seed; values in 0..1.

    `best_on_val`: of the policies of one seed, that with the highest value on val, whatever it is on test.
    """
    rows = []
    for run in runs:
        row = {"network": run.variant, "seed": run.seed, "best_on_val": ""}
        row |= {f"{split}_{METRIC}": run.get_mean(METRIC, split) for split in SPLITS}
        row |= {
            "skipped_decisions": count_skips(run),
            "multiply_adds": run.summary["multiply_adds"],
        }
        rows.append(row)
    found = DataFrame(rows)
    found = found[found["network"] != SEARCH].sort_values("seed", kind="stable", ignore_index=True)
    # By val alone: the best on test would be chosen by what it is judged by.
    drawn = found[found["network"] != SHARED]
    found.loc[drawn.groupby("seed")[f"val_{METRIC}"].idxmax(), "best_on_val"] = "best"
    return found


def count_skips(run: Run) -> int:
    """How often a task skips a block, over all tasks and blocks."""
    policy = json.loads(RunDirectory(run.config.run_directory).policy.read_text())["policy"]
    return sum(row.count(0) for row in policy)


def describe_policies(found: DataFrame, split: str) -> list[str]:
    """A sentence per search with what may be said of it."""
    sentences = []
    for seed, networks in found.groupby("seed"):
        values = 100 * networks.set_index("network")[f"{split}_{METRIC}"]
        drawn = values.drop(SHARED)
        best = networks[networks["best_on_val"] == "best"]["network"].iloc[0]
        sentences.append(
            f"Seed {seed}: {len(drawn)} policies, average precision on {split} {drawn.median():.1f} % in the median "
            f"({drawn.min():.1f} to {drawn.max():.1f}); the best on val is {best} with {values[best]:.1f} %; hard sharing "
            f"{values[SHARED]:.1f} %."
        )
    return sentences
