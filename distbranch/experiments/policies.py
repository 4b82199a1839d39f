"""AdaShare's last phase: one search, and policies drawn from it, each trained from fresh weights beside hard sharing.

The policy that is reported as the best one is the best on val, whatever it is on test.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from distbranch.config import AdaShareConfig
from distbranch.config.sweep import SweepConfig
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError
from distbranch.experiments.runner import Experiment, Findings, build_sweep, load_run_config
from distbranch.experiments.runs import Run, Runs, format_number, format_spread, rows_markdown
from distbranch.report.experiment_figures import draw_drawn_policies
from distbranch.sweep.plan import SEED

SEARCH = "search"
SHARED = "shared"
METRIC = "average_precision"
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
    """A search, and the policies drawn from it.

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

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        del sweep
        found = tabulate_networks(runs)
        spots = {}
        chosen = []
        for _, row in found.iterrows():
            name = row["network"]
            if found["seed"].nunique() > 1:
                name += f", seed {row['seed']}"
            if row["best_on_val"]:
                chosen.append(name)
            value = row[f"{split}_{METRIC}"]
            spots[name] = row["multiply_adds"], None if pandas.isna(value) else value
        text = policies_markdown(found, split)
        figure = draw_drawn_policies(spots, chosen, metric=METRIC, split=split)
        table = found.drop(columns=["val_accuracy", "test_accuracy"])
        return Findings(text, text, {"policies.csv": table}, {"policies.png": figure})

    _check_searches(config, overrides)
    name = name or f"policies-{config.stem}"
    base = {"base": str(config.absolute())}
    runs = build_sweep(name, {SEARCH: base}, overrides, seeds=None, jobs=None).trial_path
    return Experiment(
        name=name,
        about={"experiment": "policies", "split": split},
        variants=policy_variants(base, runs / f"{SEARCH}-seed{SEED}", num_policies, iterations),
        analyse=analyse,
        splits=("val", split),
        metric=METRIC,
        derived=DERIVED,
    )


def _check_searches(config: Path, overrides: Sequence[str]) -> None:
    chosen = load_run_config(config, overrides)
    if not chosen.searches:
        with_policy = " with a policy" if chosen.adashare.policy else ""
        raise UsageError(
            f"{config} should be of a search, method.name=adashare without adashare.policy, "
            f"found method.name={chosen.method.name}{with_policy}."
        )


def policy_variants(
    base: Mapping[str, Any], search: Path, num_policies: int, iterations: int | None
) -> dict[str, dict[str, Any]]:
    """The search, hard sharing, and the policies that begin from the search, all of one configuration."""
    fresh = dict(base)
    if iterations:
        fresh["train.iterations"] = iterations
    plain = {f"adashare.{key}": value for key, value in AdaShareConfig().model_dump().items()}
    given = {**fresh, "adashare.policy": str(search)}
    return {
        SEARCH: dict(base),
        SHARED: {**fresh, "method.name": "fixed", **plain},
        "most-probable": given,
        **{f"policy-{number}": {**given, "adashare.policy_number": number} for number in range(num_policies)},
    }


def tabulate_networks(runs: Runs) -> pandas.DataFrame:
    """A row per trained network, hard sharing first, seed by seed; values in 0..1.

    `best_on_val`: of the policies of one seed, that with the highest value on val.
    """
    rows = []
    for variant, members in runs.items():
        for run in members:
            row: dict[str, Any] = {"network": variant, "seed": run.seed, "best_on_val": False}
            for metric in (METRIC, "accuracy"):
                for split in ("val", "test"):
                    row[f"{split}_{metric}"] = run.get_mean(metric, split)
            row["skipped_decisions"] = _count_skips(run)
            row["parameters"] = run.summary["parameters"]
            row["multiply_adds"] = run.summary["multiply_adds"]
            rows.append(row)
    found = pandas.DataFrame(rows)
    found = found[found["network"] != SEARCH].sort_values("seed", kind="stable", ignore_index=True)
    policies = found[found["network"] != SHARED]
    found.loc[policies.groupby("seed")[f"val_{METRIC}"].idxmax(), "best_on_val"] = True
    return found


def policies_markdown(found: pandas.DataFrame, split: str) -> str:
    """A line per search with what may be said of it, and a row per network."""
    value = f"{split}_{METRIC}"
    lines = [f"# Policies of AdaShare, {split}", ""]
    for seed, networks in found.groupby("seed"):
        is_shared = networks["network"] == SHARED
        values = 100 * networks.loc[~is_shared, value]
        best = networks[networks["best_on_val"]].iloc[0]
        shared = networks[is_shared].iloc[0]
        lines.append(
            f"- Seed {seed}: {len(values)} policies, average precision {values.median():.1f} % in the median ({values.min():.1f} to "
            f"{values.max():.1f}); the best on val is {best['network']} with {format_spread(best, value)} %; hard sharing "
            f"{format_spread(shared, value)} %."
        )
    rows = []
    for _, row in found.iterrows():
        name = row["network"]
        rows.append(
            {
                "network": f"**{name}**" if row["best_on_val"] else name,
                "seed": str(row["seed"]),
                "accuracy %": format_spread(row, f"{split}_accuracy"),
                "average precision %": format_spread(row, value),
                "on val %": format_spread(row, f"val_{METRIC}"),
                "skips": format_number(row["skipped_decisions"]),
                "parameters": format_number(row["parameters"]),
                "multiply-adds": f"{row['multiply_adds'] / 1e6:.2f} M",
            }
        )
    return "\n".join([*lines, "", rows_markdown(rows)])


def _count_skips(run: Run) -> int:
    """How often a task skips a block, over all tasks and blocks."""
    policy = json.loads(RunDirectory(run.config.run_directory).policy.read_text())["policy"]
    return sum(not executes for row in policy for executes in row)
