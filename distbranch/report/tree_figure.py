"""Pictures of the grown tree: every top group is a coloured strand that runs from the image to its tasks.

Strands lie in one bundle where layers are shared and part where the network branches; a box is one layer of one branch.
Lengths are inches, so that text of a known size never overlaps: each group gets the height its wrapped task names need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    group_colour,
    in_style,
    make_canvas,
    text_on,
    text_width,
)
from distbranch.report.layers import Branches, LayerBranches, Run, branch_of, grow, readable, runs, top_groups

FONT, SMALL = 9.5, 8.0
LINE = 0.185  # height of a line of text
SLAB, SLAB_GAP = 0.13, 0.07  # one layer of one branch, and the space to the next layer of the same run
EDGE, LONGEST_EDGE = 0.62, 1.4  # space between columns in which strands bend; the steeper, the more
HEADER = 0.78
TEXT_WIDTH = 4.3  # of a line of task names, at most

Span = tuple[float, float]


def wrap(tasks: Sequence[str], width: float, size: float = FONT) -> list[str]:
    """Task names on as few lines of at most `width` inches as their order allows; a name is never broken."""
    lines: list[str] = []
    for name in map(readable, tasks):
        longer = f"{lines[-1]}  ·  {name}" if lines else name
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
    members: tuple[tuple[int, ...], ...]
    strands: tuple[Span, ...]


def members(branches: Branches, groups: Branches) -> list[list[int]]:
    """For every branch of a layer the numbers of the top groups that it feeds."""
    found: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(branch_of(branches, group[0]), []).append(number)
    return list(found.values())


def strand_spans(
    branches: Branches, groups: Branches, leaves: Sequence[Span], thick: Sequence[float]
) -> tuple[Span, ...]:
    """The vertical span of every group's strand in a layer.

    A branch is centred on the leaves it feeds; as no strand is thicker than its leaf, branches cannot overlap.
    """
    spans: dict[int, Span] = {}
    for numbers in members(branches, groups):
        centre = (leaves[numbers[0]][0] + leaves[numbers[-1]][1]) / 2
        top = centre - sum(thick[number] for number in numbers) / 2
        for number in numbers:
            spans[number] = (top, top + thick[number])
            top += thick[number]
    return tuple(spans[number] for number in range(len(groups)))


@in_style
def draw_tree(layers: Sequence[LayerBranches], *, title: str = "", heading: str = "") -> Figure:
    """The grown tree from the image on the left to the task names on the right."""
    groups, columns_of = top_groups(layers), runs(layers)
    lines = [wrap(group, TEXT_WIDTH) for group in groups]
    thick = _choose_thickness(groups)
    top = HEADER + (0.42 if title else 0.0)
    leaves = _place_groups(
        [max(LINE * len(text), 0.05 + size) for text, size in zip(lines, thick, strict=True)], top + 0.12, 0.13
    )
    columns = _place_columns(columns_of, groups, leaves, thick, left=1.0)
    text_left = columns[-1].right + EDGE + 0.42
    longest = max(text_width(line, FONT) for text in lines for line in text)
    size = (text_left + max(longest, 1.2) + 0.15, leaves[-1][1] + 0.2)
    figure, axes = make_canvas(*size)
    if title:
        axes.text(0.15, 0.24, title, fontsize=13, weight="bold", va="center")
        axes.text(size[0] - 0.15, 0.24, heading, fontsize=SMALL + 1, color=MUTED, va="center", ha="right")
    _draw_strands(axes, columns, leaves, image_right=0.72, text_left=text_left)
    _draw_image(axes, columns[0])
    for column in columns:
        _draw_header(axes, column, top)
        _draw_boxes(axes, column)
    axes.text(text_left, top - 0.5, "Tasks", fontsize=FONT, weight="bold", va="center")
    axes.text(text_left, top - 0.31, f"{sum(map(len, groups))} heads", fontsize=SMALL, color=MUTED, va="center")
    for number, (text, leaf) in enumerate(zip(lines, leaves, strict=True)):
        _draw_tasks(axes, number, text, leaf, text_left)
    return figure


@in_style
def draw_growth(
    layers: Sequence[LayerBranches], decisions: Sequence[Mapping[str, Any]], *, num_columns: int = 4
) -> Figure:
    """The tree before the first decision and after each one, layer by layer (figure 2 of the paper).

    `layers` is the network as the last decision left it; the layer that was decided upon is marked.
    """
    steps, groups = grow(layers, decisions), top_groups(layers)
    marked = [None, *(decision["layer"] - 1 for decision in decisions)]
    titles = ["Before: everything shared", *map(_describe_step, decisions)]
    num_columns = min(num_columns, len(steps))
    width, height = 12.0 / max(num_columns, 3), 1.95
    figure, axes = make_canvas(width * num_columns, height * -(-len(steps) // num_columns) + 0.1)
    for index, step in enumerate(steps):
        left, top = width * (index % num_columns), height * (index // num_columns) + 0.05
        axes.text(left + 0.15, top + 0.13, titles[index], fontsize=SMALL, va="center")
        columns, leaves = _place_small_columns(
            step, groups, runs(layers)[0], left + 0.15, width - 0.35, (top + 0.38, top + 1.75)
        )
        _draw_small_tree(axes, columns, leaves, left + 0.15, left + width - 0.2, marked[index])
    return figure


def _describe_step(decision: Mapping[str, Any]) -> str:
    what = (
        f"{decision['layer_name']} → {decision['num_groups']}"
        if decision["num_groups"] > 1
        else f"{decision['layer_name']} stays whole"
    )
    return f"Round {decision['round']}, iteration {decision['iteration']:,}: {what}"


def _choose_thickness(groups: Branches, total: float = 1.5) -> list[float]:
    unit = min(0.045, total / sum(map(len, groups)), 0.34 / max(map(len, groups)))
    return [unit * len(group) for group in groups]


def _place_groups(heights: Sequence[float], top: float, gap: float) -> list[Span]:
    spans = []
    for height in heights:
        spans.append((top, top + height))
        top += height + gap
    return spans


def _place_columns(
    columns_of: Sequence[Run], groups: Branches, leaves: Sequence[Span], thick: Sequence[float], *, left: float
) -> list[Column]:
    columns: list[Column] = []
    for run in columns_of:
        boxes = len(run.layers) * (SLAB + SLAB_GAP) - SLAB_GAP
        header = max(
            text_width(run.title, FONT, bold=True), *(text_width(line, SMALL) for line in _list_subtitles(run))
        )
        margin = max(0.0, (header + 0.2 - EDGE - boxes) / 2)
        right = left + margin + boxes
        inside = tuple(map(tuple, members(run.branches, groups)))
        strands = strand_spans(run.branches, groups, leaves, thick)
        if columns:
            jump = max(abs(new[0] - old[0]) for old, new in zip(columns[-1].strands, strands, strict=True))
            longer = max(0.0, min(LONGEST_EDGE, 0.5 * jump) - EDGE)
            left, right = left + longer, right + longer
        columns.append(Column(run, left + margin, right, inside, strands))
        left = right + margin + EDGE
    return columns


def _list_subtitles(run: Run) -> tuple[str, str]:
    many = f"{len(run.layers)} layers" if len(run.layers) > 1 else ""
    wide = f"{run.width} wide" if run.width else ""
    num_branches = len(run.branches)
    return ", ".join(filter(None, (many, wide))), "1 branch" if num_branches == 1 else f"{num_branches} branches"


def _draw_header(axes: Axes, column: Column, top: float) -> None:
    middle = (column.left + column.right) / 2
    first, second = _list_subtitles(column.run)
    axes.text(middle, top - 0.5, column.run.title, fontsize=FONT, weight="bold", ha="center", va="center")
    for line, y in zip(filter(None, (first, second)), (top - 0.31, top - 0.14), strict=False):
        axes.text(middle, y, line, fontsize=SMALL, color=MUTED, ha="center", va="center")


def _draw_strands(
    axes: Axes, columns: Sequence[Column], leaves: Sequence[Span], *, image_right: float, text_left: float
) -> None:
    for number, leaf in enumerate(leaves):
        stops = [(image_right, columns[0].strands[number])]
        for column in columns:
            stops += [(column.left, column.strands[number]), (column.right, column.strands[number])]
        thick = columns[-1].strands[number][1] - columns[-1].strands[number][0]
        middle = (leaf[0] + leaf[1]) / 2
        stops.append((text_left - 0.28, (middle - thick / 2, middle + thick / 2)))
        axes.add_patch(PathPatch(_draw_band(stops), facecolor=group_colour(number), edgecolor="none", linewidth=0))


def _draw_band(stops: Sequence[tuple[float, Span]]) -> Curve:
    """A filled band through the spans at the given x, level at each of them."""
    points: list[tuple[float, float]] = []
    codes: list[int] = []
    for side, way in ((0, stops), (1, stops[::-1])):
        for index, (x, span) in enumerate(way):
            if index == 0:
                points.append((x, span[side]))
                codes.append(int(Curve.MOVETO if side == 0 else Curve.LINETO))
                continue
            before_x, before = way[index - 1]
            middle = (before_x + x) / 2
            points += [(middle, before[side]), (middle, span[side]), (x, span[side])]
            codes += [int(Curve.CURVE4)] * 3
    return Curve([*points, points[0]], [*codes, int(Curve.CLOSEPOLY)])


def _draw_image(axes: Axes, column: Column) -> None:
    top, bottom = column.strands[0][0], column.strands[-1][1]
    middle = (top + bottom) / 2
    half = max(0.3, (bottom - top) / 2 + 0.06)
    _draw_box(axes, 0.15, middle - half, 0.57, 2 * half, edge=MUTED)
    axes.text(0.435, middle, "image", fontsize=SMALL, ha="center", va="center")


def _draw_boxes(axes: Axes, column: Column) -> None:
    """One box per layer of every branch, around the strands it carries."""
    for numbers in column.members:
        top, bottom = column.strands[numbers[0]][0] - 0.05, column.strands[numbers[-1]][1] + 0.05
        for index in range(len(column.run.layers)):
            _draw_box(axes, column.left + index * (SLAB + SLAB_GAP), top, SLAB, bottom - top)


def _draw_tasks(axes: Axes, number: int, lines: Sequence[str], leaf: Span, left: float) -> None:
    """The number of a group in a disc at the end of its strand, then its task names."""
    middle, colour = (leaf[0] + leaf[1]) / 2, group_colour(number)
    axes.add_patch(Circle((left - 0.2, middle), 0.115, facecolor=colour, edgecolor=PAPER, linewidth=1))
    style: dict[str, Any] = {"fontsize": SMALL, "weight": "bold", "color": text_on(colour)}
    axes.text(left - 0.2, middle + 0.005, str(number + 1), ha="center", va="center", **style)
    first = middle - LINE * (len(lines) - 1) / 2
    for index, line in enumerate(lines):
        axes.text(left, first + LINE * index, line, fontsize=FONT, va="center")


def _draw_box(axes: Axes, left: float, top: float, width: float, height: float, *, edge: str = INK) -> None:
    shape = f"round,pad=0,rounding_size={min(width, height) * 0.3}"
    axes.add_patch(
        FancyBboxPatch((left, top), width, height, boxstyle=shape, facecolor=PAPER, edgecolor=edge, linewidth=0.9)
    )


def _place_small_columns(
    layers: Sequence[LayerBranches], groups: Branches, trunk: Run, left: float, width: float, height: Span
) -> tuple[list[Column], list[Span]]:
    """The columns (one per layer) and leaves of a small tree; layers that are never split stand closer together."""
    num_tasks, room = sum(map(len, groups)), height[1] - height[0]
    gap = 0.25 * room / len(groups)
    unit = (room - gap * (len(groups) - 1)) / num_tasks
    leaves = _place_groups([unit * len(group) for group in groups], height[0], gap)
    thick = [min(0.3 * unit, 0.01) * len(group) for group in groups]
    inner = 0.45 if len(trunk.layers) < len(layers) else 1.0
    places, names = [inner], {layer.name for layer in trunk.layers}
    for layer in layers[1:]:
        places.append(places[-1] + (inner if layer.name in names else 1.0))
    step = width / (places[-1] + 1.3)
    columns = []
    for layer, place in zip(layers, places, strict=True):
        x, inside = left + step * place, tuple(map(tuple, members(layer.branches, groups)))
        right = x + min(0.4 * inner * step, 0.07)
        columns.append(Column(Run((layer,)), x, right, inside, strand_spans(layer.branches, groups, leaves, thick)))
    return columns, leaves


def _draw_small_tree(
    axes: Axes, columns: Sequence[Column], leaves: Sequence[Span], left: float, right: float, marked: int | None
) -> None:
    if marked is not None:
        column, margin = columns[marked], 0.05
        width = column.right - column.left + 2 * margin
        top = leaves[0][0] - 0.06
        shade = Rectangle((column.left - margin, top), width, leaves[-1][1] + 0.06 - top, facecolor=GRID, linewidth=0)
        axes.add_patch(shade)
    _draw_strands(axes, columns, leaves, image_right=left, text_left=right + 0.28)
    for column in columns:
        for numbers in column.members:
            top, bottom = column.strands[numbers[0]][0] - 0.02, column.strands[numbers[-1]][1] + 0.02
            _draw_box(axes, column.left, top, column.right - column.left, bottom - top)
