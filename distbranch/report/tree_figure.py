"""Pictures of the grown tree: every top group is a coloured strand that runs from the image to its tasks.

Strands lie in one bundle where layers are shared and part where the network branches; a box is one layer of one branch.
Lengths are inches, so that text of a known size never overlaps: each group gets the height its wrapped task names need.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve

from distbranch.report.figure_style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    choose_text_colour,
    group_colour,
    in_style,
    make_canvas,
    text_width,
)
from distbranch.report.layers import (
    Branches,
    LayerBranches,
    Run,
    find_branch,
    format_name,
    grow_layers,
    merge_equal_layers,
    top_groups,
)

FONT, SMALL = 9.5, 8.0
LINE = 0.185  # height of a line of text
SLAB, SLAB_GAP = 0.13, 0.07  # one layer of one branch, and the space to the next layer of the same run
EDGE, LONGEST_EDGE = 0.62, 1.4  # space between columns in which strands bend; the steeper, the more
HEADER = 0.78
TEXT_WIDTH = 4.3  # of a line of task names, at most

Span = tuple[float, float]


def wrap_names(tasks: Sequence[str], width: float, size: float = FONT) -> list[str]:
    """Task names on as few lines of at most `width` inches as their order allows; a name is never broken."""
    lines: list[str] = []
    for name in map(format_name, tasks):
        longer = "  ·  ".join([*lines[-1:], name])
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(name)
    return lines


@dataclass(frozen=True)
class Column:
    """Where a run of layers stands: its left edge, its right edge, the groups of each branch, and the span of every group."""

    run: Run
    left: float
    right: float
    members: list[list[int]]
    strands: list[Span]

    def find_box(self, numbers: Sequence[int], margin: float) -> Span:
        """The span of the box of a branch around its strands."""
        return self.strands[numbers[0]][0] - margin, self.strands[numbers[-1]][1] + margin


def list_members(branches: Branches, groups: Branches) -> list[list[int]]:
    """For every branch of a layer the numbers of the top groups that it feeds."""
    found: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(find_branch(branches, group[0]), []).append(number)
    return list(found.values())


def place_strands(members: Sequence[Sequence[int]], leaves: Sequence[Span], thick: Sequence[float]) -> list[Span]:
    """The vertical span of every group's strand in a layer.

    A branch is centred on the leaves it feeds; as no strand is thicker than its leaf, branches cannot overlap.
    """
    spans: dict[int, Span] = {}
    for numbers in members:
        centre = (leaves[numbers[0]][0] + leaves[numbers[-1]][1]) / 2
        top = centre - sum(thick[number] for number in numbers) / 2
        for number in numbers:
            spans[number] = (top, top + thick[number])
            top += thick[number]
    return [spans[number] for number in range(len(leaves))]


@in_style
def draw_tree(layers: Sequence[LayerBranches], *, title: str = "", heading: str = "") -> Figure:
    """The grown tree from the image on the left to the task names on the right."""
    groups = top_groups(layers)
    texts = [wrap_names(group, TEXT_WIDTH) for group in groups]
    thick = choose_thickness(groups)
    top = HEADER
    if title:
        top += 0.42
    # every group is as high as its strand or its names need
    heights = [max(LINE * len(lines), 0.05 + size) for lines, size in zip(texts, thick, strict=True)]
    leaves = place_groups(heights, top + 0.12, 0.13)
    columns = place_columns(merge_equal_layers(layers), groups, leaves, thick, left=1.0)
    text_left = columns[-1].right + EDGE + 0.42
    # "Tasks" and the number of heads stand above short names too
    longest = max(text_width(line, FONT) for lines in texts for line in lines)
    width = text_left + max(longest, 1.2) + 0.15

    figure, axes = make_canvas(width, leaves[-1][1] + 0.2)
    if title:
        axes.text(0.15, 0.24, title, fontsize=13, weight="bold", va="center")
        axes.text(width - 0.15, 0.24, heading, fontsize=SMALL + 1, color=MUTED, va="center", ha="right")
    _draw_strands(axes, columns, leaves, image_right=0.72, text_left=text_left)
    _draw_image(axes, columns[0])
    for column in columns:
        lines = [column.run.title, *_list_subtitles(column.run)]
        _draw_header(axes, lines, (column.left + column.right) / 2, top, "center")
        for index in range(len(column.run.layers)):
            _draw_boxes(axes, column, column.left + index * (SLAB + SLAB_GAP), SLAB, 0.05)
    _draw_header(axes, ["Tasks", f"{sum(map(len, groups))} heads"], text_left, top, "left")
    for number, (lines, leaf) in enumerate(zip(texts, leaves, strict=True)):
        _draw_tasks(axes, number, lines, leaf, text_left)
    return figure


@in_style
def draw_growth(
    layers: Sequence[LayerBranches], decisions: Sequence[Mapping[str, Any]], *, num_columns: int = 4
) -> Figure:
    """The tree before the first decision and after each one, layer by layer (figure 2 of the paper).

    `layers` is the network as the last decision left it; the layer that was decided upon is marked.
    """
    steps = grow_layers(layers, decisions)
    groups = top_groups(layers)
    titles = ["Before: everything shared", *map(_describe_step, decisions)]
    num_columns = min(num_columns, len(steps))
    # two trees stand in the room of three: larger, their lines would look lost
    width = 12.0 / max(num_columns, 3)
    height = 1.95
    figure, axes = make_canvas(width * num_columns, height * math.ceil(len(steps) / num_columns) + 0.1)
    for index, step in enumerate(steps):
        # where this tree stands
        left = width * (index % num_columns) + 0.15
        top = height * (index // num_columns) + 0.05
        right = left + width - 0.35
        leaves = _place_small_leaves(groups, (top + 0.38, top + 1.75))
        columns = _place_small_columns(step, groups, leaves, merge_equal_layers(layers)[0], left, width - 0.35)

        # its title, a shade on the layer that was decided upon, the tree
        axes.text(left, top + 0.13, titles[index], fontsize=SMALL, va="center")
        if index:
            _shade(axes, columns[decisions[index - 1]["layer"] - 1], leaves)
        _draw_strands(axes, columns, leaves, image_right=left, text_left=right + 0.28)
        for column in columns:
            _draw_boxes(axes, column, column.left, column.right - column.left, 0.02)
    return figure


def _describe_step(decision: Mapping[str, Any]) -> str:
    what = "stays whole"
    if decision["num_groups"] > 1:
        what = f"→ {decision['num_groups']}"
    return f"Round {decision['round']}, iteration {decision['iteration']:,}: {decision['layer_name']} {what}"


def choose_thickness(groups: Branches) -> list[float]:
    """Inches of every group's strand: all tasks alike, 1.5 in all and 0.34 of one group at most."""
    sizes = list(map(len, groups))
    unit = min(0.045, 1.5 / sum(sizes), 0.34 / max(sizes))
    return [unit * size for size in sizes]


def place_groups(heights: Sequence[float], top: float, gap: float) -> list[Span]:
    """Spans of these heights below each other."""
    spans = []
    for height in heights:
        spans.append((top, top + height))
        top += height + gap
    return spans


def place_columns(
    columns_of: Sequence[Run], groups: Branches, leaves: Sequence[Span], thick: Sequence[float], *, left: float
) -> list[Column]:
    """The runs of layers from left to right, each as wide as its boxes and its header need."""
    columns: list[Column] = []
    for run in columns_of:
        members = list_members(run.branches, groups)
        strands = place_strands(members, leaves, thick)
        # a header may be wider than the boxes below it
        boxes = len(run.layers) * (SLAB + SLAB_GAP) - SLAB_GAP
        header = max(text_width(line, SMALL) for line in _list_subtitles(run))
        header = max(header, text_width(run.title, FONT, bold=True))
        margin = max(0.0, (header + 0.2 - EDGE - boxes) / 2)
        # strands that jump far need room to bend
        if columns:
            jump = max(abs(new[0] - old[0]) for old, new in zip(columns[-1].strands, strands, strict=True))
            left += max(0.0, min(LONGEST_EDGE, 0.5 * jump) - EDGE)
        left += margin
        columns.append(Column(run, left, left + boxes, members, strands))
        left += boxes + margin + EDGE
    return columns


def _list_subtitles(run: Run) -> list[str]:
    size = []
    if len(run.layers) > 1:
        size.append(f"{len(run.layers)} layers")
    if run.width:
        size.append(f"{run.width} wide")
    num_branches = len(run.branches)
    branches = "1 branch" if num_branches == 1 else f"{num_branches} branches"
    return [", ".join(size), branches] if size else [branches]


def _draw_header(axes: Axes, lines: Sequence[str], x: float, top: float, align: str) -> None:
    """A heading in bold and up to two lines below it."""
    style: dict[str, Any] = {"ha": align, "va": "center"}
    axes.text(x, top - 0.5, lines[0], fontsize=FONT, weight="bold", **style)
    for number, line in enumerate(lines[1:]):
        axes.text(x, top - 0.31 + 0.17 * number, line, fontsize=SMALL, color=MUTED, **style)


def _draw_strands(
    axes: Axes, columns: Sequence[Column], leaves: Sequence[Span], *, image_right: float, text_left: float
) -> None:
    for number, leaf in enumerate(leaves):
        stops = [(image_right, columns[0].strands[number])]
        for column in columns:
            strand = column.strands[number]
            stops += [(column.left, strand), (column.right, strand)]
        # into the middle of its names
        middle = sum(leaf) / 2
        half = (strand[1] - strand[0]) / 2
        stops.append((text_left - 0.28, (middle - half, middle + half)))
        axes.add_patch(PathPatch(_make_band(stops), facecolor=group_colour(number), linewidth=0))


def _make_band(stops: Sequence[tuple[float, Span]]) -> Curve:
    """A filled band through the spans at the given x, level at each of them."""
    upper = _bend([(x, span[0]) for x, span in stops])
    lower = _bend([(x, span[1]) for x, span in reversed(stops)])
    curves = [Curve.CURVE4] * (len(upper) - 1)
    codes = [Curve.MOVETO, *curves, Curve.LINETO, *curves, Curve.CLOSEPOLY]
    return Curve([*upper, *lower, upper[0]], codes)


def _bend(way: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A Bezier curve through points, level at each of them."""
    points = [way[0]]
    for (x, y), (next_x, next_y) in pairwise(way):
        middle = (x + next_x) / 2
        points += [(middle, y), (middle, next_y), (next_x, next_y)]
    return points


def _draw_image(axes: Axes, column: Column) -> None:
    """A box for the image, as high as all strands together and high enough for its name."""
    top, bottom = column.find_box(range(len(column.strands)), 0.0)
    middle = (top + bottom) / 2
    half = max(0.3, (bottom - top) / 2 + 0.06)
    _draw_box(axes, 0.15, 0.57, (middle - half, middle + half), edge=MUTED)
    axes.text(0.435, middle, "image", fontsize=SMALL, ha="center", va="center")


def _draw_boxes(axes: Axes, column: Column, left: float, width: float, margin: float) -> None:
    """One layer: a box for every branch, around the strands it carries."""
    for numbers in column.members:
        _draw_box(axes, left, width, column.find_box(numbers, margin))


def _draw_box(axes: Axes, left: float, width: float, span: Span, *, edge: str = INK) -> None:
    top, bottom = span
    shape = f"round,pad=0,rounding_size={min(width, bottom - top) * 0.3}"
    axes.add_patch(
        FancyBboxPatch((left, top), width, bottom - top, boxstyle=shape, facecolor=PAPER, edgecolor=edge, linewidth=0.9)
    )


def _draw_tasks(axes: Axes, number: int, lines: Sequence[str], leaf: Span, left: float) -> None:
    """The number of a group in a disc at the end of its strand, then its task names."""
    middle = sum(leaf) / 2
    colour = group_colour(number)
    axes.add_patch(Circle((left - 0.2, middle), 0.115, facecolor=colour, edgecolor=PAPER, linewidth=1))
    style: dict[str, Any] = {"fontsize": SMALL, "weight": "bold", "color": choose_text_colour(colour)}
    # digits have no descenders, so that their middle lies a little higher
    axes.text(left - 0.2, middle + 0.005, str(number + 1), ha="center", va="center", **style)
    first = middle - LINE * (len(lines) - 1) / 2
    for index, line in enumerate(lines):
        axes.text(left, first + LINE * index, line, fontsize=FONT, va="center")


def _place_small_leaves(groups: Branches, height: Span) -> list[Span]:
    """Every group's share of the height, with a quarter of the mean between two."""
    room = height[1] - height[0]
    gap = 0.25 * room / len(groups)
    unit = (room - gap * (len(groups) - 1)) / sum(map(len, groups))
    return place_groups([unit * len(group) for group in groups], height[0], gap)


def _place_small_columns(
    layers: Sequence[LayerBranches],
    groups: Branches,
    leaves: Sequence[Span],
    trunk: Run,
    left: float,
    width: float,
) -> list[Column]:
    """One per layer; layers that are never split stand closer together."""
    thick = [min(0.3 * (bottom - top), 0.01 * len(group)) for group, (top, bottom) in zip(groups, leaves, strict=True)]
    names = {layer.name for layer in trunk.layers}
    inner = 0.45 if len(trunk.layers) < len(layers) else 1.0
    # in units of the distance of two layers that are split
    places = [inner]
    for layer in layers[1:]:
        places.append(places[-1] + (inner if layer.name in names else 1.0))
    step = width / (places[-1] + 1.3)
    box = min(0.4 * inner * step, 0.07)
    columns = []
    for layer, place in zip(layers, places, strict=True):
        members = list_members(layer.branches, groups)
        x = left + step * place
        columns.append(Column(Run((layer,)), x, x + box, members, place_strands(members, leaves, thick)))
    return columns


def _shade(axes: Axes, column: Column, leaves: Sequence[Span]) -> None:
    margin = 0.05
    top = leaves[0][0] - 0.06
    width = column.right - column.left + 2 * margin
    axes.add_patch(
        Rectangle((column.left - margin, top), width, leaves[-1][1] + 0.06 - top, facecolor=GRID, linewidth=0)
    )
