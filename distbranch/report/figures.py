"""Every other picture of a run: data in, matplotlib Figure out. No pyplot, so no global state and no window system.

Colours have one meaning throughout: that of a top group of the tree, else blue for what was measured and orange for what was chosen.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from distbranch.kinds import UNIT_OF_TASK
from distbranch.metrics import list_dense_metrics, list_metrics
from distbranch.report.console import USUAL, divide_metrics, format_value
from distbranch.report.figure_style import (
    BLUE,
    GRID,
    INK,
    MUTED,
    ORANGE,
    add_grid,
    group_colour,
    hide_frame,
    in_style,
    make_figure,
)
from distbranch.report.layers import Branches, format_name, group_numbers, name_decision

Json = Mapping[str, Any]
Marks = Sequence[tuple[int, str]]  # an iteration and what happened then
KINDS = {
    "agreement": "Agreement (Eq. 6)",
    "phi": "Phi (chance-corrected)",
    "importance": "Importance (same filters)",
    "gradient-cosine": "Gradient cosine",
    "look-ahead": "Look-ahead (TAG)",
}
MOST_NAMES = 120  # beside a matrix; those of more tasks would be too small to read
MOST_WEIGHTS = 10  # of losses, each in a hue of its own
WIDTH = 6.2  # inches of a figure that half a screen and a telephone have room for
MANY_POINTS = 30  # a curve of more points is noise beneath its running mean
# Below 0.5 two tasks are difficult at different times, above together; white is independence.
AFFINITY_MAP = LinearSegmentedColormap.from_list(
    "affinity", ["#8c510a", "#dfc27d", "#fbfbf9", "#6baed6", "#08306b"]
)


# ---- decisions


@in_style
def draw_affinity(
    affinities: Mapping[str, np.ndarray],
    tasks: Sequence[str],
    groups: Branches,
    *,
    title: str = "",
) -> Figure:
    """The affinity of every two tasks, [T, T] in the order of `tasks` per kind, ordered by group, groups framed."""
    names = [task for group in groups for task in group]
    order = list(map(tasks.index, names))
    # inches: 0.135 a row, so that the names of forty tasks are read; nine fill a screen
    side = float(np.clip(0.135 * len(order), 2.6, 9.0))
    # points, so that lines of names do not touch
    font = min(8.5, 55 * side / len(order))
    # below each other, so that names are read on a narrow screen too
    figure = make_figure(side + 1.9, len(affinities) * (side + 1.7))
    panels = figure.subplots(len(affinities), 1, squeeze=False)[:, 0]
    for axes, (kind, affinity) in zip(panels, affinities.items(), strict=True):
        draw_matrix(axes, affinity[np.ix_(order, order)], groups)
        ticks = range(len(names)) if len(names) <= MOST_NAMES else []
        labels = [format_name(names[tick]) for tick in ticks]
        axes.set_yticks(ticks, labels, fontsize=font)
        axes.set_xticks(ticks, labels, fontsize=font, rotation=90)
        axes.xaxis.tick_top()
        axes.set_title(f"{title}\n{KINDS.get(kind, kind)}")
        figure.colorbar(axes.images[0], ax=axes, shrink=0.7, pad=0.02)
    return figure


def draw_matrix(axes: Axes, affinity: np.ndarray, groups: Branches) -> None:
    """An affinity [T, T] in the order of its groups, which are framed; white is independence."""
    # a task with itself says nothing
    np.fill_diagonal(affinity, np.nan)
    # 99 of 100 pairs: one odd pair would make all others pale; one task alone has no pair
    distances = np.abs(affinity - 0.5)[np.isfinite(affinity)]
    spread = np.percentile([0.05, *distances], 99)
    # as far to one side as to the other: white stays independence
    axes.imshow(affinity, cmap=AFFINITY_MAP, vmin=0.5 - spread, vmax=0.5 + spread)
    axes.set_facecolor(GRID)
    hide_frame(axes)
    start = -0.5
    for number, group in enumerate(groups):
        size = len(group)
        frame = Rectangle(
            (start, start),
            size,
            size,
            fill=False,
            edgecolor=group_colour(number),
            linewidth=2.2,
        )
        axes.add_patch(frame)
        start += size


@in_style
def draw_costs(decisions: Sequence[Json]) -> Figure:
    """The cost of every number of branches d, per decision; total, its separation part, and the d that was chosen."""
    num_columns = min(2, len(decisions))
    num_rows = math.ceil(len(decisions) / num_columns)
    figure = make_figure(WIDTH, 1.9 * num_rows + 0.35)
    for number, decision in enumerate(decisions, start=1):
        axes = figure.add_subplot(num_rows, num_columns, number)
        _draw_cost_panel(axes, decision)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure


def _draw_cost_panel(axes: Axes, decision: Json) -> None:
    # by number of branches
    total = pandas.Series(decision["costs"]).rename(int).sort_index()
    separation = (
        decision["alpha"] * pandas.Series(decision["separation"]).rename(int).loc[total.index]
    )
    chosen = decision["num_groups"]
    axes.plot(total, color=BLUE, marker=".", linewidth=1.6, label="total cost")
    axes.plot(
        separation,
        "--",
        color=MUTED,
        linewidth=1.2,
        label="separation part (alpha L_s)",
    )
    axes.plot(total - separation, ":", color=MUTED, linewidth=1.2, label="branch part")
    axes.plot(
        chosen,
        total[chosen],
        "o",
        color=ORANGE,
        markersize=8,
        label="chosen",
        zorder=3,
    )
    axes.set_title(f"{': '.join(name_decision(decision))}, d = {chosen}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    # from zero, as the two parts add up to the total
    axes.set_ylim(bottom=min(0.0, total.min()))
    axes.set_xlabel("number of branches d")
    add_grid(axes)


# ---- curves over the iterations


@in_style
def draw_curves(training: Sequence[Json], evaluations: Sequence[Json], marks: Marks = ()) -> Figure:
    """Loss, learning rate, and weights of losses that change, over the iterations."""
    losses = {"training": read_series(training, "loss")}
    for split in sorted({line["split"] for line in evaluations}):
        curve = read_series([line for line in evaluations if line["split"] == split], "loss")
        if len(curve) > 1:
            losses[split] = curve
    panels = {"loss": losses, "learning rate": {"": read_series(training, "learning_rate")}}
    weights = _read_changing_weights(training)
    if weights:
        panels["weights of losses"] = weights
    return _draw_panels(panels, marks)


def list_score_curves(evaluations: Sequence[Json]) -> dict[str, pandas.Series]:
    """The mean over tasks on val by metric and iteration, of metrics that have several values; shares in per cent."""
    lines = [line for line in evaluations if line["split"] == "val"]
    means = [{"iteration": line["iteration"], **(line.get("mean") or {})} for line in lines]
    dense = list_dense_metrics()
    curves = {}
    for key, metric in list_metrics().items():
        curve = read_series(means, key)
        # one evaluation alone is no curve: tables tell it; dense tasks have many metrics that go the same way
        if len(curve) > 1 and (key not in dense or metric.is_drawn):
            curves[key] = 100 * curve if metric.unit == "%" else curve
    return curves


@in_style
def draw_scores(
    curves: Mapping[str, pandas.Series],
    thin: Mapping[str, pandas.Series],
    marks: Marks = (),
    *,
    thin_name: str = "",
) -> Figure:
    """A panel per metric, each on an axis of its own: the mean over tasks on val, and dashed that of a thin network."""
    num_columns = min(2, len(curves))
    num_rows = math.ceil(len(curves) / num_columns)
    figure = make_figure(WIDTH, 1.8 * num_rows + 0.3)
    for number, (key, curve) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(num_rows, num_columns, number)
        draw_smoothed(axes, curve, BLUE, "this run")
        if key in thin:
            axes.plot(thin[key], "--", color=MUTED, linewidth=1.4, label=format_name(thin_name))
        for iteration, _ in marks:
            axes.axvline(iteration, color=GRID, linewidth=0.9, linestyle=":", zorder=0)
        axes.set_title(describe_metric(key))
        add_grid(axes)
    if thin:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2
        )
    return figure


def describe_metric(key: str) -> str:
    """The title of a metric with its unit, and whether less is better."""
    metric = list_metrics()[key]
    unit = f", {metric.unit}" if metric.unit == "%" else ""
    worse = " (less is better)" if metric.lower_is_better else ""
    return f"{metric.title}{unit}{worse}"


def _read_changing_weights(training: Sequence[Json]) -> dict[str, pandas.Series]:
    """The weights of losses by task and iteration, of the first tasks whose weights change."""
    rows = {line["iteration"]: line["loss_weights"] for line in training if "loss_weights" in line}
    table = pandas.DataFrame.from_dict(rows, orient="index")
    changing = [task for task in table if table[task].nunique() > 1]
    return {task: table[task] for task in changing[:MOST_WEIGHTS]}


@in_style
def draw_throughput(training: Sequence[Json], marks: Marks = ()) -> Figure:
    """Samples per second and the share of time spent waiting for data, over the iterations."""
    panels = {
        "samples per second": {"": read_series(training, "samples_per_second")},
        "data wait, %": {"": 100 * read_series(training, "data_wait")},
    }
    figure = _draw_panels(panels, marks)
    # from zero, so that half the pace looks like half; less than five per cent is noise, and should look like it
    for axes, least in zip(figure.axes, (1.0, 5.0), strict=True):
        axes.set_ylim(0, max(least, axes.get_ylim()[1]))
    return figure


def list_marks(decisions: Sequence[Json], resumed: Sequence[Json]) -> Marks:
    """When something happened, and what: the layer of a decision and its number of branches, or that the run was resumed."""
    marks = [
        (line["iteration"], f"{name_decision(line)[1]} → {line['num_groups']}")
        for line in decisions
    ]
    return marks + [(line["iteration"], "resumed") for line in resumed]


def _draw_panels(panels: Mapping[str, Mapping[str, pandas.Series]], marks: Marks) -> Figure:
    """A panel per unit {what its axis shows: {name of a curve: values by iteration}}, marks named above the first one."""
    figure = make_figure(WIDTH, 1.6 * len(panels) + 0.6)
    for axes, (unit, curves) in zip(
        figure.subplots(len(panels), 1, sharex=True), panels.items(), strict=True
    ):
        for number, (name, curve) in enumerate(curves.items()):
            draw_smoothed(axes, curve, group_colour(number), name)
        for iteration, _ in marks:
            axes.axvline(iteration, color=MUTED, linewidth=0.9, linestyle=":", zorder=0)
        axes.set_ylabel(unit)
        if len(curves) > 1:
            axes.legend(loc="best", ncols=math.ceil(len(curves) / 5))
        add_grid(axes)
    above = figure.axes[0].secondary_xaxis("top")
    above.set_xticks(
        [iteration for iteration, _ in marks],
        [text for _, text in marks],
        rotation=90,
        fontsize=7,
    )
    axes.set_xlabel("iteration")
    return figure


def read_series(lines: Sequence[Json], key: str) -> pandas.Series:
    """The known values of a key by iteration."""
    table = pandas.DataFrame(lines, columns=["iteration", key]).astype(float)
    return table.dropna().set_index("iteration")[key]


def draw_smoothed(axes: Axes, curve: pandas.Series, colour: str, label: str) -> None:
    """A curve, with a dot per value; where it has many faint, beneath its running mean."""
    axes.plot(curve, color=colour, linewidth=0.8, alpha=0.35)
    marker = "" if len(curve) > MANY_POINTS else "o"
    axes.plot(
        smooth_curve(curve),
        color=colour,
        linewidth=1.6,
        marker=marker,
        markersize=4,
        label=label,
    )


def smooth_curve(curve: pandas.Series) -> pandas.Series:
    """A centred running mean over about a fortieth of the points; few points as they are."""
    if len(curve) <= MANY_POINTS:
        return curve
    return curve.rolling(max(3, len(curve) // 40), center=True, min_periods=1).mean()


# ---- bars


@in_style
def draw_task_table(scores: Json, groups: Branches, *, title: str = "") -> Figure:
    """The metrics of every task as bars, best first; what is no share stands in a second row of panels."""
    numbers = group_numbers(groups)
    parts = [(list_tasks_with(scores, keys), keys) for keys in list_task_metrics(scores)]
    heights = [0.2 * len(names) + 0.5 for names, _ in parts]
    # a second line of titles says that less is better
    heights[1:] = [height + 0.17 for height in heights[1:]]
    figure = make_figure(11, sum(heights) + 0.22)
    figure.suptitle(format_name(title))
    rows = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for row, (names, keys) in zip(rows, parts, strict=True):
        colours = [group_colour(numbers[name]) if name in numbers else BLUE for name in names]
        panels = row.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for axes, key in zip(panels, keys, strict=True):
            _draw_metric(axes, key, names, scores, colours)
    return figure


def _draw_metric(
    axes: Axes, key: str, names: Sequence[str], scores: Json, colours: Sequence[str]
) -> None:
    """A mark per task between the worst and the best of them, and its value."""
    metric = list_metrics()[key]
    values = [scores["tasks"][name].get(key) for name in names]
    units = scores.get("units", {})
    rows = range(len(names))
    for row, name, value, place in zip(rows, names, values, place_marks(key, values), strict=True):
        text = format_value(key, value, unit=units.get(name, ""))
        axes.text(1.06, row, text, va="center", fontsize=8)
        if place is not None:
            axes.plot((0, 1), (row, row), color=GRID, linewidth=3, solid_capstyle="round", zorder=1)
            axes.plot(place, row, "o", color=colours[row], markersize=6, zorder=2)
    axes.set_yticks(rows, map(format_name, names))
    worse = "\n(less is better)" if metric.lower_is_better else ""
    # room for the numbers
    axes.set(
        xlim=(-0.03, 1.3), ylim=(len(names) - 0.4, -0.6), xticks=[], title=f"{metric.title}{worse}"
    )
    hide_frame(axes)


def place_marks(
    key: str, values: Sequence[float | None], also: Sequence[float | None] = ()
) -> list[float | None]:
    """Where values of a metric lie between the smallest (0) and the largest (1) of all that are shown, those of `also` too.

    Shares are placed by the logarithm of their odds, which parts 99.0 from 99.5 % as far as 80 from 89. None: unknown, or with
    nothing to be compared with.
    """
    metric = list_metrics()[key]
    places = np.array(values, dtype=float)
    known = np.array([*values, *also], dtype=float)
    if metric.unit == "%":
        places, known = _take_log_odds(places), _take_log_odds(known)
    known = known[np.isfinite(known)]
    # errors in units of their own cannot be compared
    if metric.unit == UNIT_OF_TASK or len(known) < 2 or np.ptp(known) == 0:
        return [None] * len(values)
    places = (places - known.min()) / np.ptp(known)
    return [float(place) if np.isfinite(place) else None for place in places]


def _take_log_odds(shares: np.ndarray) -> np.ndarray:
    # what is all right or all wrong lies at the end of the axis and not beyond it
    clipped = np.clip(shares, 0.001, 0.999)
    return np.asarray(np.log(clipped / (1 - clipped)))


def list_task_metrics(scores: Json) -> list[list[str]]:
    """The metrics that are shown of every task: three shares, and in a part of their own those that are none."""
    parts = []
    for keys in divide_metrics(list(scores["tasks"].values())):
        # top-3 and top-5 stand in the means
        usual = [key for key in keys if key in USUAL]
        parts.append(usual or keys)
    return parts


def list_tasks_with(scores: Json, keys: Sequence[str]) -> list[str]:
    """The tasks that have one of the metrics, best first."""
    return [name for name in sort_tasks(scores, keys) if set(keys) & set(scores["tasks"][name])]


def draw_bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str],
) -> None:
    """A named bar per task, the first one at the top."""
    rows = range(len(names))
    axes.barh(rows, values, color=colours, height=0.7, zorder=2)
    axes.set_yticks(rows, map(format_name, names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def sort_tasks(scores: Json, keys: Sequence[str] = USUAL) -> list[str]:
    """Task names, best first: by average precision or else the first of `keys` that has a mean; those without it last."""
    metrics = list_metrics()
    averaged = [key for key in keys if metrics[key].is_averaged]
    # who has no average precision follows, by accuracy
    by = sorted(averaged, key=lambda key: key != "average_precision")
    rows = {name: [row.get(key) for key in by] for name, row in scores["tasks"].items()}
    values = pandas.DataFrame.from_dict(rows, orient="index", columns=by, dtype=float)
    ascending = [metrics[key].lower_is_better for key in by]
    return list(values.sort_values(by, ascending=ascending, kind="stable").index)
