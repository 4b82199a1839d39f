"""Who shares what: the groups of tasks at every layer (figure 4 of the paper), and the policy of AdaShare with its search."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distbranch.report.figure_style import (
    DARK,
    EXECUTES,
    GRID,
    INK,
    MUTED,
    choose_text_colour,
    draw_box,
    group_colour,
    hide_frame,
    in_style,
    make_canvas,
    make_figure,
)
from distbranch.report.layers import (
    MOST_COLUMNS,
    LayerBranches,
    Run,
    describe_run,
    format_name,
    list_top_groups,
    merge_equal_layers,
    wrap_layer_name,
)

FONT, SMALL = 9.0, 8.0
ROW, COLUMN, GAP = (
    0.19,
    1.05,
    0.16,
)  # inches: a task, a branching, the space between two branchings
INSET = 0.03  # inches that a box stays away from the edge of its rows
SHORT_NAME = 6  # letters of a block's name that stand above its cells without being turned
LIGHT = 0.55  # how opaque the colour of a group is, so that numbers are read on it


@in_style
def draw_groups(layers: Sequence[LayerBranches]) -> Figure:
    """Task names on the left, then the groups of the top layer, of the layer below, ... until all tasks are together."""
    groups = list_top_groups(layers)
    order = [task for group in groups for task in group]
    columns = merge_equal_layers(layers)[::-1]
    figure, axes = make_canvas(len(columns) * (COLUMN + GAP) - GAP, ROW * len(order))
    for row, task in enumerate(order):
        axes.text(
            -0.15,
            ROW * (row + 0.5),
            format_name(task),
            fontsize=FONT,
            ha="right",
            va="center",
        )
    top = 0.0
    for number, group in enumerate(groups):
        bottom = top + ROW * len(group)
        axes.axhspan(top, bottom, color=group_colour(number), alpha=LIGHT, linewidth=0)
        top = bottom
    for number, column in enumerate(columns):
        left = number * (COLUMN + GAP)
        _draw_heading(axes, column, left + COLUMN / 2)
        for branch in column[0].branches:
            # its tasks follow each other
            top = ROW * min(map(order.index, branch))
            bottom = top + ROW * len(branch)
            draw_box(axes, left, top + INSET, left + COLUMN, bottom - INSET, fill=False)
            middle = (left + COLUMN / 2, (top + bottom) / 2)
            axes.text(
                *middle,
                str(len(branch)),
                fontsize=SMALL,
                color=DARK,
                ha="center",
                va="center",
            )
    return figure


def _draw_heading(axes: Axes, column: Run, middle: float) -> None:
    title, text = describe_run(column)
    # the names of the first and of the last layer stand below each other: a column is narrow
    title = "\n… ".join(map(wrap_layer_name, title.split(" … ")))
    axes.text(middle, -0.42, title, fontsize=FONT, weight="bold", ha="center", va="bottom")
    axes.text(middle, -0.37, text, fontsize=SMALL, color=MUTED, ha="center", va="top")


@in_style
def draw_policy(policy: Mapping[str, Any]) -> Figure:
    """A row per task, a column per block from the image to the heads; blue: executes, empty: skips.

    policy: content of policy.json; where it has probabilities they are written into the cells.
    """
    tasks = [format_name(task) for task in policy["tasks"]]
    blocks = _list_blocks(policy)
    shown = np.array(policy.get("execute_probability", policy["policy"]), dtype=float)
    # inches, so that a cell is as large as its number needs
    width = 0.6 if len(blocks) <= MOST_COLUMNS else 0.36
    figure = make_figure(width * len(blocks) + 2, 0.27 * len(tasks) + 0.7)
    axes = figure.subplots()
    _draw_heat_map(axes, shown, tasks, edgecolors=GRID, linewidth=1.2)
    if "execute_probability" in policy:
        for (row, column), value in np.ndenumerate(shown):
            colour = choose_text_colour(EXECUTES(value)[:3])
            axes.text(
                column,
                row,
                f"{100 * value:.0f}",
                fontsize=7,
                color=colour,
                ha="center",
                va="center",
            )
    axes.set_xticks(range(len(blocks)), blocks)
    axes.xaxis.tick_top()
    title = "block (stage_place)"
    if max(map(len, blocks)) > SHORT_NAME:
        title = ""  # names say what they are
        axes.tick_params(axis="x", labelrotation=60)
        for label in axes.get_xticklabels():
            label.set(ha="left", rotation_mode="anchor")
    axes.set_title(title)
    return figure


@in_style
def draw_search(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """How probable it is, in the mean over tasks, that a block is executed, cycle by cycle, and which blocks were released."""
    blocks = _list_blocks(lines[-1])
    means = np.array(
        [np.mean(line["execute_probability"], axis=0) for line in lines]
    )  # [cycles, L]
    figure = make_figure(7.2, 0.3 * len(blocks) + 1.1)
    axes = figure.subplots()
    picture = _draw_heat_map(axes, means.T, blocks)
    # a step and no slope: blocks are released between two cycles
    first = [len(blocks) - line["num_released"] - 0.5 for line in lines]
    axes.step(range(len(lines)), first, color=INK, where="mid")
    axes.set_xlabel("cycle")
    axes.set_ylabel("block; below the line: blocks that the policy decides")
    # counted from one
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda cycle, _: f"{cycle + 1:.0f}")
    figure.colorbar(picture, ax=axes, label="probability of executing,\nmean over tasks")
    return figure


def _draw_heat_map(axes: Axes, shares: np.ndarray, rows: Sequence[str], **style: Any) -> QuadMesh:
    """Shares [rows, columns] in 0..1, the first row at the top."""
    places = [np.arange(size) for size in shares.shape]
    cells = axes.pcolormesh(places[1], places[0], shares, cmap=EXECUTES, vmin=0, vmax=1, **style)
    axes.set_yticks(places[0], rows)
    axes.invert_yaxis()
    hide_frame(axes)
    return cells


def _list_blocks(policy: Mapping[str, Any]) -> list[str]:
    return [block.removeprefix("block") for block in policy["blocks"]]
