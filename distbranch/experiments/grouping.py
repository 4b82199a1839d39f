"""Is the learned grouping worth anything? The tree of a finished run, trained from scratch, against the same tree with its tasks permuted.

Figure 3 of the paper, with every task counted and a paired test over the tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from distbranch.branching.tree import Tree
from distbranch.config.sweep import SweepConfig
from distbranch.engine.initialisation import order_by_number
from distbranch.engine.results import read_result
from distbranch.errors import UserError
from distbranch.experiments.runner import Experiment, Findings
from distbranch.experiments.runs import Run, Runs, pair_by_seed
from distbranch.report.console import markdown_table
from distbranch.report.experiment_figures import draw_reductions
from distbranch.report.figures import MEANS

METRICS = ("accuracy", "average_precision")
# The trees are trained here, not where the run itself was trained.
HERE = ("launch.address=null", "launch.device=auto", "launch.wait_for_nodes_min=0")
LEARNED = "learned"
SIGNIFICANT = 0.05
TRIES = 20  # permutations drawn for each that is wanted: a small tree has few that differ
Reductions = Mapping[str, Sequence[float]]  # {task: one per permutation}, in 0..1; positive: the learned tree is better


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
    """The tree of a run and its permutations, trained from scratch; found: [Verdict, ...].

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
        permuted = [members for variant, members in runs.items() if variant != LEARNED]
        found: dict[str, Reductions] = {}
        for metric in METRICS:
            reductions = measure_reductions(runs[LEARNED], permuted, metric, split)
            if reductions:  # a metric may be undefined for all tasks
                found[metric] = reductions
        if not found:
            raise UserError(
                f"No task has a metric on {split} in all runs, so nothing can be compared there. Give another --split."
            )
        verdicts = {metric: measure_significance(reductions, metric) for metric, reductions in found.items()}
        panels = {}
        for metric, verdict in verdicts.items():
            lost = f"lost on {verdict.num_lose} of {verdict.num_tasks} tasks, p = {verdict.p_value:.2g}"
            points = {task: [100 * value for value in values] for task, values in found[metric].items()}
            panels[f"{MEANS[metric][0]}: {lost}"] = points
        title = f"What permuting the tasks of {run_name} costs on {split}: mean over {permutations} permutations, dots: each"
        seeds = len(runs[LEARNED])
        heading = f"# The grouping of {run_name} against {permutations} permutations, {seeds} seed{'s' * (seeds > 1)}, {split}"
        return Findings(
            list(verdicts.values()),
            "\n".join(map(str, verdicts.values())),
            grouping_markdown(heading, found, list(verdicts.values())),
            tables={"tasks.csv": _make_rows(found)},
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


def measure_reductions(
    learned: Sequence[Run], permuted: Sequence[Sequence[Run]], metric: str, split: str
) -> dict[str, list[float]]:
    """How much lower the metric of every task is with each permuted tree, mean over seeds; tasks without it are left out."""
    found: dict[str, list[float]] = {}
    for runs in permuted:
        pairs = []
        for one, other in pair_by_seed(learned, runs):
            pairs.append((one.get_task_values(metric, split), other.get_task_values(metric, split)))
        for task in pairs[0][0]:
            if all(task in one and task in other for one, other in pairs):
                lost = float(np.mean([one[task] - other[task] for one, other in pairs]))
                found.setdefault(task, []).append(lost)
    return {task: values for task, values in found.items() if len(values) == len(permuted)}


def measure_significance(found: Reductions, metric: str) -> Verdict:
    """Count tasks and trees, and test the mean reductions of the tasks against zero."""
    table = np.array(list(found.values()))  # [T, K]
    tasks = table.mean(axis=1)
    trees = table.mean(axis=0)
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


def _make_rows(found: Mapping[str, Reductions]) -> list[dict[str, Any]]:
    """A row per task: for each metric the mean reduction and that of every permutation, in 0..1."""
    rows: dict[str, dict[str, Any]] = {}
    for metric, tasks in found.items():
        for task, values in tasks.items():
            row = rows.setdefault(task, {"task": task})
            row[f"{metric}_lost"] = float(np.mean(values))
            row |= {f"{metric}_lost_{number}": value for number, value in enumerate(values, start=1)}
    return list(rows.values())


def grouping_markdown(heading: str, found: Mapping[str, Reductions], verdicts: Sequence[Verdict]) -> str:
    """The verdicts, then a row per task, that which loses most first."""
    lines = [heading, "", *(f"- {verdict}" for verdict in verdicts)]
    note = (
        "Tasks are scored on the same images and share layers, and all are compared with the same learned runs, so they are no "
        "independent samples and p is a guide; more --seeds lessen the noise of training. Below: points lost by permuting, mean "
        "over permutations (smallest to largest)."
    )
    heads = ["task", *(f"{MEANS[metric][0].lower()} lost" for metric in found)]
    first = next(iter(found.values()))
    rows = []
    for task in sorted(first, key=lambda task: -float(np.mean(first[task]))):
        cells = [_format_loss(tasks.get(task)) for tasks in found.values()]
        rows.append([task, *cells])
    return "\n".join([*lines, "", note, "", markdown_table(heads, rows)])


def _format_loss(values: Sequence[float] | None) -> str:
    if values is None:
        return "\u2013"
    least = 100 * min(values)
    most = 100 * max(values)
    return f"{100 * float(np.mean(values)):+.2f} ({least:+.2f} to {most:+.2f})"
