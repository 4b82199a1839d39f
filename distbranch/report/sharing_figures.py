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
    AS_IT_IS,
    BLUE,
    DARK,
    GRID,
    INK,
    MUTED,
    PAPER,
    blend,
    group_colour,
    text_on,
    text_width,
)
from distbranch.report.layers import Branches, LayerBranches, Run, group_numbers, readable, runs, top_groups

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


POLICY_FONT = 8.5
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.27  # inches
STEPS_OF_COLOUR = 64


def draw_policy(policy: Mapping[str, Any]) -> Figure:
    """A row per task, a column per block from the image to the heads; blue: executes, empty: skips.

    policy: content of policy.json; where it has probabilities they are written into the cells.
    """
    tasks, blocks = policy["tasks"], policy["blocks"]
    executes = np.array(policy["policy"], dtype=float)
    shown = np.array(policy.get("execute_probability", executes))
    names = max(text_width(readable(task), POLICY_FONT) for task in tasks) + 0.2
    width, height = CELL_WIDTH * len(blocks), CELL_HEIGHT * len(tasks)
    whole = (width + names + 0.15, height + 0.5)
    figure = Figure(figsize=whole, facecolor=PAPER)
    axes = figure.add_axes((names / whole[0], 0.1 / whole[1], width / whole[0], height / whole[1]))
    for (row, column), value in np.ndenumerate(shown):
        _draw_cell(axes, column, row, value, runs=bool(executes[row, column]), says="execute_probability" in policy)
    axes.set(xlim=(-0.5, len(blocks) - 0.5), ylim=(len(tasks) - 0.5, -0.5))
    axes.set_yticks(range(len(tasks)), [readable(task) for task in tasks], fontsize=POLICY_FONT, color=INK, **AS_IT_IS)
    axes.set_xticks(
        range(len(blocks)), [name.removeprefix("block") for name in blocks], fontsize=POLICY_FONT, color=INK
    )
    axes.xaxis.tick_top()
    axes.set_xlabel("block (stage_place)", fontsize=POLICY_FONT, color=MUTED)
    axes.xaxis.set_label_position("top")
    _hide_frame(axes)
    return figure


def _draw_cell(axes: Axes, column: int, row: int, value: float, *, runs: bool, says: bool) -> None:
    colour = blend(PAPER, BLUE, round(value * STEPS_OF_COLOUR) / STEPS_OF_COLOUR)
    edge = {"edgecolor": BLUE if runs else GRID, "linewidth": 1.2}
    axes.add_patch(Rectangle((column - 0.44, row - 0.4), 0.88, 0.8, facecolor=colour, **edge))  # type: ignore[arg-type]
    if says:
        axes.text(column, row, f"{100 * value:.0f}", fontsize=7, color=text_on(colour), ha="center", va="center")


def draw_search(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """How probable it is, in the mean over tasks, that a block is executed, cycle by cycle, and which blocks were released."""
    blocks = lines[-1]["blocks"]
    means = np.array([np.mean(line["execute_probability"], axis=0) for line in lines]).T  # [L, cycles]
    figure = Figure(figsize=(7.2, 0.3 * len(blocks) + 1.1), facecolor=PAPER, layout="constrained")
    axes = figure.subplots()

    colours = LinearSegmentedColormap.from_list("execute", [PAPER, BLUE])
    extent = (0.5, len(lines) + 0.5, -0.5, len(blocks) - 0.5)
    picture = axes.imshow(
        means[::-1], cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent
    )
    released = [len(blocks) - line["num_released"] - 0.5 for line in lines]
    axes.stairs(released, np.arange(len(lines) + 1) + 0.5, color=INK, linewidth=1.2, baseline=None)
    axes.set_yticks(
        range(len(blocks)), [name.removeprefix("block") for name in blocks], fontsize=POLICY_FONT, color=INK
    )
    axes.set_xlabel("cycle; above the line: blocks that the policy decides", fontsize=POLICY_FONT, color=MUTED)
    axes.set_ylabel("block", fontsize=POLICY_FONT, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=POLICY_FONT)
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.015)
    bar.set_label("probability of executing,\nmean over tasks", fontsize=POLICY_FONT, color=MUTED)
    bar.ax.tick_params(labelsize=7.5, colors=MUTED, length=2)
    bar.outline.set_visible(False)
    _hide_frame(axes)
    return figure


def _hide_frame(axes: Axes) -> None:
    axes.tick_params(length=0, colors=MUTED, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
