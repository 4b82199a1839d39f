"""The groups of tasks at every layer (figure 4 of the paper): a row per task, a column per branching, a box per branch.

Rows are ordered so that every branch is one box; a task keeps the colour of its group at the top layer.
"""

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from distbranch.report.layers import Branches, LayerBranches, Run, group_numbers, readable, runs, top_groups
from distbranch.report.palette import AS_IT_IS, DARK, INK, MUTED, PAPER, blend, group_colour
from distbranch.report.tree_figure import text_width

FONT, SMALL = 9.0, 8.0
ROW, COLUMN, GAP = 0.19, 1.05, 0.16  # inches: a task, a branching, the space between two branchings
HEADER = 0.72
LIGHTER = 0.45  # of the colour of a group, so that ink is read on it


def draw_groups(layers: Sequence[LayerBranches]) -> Figure:
    """Task names on the left, then the groups of the top layer, of the layer below, ... until all tasks are together."""
    groups = top_groups(layers)
    order = [task for group in groups for task in group]
    columns = list(reversed(runs(layers)))
    names = max(text_width(readable(task), FONT) for task in order) + 0.3
    width, height = names + len(columns) * (COLUMN + GAP) + 0.1, HEADER + ROW * len(order) + 0.12
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    for row, task in enumerate(order):
        middle = HEADER + ROW * (row + 0.5)
        axes.text(names - 0.15, middle, readable(task), fontsize=FONT, color=INK, ha="right", va="center", **AS_IT_IS)
    for number, column in enumerate(columns):
        _draw_column(axes, column, order, groups, names + number * (COLUMN + GAP))
    return figure


def _draw_column(axes: Axes, column: Run, order: Sequence[str], groups: Branches, left: float) -> None:
    middle, numbers = left + COLUMN / 2, group_numbers(groups)
    size = min(FONT, FONT * COLUMN / text_width(column.title, FONT, bold=True))
    axes.text(middle, 0.2, column.title, fontsize=size, weight="bold", color=INK, ha="center", va="center")
    count = len(column.branches)
    said = (f"{count} groups" if count > 1 else "all together", f"{len(column.layers)} layers")
    for line, text in enumerate(said[: 1 + (len(column.layers) > 1)]):
        axes.text(middle, 0.38 + 0.16 * line, text, fontsize=SMALL, color=MUTED, ha="center", va="center")
    place = {task: row for row, task in enumerate(order)}
    for branch in column.branches:
        rows = sorted(place[task] for task in branch)
        for number, run in groupby(rows, key=lambda row: numbers[order[row]]):
            same = list(run)
            top = HEADER + ROW * same[0] + (0.03 if same[0] == rows[0] else 0)
            bottom = HEADER + ROW * (same[-1] + 1) - (0.03 if same[-1] == rows[-1] else 0)
            colour = blend(group_colour(number), PAPER, LIGHTER)
            axes.add_patch(Rectangle((left, top), COLUMN, bottom - top, facecolor=colour, linewidth=0))
        top, tall = HEADER + ROW * rows[0] + 0.03, ROW * len(rows) - 0.06
        frame = FancyBboxPatch((left, top), COLUMN, tall, boxstyle="round,pad=0,rounding_size=0.03")
        frame.set(facecolor="none", edgecolor=INK, linewidth=0.9)
        axes.add_patch(frame)
        if len(rows) > 1:
            axes.text(middle, top + tall / 2, str(len(rows)), fontsize=SMALL, color=DARK, ha="center", va="center")
