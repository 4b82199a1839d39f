"""Pictures of the grown tree: every top group is a coloured strand that runs from the image to its tasks.

Strands lie in one bundle where layers are shared and part where the network branches; a box is one layer of one branch.
Lengths are inches, so that text of a known size never overlaps: each group gets the height its wrapped task names need.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from distbranch.report.figure_style import (
    GRID,
    MUTED,
    PAPER,
    blend_colours,
    choose_text_colour,
    draw_box,
    group_colour,
    in_style,
    make_canvas,
)
from distbranch.report.layers import (
    Branches,
    LayerBranches,
    count_trunk,
    find_branch,
    fold_single_tasks,
    format_name,
    group_numbers,
    grow_layers,
    list_top_groups,
    name_decision,
    shorten_trunk,
)

FONT, SMALL = 9.5, 8.0
LINE = 0.185  # height of a line of text
STEP = 0.44  # distance of two layers between which strands bend
CLOSE = 0.21  # of two between which they do not; names need it
WIDEST = 9.0  # of all layers; those of a deep network stand closer together
BOX = 0.13  # the width of the box of a branch
LETTERS = 30  # of a line of task names, at most
SEPARATOR = "  ·  "
FOLDED = blend_colours(MUTED, PAPER, 0.5)  # of a strand of several groups


@in_style
def draw_tree(layers: Sequence[LayerBranches], *, title: str = "") -> Figure:
    """The grown tree from the image on the left to the task names on the right."""
    layers = shorten_trunk(layers, count_trunk(layers))
    counts = [len(layer.branches) for layer in layers]
    numbers = group_numbers(list_top_groups(layers))
    layers = fold_single_tasks(layers)
    groups = list_top_groups(layers)
    marks = [_choose_mark(group, numbers) for group in groups]
    texts = [wrap_names(group) for group in groups]
    thick = choose_thickness(groups)
    # every group is as high as its strand or its names need
    lines = np.array(list(map(len, texts)))
    leaves = place_leaves(np.maximum(LINE * lines, thick + 0.05), top=0.1, gap=0.13)
    x = place_layers(layers)
    right = x[-1] + 0.6

    bottom = leaves[-1] + LINE * lines[-1]
    figure, axes = make_canvas(right, bottom)
    colours = [colour for _, colour in marks]
    draw_strands(axes, layers, groups, x, leaves, thick, colours, ends=(0, right), box=BOX)
    axes.text(
        -0.1,
        (leaves[0] + leaves[-1]) / 2,
        "image",
        fontsize=FONT,
        ha="right",
        va="center",
    )
    for layer, place, count in zip(layers, x, counts, strict=True):
        name = f"{layer.name} ({count})" if count > 1 else layer.name
        axes.text(place, -0.1, name, fontsize=FONT, rotation=60, rotation_mode="anchor")
    for (mark, colour), text, leaf in zip(marks, texts, leaves, strict=True):
        disc = {"boxstyle": "circle,pad=0.25", "facecolor": colour, "linewidth": 0}
        style: dict[str, Any] = {
            "color": choose_text_colour(colour),
            "ha": "center",
            "va": "center",
            "bbox": disc,
        }
        axes.text(right, leaf, mark, fontsize=SMALL, weight="bold", **style)
        axes.text(
            right + 0.24,
            leaf,
            "\n".join(text),
            fontsize=FONT,
            va="center",
            linespacing=1.4,
        )
    axes.text(0, bottom + 0.2, title, fontsize=13, weight="bold")
    return figure


@in_style
def draw_growth(
    layers: Sequence[LayerBranches],
    decisions: Sequence[Mapping[str, Any]],
    *,
    num_columns: int = 2,
) -> Figure:
    """The tree before the first decision and after each one, layer by layer (figure 2 of the paper).

    `layers` is the network as the last decision left it; what was decided upon is marked.
    """
    num_shared = count_trunk(layers)
    steps = [shorten_trunk(step, num_shared) for step in grow_layers(layers, decisions)]
    num_hidden = len(layers) - len(steps[0])
    layers = shorten_trunk(layers, num_shared)
    groups = list_top_groups(layers)
    sizes = np.array(list(map(len, groups)))
    # 1.4 inches for all groups, a fifth of it between them; no strand fills its leaf
    room = 1.1 * sizes / sizes.sum()
    thick = np.minimum(0.3 * room, 0.01 * sizes)
    width, height = 3.0, 1.95
    figure, axes = make_canvas(
        width * min(num_columns, len(steps)),
        height * math.ceil(len(steps) / num_columns),
    )
    for index, step in enumerate(steps):
        left = width * (index % num_columns)
        top = height * (index // num_columns)
        x = left + np.linspace(0.15, width - 0.6, len(layers))
        leaves = place_leaves(room, top=top + 0.35, gap=0.3 / len(groups))

        # its title, a shade on the layer that was decided upon, the tree
        title = "Before: everything shared"
        if index:
            title = _describe_step(decisions[index - 1])
            first = decisions[index - 1]["layer"] - 1
            last = first + len(decisions[index - 1].get("layers", [first])) - 1
            left_edge = x[max(0, first - num_hidden)] - 0.08
            across = x[max(0, last - num_hidden)] + 0.08 - left_edge
            axes.add_patch(Rectangle((left_edge, top + 0.28), across, 1.54, facecolor=GRID))
        axes.text(left, top + 0.13, title, fontsize=SMALL, va="center")
        draw_strands(
            axes,
            step,
            groups,
            x,
            leaves,
            thick,
            list(map(group_colour, range(len(groups)))),
            ends=(left, left + width - 0.3),
            box=0.06,
        )
    return figure


def draw_strands(
    axes: Axes,
    layers: Sequence[LayerBranches],
    groups: Branches,
    x: np.ndarray,
    leaves: np.ndarray,
    thick: np.ndarray,
    colours: Sequence[str],
    *,
    ends: tuple[float, float],
    box: float,
) -> None:
    """A strand per group through all layers, and a box for every branch around the strands that it carries.

    Args:
        axes: of a canvas in inches.
        layers: input first.
        groups: those of the top layer, from the top down.
        x: middle of every layer's boxes [L].
        leaves: height of every group's names [G].
        thick: of every group's strand [G].
        colours: of every group [G].
        ends: where the strands begin and end.
        box: the width of a box.
    """
    heights = np.array(
        [place_strands(layer.branches, groups, leaves, thick) for layer in layers]
    )  # [L, G]
    stops = np.array([ends[0], *x, ends[1]])
    ways = np.vstack([heights[:1], heights, leaves])
    for way, colour, inches in zip(ways.T, colours, thick, strict=True):
        axes.plot(
            *_bend_line(stops, way),
            color=colour,
            linewidth=72 * inches,
            solid_capstyle="butt",
        )
    for layer, middle, centres in zip(layers, x, heights, strict=True):
        for members in list_members(layer.branches, groups):
            if groups[members[0]][0] in layer.skipped:
                continue
            # 0.4 of a box beyond its strands
            top = centres[members[0]] - thick[members[0]] / 2 - 0.4 * box
            bottom = centres[members[-1]] + thick[members[-1]] / 2 + 0.4 * box
            draw_box(axes, middle - box / 2, top, middle + box / 2, bottom, zorder=3)


def place_layers(layers: Sequence[LayerBranches]) -> np.ndarray:
    """The middle of every layer's boxes in inches [L]: far from the layer below where that has other branches."""
    steps = [
        STEP if set(below.branches) != set(layer.branches) else CLOSE
        for below, layer in pairwise(layers)
    ]
    x = np.cumsum([CLOSE + BOX, *steps])
    return np.asarray(x * min(1.0, WIDEST / x[-1]))


def _choose_mark(group: Sequence[str], numbers: Mapping[str, int]) -> tuple[str, str]:
    """What stands at the end of a strand, and its colour: the number of a group, or how many tasks are folded into it."""
    found = {numbers[task] for task in group}
    if len(found) > 1:
        return f"{len(found)}x", FOLDED
    number = found.pop()
    return str(number + 1), group_colour(number)


def list_members(branches: Branches, groups: Branches) -> list[list[int]]:
    """For every branch of a layer the numbers of the top groups that it feeds."""
    found: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(find_branch(branches, group[0]), []).append(number)
    return list(found.values())


def place_strands(
    branches: Branches, groups: Branches, leaves: np.ndarray, thick: np.ndarray
) -> np.ndarray:
    """The height of every group's strand in a layer [G].

    A branch is centred on the leaves it feeds; as no strand is thicker than its leaf, branches cannot overlap.
    """
    heights = np.empty(len(groups))
    for members in list_members(branches, groups):
        centre = (leaves[members[0]] + leaves[members[-1]]) / 2
        ends = np.cumsum(thick[members])
        heights[members] = centre - ends[-1] / 2 + ends - thick[members] / 2
    return heights


def choose_thickness(groups: Branches) -> np.ndarray:
    """Inches of every group's strand: all tasks alike, 1.5 in all and 0.34 of one group at most."""
    sizes = np.array(list(map(len, groups)))
    return np.asarray(min(0.045, 1.5 / sizes.sum(), 0.34 / sizes.max()) * sizes)


def place_leaves(heights: np.ndarray, *, top: float, gap: float) -> np.ndarray:
    """The middles of spans of these heights below each other [G]."""
    below = np.cumsum(heights + gap)
    return np.asarray(top + below - gap - heights / 2)


def wrap_names(tasks: Sequence[str]) -> list[str]:
    """Task names on as few lines as their order allows; a name is never broken."""
    # the blanks of a name do not end a line, those behind a separator do
    names = SEPARATOR.join(format_name(task).replace(" ", "\N{NO-BREAK SPACE}") for task in tasks)
    lines = textwrap.wrap(names, LETTERS, break_long_words=False, break_on_hyphens=False)
    return [line.strip(" ·").replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _bend_line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line through the points, level at each of them."""
    # twenty pieces look smooth; 3 t^2 - 2 t^3 is level at both ends
    t = np.linspace(0, 1, 20)
    ease = 3 * t**2 - 2 * t**3
    across = x[:-1, None] + np.diff(x)[:, None] * t
    down = y[:-1, None] + np.diff(y)[:, None] * ease
    return across.ravel(), down.ravel()


def _describe_step(decision: Mapping[str, Any]) -> str:
    what = "stays whole"
    if decision["num_groups"] > 1:
        what = f"→ {decision['num_groups']}"
    when, where = name_decision(decision)
    return f"{when}, iteration {decision['iteration']:,}: {where} {what}"
