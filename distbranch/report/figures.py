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
from matplotlib.ticker import MaxNLocator

from distbranch.report.console import METRICS, format_count, format_percent
from distbranch.report.figure_style import (
    BLUE,
    BROWN,
    GRID,
    INK,
    MUTED,
    OLIVE,
    ORANGE,
    PURPLE,
    TEAL,
    add_grid,
    group_colour,
    hide_frame,
    in_style,
    make_figure,
    text_width,
)
from distbranch.report.layers import Branches, format_name, group_numbers

Json = Mapping[str, Any]
_COLOURS = (MUTED, BLUE, PURPLE, TEAL, OLIVE, BROWN)
MEANS = {key: (label, colour) for (key, label), colour in zip(METRICS.items(), _COLOURS, strict=True)}
TASK_METRICS = tuple(METRICS)[:3]  # those that a single task has
KINDS = {"agreement": "Agreement (Eq. 6)", "phi": "Phi (chance-corrected)"}
MOST_NAMES = 120  # beside a matrix; those of more tasks would be too small to read
MANY_POINTS = 30  # a curve of more points is noise beneath its running mean
# Below 0.5 two tasks are difficult at different times, above together; white is independence.
_AFFINITY_MAP = LinearSegmentedColormap.from_list("affinity", ["#8c510a", "#dfc27d", "#fbfbf9", "#6baed6", "#08306b"])


@in_style
def draw_affinity(
    affinities: Mapping[str, np.ndarray], tasks: Sequence[str], groups: Branches, *, title: str = ""
) -> Figure:
    """The affinity of every two tasks, [T, T] in the order of `tasks` per kind, ordered by group, groups framed."""
    order = [tasks.index(task) for group in groups for task in group]
    # inches: the matrix, a row of it, the strip that shows a group, the names
    # 0.135 a row: names of forty tasks are read; nine fill a screen
    side = min(max(0.135 * len(order), 2.6), 9.0)
    cell = side / len(order)
    strip = max(0.012 * side, 0.3 * cell)
    font = min(8.5, 72 * cell * 0.76)  # points, so that lines of names do not touch
    names = [format_name(tasks[index]) for index in order]
    if len(order) > MOST_NAMES:
        names = []
    margin = 3 * strip + max((text_width(name, font) for name in names), default=0.0)
    height = side + margin + 0.85
    width = side + margin + 0.9

    figure = Figure(figsize=(width * len(affinities) + 0.1, height))
    # matplotlib's own layout gives a matrix the room of its bar, and the two are not equally high
    panels = figure.subplots(1, len(affinities), squeeze=False)[0]
    total = width * len(affinities) + 0.1
    figure.text(0.2 / total, 1 - 0.12 / height, title, fontsize=9.5, color=MUTED, va="top")
    for index, (axes, (kind, affinity)) in enumerate(zip(panels, affinities.items(), strict=True)):
        left = width * index + margin + 0.1
        axes.set_position((left / total, 0.12 / height, side / total, side / height))
        _draw_matrix(axes, affinity[np.ix_(order, order)])
        _frame_groups(axes, groups, strip / cell)
        axes.set_yticks(range(len(names)), names, fontsize=font)
        axes.set_xticks(range(len(names)), names, fontsize=font, rotation=90)
        axes.xaxis.tick_top()
        axes.tick_params(pad=2.4 * strip * 72)
        bar = figure.add_axes(((left + side + 0.16) / total, 0.12 / height, 0.12 / total, side / height))
        _draw_colour_bar(figure, axes, bar)
        heading = KINDS.get(kind, kind)
        figure.text(left / total, 1 - 0.42 / height, heading, fontsize=10.5, weight="bold", va="top")
    return figure


def _draw_matrix(axes: Axes, affinity: np.ndarray) -> None:
    size = len(affinity)
    shown = np.where(np.eye(size, dtype=bool), np.nan, affinity)  # a task with itself says nothing
    spread = 0.0
    if size > 1:
        # 99 of 100 pairs: one odd pair would make all others pale
        spread = float(np.nanpercentile(np.abs(shown - 0.5), 99))
    spread = max(0.05, math.ceil(spread * 20) / 20)
    # as far to one side as to the other: white stays independence
    axes.imshow(shown, cmap=_AFFINITY_MAP, vmin=0.5 - spread, vmax=0.5 + spread, interpolation="nearest")
    axes.set_facecolor(GRID)
    hide_frame(axes)


def _frame_groups(axes: Axes, groups: Branches, thick: float) -> None:
    """A frame around every group, and its strips left of the matrix and above it, `thick` rows wide."""
    start = 0.0
    for number, group in enumerate(groups):
        size = len(group)
        colour = group_colour(number)
        frame = Rectangle((start - 0.5, start - 0.5), size, size, fill=False, edgecolor=colour, linewidth=1.8)
        beside = Rectangle((-0.5 - 2 * thick, start - 0.45), thick, size - 0.1, color=colour, linewidth=0)
        above = Rectangle((start - 0.45, -0.5 - 2 * thick), size - 0.1, thick, color=colour, linewidth=0)
        for patch in (frame, beside, above):
            axes.add_patch(patch)
            patch.set_clip_on(False)
        start += size


def _draw_colour_bar(figure: Figure, axes: Axes, place: Axes) -> None:
    bar = figure.colorbar(axes.images[0], cax=place)
    low, high = axes.images[0].get_clim()
    bar.set_ticks([low, (low + 0.5) / 2, 0.5, (high + 0.5) / 2, high])
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)


@in_style
def draw_costs(decisions: Sequence[Json], *, num_columns: int = 4) -> Figure:
    """The cost of every number of branches d, per decision; total, its separation part, and the d that was chosen."""
    num_columns = min(num_columns, len(decisions))
    num_rows = math.ceil(len(decisions) / num_columns)
    # the legend needs 4.2 inches
    figure = make_figure(max(3.1 * num_columns, 4.2), 2.35 * num_rows + 0.35)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, decision in zip(panels, decisions, strict=False):
        _draw_cost_panel(axes, decision)
    for axes in panels[len(decisions) :]:
        axes.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def _draw_cost_panel(axes: Axes, decision: Json) -> None:
    numbers = sorted(map(int, decision["costs"]))
    total = np.array([decision["costs"][str(number)] for number in numbers])
    separation = decision["alpha"] * np.array([decision["separation"][str(number)] for number in numbers])
    chosen = decision["num_groups"]
    # more than 25 would touch
    marker = "o" if len(numbers) <= 25 else ""
    axes.plot(numbers, total, color=BLUE, marker=marker, markersize=3, linewidth=1.6, label="total cost")
    axes.plot(numbers, separation, "--", color=MUTED, linewidth=1.2, label="separation part (alpha L_s)")
    axes.plot(numbers, total - separation, ":", color=MUTED, linewidth=1.2, label="branch part")
    axes.plot(chosen, decision["costs"][str(chosen)], "o", color=ORANGE, markersize=8, label="chosen", zorder=3)
    title = f"Round {decision['round']}: {decision['layer_name']}, d = {chosen}"
    axes.set_title(title, fontsize=9, weight="normal")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    # from zero, as the two parts add up to the total
    axes.set_ylim(bottom=min(0.0, *total))
    axes.set_xlabel("number of branches d", fontsize=8)
    add_grid(axes)


@in_style
def draw_curves(training: Sequence[Json], evaluations: Sequence[Json], decisions: Sequence[Json]) -> Figure:
    """Loss, learning rate and, if there are several, evaluations over the iterations, with the moments of widening marked."""
    scored = [line for line in evaluations if line.get("mean")]
    heights = [2.4, 1.1]
    if len({line["iteration"] for line in scored}) > 1:  # one alone is no curve: tables tell it
        heights.append(2.4)
    figure = make_figure(12, sum(heights) + 0.6)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_loss_panel(panels[0], training, evaluations)
    panels[1].plot(*_collect_series(training, "learning_rate"), color=BLUE, linewidth=1.4)
    panels[1].set_ylim(bottom=0)
    panels[1].set_ylabel("learning rate")
    for axes in panels[2:]:
        _draw_score_panel(axes, scored)
    _finish_curves(panels, decisions)
    return figure


def _draw_loss_panel(axes: Axes, training: Sequence[Json], evaluations: Sequence[Json]) -> None:
    x, y = _collect_series(training, "loss")
    many = len(x) > MANY_POINTS
    axes.plot(x, y, color=BLUE, linewidth=0.8, alpha=0.35 if many else 1.0, label="training")
    if many:
        axes.plot(x, smooth_curve(y), color=BLUE, linewidth=1.7, label="training, smoothed")
    for index, (split, lines) in enumerate(_group_by_split(evaluations)):
        colour = (PURPLE, TEAL, INK)[index % 3]
        axes.plot(*_collect_series(lines, "loss"), "o-", color=colour, markersize=4, linewidth=1.2, label=split)
    # a loss may be nan, and a logarithm needs more than zero
    positive = y[np.isfinite(y) & (y > 0)]
    if len(positive) and positive.max() / positive.min() > 30:  # beyond that a linear axis hides the end
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("loss")
    _draw_legend_beside(axes)


def _draw_score_panel(axes: Axes, evaluations: Sequence[Json]) -> None:
    splits = _group_by_split(evaluations)
    for style, (split, lines) in zip(("o-", "s--", "^:"), splits, strict=False):
        for key, (label, colour) in MEANS.items():
            means = [{"iteration": line["iteration"], key: line["mean"].get(key)} for line in lines]
            x, shares = _collect_series(means, key)
            name = label if len(splits) == 1 else f"{label}, {split}"
            if len(x):
                axes.plot(x, 100 * shares, style, color=colour, markersize=4, linewidth=1.4, label=name)
    said = f" ({splits[0][0]})" if len(splits) == 1 else ""
    axes.set_ylabel(f"mean over tasks, %{said}")
    _draw_legend_beside(axes)


@in_style
def draw_throughput(training: Sequence[Json], decisions: Sequence[Json], resumed: Sequence[Json] = ()) -> Figure:
    """Samples per second and the share of time spent waiting for data, over the iterations."""
    figure = make_figure(12, 3.4)
    rate, wait = panels = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    rate.plot(*_collect_series(training, "samples_per_second"), color=BLUE, linewidth=1.3)
    # from zero, so that half the pace looks like half
    rate.set_ylim(bottom=0)
    rate.set_ylabel("samples per second")
    x, share = _collect_series(training, "data_wait")
    wait.fill_between(x, 100 * share, color=ORANGE, alpha=0.55, linewidth=0)
    wait.plot(x, 100 * share, color=ORANGE, linewidth=1.0)
    # less than five per cent is noise, and should look like it
    wait.set_ylim(0, max(5.0, 110 * float(np.nanmax(share, initial=0))))
    wait.set_ylabel("data wait, %")
    for axes in panels:
        marks = [axes.axvline(line["iteration"], color=PURPLE, linewidth=1.2, linestyle="-.") for line in resumed]
    _finish_curves(panels, decisions)
    if resumed:
        rate.legend(marks[:1], ["resumed"], fontsize=8, loc="lower right")
    return figure


@in_style
def draw_task_table(scores: Json, groups: Branches, *, title: str = "") -> Figure:
    """Accuracy, balanced accuracy and average precision of every task as bars, best average precision first."""
    names = sort_tasks(scores)
    tasks = [scores["tasks"][name] for name in names]
    numbers = group_numbers(groups)
    colours = [group_colour(numbers[name]) if name in numbers else BLUE for name in names]
    figure = make_figure(11, 0.2 * len(names) + 0.72)
    figure.set_layout_engine("constrained", w_pad=0.12)
    *panels, counts = figure.subplots(1, len(TASK_METRICS) + 1, sharey=True, width_ratios=[1, 1, 1, 0.25])
    for axes, key in zip(panels, TASK_METRICS, strict=True):
        _draw_bars(axes, [task.get(key) for task in tasks], colours)
        axes.set_title(METRICS[key])
    # names, then the number of the group in its colour
    panels[0].set_yticks(range(len(names)), map(format_name, names), fontsize=8.5)
    panels[0].tick_params(axis="y", pad=16)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    beside = panels[0].get_yaxis_transform()
    for row, name in enumerate(names):
        number = str(numbers[name] + 1) if name in numbers else ""
        style: dict[str, Any] = {"fontsize": 7.5, "weight": "bold", "color": colours[row], "transform": beside}
        panels[0].text(-0.025, row, number, ha="right", va="center", **style)
    # how often a task holds, on the right
    counts.set_axis_off()
    counts.set_title("Positives", loc="right")
    for row, task in enumerate(tasks):
        counts.text(1, row, format_count(task.get("num_positive")), color=MUTED, ha="right", va="center")
    figure.suptitle(format_name(title), fontsize=9.5, color=MUTED, x=0.01, ha="left")
    return figure


def _draw_bars(axes: Axes, shares: Sequence[float | None], colours: Sequence[str]) -> None:
    rows = range(len(shares))
    # the whole, against which a bar is read; at its end all values stand in one column
    rails = axes.barh(rows, 100, color=GRID, alpha=0.45, height=0.62)
    axes.barh(rows, [100 * (share or 0.0) for share in shares], color=colours, height=0.62)
    axes.bar_label(rails, [format_percent(share) for share in shares], padding=4)
    axes.set(xlim=(0, 100), xticks=[])
    hide_frame(axes)


def sort_tasks(scores: Json) -> list[str]:
    """Task names, best average precision first; those without one (no positives) last."""

    def read_precision(name: str) -> float:
        precision = scores["tasks"][name].get("average_precision")
        return -1.0 if precision is None else float(precision)

    return sorted(scores["tasks"], key=read_precision, reverse=True)


def smooth_curve(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about a fortieth of the points."""
    # odd, so that it is centred; the ends are repeated, as zeros would bend them
    width = max(3, len(values) // 40) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _finish_curves(panels: Sequence[Axes], decisions: Sequence[Json]) -> None:
    """What panels over the iterations have in common: the decisions, named above the first panel, and a grid."""
    for axes in panels:
        for decision in decisions:
            colour = ORANGE if decision["num_groups"] > 1 else MUTED
            axes.axvline(decision["iteration"], color=colour, linewidth=0.9, linestyle=":", zorder=0)
        add_grid(axes)
    for decision in decisions:
        text = f" {decision['layer_name']} → {decision['num_groups']}"
        style: dict[str, Any] = {"fontsize": 7, "rotation": 90, "color": MUTED}
        above = panels[0].get_xaxis_transform()
        panels[0].text(decision["iteration"], 1.0, text, transform=above, ha="center", va="bottom", **style)
    panels[-1].set_xlabel("iteration")


def _group_by_split(lines: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    splits = sorted({line["split"] for line in lines})
    return [(split, [line for line in lines if line["split"] == split]) for split in splits]


def _collect_series(lines: Sequence[Json], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["iteration"], line[key]) for line in lines if line.get(key) is not None]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    return x, y


def _draw_legend_beside(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        # beside the curves: inside it would cover one of them
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.005, 0.5))
