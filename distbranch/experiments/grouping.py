"""Is the learned grouping worth anything? The tree of a finished run, trained from scratch, against the same tree with its tasks permuted.

Figure 3 of the paper, with every task counted and a paired test over the tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy.stats import wilcoxon

from distbranch.branching.tree import Tree
from distbranch.config.sweep import SweepConfig
from distbranch.engine.initialisation import order_by_number
from distbranch.engine.results import read_result
from distbranch.errors import UserError
from distbranch.experiments.runner import Experiment, Findings
from distbranch.experiments.runs import Runs, pivot_tasks, rows_markdown, tabulate_runs
from distbranch.report.console import METRICS as METRIC_NAMES
from distbranch.report.console import UNDEFINED
from distbranch.report.experiment_figures import draw_reductions

METRICS = ("accuracy", "average_precision")
# The trees are trained here, not where the run itself was trained.
HERE = ("launch.address=null", "launch.device=auto", "launch.wait_for_nodes_min=0")
LEARNED = "learned"
SIGNIFICANT = 0.05
TRIES = 20  # permutations drawn for each that is wanted: a small tree has few that differ


@dataclass(frozen=True)
class Verdict:
    """What permuting does: tasks counted by their mean over permutations, permuted trees by their mean over tasks.

    `p_value`: two-sided Wilcoxon signed-rank test over tasks; `favours_learned`: which way its ranks point, which may differ from
    the mean where few tasks lose much.
    """

    metric: str
    num_tasks: int
    num_lose: int
    num_gain: int
    num_trees: int
    num_trees_lose: int
    mean: float  # reduction in 0..1
    p_value: float
    favours_learned: bool

    def __str__(self) -> str:
        """What was seen, and what may be said of it."""
        name = self.metric.replace("_", " ")
        unchanged = self.num_tasks - self.num_lose - self.num_gain
        same = f" ({unchanged} unchanged)" if unchanged else ""
        if self.p_value >= SIGNIFICANT:
            says = "no difference between the learned and the permuted trees is shown"
        else:
            says = f"by ranks of tasks the learned tree is {'better' if self.favours_learned else 'worse'} than permuted ones"
            if self.favours_learned != (self.mean > 0):
                says += ", though by the mean it is the other way round: few tasks differ much"
        return (
            f"Permuting the tasks costs {name} on {self.num_lose} of {self.num_tasks} tasks and raises it on {self.num_gain}{same}; "
            f"the mean loss is {100 * self.mean:.2f} points, and {self.num_trees_lose} of {self.num_trees} permuted trees have a lower "
            f"mean. Wilcoxon signed-rank test over tasks, two-sided: p = {self.p_value:.2g}: {says}."
        )


def design_grouping(run: Path, permutations: int, *, split: str) -> Experiment:
    """The tree of a run and its permutations, trained from scratch.

    Args:
        run: a finished run whose tree has grown.
        permutations: how many; number k is drawn with seed k.
        split: `val` or `test`.

    Raises:
        UserError: the run has not finished or its tree has not grown.
    """
    run_name = run.absolute().name

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        del sweep
        values = tabulate_runs(runs)
        found = {metric: measure_reductions(values, metric, split) for metric in METRICS}
        found = {metric: lost for metric, lost in found.items() if not lost.empty}  # undefined for all tasks
        if not found:
            raise UserError(
                f"No task has a metric on {split} in all runs, so nothing can be compared there. Give another --split."
            )
        verdicts = [measure_significance(lost, metric) for metric, lost in found.items()]
        panels = {}
        for verdict in verdicts:
            heading = f"lost on {verdict.num_lose} of {verdict.num_tasks} tasks, p = {verdict.p_value:.2g}"
            points = (100 * found[verdict.metric]).T.to_dict("list")
            panels[f"{METRIC_NAMES[verdict.metric]}: {heading}"] = points
        title = f"What permuting the tasks of {run_name} costs on {split}: mean over {permutations} permutations, dots: each"
        seeds = len(runs[LEARNED])
        heading = f"# The grouping of {run_name} against {permutations} permutations, {seeds} seed{'s' * (seeds > 1)}, {split}"
        text = "\n".join(map(str, verdicts))
        return Findings(
            text,
            grouping_markdown(heading, found, verdicts),
            tables={"tasks.csv": tabulate_reductions(found)},
            figures={"grouping.png": draw_reductions(panels, title=title)},
        )

    return Experiment(
        name=f"grouping-{run_name}",
        about={"experiment": "grouping", "run": str(run.absolute()), "split": split},
        variants=grouping_variants(run, permutations, split),
        analyse=analyse,
        splits=(split,),
        overrides=HERE,
    )


def grouping_variants(run: Path, permutations: int, split: str) -> dict[str, dict[str, Any]]:
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
    if all(len(tree.branches(layer)) == 1 for layer in range(1, tree.num_layers + 1)):
        raise UserError(
            f"The tree of {run} has no branches, so there is nothing to permute. Give a run that has grown."
        )
    if split not in result.metrics:
        raise UserError(
            f"The data of {run} have no split '{split}', so nothing can be compared on it. Give --split val."
        )
    given = {
        "base": str((run / "config.yaml").absolute()),
        "method.name": "fixed",
        "method.groups": str(run.absolute()),
        "method.init": "random",
        "method.pretrained": None,
        "method.permutation": None,
    }
    known = {_read_groups(tree)}
    numbers: list[int] = []
    for number in range(1, permutations * TRIES + 1):
        permuted_tree = tree.permuted(order_by_number(number, tree.num_tasks))
        other = _read_groups(permuted_tree)
        if other not in known and len(numbers) < permutations:
            known.add(other)
            numbers.append(number)
    if len(numbers) < permutations:
        raise UserError(
            f"The tree of {run} has {len(numbers)} permutations that put other tasks together, found among {permutations * TRIES}; "
            f"{permutations} were asked for. Give fewer --permutations."
        )
    permuted = {f"permuted-{number}": given | {"method.permutation": number} for number in numbers}
    return {LEARNED: given, **permuted}


def _read_groups(tree: Tree) -> tuple[frozenset[tuple[int, ...]], ...]:
    """Which tasks share a branch, layer by layer, in no order."""
    layers = []
    for layer in range(1, tree.num_layers + 1):
        groups = [tuple(sorted(branch)) for branch in tree.branches(layer)]
        layers.append(frozenset(groups))
    return tuple(layers)


def measure_reductions(values: pandas.DataFrame, metric: str, split: str) -> pandas.DataFrame:
    """How much lower the metric of every task is with each permuted tree, mean over seeds: [T, K] in 0..1.

    Tasks without the metric in some run are left out. Positive: the learned tree is better.
    """
    table = pivot_tasks(values, metric, split).dropna()
    trees = table.columns.unique("variant").drop(LEARNED)
    lost = {tree: (table[LEARNED] - table[tree]).mean(axis="columns") for tree in trees}
    return pandas.DataFrame(lost)


def measure_significance(lost: pandas.DataFrame, metric: str) -> Verdict:
    """Count tasks and trees, and test the mean reductions of the tasks against zero."""
    tasks = lost.mean(axis="columns").to_numpy()
    trees = lost.mean(axis="index")
    differs = bool(np.any(tasks))  # the test is undefined where nothing differs
    return Verdict(
        metric=metric,
        num_tasks=len(tasks),
        num_lose=int((tasks > 0).sum()),
        num_gain=int((tasks < 0).sum()),
        num_trees=len(trees),
        num_trees_lose=int((trees > 0).sum()),
        mean=float(tasks.mean()),
        p_value=float(wilcoxon(tasks).pvalue) if differs else 1.0,
        favours_learned=differs and bool(wilcoxon(tasks, alternative="greater").pvalue < 0.5),
    )


def tabulate_reductions(found: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """A row per task: for each metric the mean reduction and that of every permutation, in 0..1."""
    parts = []
    for metric, lost in found.items():
        part = lost.set_axis([f"{metric}_lost_{number}" for number in range(1, lost.shape[1] + 1)], axis="columns")
        part.insert(0, f"{metric}_lost", lost.mean(axis="columns"))
        parts.append(part)
    return pandas.concat(parts, axis="columns").rename_axis("task").reset_index()


def grouping_markdown(heading: str, found: Mapping[str, pandas.DataFrame], verdicts: Sequence[Verdict]) -> str:
    """The verdicts, then a row per task, that which loses most first."""
    lines = [heading, "", *(f"- {verdict}" for verdict in verdicts)]
    note = (
        "Tasks are scored on the same images and share layers, and all are compared with the same learned runs, so they are no "
        "independent samples and p is a guide; more --seeds lessen the noise of training. Below: points lost by permuting, mean "
        "over permutations (smallest to largest)."
    )
    first = next(iter(found.values()))
    rows = []
    for task in first.mean(axis="columns").sort_values(ascending=False, kind="stable").index:
        row = {"task": task}
        for metric, lost in found.items():
            row[f"{METRIC_NAMES[metric].lower()} lost"] = _format_loss(lost, task)
        rows.append(row)
    return "\n".join([*lines, "", note, "", rows_markdown(rows)])


def _format_loss(lost: pandas.DataFrame, task: str) -> str:
    if task not in lost.index:
        return UNDEFINED
    points = 100 * lost.loc[task]
    return f"{points.mean():+.2f} ({points.min():+.2f} to {points.max():+.2f})"
