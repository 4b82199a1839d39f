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
from distbranch.experiments.analyses import format_signed_percent
from distbranch.experiments.deltas import has_dense_tasks, tabulate_deltas
from distbranch.experiments.designs import METRIC, load_run_config
from distbranch.experiments.runner import Experiment, Findings, Variants, build_sweep
from distbranch.experiments.runs import SPLITS, Run, Runs, check_defined
from distbranch.metrics import DELTA
from distbranch.report.cost_figures import draw_drawn_policies
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
    variants = {
        SEARCH: search,
        SHARED: {**fresh, "method.name": "fixed", **plain},
        **make_drawn_variants(fresh, folder / f"{SEARCH}-seed{SEED}", num_policies),
    }

    def analyse(runs: Runs) -> Findings:
        metric = DELTA
        if not has_dense_tasks(runs):
            metric = METRIC
            check_defined(runs, metric, ("val", split))
        found = tabulate_networks(runs, metric)
        names = found["network"]
        if found["seed"].nunique() > 1:
            names = names + ", seed " + found["seed"].astype(str)
        places = zip(found["multiply_adds"], found[f"{split}_{metric}"], strict=True)
        spots = dict(zip(names, places, strict=True))
        best = list(names[found["best_on_val"] == "best"])
        figure = draw_drawn_policies(spots, best, metric=metric, split=split)
        return Findings(
            describe_policies(found, split, metric),
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
        derived=DERIVED,
    )


def make_drawn_variants(fresh: Setting, search: Path, num_policies: int) -> Variants:
    """Networks trained with the most probable policy of a search, and with those drawn from it.

    Args:
        fresh: their settings but the policy.
        search: the run directory of the search.
        num_policies: how many are drawn.
    """
    given = {**fresh, "adashare.policy": str(search)}
    variants = {"most-probable": given}
    for number in range(num_policies):
        variants[f"policy-{number}"] = {**given, "adashare.policy_number": number}
    return variants


def tabulate_networks(runs: Runs, metric: str = METRIC) -> DataFrame:
    """A row per trained network, hard sharing first, seed by seed; values in 0..1.

    `best_on_val`: of the policies of one seed, that with the highest value on val, whatever it is on test.

    Args:
        runs: of all variants.
        metric: a mean over tasks of which more is better, or `DELTA`, against hard sharing.
    """
    rows = []
    for run in runs:
        row = {"network": run.variant, "seed": run.seed, "best_on_val": ""}
        row |= {f"{split}_{metric}": run.get_mean(metric, split) for split in SPLITS}
        row |= {
            "skipped_decisions": count_skips(run),
            "multiply_adds": run.summary["multiply_adds"],
        }
        rows.append(row)
    found = DataFrame(rows)
    if metric == DELTA:
        shared = [run for run in runs if run.variant == SHARED]
        for split in SPLITS:
            found[f"{split}_{metric}"] = tabulate_deltas(runs, shared, split)[DELTA]
    found = found[found["network"] != SEARCH].sort_values("seed", kind="stable", ignore_index=True)
    drawn = found[found["network"] != SHARED]
    best = choose_best(drawn, f"val_{metric}", name="network")
    is_best = found["network"] == found["seed"].map(best)
    found.loc[is_best, "best_on_val"] = "best"
    return found


def choose_best(drawn: DataFrame, column: str, *, name: str) -> dict[int, str]:
    """The policy of every seed with the highest value on val: {seed: its name}; without seeds where nothing is known.

    By val alone: the best on test would be chosen by what it is judged by.
    """
    known = drawn.dropna(subset=column)
    rows = known.loc[known.groupby("seed")[column].idxmax()]
    return dict(zip(rows["seed"], rows[name], strict=True))


def count_skips(run: Run) -> int:
    """How often a task skips a block, over all tasks and blocks."""
    policy = json.loads(RunDirectory(run.config.run_directory).policy.read_text())["policy"]
    return sum(row.count(0) for row in policy)


def describe_policies(found: DataFrame, split: str, metric: str = METRIC) -> list[str]:
    """A sentence per search with what may be said of it."""
    told, write = "average precision", _write_percent
    if metric == DELTA:
        told, write = "Delta against hard sharing", format_signed_percent
    sentences = []
    for seed, networks in found.groupby("seed"):
        values = networks.set_index("network")[f"{split}_{metric}"]
        drawn = values.drop(SHARED)
        sentence = (
            f"Seed {seed}: {len(drawn)} policies, {told} on {split} {write(drawn.median())} % in the median "
            f"({write(drawn.min())} to {write(drawn.max())})"
        )
        for best in networks[networks["best_on_val"] == "best"]["network"]:
            sentence += f"; the best on val is {best} with {write(values[best])} %"
        sentences.append(f"{sentence}; hard sharing {write(values[SHARED])} %.")
    return sentences


def _write_percent(share: float) -> str:
    return f"{100 * share:.1f}"
