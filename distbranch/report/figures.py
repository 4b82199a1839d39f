"""Every other picture of a run: data in, matplotlib Figure out. No pyplot, so no global state and no window system.

Colours have one meaning throughout: that of a top group of the tree, else blue for what was measured and orange for what was chosen.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from distbranch.report.console import METRICS
from distbranch.report.figure_style import (
    AS_IT_IS,
    BLUE,
    BROWN,
    GRID,
    INK,
    MUTED,
    OLIVE,
    ORANGE,
    PAPER,
    PURPLE,
    TEAL,
    group_colour,
    text_width,
)
from distbranch.report.layers import Branches, group_numbers, readable

Json = Mapping[str, Any]
_COLOURS = (MUTED, BLUE, PURPLE, TEAL, OLIVE, BROWN)
MEANS = {key: (label, colour) for (key, label), colour in zip(METRICS.items(), _COLOURS, strict=True)}
TASK_METRICS = tuple(MEANS)[:3]  # those that a single task has
KINDS = {"agreement": "Agreement (Eq. 6)", "phi": "Phi (chance-corrected)"}
# Below 0.5 two tasks are difficult at different times, above together; white is independence.
_AFFINITY_MAP = LinearSegmentedColormap.from_list("affinity", ["#8c510a", "#dfc27d", "#fbfbf9", "#6baed6", "#08306b"])


def draw_affinity(
    affinities: Mapping[str, np.ndarray], tasks: Sequence[str], groups: Branches, *, title: str = ""
) -> Figure:
    """The affinity of every two tasks, [T, T] in the order of `tasks` per kind, ordered by group, groups framed."""
    order = [tasks.index(task) for group in groups for task in group]
    side = min(max(0.135 * len(order), 2.6), 9.0)
    cell, with_names = side / len(order), len(order) <= 120
    font = min(8.5, 72 * cell * 0.76)
    longest = max(text_width(readable(task), font) for task in tasks) if with_names else 0.0
    names = longest + 3 * max(0.012 * len(order), 0.3) * cell
    width = (side + names + 0.9) * len(affinities) + 0.1
    height = side + names + 0.85
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    if title:
        figure.text(0.2 / width, 1 - 0.12 / height, title, fontsize=9.5, color=MUTED, va="top")
    for index, (kind, affinity) in enumerate(affinities.items()):
        left = (side + names + 0.9) * index + names + 0.1
        axes = figure.add_axes((left / width, 0.12 / height, side / width, side / height))
        _draw_affinity_panel(axes, affinity[np.ix_(order, order)], groups, font=font if with_names else None, cell=cell)
        bar = figure.add_axes(((left + side + 0.16) / width, 0.12 / height, 0.12 / width, side / height))
        _draw_colour_bar(figure, axes, bar)
        figure.text(
            left / width, 1 - 0.42 / height, KINDS.get(kind, kind), fontsize=10.5, weight="bold", color=INK, va="top"
        )
    return figure


def _draw_affinity_panel(
    axes: Axes, affinity: np.ndarray, groups: Branches, *, font: float | None, cell: float
) -> None:
    """One matrix with its groups framed; `font` in points (None = no names), `cell` in inches."""
    size, thick = len(affinity), max(0.012 * len(affinity), 0.3)
    shown = np.where(np.eye(size, dtype=bool), np.nan, affinity)
    spread = float(np.nanpercentile(np.abs(shown - 0.5), 99)) if size > 1 else 0.0
    spread = max(0.05, math.ceil(spread * 20) / 20)
    axes.imshow(shown, cmap=_AFFINITY_MAP, vmin=0.5 - spread, vmax=0.5 + spread, interpolation="nearest")
    axes.set_facecolor(GRID)
    start = 0
    for number, group in enumerate(groups):
        frame: dict[str, Any] = {
            "edgecolor": group_colour(number),
            "facecolor": "none",
            "linewidth": 1.8,
            "clip_on": False,
        }
        axes.add_patch(Rectangle((start - 0.5, start - 0.5), len(group), len(group), **frame))
        strip: dict[str, Any] = {"facecolor": group_colour(number), "linewidth": 0, "clip_on": False}
        axes.add_patch(Rectangle((-0.5 - 2 * thick, start - 0.45), thick, len(group) - 0.1, **strip))
        axes.add_patch(Rectangle((start - 0.45, -0.5 - 2 * thick), len(group) - 0.1, thick, **strip))
        start += len(group)
    names = [readable(task) for group in groups for task in group] if font else []
    axes.set_yticks(range(len(names)), names, fontsize=font, color=INK, **AS_IT_IS)
    axes.set_xticks(range(len(names)), names, fontsize=font, color=INK, rotation=90, **AS_IT_IS)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=2.4 * thick * cell * 72)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_colour_bar(figure: Figure, axes: Axes, place: Axes) -> None:
    bar = figure.colorbar(axes.images[0], cax=place)
    bar.ax.tick_params(labelsize=7.5, colors=MUTED, length=2)
    low, high = axes.images[0].get_clim()
    bar.set_ticks([low, (low + 0.5) / 2, 0.5, (high + 0.5) / 2, high])
    bar.outline.set_visible(False)


def draw_costs(decisions: Sequence[Json], *, num_columns: int = 4) -> Figure:
    """The cost of every number of branches d, per decision; total, its separation part, and the d that was chosen."""
    num_columns = min(num_columns, len(decisions))
    num_rows = -(-len(decisions) // num_columns)
    figure = Figure(
        figsize=(max(3.1 * num_columns, 4.2), 2.35 * num_rows + 0.35), facecolor=PAPER, layout="constrained"
    )
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in list(grid.flat)[len(decisions) :]:
        axes.set_visible(False)
    for axes, decision in zip(grid.flat, decisions, strict=False):
        _draw_cost_panel(axes, decision)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
    _choose_ink(legend.get_texts())
    return figure


def _draw_cost_panel(axes: Axes, decision: Json) -> None:
    numbers = sorted(int(d) for d in decision["costs"])
    total = [decision["costs"][str(d)] for d in numbers]
    separation = [decision["alpha"] * decision["separation"][str(d)] for d in numbers]
    chosen = decision["num_groups"]
    marker = "o" if len(numbers) <= 25 else ""
    axes.plot(numbers, total, color=BLUE, marker=marker, markersize=3, linewidth=1.6, label="total cost")
    axes.plot(numbers, separation, color=MUTED, linestyle="--", linewidth=1.2, label="separation part (alpha L_s)")
    branch = [both - part for both, part in zip(total, separation, strict=True)]
    axes.plot(numbers, branch, color=MUTED, linestyle=":", linewidth=1.2, label="branch part")
    axes.plot([chosen], [decision["costs"][str(chosen)]], "o", color=ORANGE, markersize=8, label="chosen", zorder=3)
    axes.set_title(
        f"Round {decision['round']}: {decision['layer_name']}, d = {chosen}", fontsize=9, color=INK, loc="left"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_ylim(bottom=min(0.0, *total))
    axes.set_xlabel("number of branches d", fontsize=8, color=MUTED)
    plain(axes)


def draw_curves(training: Sequence[Json], evaluations: Sequence[Json], decisions: Sequence[Json]) -> Figure:
    """Loss, learning rate and, if there are several, evaluations over the iterations, with the moments of widening marked."""
    scored = [line for line in evaluations if line.get("mean")]
    several = len({line["iteration"] for line in scored}) > 1  # one alone is no curve: tables tell it
    panels = ["loss", "learning_rate", *(["scores"] if several else [])]
    heights = {"loss": 2.4, "learning_rate": 1.1, "scores": 2.4}
    ratios = [heights[panel] for panel in panels]
    figure = Figure(figsize=(12, sum(ratios) + 0.6), facecolor=PAPER, layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    _draw_loss_panel(grid[0], training, evaluations)
    grid[1].plot(*_collect_series(training, "learning_rate"), color=BLUE, linewidth=1.4)
    grid[1].set_ylim(bottom=0)
    grid[1].set_ylabel("learning rate", fontsize=8.5, color=MUTED)
    if several:
        _draw_score_panel(grid[2], scored)
    for axes in grid:
        _mark_decisions(axes, decisions, with_names=axes is grid[0])
        plain(axes)
    grid[-1].set_xlabel("iteration", fontsize=8.5, color=MUTED)
    return figure


def _draw_loss_panel(axes: Axes, training: Sequence[Json], evaluations: Sequence[Json]) -> None:
    x, y = _collect_series(training, "loss")
    axes.plot(x, y, color=BLUE, linewidth=0.8, alpha=0.35 if len(x) > 30 else 1.0, label="training")
    if len(x) > 30:
        axes.plot(x, smooth(y), color=BLUE, linewidth=1.7, label="training, smoothed")
    for index, split in enumerate(sorted({line["split"] for line in evaluations})):
        points = _collect_series([line for line in evaluations if line["split"] == split], "loss")
        axes.plot(*points, "o-", color=(PURPLE, TEAL, INK)[index % 3], markersize=4, linewidth=1.2, label=split)
    positive = y[np.isfinite(y) & (y > 0)]
    if len(positive) and positive.max() / positive.min() > 30:
        axes.set_yscale("log")
    axes.set_ylabel("loss", fontsize=8.5, color=MUTED)
    _draw_legend(axes)


def _draw_score_panel(axes: Axes, evaluations: Sequence[Json]) -> None:
    splits = sorted({line["split"] for line in evaluations})
    for style, split in zip(("o-", "s--", "^:"), splits, strict=False):
        lines = [line for line in evaluations if line["split"] == split]
        for key, (label, colour) in MEANS.items():
            points = [
                (line["iteration"], 100 * line["mean"][key]) for line in lines if line["mean"].get(key) is not None
            ]
            name = label if len(splits) == 1 else f"{label}, {split}"
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, markersize=4, linewidth=1.4, label=name)
    axes.set_ylabel(
        f"mean over tasks, % ({splits[0]})" if len(splits) == 1 else "mean over tasks, %", fontsize=8.5, color=MUTED
    )
    _draw_legend(axes)


def draw_throughput(training: Sequence[Json], decisions: Sequence[Json], resumed: Sequence[Json] = ()) -> Figure:
    """Samples per second and the share of time spent waiting for data, over the iterations."""
    figure = Figure(figsize=(12, 3.4), facecolor=PAPER, layout="constrained")
    rate, wait = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    rate.plot(*_collect_series(training, "samples_per_second"), color=BLUE, linewidth=1.3)
    rate.set_ylim(bottom=0)
    rate.set_ylabel("samples per second", fontsize=8.5, color=MUTED)
    x, share = _collect_series(training, "data_wait")
    wait.fill_between(x, 100 * share, color=ORANGE, alpha=0.55, linewidth=0)
    wait.plot(x, 100 * share, color=ORANGE, linewidth=1.0)
    wait.set_ylim(0, max(5.0, float(np.nanmax(100 * share, initial=0)) * 1.1))
    wait.set_ylabel("data wait, %", fontsize=8.5, color=MUTED)
    wait.set_xlabel("iteration", fontsize=8.5, color=MUTED)
    for axes in (rate, wait):
        _mark_decisions(axes, decisions, with_names=axes is rate)
        for line in resumed:
            axes.axvline(line["iteration"], color=PURPLE, linewidth=1.2, linestyle="-.", label="resumed")
        plain(axes)
    handles, labels = rate.get_legend_handles_labels()
    if handles:
        _choose_ink(rate.legend(handles[:1], labels[:1], fontsize=8, frameon=False, loc="lower right").get_texts())
    return figure


def draw_task_table(scores: Json, groups: Branches, *, title: str = "") -> Figure:
    """Accuracy, balanced accuracy and average precision of every task as bars, best average precision first."""
    names = sorted_tasks(scores)
    numbers = group_numbers(groups)
    height = 0.2 * len(names) + 0.72
    figure = Figure(figsize=(11, height), facecolor=PAPER)
    for index, key in enumerate(TASK_METRICS):
        axes = figure.add_axes((0.17 + 0.245 * index, 0.12 / height, 0.19, (height - 0.72) / height))
        _draw_bar_column(
            axes, [scores["tasks"][name].get(key) for name in names], [numbers.get(name) for name in names]
        )
        axes.set_title(MEANS[key][0], fontsize=9.5, color=INK, loc="left", weight="bold", pad=3)
        if index == 0:
            axes.set_yticks(range(len(names)), list(map(readable, names)), fontsize=8.5, color=INK, **AS_IT_IS)
            axes.tick_params(axis="y", pad=16)
            _draw_group_column(axes, [numbers.get(name) for name in names])
    axes.text(
        1.42,
        1.0,
        "Positives",
        fontsize=9.5,
        color=INK,
        weight="bold",
        ha="right",
        va="bottom",
        transform=axes.transAxes,
    )
    for row, name in enumerate(names):
        count = scores["tasks"][name].get("num_positive")
        text = "\u2013" if count is None else f"{count:,}"
        axes.text(
            1.42, row, text, fontsize=8.5, color=MUTED, ha="right", va="center", transform=axes.get_yaxis_transform()
        )
    figure.text(0.17, 1 - 0.1 / height, readable(title), fontsize=9.5, color=MUTED, va="top", **AS_IT_IS)
    return figure


def _draw_group_column(axes: Axes, groups: Sequence[int | None]) -> None:
    """The number of each task's group, between its name and its first bar."""
    for row, group in enumerate(groups):
        if group is not None:
            style: dict[str, Any] = {
                "fontsize": 7.5,
                "weight": "bold",
                "ha": "right",
                "va": "center",
                "color": group_colour(group),
            }
            axes.text(-0.025, row, str(group + 1), transform=axes.get_yaxis_transform(), **style)


def sorted_tasks(scores: Json) -> list[str]:
    """Task names, best average precision first; those without one (no positives) last."""

    def value(name: str) -> float:
        precision = scores["tasks"][name].get("average_precision")
        return -1.0 if precision is None else float(precision)

    return sorted(scores["tasks"], key=value, reverse=True)


def _draw_bar_column(axes: Axes, values: Sequence[float | None], groups: Sequence[int | None]) -> None:
    rows = range(len(values))
    colours = [BLUE if group is None else group_colour(group) for group in groups]
    axes.barh(rows, [100.0] * len(values), color=GRID, alpha=0.45, height=0.62)
    axes.barh(rows, [100 * (value or 0.0) for value in values], color=colours, height=0.62)
    for row, value in zip(rows, values, strict=True):
        text = "\u2013" if value is None else f"{100 * value:.1f}"
        axes.text(103, row, text, fontsize=8.5, color=INK, va="center")
    axes.set_xlim(0, 100)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark_decisions(axes: Axes, decisions: Sequence[Json], *, with_names: bool) -> None:
    for decision in decisions:
        widened = decision["num_groups"] > 1
        axes.axvline(decision["iteration"], color=ORANGE if widened else MUTED, linewidth=0.9, linestyle=":", zorder=0)
        if with_names:
            text = f" {decision['layer_name']} → {decision['num_groups']}"
            style: dict[str, Any] = {"fontsize": 7, "rotation": 90, "ha": "center", "va": "bottom", "color": MUTED}
            axes.text(decision["iteration"], 1.0, text, transform=axes.get_xaxis_transform(), **style)


def _collect_series(lines: Sequence[Json], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["iteration"], line[key]) for line in lines if line.get(key) is not None]
    values = np.array(points, dtype=float).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about a fortieth of the points."""
    width = max(3, len(values) // 40) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _draw_legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(handles, labels, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.005, 0.5))
        _choose_ink(legend.get_texts())


def _choose_ink(texts: Sequence[Any]) -> None:
    for text in texts:
        text.set_color(INK)


def plain(axes: Axes) -> None:
    """A quiet frame: no box, faint horizontal lines, small grey numbers with thousands marked."""
    axes.set_facecolor("none")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(labelsize=8, colors=MUTED, length=2)
    if axes.get_xlim()[1] > 999:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
