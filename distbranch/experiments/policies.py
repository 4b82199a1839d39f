"""AdaShare's last phase: one search, and policies drawn from it, each trained from fresh weights beside hard sharing.

The policy that is reported as the best one is the best on val, whatever it is on test.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distbranch.config import AdaShareConfig
from distbranch.config.sweep import SweepConfig
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError
from distbranch.experiments.runner import Experiment, Findings, build_sweep, load_run_config
from distbranch.experiments.runs import Run, Runs, pair_by_seed
from distbranch.report.console import amount, markdown_table
from distbranch.report.experiment_figures import draw_drawn_policies
from distbranch.sweep.plan import SEED

SEARCH = "search"
SHARED = "shared"
PROBABLE = "most-probable"
DRAWN = "policy-"
METRIC = "average_precision"
DERIVED = ("train.iterations", *(f"adashare.{key}" for key in AdaShareConfig.model_fields))


@dataclass(frozen=True)
class Drawn:
    """The networks of one search, by the seed of all of them; values in 0..1.

    `shared` executes every block for every task; `best` is the drawn policy with the highest value on val.
    """

    seed: int
    shared: Run
    policies: Mapping[str, Run]

    @property
    def networks(self) -> dict[str, Run]:
        """Hard sharing, then the policies."""
        return {SHARED: self.shared, **self.policies}

    def get_value(self, name: str, split: str) -> float:
        """The metric of a policy."""
        found = self.policies[name].get_mean(METRIC, split)
        return float("nan") if found is None else found

    @property
    def best(self) -> str:
        """The name of the policy that is best on val."""
        return max(self.policies, key=lambda name: self.get_value(name, "val"))

    def measure_spread(self, split: str) -> tuple[float, float, float]:
        """Median, smallest and largest value of the policies."""
        values = [self.get_value(name, split) for name in self.policies]
        return statistics.median(values), min(values), max(values)


def design_policies(
    config: Path,
    num_policies: int,
    overrides: Sequence[str],
    *,
    iterations: int | None,
    split: str,
    name: str | None = None,
) -> Experiment:
    """A search, and the policies drawn from it; found: [Drawn, ...], one per seed.

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
        found = [_collect_drawn(runs, shared) for _, shared in pair_by_seed(runs[SEARCH], runs[SHARED])]
        spots = {}
        chosen = []
        for one in found:
            suffix = f", seed {one.seed}" if len(found) > 1 else ""
            chosen.append(one.best + suffix)
            for key, run in one.networks.items():
                spots[key + suffix] = run.summary["multiply_adds"], run.get_mean(METRIC, split)
        text = policies_markdown(found, split)
        figure = draw_drawn_policies(spots, chosen, metric=METRIC, split=split)
        return Findings(found, text, text, {"policies.csv": _make_rows(found)}, {"policies.png": figure})

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


def _collect_drawn(runs: Runs, shared: Run) -> Drawn:
    """The policies with the seed of a run of hard sharing."""
    own = {}
    for variant, members in runs.items():
        if variant == PROBABLE or variant.startswith(DRAWN):
            own[variant] = next(run for run in members if run.seed == shared.seed)
    return Drawn(shared.seed, shared, own)


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
        PROBABLE: given,
        **{f"{DRAWN}{number}": {**given, "adashare.policy_number": number} for number in range(num_policies)},
    }


def policies_markdown(found: Sequence[Drawn], split: str) -> str:
    """A line per search with what may be said of it, and a row per network."""
    lines = [f"# Policies of AdaShare, {split}", ""]
    for one in found:
        median, least, most = (100 * value for value in one.measure_spread(split))
        best = _format_percent(one.get_value(one.best, split))
        shared = _format_percent(one.shared.get_mean(METRIC, split))
        lines.append(
            f"- Seed {one.seed}: {len(one.policies)} policies, average precision {median:.1f} % in the median ({least:.1f} to "
            f"{most:.1f}); the best on val is {one.best} with {best} %; hard sharing {shared} %."
        )
    heads = ["network", "seed", "accuracy %", "average precision %", "on val %", "skips", "parameters", "multiply-adds"]
    rows = [
        [
            f"**{name}**" if name == one.best else name,
            str(one.seed),
            _format_percent(run.get_mean("accuracy", split)),
            _format_percent(run.get_mean(METRIC, split)),
            _format_percent(run.get_mean(METRIC, "val")),
            f"{_count_skips(run):,}",
            f"{run.summary['parameters']:,}",
            f"{run.summary['multiply_adds'] / 1e6:.2f} M",
        ]
        for one in found
        for name, run in one.networks.items()
    ]
    return "\n".join([*lines, "", markdown_table(heads, rows)])


def _make_rows(found: Sequence[Drawn]) -> list[dict[str, Any]]:
    """A row per network; values in 0..1."""
    return [
        {
            "network": name,
            "seed": one.seed,
            "best_on_val": name == one.best,
            **{f"{split}_{METRIC}": run.get_mean(METRIC, split) for split in ("val", "test")},
            "skipped_decisions": _count_skips(run),
            "parameters": run.summary["parameters"],
            "multiply_adds": run.summary["multiply_adds"],
        }
        for one in found
        for name, run in one.networks.items()
    ]


def _count_skips(run: Run) -> int:
    """How often a task skips a block, over all tasks and blocks."""
    policy = json.loads(RunDirectory(run.config.run_directory).policy.read_text())["policy"]
    return sum(not executes for row in policy for executes in row)


def _format_percent(value: float | None) -> str:
    return amount(value, None, scale=100, decimals=1)
