"""The figures of experiments: fronts of grown and thin networks, what permuting costs, beginnings, kinds of affinity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distbranch.errors import UserError
from distbranch.report.console import METRICS
from distbranch.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    add_grid,
    draw_legend_below,
    draw_notice,
    group_colour,
    in_style,
    make_dot,
    make_figure,
    place_labels,
    rendering,
    set_cost_axis,
    settle_layout,
)
from distbranch.report.figures import MANY_POINTS, smooth_curve
from distbranch.report.layers import format_name
from distbranch.report.page import PNG_DPI

Spread = tuple[float | None, float | None]  # mean and standard deviation over seeds
Line = tuple[Sequence[float], Sequence[float]]  # x and y
Place = tuple[float, float]  # the cost and the value in per cent
COSTS = {"multiply_adds": "Multiply-adds per image", "weights": "Weights"}


@dataclass(frozen=True)
class Spot:
    """A network in a diagram: its name, its costs, its value in 0..1; all as spreads over seeds."""

    name: str
    costs: Mapping[str, Spread]
    value: Spread

    def locate(self, cost: str) -> Place | None:
        """Its cost and its value in per cent; None where one of them is unknown."""
        price, worth = self.costs[cost][0], self.value[0]
        if price is None or worth is None:
            return None
        return price, 100 * worth


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG; UserError where it cannot be written."""
    try:
        with rendering():
            figure.savefig(file, dpi=PNG_DPI)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}). Give another run.directory.") from None


def draw_spot(axes: Axes, spot: Spot, cost: str, colour: str, **style: Any) -> None:
    """A point with its standard deviations as bars; nothing where its place is unknown."""
    place = spot.locate(cost)
    if place is None:
        return
    deviation = spot.value[1]
    if deviation is not None:
        deviation *= 100
    look: dict[str, Any] = {"fmt": "o", "elinewidth": 1, "markeredgecolor": INK, "markeredgewidth": 0.6, "zorder": 3}
    axes.errorbar(*place, xerr=spot.costs[cost][1], yerr=deviation, color=colour, **look | style)


def list_places(spots: Sequence[Spot], cost: str) -> list[Place]:
    """Where the spots are whose cost and value are known, in their order."""
    places = [spot.locate(cost) for spot in spots]
    return [place for place in places if place is not None]


def list_obstacles(spots: Sequence[Spot], cost: str) -> list[Place]:
    """What a name should not cover: points and the ends of their bars."""
    found = []
    for spot in spots:
        place = spot.locate(cost)
        if place is None:
            continue
        x, y = place
        across = spot.costs[cost][1] or 0.0
        up = 100 * (spot.value[1] or 0.0)
        ends = [place, (x + across, y), (x - across, y), (x, y + up), (x, y - up)]
        # each once; a logarithmic axis has no place left of zero
        found += [end for end in dict.fromkeys(ends) if end[0] > 0]
    return found


def name_spots(axes: Axes, spots: Sequence[Spot], cost: str, obstacles: Sequence[Place]) -> None:
    """Write the names of the spots where there is room; those that come first have the choice."""
    labels = []
    for spot in spots:
        place = spot.locate(cost)
        if place is not None:
            labels.append((spot.name, *place))
    place_labels(axes, labels, obstacles)


@in_style
def draw_company(line: Sequence[Spot], grown: Sequence[Spot], *, metric: str, split: str) -> Figure:
    """Grown networks and the line of thin ones against multiply-adds and against weights; a dotted drop to the line."""
    short = _drop_shared_word([*line, *grown])
    line = short[: len(line)]
    grown = short[len(line) :]
    figure = make_figure(11.2, 5.2)
    panels = figure.subplots(1, len(COSTS), sharey=True)
    panels[0].set_ylabel(f"{METRICS[metric]} on {split}, %", color=INK, fontsize=10)
    for axes, (cost, label) in zip(panels, COSTS.items(), strict=True):
        known = sorted(list_places(line, cost))
        _draw_line(axes, known, color=MUTED, linewidth=1.2, zorder=1)
        for spot in line:
            draw_spot(axes, spot, cost, MUTED, markersize=5)
        for number, spot in enumerate(grown):
            _draw_drop(axes, spot.locate(cost), known, group_colour(number))
            draw_spot(axes, spot, cost, group_colour(number), markersize=7.5)
        set_cost_axis(axes, label)
    handles = [
        Line2D([], [], color=MUTED, marker="o", markersize=5, label="thin networks of the same recipe"),
        Line2D([], [], color=INK, linestyle="", marker="o", markerfacecolor=PAPER, label="grown networks"),
        Line2D([], [], color=INK, linestyle=":", label="to the thin line at equal cost"),
    ]
    draw_legend_below(figure, handles)
    settle_layout(figure)
    for axes, cost in zip(panels, COSTS, strict=True):
        # the grown networks choose their places first: the figure is about them
        spots = [*grown, *line]
        name_spots(axes, spots, cost, list_obstacles(spots, cost) + _sample_line(line, cost))
    return figure


def _draw_line(axes: Axes, places: Sequence[Place], **style: Any) -> None:
    axes.plot([x for x, _ in places], [y for _, y in places], **style)


def _sample_line(spots: Sequence[Spot], cost: str, count: int = 12) -> list[Place]:
    """Points on the line through spots, for names to keep off it; costs are on a logarithmic axis."""
    found: list[Place] = []
    for (left, low), (right, high) in pairwise(sorted(list_places(spots, cost))):
        costs = np.geomspace(left, right, count + 2)[1:-1].tolist()
        values = np.linspace(low, high, count + 2)[1:-1].tolist()
        found += zip(costs, values, strict=True)
    return found


def _draw_drop(axes: Axes, place: Place | None, line: Sequence[Place], colour: str) -> None:
    """From a network to the thin line at the same cost, where the line reaches so far."""
    if place is None or not line or not line[0][0] <= place[0] <= line[-1][0]:
        return
    costs, values = np.array(line).T
    # between two thin networks the line is straight in the logarithm of the cost, as it is drawn
    below = np.interp(np.log(place[0]), np.log(costs), values)
    axes.plot([place[0], place[0]], [below, place[1]], color=colour, linestyle=":", linewidth=1.4, zorder=2)


def _drop_shared_word(spots: Sequence[Spot]) -> list[Spot]:
    """The spots without the word with which the names of all begin, such as the data set's."""
    # it would be on every name and take the room of what differs
    begins = {spot.name.partition("-")[:2] for spot in spots}
    if len(begins) != 1 or begins.pop()[1] == "":
        return list(spots)
    return [Spot(spot.name.partition("-")[2], spot.costs, spot.value) for spot in spots]


@in_style
def draw_reductions(reductions: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> Figure:
    """What a change costs every task, sorted (figure 3 of the paper): a bar for the mean, a dot for every repetition.

    Args:
        reductions: {heading: {task: reductions in percentage points}}; one panel each.
        title: above all panels.
    """
    widest = max(map(len, reductions.values()))
    # 0.27 inches are a line of a name that stands upright
    figure = make_figure(max(7.0, 0.27 * widest + 1.2), 3.5 * len(reductions) + 0.3)
    figure.suptitle(title, fontsize=10, color=MUTED, x=0.01, ha="left")
    panels = figure.subplots(len(reductions), 1, squeeze=False)[:, 0]
    for axes, (heading, tasks) in zip(panels, reductions.items(), strict=True):
        names, means, colours = _sort_by_mean(tasks)
        axes.bar(range(len(names)), means, color=colours, width=0.72, zorder=2)
        places, values = _list_repetitions(names, tasks)
        axes.plot(places, values, ".", color=INK, markersize=3.5, alpha=0.6, zorder=3)
        axes.axhline(0, color=INK, linewidth=0.8, zorder=3)
        axes.set_xticks(range(len(names)), map(format_name, names), rotation=90)
        axes.set_xlim(-0.8, len(names) - 0.2)
        axes.set_ylabel("points lost")
        axes.set_title(heading)
        add_grid(axes)
        axes.tick_params(axis="x", labelcolor=INK, length=0)
    return figure


def _sort_by_mean(values: Mapping[str, Sequence[float]]) -> tuple[list[str], list[float], list[str]]:
    """The tasks, largest mean first; their means; the colour of each: orange above zero."""
    means = {task: float(np.mean(values[task])) for task in values}
    names = sorted(means, key=lambda task: -means[task])
    colours = [ORANGE if means[name] > 0 else BLUE for name in names]
    return names, [means[name] for name in names], colours


def _list_repetitions(names: Sequence[str], values: Mapping[str, Sequence[float]]) -> tuple[list[int], list[float]]:
    """The place and the value of every repetition; one alone is its mean, which has a bar."""
    places: list[int] = []
    repetitions: list[float] = []
    for place, name in enumerate(names):
        if len(values[name]) > 1:
            places += [place] * len(values[name])
            repetitions += values[name]
    return places, repetitions


@dataclass(frozen=True)
class Course:
    """How one variant fared: training loss and a value on val over the iterations, one line per seed."""

    name: str
    losses: Sequence[Line]  # (iterations, losses)
    values: Sequence[Line]  # (iterations, values in 0..1)


@in_style
def draw_courses(courses: Sequence[Course], *, metric: str, goal: float | None, goal_name: str) -> Figure:
    """Training loss and val curves under identical conditions (figure 5 of the paper): seeds thin, their mean thick."""
    figure = make_figure(11.8, 4.4)
    left, right = figure.subplots(1, 2)
    for number, course in enumerate(courses):
        style = {"color": group_colour(number), "label": course.name}
        losses = []
        for steps, values in course.losses:
            few = len(values) <= MANY_POINTS
            losses.append((steps, values if few else smooth_curve(np.asarray(values)).tolist()))
        _draw_seeds_and_mean(left, losses, **style)
        percent = [(steps, [100 * value for value in values]) for steps, values in course.values]
        _draw_seeds_and_mean(right, percent, marker="o", **style)
    # losses fall by orders, and who is ahead at the end should be seen
    left.set_yscale("log")
    left.set_ylabel("training loss")
    right.set_ylabel(f"{METRICS[metric].lower()} on val, %")
    if goal is not None:
        right.axhline(100 * goal, color=INK, linewidth=0.9, linestyle="--", zorder=1, label=goal_name)
    for axes in (left, right):
        # 0.6 and not 6 x 10^-1
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("iteration")
        axes.xaxis.label.set(color=INK, fontsize=9)
        axes.yaxis.label.set(color=INK, fontsize=9)
        add_grid(axes)
        axes.tick_params(axis="y", which="both", labelsize=8)
        axes.legend()
    return figure


def _draw_seeds_and_mean(axes: Axes, lines: Sequence[Line], *, color: str, label: str, marker: str = "") -> None:
    seeds = [dict(zip(steps, values, strict=True)) for steps, values in lines]
    if len(seeds) > 1:
        for seed in seeds:
            axes.plot(list(seed), list(seed.values()), color=color, linewidth=0.7, alpha=0.35)
    # where all seeds have a value: a mean over some of them would jump
    shared = [step for step in seeds[0] if all(step in seed for seed in seeds)] if seeds else []
    mean = [np.mean([seed[step] for seed in seeds]) for step in sorted(shared)]
    axes.plot(sorted(shared), mean, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=label)


@in_style
def draw_kinds(
    lines: Mapping[str, Sequence[Spot]],
    differences: Mapping[str, Sequence[float]],
    *,
    metric: str,
    split: str,
    between: str,
) -> Figure:
    """Two kinds of growing against weights, and the difference of every task at matched numbers of weights.

    Args:
        lines: {kind: networks with their setting as name}.
        differences: {task: differences in percentage points, one per seed}; none where the lines do not overlap.
        metric: of both.
        split: of both.
        between: what the differences are, such as `phi less agreement`.
    """
    # 0.17 inches are a line of a task
    figure = make_figure(11.5, max(4.6, 0.17 * len(differences) + 1.2))
    left, right = figure.subplots(1, 2)
    for (kind, spots), colour in zip(lines.items(), (BLUE, ORANGE), strict=True):
        _draw_line(left, sorted(list_places(spots, "weights")), color=colour, linewidth=1.2, label=kind)
        for spot in spots:
            draw_spot(left, spot, "weights", colour, markersize=6)
    left.set_ylabel(f"{METRICS[metric]} on {split}, %", color=INK, fontsize=10)
    set_cost_axis(left, COSTS["weights"])
    left.legend(loc="lower right")
    _draw_difference_bars(right, differences, between)
    settle_layout(figure)
    obstacles: list[Place] = []
    for spots in lines.values():
        obstacles += list_obstacles(spots, "weights") + _sample_line(spots, "weights")
    # last, as all that names should keep off is known only now
    name_spots(left, [spot for spots in lines.values() for spot in spots], "weights", obstacles)
    return figure


def _draw_difference_bars(axes: Axes, differences: Mapping[str, Sequence[float]], between: str) -> None:
    if not differences:
        draw_notice(axes, "No common numbers of weights.")
        return
    names, means, colours = _sort_by_mean(differences)
    axes.barh(range(len(names)), means, color=colours, height=0.7, zorder=2)
    places, values = _list_repetitions(names, differences)
    axes.plot(values, places, ".", color=INK, markersize=3.5, alpha=0.6, zorder=3)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
    axes.set_yticks(range(len(names)), map(format_name, names), fontsize=7.5)
    axes.set_ylim(len(names) - 0.3, -0.7)
    axes.set_xlabel(f"{between}, percentage points", fontsize=9, color=INK)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0, labelcolor=INK)


@in_style
def draw_drawn_policies(
    spots: Mapping[str, tuple[float, float | None]], chosen: Sequence[str], *, metric: str, split: str
) -> Figure:
    """Networks of drawn policies by multiply-adds and value in 0..1; orange: best on val, grey: no policy was drawn."""
    figure = make_figure(6.4, 4.4)
    axes = figure.subplots()
    known = [(name, cost, 100 * value) for name, (cost, value) in spots.items() if value is not None]
    for name, *place in known:
        size = 6
        colour = MUTED if name.startswith("shared") else BLUE
        if name in chosen:
            size = 8
            colour = ORANGE
        axes.plot(*place, "o", color=colour, markersize=size)
    axes.set_ylabel(f"{METRICS[metric]} on {split}, %", color=INK, fontsize=10)
    set_cost_axis(axes, COSTS["multiply_adds"])
    marks = {"best on val": ORANGE, "other policies": BLUE, "hard sharing": MUTED}
    draw_legend_below(figure, [make_dot(colour, label) for label, colour in marks.items()])
    settle_layout(figure)
    place_labels(axes, known, [(cost, value) for _, cost, value in known])
    return figure
