"""The figures of experiments: fronts of grown and thin networks, what permuting costs, beginnings, kinds of affinity.

Every diagram of value against cost is made of `draw_spots`, every comparison of tasks of `draw_differences`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from distbranch.errors import UserError
from distbranch.metrics import DELTA, list_metrics
from distbranch.report.console import get_scale, name_difference
from distbranch.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    add_grid,
    blend_colours,
    group_colour,
    in_style,
    make_figure,
    render_in_style,
    set_cost_axis,
)
from distbranch.report.figures import AFFINITY_MAP, KINDS, draw_bars, draw_matrix, smooth_curve
from distbranch.report.layers import Branches, format_name

Spread = tuple[float | None, float | None]  # mean and standard deviation over seeds
Line = tuple[Sequence[float], Any]  # x and the values there
AFFINITIES_IN_A_ROW = 3  # a page is as wide
LIGHT_TEXT_ABOVE = 0.6  # of an index, on the dark end of its colours
COSTS = {"multiply_adds": "Multiply-adds per image", "weights": "Weights"}
# Where names stand, as `Axes.annotate` has it. More is better, so what lies on a front or above a line has nothing to its upper
# left, and what lies on a line or below it nothing to its lower right.
ABOVE: dict[str, Any] = {"xytext": (-5, 4), "ha": "right", "va": "bottom"}
BELOW: dict[str, Any] = {"xytext": (5, -4), "ha": "left", "va": "top"}
# Where else a name may stand if it would cover something, near its point first.
ELSEWHERE: tuple[dict[str, Any], ...] = (
    ABOVE,
    BELOW,
    {"xytext": (-5, -4), "ha": "right", "va": "top"},
    {"xytext": (5, 4), "ha": "left", "va": "bottom"},
    {"xytext": (8, 0), "ha": "left", "va": "center"},
    {"xytext": (-8, 0), "ha": "right", "va": "center"},
    {"xytext": (0, 8), "ha": "center", "va": "bottom"},
    {"xytext": (0, -8), "ha": "center", "va": "top"},
)
HORIZONTAL = {-1: "right", 0: "center", 1: "left"}
VERTICAL = {-1: "top", 0: "center", 1: "bottom"}
# Further away, with a line to the point: 22 points clear a name, and so on.
FAR: tuple[dict[str, Any], ...] = tuple(
    {"xytext": (way * across, way * up), "ha": HORIZONTAL[across], "va": VERTICAL[up]}
    for way in (22, 38, 54)
    for across, up in ((-1, 1), (1, -1), (-1, -1), (1, 1), (0, 1), (0, -1))
)
LOOKS_OF_LINES: tuple[dict[str, Any], ...] = (
    {"colour": MUTED, "fmt": "o-", "markersize": 4},
    {"colour": INK, "fmt": "s--", "markersize": 4},
)


@dataclass(frozen=True)
class Spot:
    """A network in a diagram: its name, its costs, its value (a share in 0..1); all as spreads over seeds."""

    name: str
    costs: Mapping[str, Spread]
    value: Spread


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG; UserError where it cannot be written."""
    try:
        with render_in_style():
            figure.savefig(file)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}). Give another run.directory."
        ) from None


# ---- value against cost


def draw_spots(
    axes: Axes,
    spots: Sequence[Spot],
    cost: str,
    colour: str,
    *,
    names: Mapping[str, Any] | None = None,
    scale: float = 100,
    **style: Any,
) -> pandas.DataFrame:
    """Networks with their standard deviations as bars, and their names; what is unknown is not drawn.

    Args:
        axes: of the diagram.
        spots: in any order.
        cost: the one of the horizontal axis.
        colour: of all.
        names: where the names stand; without names if None.
        scale: what values are drawn in units of; shares are in %.
        style: of `Axes.errorbar`; a line in `fmt` goes from the cheapest on.

    Returns:
        What was drawn, cheapest first: name, x, x_sd, y, y_sd.
    """
    rows = [(spot.name, *spot.costs[cost], *spot.value) for spot in spots]
    numbers = ["x", "x_sd", "y", "y_sd"]
    table = pandas.DataFrame(rows, columns=["name", *numbers])
    table[numbers] = table[numbers].astype(float) * [1, 1, scale, scale]
    table = table.dropna(subset=["x", "y"]).sort_values("x")
    look: dict[str, Any] = {
        "fmt": "o",
        "markersize": 5,
        "elinewidth": 1,
        "linewidth": 1.2,
        "zorder": 3,
    }
    axes.errorbar(
        table["x"],
        table["y"],
        xerr=table["x_sd"],
        yerr=table["y_sd"],
        color=colour,
        **look | style,
    )
    if names:
        for name, *place in table[["name", "x", "y"]].to_numpy():
            axes.annotate(
                name,
                (place[0], place[1]),
                textcoords="offset points",
                fontsize=8,
                # of the colour of its point, and dark enough to be read
                color=blend_colours(colour, INK, 0.4),
                zorder=4,
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 3},
                **names,
            )
    return table


def settle_names(figure: Figure) -> None:
    """Move every name to where it covers least; one that would cover another name is left out, for the tables have all.

    Called last: the layout stays as it is then, for only in pixels it is known what covers what.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        points = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
        # ten steps between two points are closer than a name is wide
        paths = [np.empty((0, 2))]
        for line, part in zip(axes.lines, points, strict=True):
            if line.get_linestyle() in ("-", "--") and len(part):
                paths.append(_interpolate(part))
        taken: list[Bbox] = []
        for name in axes.texts:
            if isinstance(name, Annotation):
                _settle_name(name, axes, np.concatenate(points), np.concatenate(paths), taken)


def _settle_name(
    name: Annotation, axes: Axes, points: np.ndarray, paths: np.ndarray, taken: list[Bbox]
) -> None:
    here = {
        "xytext": name.xyann,
        "ha": name.get_horizontalalignment(),
        "va": name.get_verticalalignment(),
    }
    found = []
    places = [here, *ELSEWHERE, *FAR]
    for number, place in enumerate(places):
        box = _place_name(name, place)
        # a covered name cannot be read, a covered point is missed, a line is seen behind letters
        is_outside = not (axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1))
        covered = (
            100 * box.count_overlaps(taken)
            + 10 * box.padded(4).count_contains(points)
            + 4 * is_outside
            + 4 * (place in FAR)
        )
        found.append((covered + 3 * bool(box.count_contains(paths)), number, place))
    least, _, place = min(found, key=lambda one: one[:2])
    box = _place_name(name, place)
    if least < 100:
        taken.append(box)
    else:
        name.set_visible(False)


def _place_name(name: Annotation, place: Mapping[str, Any]) -> Bbox:
    """Put a name there; returns the pixels that it takes."""
    name.xyann = place["xytext"]
    name.set(ha=place["ha"], va=place["va"])
    if name.arrow_patch is not None:
        name.arrow_patch.set_visible(place in FAR)
    return Text.get_window_extent(name)  # without the line to the point


def _interpolate(points: np.ndarray) -> np.ndarray:
    """Points on the straight lines between points [N, 2], ten per line."""
    at = np.linspace(0, max(len(points) - 1, 0), 10 * len(points))
    numbers = np.arange(len(points))
    return np.stack([np.interp(at, numbers, part) for part in points.T], axis=1)


def set_value_label(axes: Axes, metric: str, split: str) -> None:
    """Say what the vertical axis shows."""
    if metric == DELTA:
        axes.set_ylabel(f"Delta on {split}, %", color=INK, fontsize=10)
        return
    told = list_metrics()[metric]
    unit = f", {told.unit}" if told.unit else ""
    worse = " (less is better)" if told.lower_is_better else ""
    axes.set_ylabel(f"{told.title} on {split}{unit}{worse}", color=INK, fontsize=10)


@in_style
def draw_company(
    lines: Mapping[str, Sequence[Spot]], networks: Sequence[Spot], *, metric: str, split: str
) -> Figure:
    """Networks and lines of plain ones against multiply-adds and against weights: up and to the left is better.

    Args:
        lines: {name: plain networks, named by their widths}, two at most.
        networks: all others.
        metric: of the values.
        split: of the values.
    """
    # as wide as a page shows it, so that letters keep their size
    figure = make_figure(8.2, 4.4)
    panels = figure.subplots(1, len(COSTS), sharey=True)
    set_value_label(panels[0], metric, split)
    scale = get_scale(metric)
    marks: dict[str, Any] = {"markersize": 7, "markeredgecolor": INK}
    for axes, (cost, label) in zip(panels, COSTS.items(), strict=True):
        for number, spot in enumerate(networks):
            colour = group_colour(number)
            draw_spots(axes, [spot], cost, colour, names=ABOVE, scale=scale, **marks)
        for (line, spots), look in zip(lines.items(), LOOKS_OF_LINES, strict=False):
            draw_spots(axes, _name_line(line, spots), cost, names=BELOW, scale=scale, **look)
        set_cost_axis(axes, label)
    side = "down" if list_metrics()[metric].lower_is_better else "up"
    title = f"Mean and standard deviation over seeds; {side} and left is better"
    figure.suptitle(title, color=MUTED)
    settle_names(figure)
    return figure


def _name_line(line: str, spots: Sequence[Spot]) -> list[Spot]:
    """The line's name stands with that of its cheapest network."""
    cheapest = min(spots, key=lambda spot: spot.costs["weights"][0] or 0)
    found = [spot for spot in spots if spot is not cheapest]
    return [replace(cheapest, name=f"{line} {cheapest.name}"), *found]


@in_style
def draw_drawn_policies(
    spots: Mapping[str, tuple[float, float | None]],
    chosen: Sequence[str],
    *,
    metric: str,
    split: str,
) -> Figure:
    """Networks of drawn policies by multiply-adds and value in 0..1; orange: best on val, grey: no policy was drawn."""
    figure = make_figure(7.4, 4.6)
    axes = figure.subplots()
    parts: dict[str, list[Spot]] = {
        "best on val": [],
        "other policies": [],
        "hard sharing": [],
    }
    for name, (cost, value) in spots.items():
        part = "hard sharing" if name.startswith("shared") else "other policies"
        if name in chosen:
            part = "best on val"
        parts[part].append(Spot(name, {"multiply_adds": (cost, None)}, (value, None)))
    for (part, members), colour in zip(parts.items(), (ORANGE, BLUE, MUTED), strict=True):
        draw_spots(
            axes,
            members,
            "multiply_adds",
            colour,
            names=ABOVE,
            markersize=7,
            label=part,
            scale=get_scale(metric),
        )
    set_value_label(axes, metric, split)
    set_cost_axis(axes, COSTS["multiply_adds"])
    figure.legend(loc="outside lower center", ncols=len(parts))
    settle_names(figure)
    return figure


@in_style
def draw_deltas(parts: Mapping[str, Sequence[Spot]], *, split: str) -> Figure:
    """Networks by multiply-adds and Delta, in 0..1, a colour per part (four at most); a line at 0, that of single tasks."""
    figure = make_figure(8.2, 5.0)
    axes = figure.subplots()
    colours = (INK, MUTED, BLUE, ORANGE)
    for (part, spots), colour in zip(parts.items(), colours, strict=False):
        style: dict[str, Any] = {"names": ABOVE, "markersize": 7, "label": part}
        draw_spots(axes, spots, "multiply_adds", colour, **style)
    axes.axhline(0, color=MUTED, linewidth=0.8, linestyle="--", zorder=1)
    set_value_label(axes, DELTA, split)
    set_cost_axis(axes, COSTS["multiply_adds"])
    figure.legend(loc="outside lower center", ncols=len(parts))
    settle_names(figure)
    return figure


# ---- task by task


@in_style
def draw_reductions(
    reductions: Mapping[str, Mapping[str, Sequence[float]]], *, title: str
) -> Figure:
    """What a change costs every task, sorted (figure 3 of the paper): a bar for the mean, a dot for every repetition.

    Args:
        reductions: {metric: {task: how much worse it becomes, shares in 0..1}}; one panel each.
        title: above all panels.
    """
    most = max(map(len, reductions.values()))
    # 0.17 inches are a line of a task
    figure = make_figure(5.8 * len(reductions), 0.17 * most + 1.2)
    figure.suptitle(title)
    panels = figure.subplots(1, len(reductions), squeeze=False)[0]
    for axes, (metric, tasks) in zip(panels, reductions.items(), strict=True):
        scale = get_scale(metric)
        draw_differences(
            axes, {task: [scale * one for one in lost] for task, lost in tasks.items()}
        )
        worse = "worse" if list_metrics()[metric].lower_is_better else "lost"
        axes.set_xlabel(f"{name_difference(metric)} {worse}".lstrip())
        axes.set_title(list_metrics()[metric].title)
    return figure


def draw_differences(axes: Axes, differences: Mapping[str, Sequence[float]]) -> None:
    """{task: values} as bars of their means, largest first, orange above zero; a dot for every value if there are several."""
    values = pandas.DataFrame.from_dict(differences, orient="index")  # [T, repetitions]
    means = values.mean(axis="columns").sort_values(ascending=False, kind="stable")
    draw_bars(
        axes,
        list(means.index),
        list(means),
        list(np.where(means > 0, ORANGE, BLUE)),
    )
    if values.shape[1] > 1:
        for repetition in values.loc[means.index].to_numpy().T:
            axes.plot(
                repetition,
                range(len(means)),
                ".",
                color=INK,
                markersize=3.5,
                alpha=0.6,
                zorder=3,
            )
    axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
    axes.grid(axis="x")


# ---- kinds of affinity


@in_style
def draw_affinities(
    matrices: Mapping[str, np.ndarray],
    tasks: Sequence[str],
    groups: Mapping[str, Branches],
    pairs: pandas.DataFrame,
    *,
    title: str,
) -> Figure:
    """The affinity of every kind, all in the order of the first one's groups, and how alike the groups of two kinds are.

    Args:
        matrices: {kind: [T, T] in the order of `tasks`}.
        tasks: names.
        groups: {kind: its groups of names}.
        pairs: the columns kind, beside and adjusted_rand_index.
        title: above all panels.
    """
    first = next(iter(matrices))
    names = [task for group in groups[first] for task in group]
    order = [tasks.index(name) for name in names]
    num_rows = -(-(len(matrices) + 1) // AFFINITIES_IN_A_ROW)
    # inches: 0.1 a row of the matrix, so that forty names can be read
    side = float(np.clip(0.1 * len(order), 2.4, 6.0))
    figure = make_figure(AFFINITIES_IN_A_ROW * (side + 0.4) + 1.3, num_rows * (side + 0.5) + 0.4)
    figure.suptitle(title)
    panels = figure.subplots(num_rows, AFFINITIES_IN_A_ROW).flatten()
    for number, (kind, affinity) in enumerate(matrices.items()):
        axes = panels[number]
        draw_matrix(axes, affinity[np.ix_(order, order)], groups[first])
        axes.set_title(KINDS.get(kind, kind))
        axes.set_xticks([])
        ticks = [] if number % AFFINITIES_IN_A_ROW else range(len(names))
        labels = [format_name(names[tick]) for tick in ticks]
        axes.set_yticks(ticks, labels, fontsize=min(8.0, 55 * side / len(order)))
    _draw_agreement(panels[len(matrices)], list(matrices), pairs)
    for axes in panels[len(matrices) + 1 :]:
        axes.set_axis_off()
    return figure


def _draw_agreement(axes: Axes, kinds: Sequence[str], pairs: pandas.DataFrame) -> None:
    """The adjusted Rand index of every two kinds as a number on its colour."""
    alike = pandas.DataFrame(1.0, index=kinds, columns=kinds)
    for one, other, index in pairs[["kind", "beside", "adjusted_rand_index"]].to_numpy():
        alike.loc[one, other] = alike.loc[other, one] = index
    axes.imshow(alike, cmap=AFFINITY_MAP, vmin=-1, vmax=1)
    for row, column in np.ndindex(alike.shape):
        value = alike.iloc[row, column]
        colour = "white" if value > LIGHT_TEXT_ABOVE else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    ticks = range(len(kinds))
    axes.set_xticks(ticks, kinds, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(ticks, kinds, fontsize=8)
    axes.yaxis.tick_right()
    axes.set_title("Adjusted Rand index of the groups")


# ---- curves


@dataclass(frozen=True)
class Course:
    """How one variant fared: training loss and a value on val over the iterations, one line per seed."""

    name: str
    losses: Sequence[Line]  # (iterations, losses)
    values: Sequence[Line]  # (iterations, values in 0..1)


@in_style
def draw_courses(
    courses: Sequence[Course], *, metric: str, goal: float | None, goal_name: str
) -> Figure:
    """Training loss and val curves under identical conditions (figure 5 of the paper): seeds thin, their mean thick."""
    figure = make_figure(11.8, 4.4)
    left, right = figure.subplots(1, 2)
    for number, course in enumerate(courses):
        style = {"color": group_colour(number), "label": course.name}
        _draw_seeds_and_mean(left, course.losses, **style)
        percent = [(steps, 100 * np.array(values)) for steps, values in course.values]
        _draw_seeds_and_mean(right, percent, **style)
    # losses fall by orders, and who is ahead at the end should be seen
    left.set_yscale("log")
    left.set_ylabel("training loss")
    set_value_label(right, metric, "val")
    if goal is not None:
        right.axhline(
            100 * goal,
            color=INK,
            linewidth=0.9,
            linestyle="--",
            zorder=1,
            label=goal_name,
        )
    for axes in (left, right):
        # 0.6 and not 6 x 10^-1
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("iteration")
        add_grid(axes)
        axes.legend()
    return figure


def _draw_seeds_and_mean(axes: Axes, lines: Sequence[Line], *, color: str, label: str) -> None:
    seeds = [
        smooth_curve(pandas.Series(values, index=steps, dtype=float)) for steps, values in lines
    ]
    if not seeds:
        return
    table = pandas.concat(seeds, axis="columns").sort_index()  # [iterations, S]
    if len(seeds) > 1:
        axes.plot(table, color=color, linewidth=0.7, alpha=0.35)
    # where all seeds have a value: a mean over some of them would jump
    axes.plot(table.dropna().mean(axis="columns"), color=color, linewidth=1.8, label=label)
