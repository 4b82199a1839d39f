"""Who shares what: the groups of tasks at every layer (figure 4 of the paper), and the policy of AdaShare with its search."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from distbranch.report.figure_style import (
    BLUE,
    DARK,
    GRID,
    INK,
    MUTED,
    PAPER,
    blend_colours,
    choose_text_colour,
    group_colour,
    hide_frame,
    in_style,
    make_canvas,
    make_figure,
    text_width,
)
from distbranch.report.layers import (
    Branches,
    LayerBranches,
    Run,
    format_name,
    group_numbers,
    merge_equal_layers,
    top_groups,
)

FONT, SMALL = 9.0, 8.0
ROW, COLUMN, GAP = 0.19, 1.05, 0.16  # inches: a task, a branching, the space between two branchings
HEADER = 0.72
INSET = 0.03  # inches that a box stays away from the edge of its rows
LIGHTER = 0.45  # of the colour of a group, so that ink is read on it
POLICY_FONT = 8.5
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.27  # inches
STEPS_OF_COLOUR = 64  # as many as the eye tells apart; an SVG holds each of them once


@in_style
def draw_groups(layers: Sequence[LayerBranches]) -> Figure:
    """Task names on the left, then the groups of the top layer, of the layer below, ... until all tasks are together."""
    groups = top_groups(layers)
    order = [task for group in groups for task in group]
    columns = merge_equal_layers(layers)[::-1]
    names = max(text_width(format_name(task), FONT) for task in order) + 0.3
    width = names + len(columns) * (COLUMN + GAP) + 0.1
    figure, axes = make_canvas(width, HEADER + ROW * len(order) + 0.12)
    for row, task in enumerate(order):
        axes.text(names - 0.15, _find_top(row + 0.5), format_name(task), fontsize=FONT, ha="right", va="center")
    for number, column in enumerate(columns):
        left = names + number * (COLUMN + GAP)
        _draw_heading(axes, column, left + COLUMN / 2)
        for branch in column.branches:
            _draw_branch(axes, branch, order, groups, left)
    return figure


def _find_top(row: float) -> float:
    return HEADER + ROW * row


def _draw_heading(axes: Axes, column: Run, middle: float) -> None:
    # a long name is written smaller: its column has no more room
    size = FONT * min(1, COLUMN / text_width(column.title, FONT, bold=True))
    axes.text(middle, 0.2, column.title, fontsize=size, weight="bold", ha="center", va="center")
    count = len(column.branches)
    lines = [f"{count} groups" if count > 1 else "all together"]
    if len(column.layers) > 1:
        lines.append(f"{len(column.layers)} layers")
    for number, line in enumerate(lines):
        axes.text(middle, 0.38 + 0.16 * number, line, fontsize=SMALL, color=MUTED, ha="center", va="center")


def _draw_branch(axes: Axes, branch: Sequence[str], order: Sequence[str], groups: Branches, left: float) -> None:
    """A box around the rows of its tasks, which follow each other, coloured by group."""
    numbers = group_numbers(groups)
    # they follow each other, as the order is that of the tree
    rows = sorted(map(order.index, branch))
    top = _find_top(rows[0]) + INSET
    bottom = _find_top(rows[-1] + 1) - INSET
    for number, run in groupby(rows, key=lambda row: numbers[order[row]]):
        first, *more = run
        upper = max(top, _find_top(first))
        lower = min(bottom, _find_top(first + len(more) + 1))
        colour = blend_colours(group_colour(number), PAPER, LIGHTER)
        axes.add_patch(Rectangle((left, upper), COLUMN, lower - upper, facecolor=colour, linewidth=0))
    style = "round,pad=0,rounding_size=0.03"
    frame = FancyBboxPatch((left, top), COLUMN, bottom - top, boxstyle=style, fill=False, edgecolor=INK, linewidth=0.9)
    axes.add_patch(frame)
    if len(rows) > 1:
        middle = (top + bottom) / 2
        axes.text(left + COLUMN / 2, middle, str(len(rows)), fontsize=SMALL, color=DARK, ha="center", va="center")


@in_style
def draw_policy(policy: Mapping[str, Any]) -> Figure:
    """A row per task, a column per block from the image to the heads; blue: executes, empty: skips.

    policy: content of policy.json; where it has probabilities they are written into the cells.
    """
    tasks = [format_name(task) for task in policy["tasks"]]
    blocks = _list_blocks(policy)
    executes = np.array(policy["policy"], dtype=float)
    shown = np.array(policy.get("execute_probability", executes))
    # inches, so that a cell is as large as its number needs
    names = max(text_width(task, POLICY_FONT) for task in tasks) + 0.2
    cells_width = CELL_WIDTH * len(blocks)
    cells_height = CELL_HEIGHT * len(tasks)
    width = cells_width + names + 0.15
    height = cells_height + 0.5
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((names / width, 0.1 / height, cells_width / width, cells_height / height))
    for (row, column), value in np.ndenumerate(shown):
        colour = blend_colours(PAPER, BLUE, round(value * STEPS_OF_COLOUR) / STEPS_OF_COLOUR)
        edge = BLUE if executes[row, column] else GRID
        axes.add_patch(Rectangle((column - 0.44, row - 0.4), 0.88, 0.8, fc=colour, ec=edge, linewidth=1.2))
        if "execute_probability" in policy:
            axes.text(
                column,
                row,
                f"{100 * value:.0f}",
                fontsize=7,
                color=choose_text_colour(colour),
                ha="center",
                va="center",
            )
    axes.set(xlim=(-0.5, len(blocks) - 0.5), ylim=(len(tasks) - 0.5, -0.5))
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xticks(range(len(blocks)), blocks)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("block (stage_place)")
    axes.tick_params(labelsize=POLICY_FONT)
    hide_frame(axes)
    return figure


@in_style
def draw_search(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """How probable it is, in the mean over tasks, that a block is executed, cycle by cycle, and which blocks were released."""
    blocks = _list_blocks(lines[-1])
    means = np.array([np.mean(line["execute_probability"], axis=0) for line in lines])  # [cycles, L]
    figure = make_figure(7.2, 0.3 * len(blocks) + 1.1)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("execute", [PAPER, BLUE])
    # a cycle and a block are one unit, and cycles are counted from one
    extent = (0.5, len(lines) + 0.5, -0.5, len(blocks) - 0.5)
    picture = axes.imshow(means.T[::-1], colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent)
    released = [len(blocks) - line["num_released"] - 0.5 for line in lines]
    # a step and no slope: blocks are released between two cycles
    axes.stairs(released, np.arange(len(lines) + 1) + 0.5, color=INK, linewidth=1.2, baseline=None)
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set_xlabel("cycle; above the line: blocks that the policy decides")
    axes.set_ylabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=POLICY_FONT)
    hide_frame(axes)
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.015)
    bar.set_label("probability of executing,\nmean over tasks")
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)
    return figure


def _list_blocks(policy: Mapping[str, Any]) -> list[str]:
    return [block.removeprefix("block") for block in policy["blocks"]]
