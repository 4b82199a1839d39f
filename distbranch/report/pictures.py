"""Which pictures a run has something for, with what the page says about each."""

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from distbranch.report.figures import (
    draw_affinity,
    draw_costs,
    draw_curves,
    draw_scores,
    draw_task_table,
    draw_throughput,
    list_marks,
    list_score_curves,
)
from distbranch.report.layers import format_name, list_top_groups, mark_skipped, name_decision
from distbranch.report.map_figures import draw_maps
from distbranch.report.run_files import Json, RunFiles, choose_shown_split
from distbranch.report.sharing_figures import draw_groups, draw_policy, draw_search
from distbranch.report.tree_figure import draw_growth, draw_tree

# The heading and the note of every picture.
TEXTS = {
    "tree": (
        "The network",
        "Each coloured strand is one group of the top layer on its way from the image to its tasks; a box is one layer of one "
        "branch. With more than twenty groups, tasks that are alone from the same layer on, out of the same branch, are one grey strand.",
    ),
    "policy": (
        "Who executes which block",
        "A row per task, a column per block from the image to the heads; blue: executes, empty: skips. Numbers, of a search, are "
        "the probability of executing the block in percent: above 50 the most probable policy does.",
    ),
    "search": (
        "How the policy was found",
        "The search from its first cycle to its last.",
    ),
    "growth": (
        "Round by round",
        "One picture per decision; the layer that was decided upon is shaded.",
    ),
    "groups": (
        "Who is together at which layer",
        "From the top layer on the left down to the image: a box is a branch with the number of its tasks, a colour is a group of "
        "the top layer. Layers with the same groups share a column.",
    ),
    "affinity": (
        "Which tasks are alike",
        "By the kind of affinity that a picture names: difficult for the same photographs, or in need of the same filters. Blue: alike, "
        "white: independent, brown: opposite. Ordered by group.",
    ),
    "costs": (
        "Why that many branches",
        "Total cost of splitting the layer into d branches; the smallest total wins, the smallest d on ties. Not shown are those "
        "d that cost more by their number alone than the chosen one in all.",
    ),
    "curves": (
        "Training",
        "Every logged step. Dotted lines: decisions, with the layer and its number of branches.",
    ),
    "scores": (
        "Scores on val",
        "Means over tasks at every evaluation, each metric on an axis of its own. Dotted lines: decisions.",
    ),
    "tasks": (
        "Every task",
        "On test where it was evaluated, best first: classes by average precision, in per cent; numbers by their error in standard "
        "deviations (less is better), which is comparable, while the mean absolute error is in the unit of each. A mark lies between "
        "the smallest (left) and the largest value of its column; shares are spaced by their odds, so 99.0 and 99.5 are as far apart as "
        "80 and 89. Colours are those of the groups.",
    ),
    "throughput": (
        "Speed",
        "More branches cost time; waiting for data should stay near zero.",
    ),
}


MAPS = "maps-"  # before the task in the name of a picture
OF_MAPS = (
    "A few images that the network was not trained on, with the truth, its prediction and the error of every pixel. Hatched or black: "
    "not labelled."
)


def describe_picture(name: str) -> tuple[str, str]:
    """The heading and the note of a picture."""
    if name.startswith(MAPS):
        return f"{format_name(name.removeprefix(MAPS))}, pixel by pixel", OF_MAPS
    return TEXTS[name]


def list_pictures(run: RunFiles, thin: RunFiles | None = None) -> dict[str, Callable[[], Figure]]:
    """The figures that the run has something for, by name and in the order of the page; `thin` is a run to compare with."""
    groups = list_top_groups(run.layers)
    decisions = run.decisions
    training = run.select_lines("train")
    marks = list_marks(decisions, run.select_lines("resumed"))
    found: dict[str, Callable[[], Figure]] = {}
    if run.layers:
        shown = mark_skipped(run.layers, run.policy) if run.policy else run.layers
        found["tree"] = lambda: draw_tree(shown)
    if policy := run.policy:
        found["policy"] = lambda: draw_policy(policy)
    if run.policies:
        found["search"] = lambda: draw_search(run.policies)
    if run.layers and decisions:
        found["growth"] = lambda: draw_growth(run.layers, decisions)
    if len(groups) > 1:
        found["groups"] = lambda: draw_groups(run.layers)
    if run.layers and decisions:
        decision = _choose_shown_decision(run)
        title = f"{name_decision(decision)[0]}, iteration {decision['iteration']:,}, decided by {decision['affinity_kind']}"
        found["affinity"] = lambda: draw_affinity(
            run.read_affinity(decision), run.tasks, groups, title=title
        )
        found["costs"] = lambda: draw_costs(decisions)
    if training:
        found["curves"] = lambda: draw_curves(training, run.select_lines("evaluation"), marks)
    if scores := list_score_curves(run.select_lines("evaluation")):
        others = list_score_curves(thin.select_lines("evaluation")) if thin else {}
        name = thin.name if thin else ""
        found["scores"] = lambda: draw_scores(scores, others, marks, thin_name=name)
    if split := choose_shown_split(run):
        found["tasks"] = lambda: draw_task_table(
            run.get_scores()[split], groups, title=f"{run.name}: {split}"
        )
    if samples := run.read_sample_maps():
        for task in samples.tasks:
            found[f"{MAPS}{task.name}"] = partial(draw_maps, task, samples)
    if training:
        found["throughput"] = lambda: draw_throughput(training, marks)
    return found


def _choose_shown_decision(run: RunFiles) -> Json:
    """The one that split the top layer, whose groups have the colours; else the first."""
    for decision in run.decisions:
        if decision["layer"] == len(run.layers) and decision["num_groups"] > 1:
            return decision
    return run.decisions[0]
