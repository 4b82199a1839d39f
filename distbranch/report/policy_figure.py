"""The pictures of a policy of AdaShare: who executes which block, and how the search came to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from distbranch.report.layers import readable
from distbranch.report.palette import AS_IT_IS, BLUE, GRID, INK, MUTED, PAPER, blend, text_on
from distbranch.report.tree_figure import text_width

FONT = 8.5
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.27  # inches
STEPS_OF_COLOUR = 64


def draw_policy(policy: Mapping[str, Any]) -> Figure:
    """A row per task, a column per block from the image to the heads; blue: executes, empty: skips.

    policy: content of policy.json; where it has probabilities they are written into the cells.
    """
    tasks, blocks = policy["tasks"], policy["blocks"]
    executes = np.array(policy["policy"], dtype=float)
    shown = np.array(policy.get("execute_probability", executes))
    names = max(text_width(readable(task), FONT) for task in tasks) + 0.2
    width, height = CELL_WIDTH * len(blocks), CELL_HEIGHT * len(tasks)
    whole = (width + names + 0.15, height + 0.5)
    figure = Figure(figsize=whole, facecolor=PAPER)
    axes = figure.add_axes((names / whole[0], 0.1 / whole[1], width / whole[0], height / whole[1]))
    for (row, column), value in np.ndenumerate(shown):
        _cell(axes, column, row, value, runs=bool(executes[row, column]), says="execute_probability" in policy)
    axes.set(xlim=(-0.5, len(blocks) - 0.5), ylim=(len(tasks) - 0.5, -0.5))
    axes.set_yticks(range(len(tasks)), [readable(task) for task in tasks], fontsize=FONT, color=INK, **AS_IT_IS)
    axes.set_xticks(range(len(blocks)), [name.removeprefix("block") for name in blocks], fontsize=FONT, color=INK)
    axes.xaxis.tick_top()
    axes.set_xlabel("block (stage_place)", fontsize=FONT, color=MUTED)
    axes.xaxis.set_label_position("top")
    _plain(axes)
    return figure


def _cell(axes: Axes, column: int, row: int, value: float, *, runs: bool, says: bool) -> None:
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
    axes.set_yticks(range(len(blocks)), [name.removeprefix("block") for name in blocks], fontsize=FONT, color=INK)
    axes.set_xlabel("cycle; above the line: blocks that the policy decides", fontsize=FONT, color=MUTED)
    axes.set_ylabel("block", fontsize=FONT, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=FONT)
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.015)
    bar.set_label("probability of executing,\nmean over tasks", fontsize=FONT, color=MUTED)
    bar.ax.tick_params(labelsize=7.5, colors=MUTED, length=2)
    bar.outline.set_visible(False)
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.tick_params(length=0, colors=MUTED, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
