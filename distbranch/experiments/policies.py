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
from distbranch.engine.metrics import Report
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError
from distbranch.experiments.comparison import (
    Run,
    check_defined,
    config_of,
    experiment_sweep,
    paired,
    run_experiment,
    write_csv,
    write_text,
)
from distbranch.experiments.place import check_place, record_place
from distbranch.report.console import amount, markdown_table
from distbranch.report.experiment_figures import draw_drawn_policies, save_figure
from distbranch.sweep.plan import SEED

SEARCH, SHARED, PROBABLE, DRAWN = "search", "shared", "most-probable", "policy-"
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

    def value(self, name: str, split: str) -> float:
        """The metric of a policy."""
        found = self.policies[name].mean(METRIC, split)
        return float("nan") if found is None else found

    @property
    def best(self) -> str:
        """The name of the policy that is best on val."""
        return max(self.policies, key=lambda name: self.value(name, "val"))

    def spread(self, split: str) -> tuple[float, float, float]:
        """Median, smallest and largest value of the policies."""
        values = [self.value(name, split) for name in self.policies]
        return statistics.median(values), min(values), max(values)


def try_policies(
    config: Path,
    num_policies: int,
    seeds: Sequence[int],
    overrides: Sequence[str],
    *,
    iterations: int | None,
    split: str,
    name: str | None,
    jobs: int | None,
    report: Report,
) -> tuple[list[Drawn], Path]:
    """Search, draw policies and train them; what they are worth, and where tables and pictures are.

    Args:
        config: of a search.
        num_policies: how many are drawn, beside the most probable one; the paper draws 8.
        seeds: of search and training.
        overrides: `key=value`, for all runs.
        iterations: optimiser steps of the networks trained with a policy, and of hard sharing; those of the search if None.
        split: `val` or `test`: of what is printed and drawn.
        name: of the experiment's directory; `policies-<config>` if None.
        jobs: runs at the same time.
        report: told what happens.

    Raises:
        UsageError: the configuration is not that of a search.
        UserError: data without `val` or that split, or a run failed.
    """
    _check_searches(config, overrides)
    name, base = name or f"policies-{config.stem}", {"base": str(config.absolute())}
    place = experiment_sweep(name, {SEARCH: base}, overrides, seeds=seeds, jobs=jobs).trial_path
    variants = policy_variants(base, place / f"{SEARCH}-seed{SEED}", num_policies, iterations)
    sweep = experiment_sweep(name, variants, overrides, seeds=seeds, jobs=jobs, derived=DERIVED)
    about = {"experiment": "policies", "split": split}
    check_place(sweep, about)
    runs = run_experiment(sweep, report, splits=("val", split))
    record_place(sweep, about)
    check_defined(runs, METRIC, ("val", split))
    found = []
    for search, shared in paired(runs[SEARCH], runs[SHARED]):
        own = {key: next(run for run in runs[key] if run.seed == search.seed) for key in runs if _is_drawn(key)}
        found.append(Drawn(search.seed, shared, own))
    write_csv(sweep.path, "policies.csv", _rows(found))
    write_text(sweep.path, "table.md", policies_markdown(found, split))
    spots = {
        f"{key}, seed {one.seed}" if len(found) > 1 else key: (run.summary["multiply_adds"], run.mean(METRIC, split))
        for one in found
        for key, run in {SHARED: one.shared, **one.policies}.items()
    }
    chosen = [f"{one.best}, seed {one.seed}" if len(found) > 1 else one.best for one in found]
    save_figure(draw_drawn_policies(spots, chosen, metric=METRIC, split=split), sweep.path / "policies.png")
    return found, sweep.path


def _check_searches(config: Path, overrides: Sequence[str]) -> None:
    chosen = config_of(config, overrides)
    if not chosen.searches:
        raise UsageError(
            f"{config} should be of a search, method.name=adashare without adashare.policy, found method.name={chosen.method.name}"
            f"{' with a policy' if chosen.adashare.policy else ''}."
        )


def policy_variants(
    base: Mapping[str, Any], search: Path, num_policies: int, iterations: int | None
) -> dict[str, dict[str, Any]]:
    """The search, hard sharing, and the policies that begin from the search, all of one configuration."""
    fresh = {**base, **({"train.iterations": iterations} if iterations else {})}
    plain = {f"adashare.{key}": value for key, value in AdaShareConfig().model_dump().items()}
    given = {**fresh, "adashare.policy": str(search)}
    return {
        SEARCH: dict(base),
        SHARED: {**fresh, "method.name": "fixed", **plain},
        PROBABLE: given,
        **{f"{DRAWN}{number}": {**given, "adashare.policy_number": number} for number in range(num_policies)},
    }


def _is_drawn(variant: str) -> bool:
    return variant == PROBABLE or variant.startswith(DRAWN)


def policies_markdown(found: Sequence[Drawn], split: str) -> str:
    """A line per search with what may be said of it, and a row per network."""
    lines = [f"# Policies of AdaShare, {split}", ""]
    for one in found:
        median, least, most = (100 * value for value in one.spread(split))
        shared = one.shared.mean(METRIC, split)
        lines.append(
            f"- Seed {one.seed}: {len(one.policies)} policies, average precision {median:.1f} % in the median ({least:.1f} to "
            f"{most:.1f}); the best on val is {one.best} with {_percent(one.value(one.best, split))} %; hard sharing {_percent(shared)} %."
        )
    heads = ["network", "seed", "accuracy %", "average precision %", "on val %", "skips", "parameters", "multiply-adds"]
    rows = [
        [
            f"**{name}**" if name == one.best else name,
            str(one.seed),
            _percent(run.mean("accuracy", split)),
            _percent(run.mean(METRIC, split)),
            _percent(run.mean(METRIC, "val")),
            f"{_num_skips(run):,}",
            f"{run.summary['parameters']:,}",
            f"{run.summary['multiply_adds'] / 1e6:.2f} M",
        ]
        for one in found
        for name, run in {SHARED: one.shared, **one.policies}.items()
    ]
    return "\n".join([*lines, "", markdown_table(heads, rows)])


def _rows(found: Sequence[Drawn]) -> list[dict[str, Any]]:
    """A row per network; values in 0..1."""
    return [
        {
            "network": name,
            "seed": one.seed,
            "best_on_val": name == one.best,
            **{f"{split}_{METRIC}": run.mean(METRIC, split) for split in ("val", "test")},
            "skipped_decisions": _num_skips(run),
            "parameters": run.summary["parameters"],
            "multiply_adds": run.summary["multiply_adds"],
        }
        for one in found
        for name, run in {SHARED: one.shared, **one.policies}.items()
    ]


def _num_skips(run: Run) -> int:
    """How often a task skips a block, over all tasks and blocks."""
    policy = json.loads(RunDirectory(run.config.run_directory).policy.read_text())["policy"]
    return sum(not executes for row in policy for executes in row)


def _percent(value: float | None) -> str:
    return amount(value, None, scale=100, decimals=1)
