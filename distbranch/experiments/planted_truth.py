"""What a decision makes of its statistics: both kinds of affinity side by side, and the groups found against planted ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas
from sklearn.metrics import adjusted_rand_score

from distbranch.branching.decision import choose_groups
from distbranch.config import load_config
from distbranch.config.sweep import SweepConfig
from distbranch.data.mixture import read_data
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UserError
from distbranch.experiments.runner import Experiment, Findings, check_grows, load_run_config
from distbranch.experiments.runs import Runs
from distbranch.report.console import format_amount
from distbranch.report.tables import render_markdown

DERIVED = ("data.path", "data.pack")


def design_planted_truth(config: Path, seeds: Sequence[int], overrides: Sequence[str]) -> Experiment:
    """Runs of one configuration, each with data drawn and weights begun from its own seed.

    Raises:
        UsageError: the runs would take no decision.
        UserError: the configuration does not say how its data are packed.
    """

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        rows = []
        for (run,) in runs.values():
            rows.append({"seed": run.seed, "adjusted_rand": measure_agreement(run.config.run_directory)})
        table = pandas.DataFrame(rows)
        cells = pandas.DataFrame({"seed": table["seed"].astype(str)})
        cells["adjusted Rand index"] = [format_amount(value, decimals=3) for value in table["adjusted_rand"]]
        return Findings(
            [{"seed": row["seed"], "adjusted Rand index": row["adjusted_rand"]} for row in rows],
            f"# {sweep.name}\n\n{render_markdown(cells)}",
            tables={"planted.csv": table},
        )

    chosen = load_run_config(config, overrides)
    check_grows(config, chosen)
    data = chosen.data
    if data.pack is None:
        raise UserError(f"{config} should say how its data are packed (data.pack), for every seed draws its own.")
    variants = {
        f"{config.stem}-data{seed}": {
            "base": str(config.absolute()),
            "seed": seed,
            "data.path": f"{data.path}-seed{seed}",
            "data.pack": {**data.pack, "seed": seed},
        }
        for seed in seeds
    }
    about = {"experiment": "planted"}
    return Experiment(f"planted-{config.stem}", about, variants, analyse, derived=DERIVED)


def choose_first_groups(run_directory: Path) -> dict[str, list[list[str]]]:
    """The groups of the first decision of a run under either kind of affinity: {kind: [[task, ...], ...]}.

    Both come from the same statistics of the same thin network, so each is what a run with that kind would have chosen.

    Raises:
        UserError: no such run, or it has taken no decision yet.
    """
    files = RunDirectory(run_directory)
    if not files.config.exists():
        raise UserError(f"There is no run directory {run_directory}. Give that of a run of method.name=branching.")
    decisions = read_lines(files.decisions)
    if not decisions:
        raise UserError(f"The run {run_directory} has taken no decision yet. Give a run of method.name=branching.")
    first = decisions[0]
    names = [task for group in first["tasks"] for task in group]
    order = [branch for group in first["groups"] for branch in group]
    names = [name for _, name in sorted(zip(order, names, strict=True))]
    seed = load_config(files.config).seed
    with np.load(files.path / first["affinity_file"]) as matrices:
        affinities = {kind: matrices[kind] for kind in ("agreement", "phi")}
    decided = {
        kind: choose_groups(
            affinity,
            alpha=first["alpha"],
            pools_above=first["pools_above"],
            unit_cost=first["unit_cost"],
            max_groups=first["max_groups"],
            seed=seed,
        )
        for kind, affinity in affinities.items()
    }
    groups = {kind: [[names[task] for task in group] for group in found.groups] for kind, found in decided.items()}
    return groups | {first["affinity_kind"]: first["tasks"]}  # as it was decided, whatever release has decided it


def measure_agreement(run_directory: Path) -> float:
    """How well a run's first groups agree with the known groups of its data set: the adjusted Rand index, 1 is equal.

    Raises:
        UserError: no decision yet, or a data set without known groups.
    """
    config = load_config(RunDirectory(run_directory).config)
    info = read_data(config.data)
    if not info.groups:
        raise UserError(f"The data set {info.path} says nothing of groups of tasks. Use one that does: rendered-faces.")
    names = [task.name for task in info.tasks]
    found = choose_first_groups(run_directory)[config.method.affinity]

    def number_groups(groups: Iterable[Sequence[str]]) -> list[int]:
        number = {name: index for index, group in enumerate(groups) for name in group}
        return [number[name] for name in names]

    return float(adjusted_rand_score(number_groups(info.groups.values()), number_groups(found)))
