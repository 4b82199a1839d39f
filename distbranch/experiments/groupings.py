"""Experiments about which tasks go together: a learned tree against its permutations, either kind of affinity, planted groups."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from pandas import DataFrame
from sklearn.metrics import adjusted_rand_score

from distbranch.branching.decision import choose_groups
from distbranch.branching.tree import Tree
from distbranch.config import load_config
from distbranch.config.network import KEYS_OF_SCOUTS
from distbranch.config.sweep import Setting
from distbranch.data.mixture import read_data
from distbranch.engine.initialisation import order_by_number
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UsageError, UserError
from distbranch.experiments.analyses import (
    compare_at_equal_cost,
    describe_differences,
    make_spots,
    tabulate_differences,
)
from distbranch.experiments.designs import METRIC, check_grows, load_run_config
from distbranch.experiments.runner import Experiment, Findings, Variants
from distbranch.experiments.runs import Runs, pivot_tasks, select_means, select_tasks, tabulate_runs
from distbranch.metrics import list_metrics
from distbranch.report.experiment_figures import draw_kinds, draw_reductions

METRICS = ("accuracy", "average_precision")
# The trees are trained here, not where the run itself was trained.
HERE = ("launch.address=null", "launch.device=auto", "launch.wait_for_nodes_min=0")
LEARNED = "learned"
KINDS = ("agreement", "phi")
TRIES = 20  # permutations drawn for each that is wanted: a small tree has few that differ
NOTE = (
    "Tasks are scored on the same images and share layers, and all are compared with the same learned runs, so they are no "
    "independent samples and p is a guide; more --seeds lessen the noise of training. A difference is what permuting costs."
)


# ---- is the learned grouping worth anything?


def design_grouping(run: Path, permutations: int, *, split: str) -> Experiment:
    """The tree of a finished run and its permutations, trained from scratch (figure 3 of the paper, with every task counted).

    Args:
        run: a finished run whose tree has grown.
        permutations: how many; number k is drawn with seed k.
        split: `val` or `test`.

    Raises:
        UserError: the run has not finished or its tree has not grown.
    """
    run_name = run.absolute().name

    def analyse(runs: Runs) -> Findings:
        values = tabulate_runs(runs)
        sentences = []
        tables = []
        panels = {}
        for metric in METRICS:
            lost = measure_losses(values, metric, split)
            if lost.empty:  # undefined for all tasks
                continue
            names = {
                "one": "the learned tree",
                "other": "a permuted tree",
                "repetition": "permutations",
            }
            sentences.append(describe_differences(lost, metric, **names))
            table = tabulate_differences(lost)
            table.insert(0, "metric", metric)
            tables.append(table)
            panels[list_metrics()[metric].title] = (100 * lost).T.to_dict("list")
        if not tables:
            raise UserError(
                f"No task has a metric on {split} in all runs, so nothing can be compared there. Give another --split."
            )
        title = f"What permuting the tasks of {run_name} costs on {split}: mean over {permutations} permutations, dots: each"
        found = pandas.concat(tables)
        figure = draw_reductions(panels, title=title)
        shown = found[found.columns[:6]]
        return Findings([*sentences, NOTE], shown, {"tasks.csv": found}, {"grouping.png": figure})

    return Experiment(
        name=f"grouping-{run_name}",
        about={"experiment": "grouping", "run": str(run.absolute()), "split": split},
        variants=make_permutations(run, permutations, split),
        analyse=analyse,
        splits=(split,),
        overrides=HERE,
    )


def make_permutations(run: Path, permutations: int, split: str) -> Variants:
    """The learned tree and its permutations, from scratch and on the run's own schedule.

    A permutation that puts the same tasks together as the learned tree, or as one before, is left out.

    Raises:
        UserError: the run has not finished, its tree has not grown, it was not evaluated on the split, or it has not so many
            different permutations.
    """
    result = read_result(run)
    if result is None:
        raise UserError(f"{run} should be a finished run, found none. Train it to its end first.")
    tree = result.tree
    if not tree.splits:
        raise UserError(
            f"The tree of {run} has no branches, so there is nothing to permute. Give a run that has grown."
        )
    if split not in result.metrics:
        raise UserError(
            f"The data of {run} have no split '{split}', so nothing can be compared on it. Give --split val."
        )
    given: Setting = {
        "base": str((run / "config.yaml").absolute()),
        "method.name": "fixed",
        "method.groups": str(run.absolute()),
        "method.init": "random",
        "method.pretrained": None,
        "method.permutation": None,
        "method.begin": "grown",
        **{f"method.{key}": None for key in KEYS_OF_SCOUTS},
    }
    # Equal trees under other numbers would be the same network, trained twice and counted twice.
    variants = {LEARNED: given}
    known = [_list_groups(tree)]
    for number in range(1, permutations * TRIES + 1):
        groups = _list_groups(tree.permuted(order_by_number(number, tree.num_tasks)))
        if groups not in known and len(variants) <= permutations:
            known.append(groups)
            variants[f"permuted-{number}"] = {**given, "method.permutation": number}
    if len(variants) <= permutations:
        raise UserError(
            f"The tree of {run} has {len(variants) - 1} permutations that put other tasks together, found among "
            f"{permutations * TRIES}; {permutations} were asked for. Give fewer --permutations."
        )
    return variants


def _list_groups(tree: Tree) -> list[list[list[int]]]:
    """Which tasks share a branch, layer by layer, in one order of all that are the same."""
    layers = range(1, tree.num_layers + 1)
    return [sorted(sorted(branch) for branch in tree.branches(layer)) for layer in layers]


def measure_losses(values: DataFrame, metric: str, split: str) -> DataFrame:
    """How much lower the metric of every task is with each permuted tree, mean over seeds: [T, K] in 0..1.

    Tasks without the metric in some run are left out. Positive: the learned tree is better.
    """
    table = pivot_tasks(values, metric, split).dropna()
    trees = table.columns.unique("variant").drop(LEARNED)
    # Over seeds first: they are repetitions of one tree, while permutations are other trees.
    lost = {tree: (table[LEARNED] - table[tree]).mean(axis="columns") for tree in trees}
    return DataFrame(lost)


# ---- agreement or phi?


def design_affinity(
    config: Path, alphas: Sequence[float], overrides: Sequence[str], *, split: str
) -> Experiment:
    """Trees grown with either kind of affinity for every alpha, compared at equal weights, task by task.

    A branching factor gives either kind another number of weights, so a line is drawn through the networks of each kind and the
    two are compared at every network that lies within the other's line, seed by seed.

    Args:
        config: of a run of method.name=branching; all its trees begin as one run.
        alphas: branching factors.
        overrides: `key=value`, for all runs.
        split: `val` or `test`.

    Raises:
        UsageError: fewer than two branching factors, or the runs would take no decision.
    """
    if len(set(alphas)) < 2:
        raise UsageError(
            "Give at least two different --alphas: a line through one network cannot be compared at other sizes."
        )
    check_grows(config, load_run_config(config, overrides))
    variants = {}
    for kind in KINDS:
        for alpha in sorted(set(alphas)):
            own = {"base": str(config.absolute()), "method.affinity": kind, "method.alpha": alpha}
            variants[f"{kind}-alpha{alpha:g}"] = own

    def analyse(runs: Runs) -> Findings:
        values = tabulate_runs(runs)
        found = measure_kinds(values, split)
        sentence = describe_differences(
            found, METRIC, one="phi", other="agreement", repetition="seeds"
        )
        table = tabulate_differences(found)
        # A task may lack a seed whose lines do not overlap.
        points = {task: list(100 * row.dropna()) for task, row in found.iterrows()}
        means = select_means(values, METRIC, split)
        lines = {
            kind: make_spots(means, [name for name in variants if name.startswith(kind)])
            for kind in KINDS
        }
        for kind, spots in lines.items():
            lines[kind] = [
                replace(spot, name=f"\u03b1 {spot.name.rpartition('alpha')[2]}") for spot in spots
            ]
        between = "phi less agreement at equal weights"
        figure = draw_kinds(lines, points, metric=METRIC, split=split, between=between)
        shown = table[table.columns[:5]]
        return Findings(
            [f"At equal weights on {split}. {sentence}"],
            shown,
            {"tasks.csv": table},
            {"affinity.png": figure},
        )

    return Experiment(
        name=f"affinity-{config.stem}",
        about={"experiment": "affinity", "split": split},
        variants=variants,
        analyse=analyse,
        splits=(split,),
        metric=METRIC,
    )


def measure_kinds(values: DataFrame, split: str) -> DataFrame:
    """Phi less agreement at equal weights: [T, seeds], in 0..1; without tasks for which the lines do not overlap."""
    # A task that some network lacks has other lines than the rest.
    complete = pivot_tasks(values, METRIC, split).dropna()
    points = select_tasks(values, METRIC, split)
    points = points[points["task"].isin(complete.index)]
    agreement, phi = [points[points["variant"].str.startswith(kind)] for kind in KINDS]
    # At the networks of either kind, else the one with more of them inside the other's line would say alone what is measured.
    above = compare_at_equal_cost(phi, agreement, "weights")
    below = compare_at_equal_cost(agreement, phi, "weights")
    below["difference"] *= -1
    found = pandas.concat([above, below]).groupby(["task", "seed"], sort=False)["difference"].mean()
    return found.unstack("seed").dropna(how="all").add_prefix("seed-")


# ---- does a first decision find the planted groups?


def design_planted_truth(
    config: Path, seeds: Sequence[int], overrides: Sequence[str]
) -> Experiment:
    """Runs of one configuration, each with data drawn and weights begun from its own seed.

    Raises:
        UsageError: the runs would take no decision.
        UserError: the configuration does not say how its data are packed.
    """

    def analyse(runs: Runs) -> Findings:
        found = DataFrame({"seed": [run.seed for run in runs]})
        found["adjusted_rand_index"] = [measure_agreement(run.config.run_directory) for run in runs]
        return Findings((), found, {"planted.csv": found})

    chosen = load_run_config(config, overrides)
    check_grows(config, chosen)
    data = chosen.data
    if data.pack is None:
        raise UserError(
            f"{config} should say how its data are packed (data.pack), for every seed draws its own."
        )
    variants = {}
    for seed in seeds:  # each is a variant of its own, for its data are others
        pack = {**data.pack, "seed": seed}
        own = {
            "base": str(config.absolute()),
            "seed": seed,
            "data.path": f"{data.path}-seed{seed}",
            "data.pack": pack,
        }
        variants[f"{config.stem}-data{seed}"] = own
    about = {"experiment": "planted"}
    return Experiment(
        f"planted-{config.stem}", about, variants, analyse, derived=("data.path", "data.pack")
    )


def measure_agreement(run_directory: Path) -> float:
    """How well a run's first groups agree with the known groups of its data set: the adjusted Rand index, 1 is equal.

    Raises:
        UserError: no decision yet, or a data set without known groups.
    """
    config = load_config(RunDirectory(run_directory).config)
    info = read_data(config.data)
    if not info.groups:
        raise UserError(
            f"The data set {info.path} says nothing of groups of tasks. Use one that does: rendered-faces."
        )
    planted = _number_groups(info.groups.values())
    found = _number_groups(_read_first_decision(run_directory)["tasks"])
    return float(adjusted_rand_score([planted[name] for name in found], list(found.values())))


def _number_groups(groups: Iterable[Sequence[str]]) -> dict[str, int]:
    return {name: number for number, group in enumerate(groups) for name in group}


def choose_first_groups(run_directory: Path) -> dict[str, list[list[str]]]:
    """The groups of the first decision of a run under either kind of affinity: {kind: [[task, ...], ...]}.

    Both come from the same statistics of the same thin network, so each is what a run with that kind would have chosen.

    Raises:
        UserError: no such run, or it has taken no decision yet.
    """
    first = _read_first_decision(run_directory)
    options = {key: first[key] for key in ("alpha", "pools_above", "unit_cost", "max_groups")}
    options["price"] = first.get("price")  # which runs of before, priced by pools, did not write
    names: dict[int, str] = {}
    for numbers, tasks in zip(first["groups"], first["tasks"], strict=True):
        names |= dict(zip(numbers, tasks, strict=True))
    seed = load_config(RunDirectory(run_directory).config).seed
    groups = {}
    with np.load(run_directory / first["affinity_file"]) as matrices:
        for kind in KINDS:
            decision = choose_groups(matrices[kind], seed=seed, **options)
            groups[kind] = [[names[task] for task in group] for group in decision.groups]
    return groups | {
        first["affinity_kind"]: first["tasks"]
    }  # as it was decided, whatever release has decided it


def _read_first_decision(run_directory: Path) -> dict[str, Any]:
    files = RunDirectory(run_directory)
    if not files.config.exists():
        raise UserError(
            f"There is no run directory {run_directory}. Give that of a run of method.name=branching."
        )
    decisions = read_lines(files.decisions)
    if not decisions:
        raise UserError(
            f"The run {run_directory} has taken no decision yet. Give a run of method.name=branching."
        )
    return decisions[0]
