"""Which pictures a run has something for, with what the page says about each."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from distbranch.report import figures
from distbranch.report.layers import Branches, top_groups
from distbranch.report.run_files import RunFiles, task_order
from distbranch.report.sharing_figures import draw_groups, draw_policy, draw_search
from distbranch.report.tree_figure import draw_growth, draw_tree

GROUPS_NOTE = (
    "From the top layer on the left down to the image: a box is a branch with the number of its tasks, a colour is a group of the "
    "top layer. Layers with the same groups share a column."
)


@dataclass(frozen=True)
class Picture:
    """One figure of the page: the name of its PNG, its heading, what it shows, how it is drawn."""

    name: str
    heading: str
    note: str
    draw: Callable[[], Figure]


def pictures(run: RunFiles) -> list[Picture]:
    """The figures that the run has something for, in the order of the page."""
    groups, decisions = top_groups(run.layers), run.decisions
    training, evaluations = run.logged("train"), run.logged("evaluation")
    found = []
    if run.layers:
        found.append(
            Picture(
                "tree",
                "The network that grew" if decisions else "The network",
                _describe_tree(run),
                lambda: draw_tree(run.layers),
            )
        )
    if run.policy:
        policy, note = (
            run.policy,
            "A row per task, a column per block from the image to the heads; blue: executes, empty: skips.",
        )
        if "execute_probability" in policy:
            note = "A row per task, a column per block from the image to the heads: the probability of executing it, in percent. "
            note += "A blue frame: executed by the most probable policy."
        found.append(Picture("policy", "Who executes which block", note, lambda: draw_policy(policy)))
    if run.policies:
        note = "The search from its first cycle to its last."
        found.append(Picture("search", "How the policy was found", note, lambda: draw_search(run.policies)))
    if run.layers and decisions:
        note = "One picture per decision; the layer that was decided upon is shaded."
        found.append(Picture("growth", "Round by round", note, lambda: draw_growth(run.layers, decisions)))
    if len(groups) > 1:
        found.append(Picture("groups", "Who is together at which layer", GROUPS_NOTE, lambda: draw_groups(run.layers)))
    if run.layers and decisions:
        found.append(_make_affinity_picture(run, groups))
        note = "Total cost of splitting the layer into d branches; the smallest total wins, the smallest d on ties. "
        note += "Not shown are those d that cost more by their number alone than the chosen one in all."
        found.append(Picture("costs", "Why that many branches", note, lambda: figures.draw_costs(decisions)))
    if training:
        note = (
            "Dotted lines: decisions, with the layer and its number of branches." if decisions else "Every logged step."
        )
        found.append(Picture("curves", "Training", note, lambda: figures.draw_curves(training, evaluations, decisions)))
    if shown_split(run):
        found.append(_make_task_picture(run, groups))
    if training:
        note, resumed = "More branches cost time; waiting for data should stay near zero.", run.logged("resumed")
        found.append(
            Picture("throughput", "Speed", note, lambda: figures.draw_throughput(training, decisions, resumed))
        )
    return found


def _describe_tree(run: RunFiles) -> str:
    top = len(run.layers[-1].branches)
    note = f"{len(run.layers[-1].tasks)} tasks in {top} group{'s' if top != 1 else ''} at the top layer. "
    return (
        note
        + "Each coloured strand is one group on its way from the image to its tasks; a box is one layer of one branch."
    )


def _make_affinity_picture(run: RunFiles, groups: Branches) -> Picture:
    top = len(run.layers)
    decision = next((d for d in run.decisions if d["layer"] == top and d["num_groups"] > 1), run.decisions[0])
    tasks = task_order(run.decisions)
    title = f"Round {decision['round']}, iteration {decision['iteration']:,}"
    note = (
        "How often two tasks are difficult for the same photographs: blue together, white independent, brown at different "
        f"times. Ordered by group. The decision used {decision['affinity_kind']}."
    )
    draw = lambda: figures.draw_affinity(run.affinity(decision), tasks, groups, title=title)  # noqa: E731
    return Picture("affinity", "Which tasks are difficult together", note, draw)


def _make_task_picture(run: RunFiles, groups: Branches) -> Picture:
    split, scores = shown_split(run), run.scores()
    note = f"Split: {split}. In per cent; best average precision first. Colours and numbers are those of the groups."
    draw = lambda: figures.draw_task_table(scores[split], groups, title=f"{run.name}: {split}")  # noqa: E731
    return Picture("tasks", "Every task", note, draw)


def shown_split(run: RunFiles) -> str:
    """The split whose tasks are shown: test, else val, else any; empty if nothing was evaluated yet."""
    scores = {split for split, values in run.scores().items() if values.get("tasks")}
    return next((split for split in ("test", "val", *sorted(scores)) if split in scores), "")
