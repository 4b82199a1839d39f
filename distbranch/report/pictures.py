"""Which pictures a run has something for, with what the page says about each."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from distbranch.report.figures import draw_affinity, draw_costs, draw_curves, draw_task_table, draw_throughput
from distbranch.report.layers import top_groups
from distbranch.report.run_files import Json, RunFiles, task_order
from distbranch.report.sharing_figures import draw_groups, draw_policy, draw_search
from distbranch.report.tree_figure import draw_growth, draw_tree

GROUPS_NOTE = (
    "From the top layer on the left down to the image: a box is a branch with the number of its tasks, a colour is a group of the "
    "top layer. Layers with the same groups share a column."
)

DRAWN_POLICY_NOTE = "A row per task, a column per block from the image to the heads; blue: executes, empty: skips."
POLICY_NOTE = (
    "A row per task, a column per block from the image to the heads: the probability of executing it, in percent. "
    "A blue frame: executed by the most probable policy."
)
AFFINITY_NOTE = (
    "How often two tasks are difficult for the same photographs: blue together, white independent, brown at different "
    "times. Ordered by group. The decision used {kind}."
)
COSTS_NOTE = (
    "Total cost of splitting the layer into d branches; the smallest total wins, the smallest d on ties. "
    "Not shown are those d that cost more by their number alone than the chosen one in all."
)


@dataclass(frozen=True)
class Picture:
    """One figure of the page: the name of its PNG, its heading, what it shows, how it is drawn."""

    name: str
    heading: str
    note: str
    draw: Callable[[], Figure]


def list_pictures(run: RunFiles) -> list[Picture]:
    """The figures that the run has something for, in the order of the page."""
    groups = top_groups(run.layers)
    decisions = run.decisions
    grown = bool(run.layers and decisions)
    training = run.logged("train")
    evaluations = run.logged("evaluation")
    resumed = run.logged("resumed")
    found = []

    def add(name: str, heading: str, note: str, draw: Callable[[], Figure]) -> None:
        found.append(Picture(name, heading, note, draw))

    if run.layers:
        heading = "The network that grew" if decisions else "The network"
        add("tree", heading, _describe_tree(run), lambda: draw_tree(run.layers))
    if policy := run.policy:
        note = POLICY_NOTE if "execute_probability" in policy else DRAWN_POLICY_NOTE
        add("policy", "Who executes which block", note, lambda: draw_policy(policy))
    if run.policies:
        note = "The search from its first cycle to its last."
        add("search", "How the policy was found", note, lambda: draw_search(run.policies))
    if grown:
        note = "One picture per decision; the layer that was decided upon is shaded."
        add("growth", "Round by round", note, lambda: draw_growth(run.layers, decisions))
    if len(groups) > 1:
        add("groups", "Who is together at which layer", GROUPS_NOTE, lambda: draw_groups(run.layers))
    if grown:
        decision = _choose_shown_decision(run)
        note = AFFINITY_NOTE.format(kind=decision["affinity_kind"])
        add("affinity", "Which tasks are difficult together", note, lambda: _draw_affinity(run, decision))
        add("costs", "Why that many branches", COSTS_NOTE, lambda: draw_costs(decisions))
    if training:
        note = "Every logged step."
        if decisions:
            note = "Dotted lines: decisions, with the layer and its number of branches."
        add("curves", "Training", note, lambda: draw_curves(training, evaluations, decisions))
    if split := shown_split(run):
        note = (
            f"Split: {split}. In per cent; best average precision first. Colours and numbers are those of the groups."
        )
        title = f"{run.name}: {split}"
        add("tasks", "Every task", note, lambda: draw_task_table(run.scores()[split], groups, title=title))
    if training:
        note = "More branches cost time; waiting for data should stay near zero."
        add("throughput", "Speed", note, lambda: draw_throughput(training, decisions, resumed))
    return found


def _describe_tree(run: RunFiles) -> str:
    top = run.layers[-1]
    groups = "1 group" if len(top.branches) == 1 else f"{len(top.branches)} groups"
    return (
        f"{len(top.tasks)} tasks in {groups} at the top layer. "
        "Each coloured strand is one group on its way from the image to its tasks; a box is one layer of one branch."
    )


def _choose_shown_decision(run: RunFiles) -> Json:
    """The one that split the top layer, whose groups have the colours; else the first."""
    top = len(run.layers)
    splits = [decision for decision in run.decisions if decision["layer"] == top and decision["num_groups"] > 1]
    return [*splits, *run.decisions][0]


def _draw_affinity(run: RunFiles, decision: Json) -> Figure:
    title = f"Round {decision['round']}, iteration {decision['iteration']:,}"
    return draw_affinity(run.affinity(decision), task_order(run.decisions), top_groups(run.layers), title=title)


def shown_split(run: RunFiles) -> str:
    """The split whose tasks are shown: test, else val, else any; empty if nothing was evaluated yet."""
    known = sorted(split for split, scores in run.scores().items() if scores.get("tasks"))
    for split in ("test", "val", *known):
        if split in known:
            return split
    return ""
