"""Experiments about which tasks go together: a learned tree against its permutations, and the first decision against planted groups."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas
from pandas import DataFrame
from sklearn.metrics import adjusted_rand_score

from distbranch.branching.tree import Tree
from distbranch.config import load_config
from distbranch.config.network import KEYS_OF_SCOUTS
from distbranch.config.sweep import Setting
from distbranch.data.mixture import read_data
from distbranch.engine.initialisation import order_by_number
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UserError
from distbranch.experiments.analyses import describe_differences, tabulate_differences
from distbranch.experiments.designs import check_grows, load_run_config
from distbranch.experiments.runner import Experiment, Findings, Variants
from distbranch.experiments.runs import Runs, pivot_tasks, tabulate_runs
from distbranch.metrics import list_first_metrics, list_metrics
from distbranch.report.experiment_figures import draw_reductions

METRICS = ("accuracy", "average_precision")
# The trees are trained here, not where the run itself was trained.
HERE = ("launch.address=null", "launch.device=auto", "launch.wait_for_nodes_min=0")
LEARNED = "learned"
TRIES = 20  # permutations drawn for each that is wanted: a small tree has few that differ
NOTE = (
    "Tasks are scored on the same images and share layers, and all are compared with the same learned runs, so they are no "
    "independent samples and p is a guide; more --seeds lessen the noise of training. A difference is what permuting costs."
)


# ---- is the learned grouping worth anything?


def design_grouping(
    run: Path, permutations: int, *, split: str, metrics: Sequence[str] = ()
) -> Experiment:
    """The tree of a finished run and its permutations, trained from scratch (figure 3 of the paper, with every task counted).

    Args:
        run: a finished run whose tree has grown.
        permutations: how many; number k is drawn with seed k.
        split: `val` or `test`.
        metrics: that are compared, each task by task; accuracy, average precision and the first one of each dense kind if empty.

    Raises:
        UserError: the run has not finished or its tree has not grown.
    """
    run_name = run.absolute().name
    variants = make_permutations(run, permutations, split)
    permuted = [variant for variant in variants if variant != LEARNED]

    def analyse(runs: Runs) -> Findings:
        values = tabulate_runs(runs)
        sentences = []
        tables = []
        panels = {}
        for metric in metrics or [*METRICS, *list_first_metrics()]:
            lost = measure_losses(values, metric, split, learned=LEARNED, permuted=permuted)
            if lost.empty:  # undefined for all tasks
                continue
            names = {
                "one": "the learned tree",
                "other": "a permuted tree",
                "repetition": "permutations",
            }
            sentences.append(describe_differences(lost, metric, **names))
            costs = lost
            if list_metrics()[metric].lower_is_better:
                costs = -lost
            table = tabulate_differences(costs)
            table.insert(0, "metric", metric)
            tables.append(table)
            panels[metric] = costs.T.to_dict("list")
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
        about={
            "experiment": "grouping",
            "run": str(run.absolute()),
            "split": split,
            "metrics": list(metrics),
        },
        variants=variants,
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
        "method.lowest": None,
        "method.widen_at": None,
        "method.birth": "copies",
        **{f"method.{key}": None for key in KEYS_OF_SCOUTS},
    }
    variants = {LEARNED: given}
    for number in choose_permutations(tree, permutations, what=f"The tree of {run}"):
        variants[f"permuted-{number}"] = {**given, "method.permutation": number}
    return variants


def choose_permutations(tree: Tree, count: int, *, what: str) -> list[int]:
    """Numbers for `method.permutation` that put other tasks together than the tree, and than each other.

    Raises:
        UserError: there are not so many of `what`, the tree in words.
    """
    # Equal trees under other numbers would be the same network, trained twice and counted twice.
    chosen: list[int] = []
    known = [_list_groups(tree)]
    for number in range(1, count * TRIES + 1):
        groups = _list_groups(tree.permuted(order_by_number(number, tree.num_tasks)))
        if groups not in known and len(chosen) < count:
            known.append(groups)
            chosen.append(number)
    if len(chosen) < count:
        raise UserError(
            f"{what} has {len(chosen)} permutations that put other tasks together, found among "
            f"{count * TRIES}; {count} were asked for. Give fewer --permutations."
        )
    return chosen


def _list_groups(tree: Tree) -> list[list[list[int]]]:
    """Which tasks share a branch, layer by layer, in one order of all that are the same."""
    layers = range(1, tree.num_layers + 1)
    return [sorted(sorted(branch) for branch in tree.branches(layer)) for layer in layers]


def measure_losses(
    values: DataFrame, metric: str, split: str, *, learned: str, permuted: Iterable[str]
) -> DataFrame:
    """How much lower the metric of every task is with each permuted tree, mean over seeds: [T, K], shares in 0..1.

    Tasks without the metric in some run are left out. Positive: the learned tree has more of it.
    """
    table = pivot_tasks(values, metric, split).dropna()
    # Over seeds first: they are repetitions of one tree, while permutations are other trees.
    lost = {tree: (table[learned] - table[tree]).mean(axis="columns") for tree in permuted}
    return DataFrame(lost)


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
            f"The data set {info.path} says nothing of groups of tasks. Use one that does: rendered-faces or rendered-rooms."
        )
    planted = _number_groups(info.groups.values())
    found = _number_groups(_read_first_decision(run_directory)["tasks"])
    return float(adjusted_rand_score([planted[name] for name in found], list(found.values())))


def _number_groups(groups: Iterable[Sequence[str]]) -> dict[str, int]:
    return {name: number for number, group in enumerate(groups) for name in group}


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
