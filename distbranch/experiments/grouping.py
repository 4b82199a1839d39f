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
from distbranch.engine.initialisation import drawn_order
from distbranch.engine.metrics import Report
from distbranch.engine.results import read_result
from distbranch.errors import UserError
from distbranch.experiments.comparison import (
    Run,
    experiment_sweep,
    paired,
    run_experiment,
    write_csv,
    write_text,
)
from distbranch.experiments.place import check_place, record_place
from distbranch.report.console import markdown_table
from distbranch.report.experiment_figures import draw_reductions, save_figure
from distbranch.report.figures import MEANS

METRICS = ("accuracy", "average_precision")
HERE = (
    "launch.address=null",
    "launch.device=auto",
    "launch.wait_for_nodes_min=0",
)  # not where the run itself was trained
LEARNED = "learned"
SIGNIFICANT = 0.05
TRIES = 20  # permutations drawn for each that is wanted
Reductions = Mapping[
    str, Sequence[float]
]  # of every task, one per permutation, in 0..1; positive: the learned tree is better


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


def compare_groupings(
    run: Path,
    permutations: int,
    seeds: Sequence[int] | None,
    overrides: Sequence[str],
    *,
    split: str,
    name: str | None,
    jobs: int | None,
    report: Report,
) -> tuple[list[Verdict], Path]:
    """Train the tree of a run and its permutations from scratch; what permuting does, and where tables and pictures are.

    Args:
        run: a finished run whose tree has grown.
        permutations: how many; number k is drawn with seed k.
        seeds: of every tree; None: the one of the run.
        overrides: `key=value`, for all runs.
        split: `val` or `test`.
        name: of the experiment's directory; `grouping-<run>` if None.
        jobs: runs at the same time.
        report: told what happens.

    Raises:
        UserError: the run has not finished or its tree has not grown, or a run failed.
    """
    variants = grouping_variants(run, permutations, split)
    name = name or f"grouping-{run.absolute().name}"
    sweep = experiment_sweep(name, variants, [*HERE, *overrides], seeds=seeds, jobs=jobs)
    about = {"experiment": "grouping", "run": str(run.absolute()), "split": split}
    check_place(sweep, about)
    runs = run_experiment(sweep, report, splits=(split,))
    record_place(sweep, about)
    learned = runs.pop(LEARNED)
    every = {metric: reductions(learned, list(runs.values()), metric, split) for metric in METRICS}
    found = {metric: tasks for metric, tasks in every.items() if tasks}  # a metric may be undefined for all tasks
    if not found:
        raise UserError(
            f"No task has a metric on {split} in all runs, so nothing can be compared there. Give another --split."
        )
    verdicts = [judge(tasks, metric) for metric, tasks in found.items()]
    write_csv(sweep.path, "tasks.csv", _rows(found))
    write_text(sweep.path, "table.md", _markdown(run, found, verdicts, permutations, len(learned), split))
    headings = {
        f"{MEANS[metric][0]}: lost on {verdict.num_lose} of {verdict.num_tasks} tasks, p = {verdict.p_value:.2g}": {
            task: [100 * value for value in values] for task, values in found[metric].items()
        }
        for metric, verdict in zip(found, verdicts, strict=True)
    }
    title = f"What permuting the tasks of {run.absolute().name} costs on {split}: mean over {permutations} permutations, dots: each"
    save_figure(draw_reductions(headings, title=title), sweep.path / "grouping.png")
    return verdicts, sweep.path


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
    known, numbers = {_together(tree)}, list[int]()
    for number in range(1, permutations * TRIES + 1):
        other = _together(tree.permuted(drawn_order(number, tree.num_tasks)))
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


def _together(tree: Tree) -> tuple[frozenset[tuple[int, ...]], ...]:
    """Which tasks share a branch, layer by layer, in no order."""
    return tuple(frozenset(map(tuple, map(sorted, tree.branches(layer)))) for layer in range(1, tree.num_layers + 1))


def reductions(
    learned: Sequence[Run], permuted: Sequence[Sequence[Run]], metric: str, split: str
) -> dict[str, list[float]]:
    """How much lower the metric of every task is with each permuted tree, mean over seeds; tasks without it are left out."""
    found: dict[str, list[float]] = {}
    for runs in permuted:
        pairs = [(one.tasks(metric, split), other.tasks(metric, split)) for one, other in paired(learned, runs)]
        known = [task for task in pairs[0][0] if all(task in one and task in other for one, other in pairs)]
        for task in known:
            found.setdefault(task, []).append(float(np.mean([one[task] - other[task] for one, other in pairs])))
    return {task: values for task, values in found.items() if len(values) == len(permuted)}


def judge(found: Reductions, metric: str) -> Verdict:
    """Count tasks and trees, and test the mean reductions of the tasks against zero."""
    table = np.array(list(found.values()))  # [T, K]
    tasks, trees = table.mean(axis=1), table.mean(axis=0)
    return Verdict(
        metric=metric,
        num_tasks=len(tasks),
        num_lose=int((tasks > 0).sum()),
        num_gain=int((tasks < 0).sum()),
        num_trees=len(trees),
        num_trees_lose=int((trees > 0).sum()),
        mean=float(tasks.mean()),
        p_value=float(wilcoxon(tasks).pvalue) if np.any(tasks) else 1.0,
        favours_learned=bool(np.any(tasks) and wilcoxon(tasks, alternative="greater").pvalue < 0.5),
    )


def _rows(found: Mapping[str, Reductions]) -> list[dict[str, Any]]:
    """A row per task: for each metric the mean reduction and that of every permutation, in 0..1."""
    rows: dict[str, dict[str, Any]] = {}
    for metric, tasks in found.items():
        for task, values in tasks.items():
            row = rows.setdefault(task, {"task": task})
            row[f"{metric}_lost"] = float(np.mean(values))
            row |= {f"{metric}_lost_{number}": value for number, value in enumerate(values, start=1)}
    return list(rows.values())


def _markdown(
    run: Path,
    found: Mapping[str, Reductions],
    verdicts: Sequence[Verdict],
    permutations: int,
    num_seeds: int,
    split: str,
) -> str:
    seeds = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}"
    lines = [f"# The grouping of {run.absolute().name} against {permutations} permutations, {seeds}, {split}", ""]
    lines += [f"- {verdict}" for verdict in verdicts]
    note = (
        "Tasks are scored on the same images and share layers, and all are compared with the same learned runs, so they are no "
        "independent samples and p is a guide; more --seeds lessen the noise of training. Below: points lost by permuting, mean "
        "over permutations (smallest to largest)."
    )
    heads = ["task", *(f"{MEANS[metric][0].lower()} lost" for metric in found)]
    first = next(iter(found.values()))
    order = sorted(first, key=lambda task: -float(np.mean(first[task])))
    rows = [[task, *(_cell(tasks.get(task)) for tasks in found.values())] for task in order]
    return "\n".join([*lines, "", note, "", markdown_table(heads, rows)])


def _cell(values: Sequence[float] | None) -> str:
    if values is None:
        return "\u2013"
    least, most = 100 * min(values), 100 * max(values)
    return f"{100 * float(np.mean(values)):+.2f} ({least:+.2f} to {most:+.2f})"
