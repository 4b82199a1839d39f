"""The figures of experiments: fronts of grown and thin networks, what permuting costs, beginnings, kinds of affinity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distbranch.errors import UserError
from distbranch.report.figure_style import (
    AS_IT_IS,
    BLUE,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    group_colour,
    one_warning_of_missing_letters,
    place_labels,
    settle_layout,
)
from distbranch.report.figures import MEANS, plain, smooth
from distbranch.report.layers import readable
from distbranch.report.page import PNG_DPI
from distbranch.report.sweep_figures import dress

Spread = tuple[float | None, float | None]  # mean and standard deviation over seeds
COSTS = {"multiply_adds": "Multiply-adds per image", "weights": "Weights"}


@dataclass(frozen=True)
class Spot:
    """A network in a diagram: its name, its costs, its value in 0..1; all as spreads over seeds."""

    name: str
    costs: Mapping[str, Spread]
    value: Spread


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG; UserError where it cannot be written."""
    try:
        with one_warning_of_missing_letters():
            figure.savefig(file, dpi=PNG_DPI)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}). Give another run.directory.") from None


def draw_company(line: Sequence[Spot], grown: Sequence[Spot], *, metric: str, split: str) -> Figure:
    """Grown networks and the line of thin ones against multiply-adds and against weights; a dotted drop to the line."""
    figure, panels = _make_panels(len(COSTS), width=5.6, height=5.2, share_y=True)
    panels[0].set_ylabel(f"{MEANS[metric][0]} on {split}, %", color=INK)
    short = _drop_shared_words([spot.name for spot in (*line, *grown)])
    for axes, cost in zip(panels, COSTS, strict=True):
        known = sorted(
            (spot for spot in line if _locate_point(spot, cost)), key=lambda spot: spot.costs[cost][0] or 0.0
        )
        axes.plot(
            *np.array([_locate_point(spot, cost) for spot in known]).reshape(-1, 2).T,
            color=MUTED,
            linewidth=1.2,
            zorder=1,
        )
        for spot in known:
            _draw_point(axes, spot, cost, MUTED, size=5)
        for number, spot in enumerate(grown):
            _draw_drop(axes, spot, known, cost, group_colour(number))
            _draw_point(axes, spot, cost, group_colour(number), size=7.5)
        dress(axes, COSTS[cost])
    handles = [
        Line2D([], [], color=MUTED, marker="o", markersize=5, label="thin networks of the same recipe"),
        Line2D([], [], color=INK, linestyle="", marker="o", markerfacecolor=PAPER, label="grown networks"),
        Line2D([], [], color=INK, linestyle=":", label="to the thin line at equal cost"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    settle_layout(figure)
    for axes, cost in zip(panels, COSTS, strict=True):
        names = [(short[spot.name], *at) for spot in (*grown, *line) if (at := _locate_point(spot, cost))]
        place_labels(axes, names, [*_list_obstacles((*grown, *line), cost), *_sample_line(line, cost)])
    return figure


def _list_obstacles(spots: Sequence[Spot], cost: str) -> list[tuple[float, float]]:
    """What a name should not cover: points and the ends of their bars."""
    found = []
    for spot in spots:
        if at := _locate_point(spot, cost):
            across, up = spot.costs[cost][1] or 0.0, 100 * (spot.value[1] or 0.0)
            shifts = ((0.0, 0.0), (across, 0.0), (-across, 0.0), (0.0, up), (0.0, -up))
            found += [(at[0] + dx, at[1] + dy) for dx, dy in dict.fromkeys(shifts) if at[0] + dx > 0]
    return found


def _sample_line(spots: Sequence[Spot], cost: str, count: int = 12) -> list[tuple[float, float]]:
    """Points on the line through spots, for names to keep off it."""
    places = sorted(at for spot in spots if (at := _locate_point(spot, cost)))
    found: list[tuple[float, float]] = []
    for (left, low), (right, high) in pairwise(places):
        shares = np.linspace(0, 1, count + 2)[1:-1]
        found += [(float(left ** (1 - t) * right**t), float(low + t * (high - low))) for t in shares]
    return found


def _locate_point(spot: Spot, cost: str) -> tuple[float, float] | None:
    price, value = spot.costs[cost][0], spot.value[0]
    return None if price is None or value is None else (price, 100 * value)


def _draw_point(axes: Axes, spot: Spot, cost: str, colour: str, *, size: float) -> None:
    at = _locate_point(spot, cost)
    if at is None:
        return
    deviation = spot.value[1]
    axes.errorbar(
        *at,
        xerr=spot.costs[cost][1],
        yerr=None if deviation is None else 100 * deviation,
        fmt="o",
        markersize=size,
        color=colour,
        markeredgecolor=INK,
        markeredgewidth=0.6,
        elinewidth=1,
        zorder=3,
    )


def _draw_drop(axes: Axes, spot: Spot, line: Sequence[Spot], cost: str, colour: str) -> None:
    """From a network to the thin line at the same cost, where the line reaches so far."""
    at, places = _locate_point(spot, cost), [place for other in line if (place := _locate_point(other, cost))]
    if at is None or not places or not places[0][0] <= at[0] <= places[-1][0]:
        return
    costs, values = np.array(places).T
    below = float(np.interp(np.log(at[0]), np.log(costs), values))
    axes.plot([at[0], at[0]], [below, at[1]], color=colour, linestyle=":", linewidth=1.4, zorder=2)


def _drop_shared_words(names: Sequence[str]) -> dict[str, str]:
    """Names without the word that all of them begin with, such as the data set's."""
    first = {name.partition("-")[0] for name in names}
    shared = len(first) == 1 and all("-" in name for name in names)
    return {name: name.partition("-")[2] if shared else name for name in names}


def draw_reductions(reductions: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> Figure:
    """What a change costs every task, sorted (figure 3 of the paper): a bar for the mean, a dot for every repetition.

    Args:
        reductions: {heading: {task: reductions in percentage points}}; one panel each.
        title: above all panels.
    """
    widest = max(len(tasks) for tasks in reductions.values())
    figure = Figure(figsize=(max(7.0, 0.27 * widest + 1.2), 3.5 * len(reductions) + 0.3), facecolor=PAPER)
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=10, color=MUTED, x=0.01, ha="left")
    for axes, (heading, tasks) in zip(
        figure.subplots(len(reductions), 1, squeeze=False)[:, 0], reductions.items(), strict=True
    ):
        order = sorted(tasks, key=lambda task: -float(np.mean(tasks[task])))
        means = [float(np.mean(tasks[task])) for task in order]
        axes.bar(range(len(order)), means, color=[ORANGE if mean > 0 else BLUE for mean in means], width=0.72, zorder=2)
        for place, task in enumerate(order):
            if len(tasks[task]) > 1:
                axes.plot([place] * len(tasks[task]), tasks[task], ".", color=INK, markersize=3.5, alpha=0.6, zorder=3)
        axes.axhline(0, color=INK, linewidth=0.8, zorder=3)
        axes.set_xticks(range(len(order)), [readable(task) for task in order], rotation=90, fontsize=8, **AS_IT_IS)
        axes.set_xlim(-0.8, len(order) - 0.2)
        axes.set_ylabel("points lost", fontsize=8.5, color=MUTED)
        axes.set_title(heading, fontsize=9.5, color=INK, loc="left", weight="bold")
        plain(axes)
        axes.tick_params(axis="x", labelsize=8, colors=INK, length=0)
    return figure


@dataclass(frozen=True)
class Course:
    """How one variant fared: training loss and a value on val over the iterations, one line per seed."""

    name: str
    losses: Sequence[tuple[Sequence[float], Sequence[float]]]  # (iterations, losses)
    values: Sequence[tuple[Sequence[float], Sequence[float]]]  # (iterations, values in 0..1)


def draw_courses(courses: Sequence[Course], *, metric: str, goal: float | None, goal_name: str) -> Figure:
    """Training loss and val curves under identical conditions (figure 5 of the paper): seeds thin, their mean thick."""
    figure, (left, right) = _make_panels(2, width=5.9, height=4.4)
    for number, course in enumerate(courses):
        colour = group_colour(number)
        smoothed = [
            (steps, smooth(np.asarray(losses)).tolist() if len(losses) > 30 else losses)
            for steps, losses in course.losses
        ]
        _draw_seeds_and_mean(left, smoothed, colour, course.name)
        percent = [(steps, [100 * value for value in values]) for steps, values in course.values]
        _draw_seeds_and_mean(right, percent, colour, course.name, marker="o")
    left.set_ylabel("training loss", fontsize=9, color=INK)
    left.set_yscale("log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    right.set_ylabel(f"{MEANS[metric][0].lower()} on val, %", fontsize=9, color=INK)
    if goal is not None:
        right.axhline(100 * goal, color=INK, linewidth=0.9, linestyle="--", zorder=1, label=goal_name)
    for axes in (left, right):
        axes.set_xlabel("iteration", fontsize=9, color=INK)
        plain(axes)
        axes.tick_params(axis="y", which="both", labelsize=8, colors=MUTED)
        axes.legend(fontsize=8.5, frameon=False, labelcolor=INK)
    return figure


def _draw_seeds_and_mean(
    axes: Axes, lines: Sequence[tuple[Sequence[float], Sequence[float]]], colour: str, name: str, marker: str = ""
) -> None:
    for steps, values in lines if len(lines) > 1 else ():
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    shared = sorted(set.intersection(*(set(steps) for steps, _ in lines))) if lines else []
    by_step = [dict(zip(steps, values, strict=True)) for steps, values in lines]
    mean = [float(np.mean([line[step] for line in by_step])) for step in shared]
    axes.plot(shared, mean, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=name)


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
    figure = Figure(figsize=(11.5, max(4.6, 0.17 * len(differences) + 1.2)), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    for (kind, spots), colour in zip(lines.items(), (BLUE, ORANGE), strict=True):
        known = sorted(at for spot in spots if (at := _locate_point(spot, "weights")))
        left.plot(*np.array(known).reshape(-1, 2).T, color=colour, linewidth=1.2, label=kind)
        for spot in spots:
            _draw_point(left, spot, "weights", colour, size=6)
    left.set_ylabel(f"{MEANS[metric][0]} on {split}, %", color=INK)
    dress(left, COSTS["weights"])
    left.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="lower right")
    _draw_difference_bars(right, differences, between)
    settle_layout(figure)
    named = [(spot.name, *at) for part in lines.values() for spot in part if (at := _locate_point(spot, "weights"))]
    spots = [spot for part in lines.values() for spot in part]
    lines_too = [place for part in lines.values() for place in _sample_line(part, "weights")]
    place_labels(left, named, [*_list_obstacles(spots, "weights"), *lines_too])
    return figure


def _draw_difference_bars(axes: Axes, differences: Mapping[str, Sequence[float]], between: str) -> None:
    if not differences:
        axes.text(0.5, 0.5, "No common numbers of weights.", ha="center", color=MUTED, transform=axes.transAxes)
        axes.set_axis_off()
        return
    order = sorted(differences, key=lambda task: float(np.mean(differences[task])))
    means = [float(np.mean(differences[task])) for task in order]
    axes.barh(range(len(order)), means, color=[ORANGE if mean > 0 else BLUE for mean in means], height=0.7, zorder=2)
    for place, task in enumerate(order):
        if len(differences[task]) > 1:
            axes.plot(
                differences[task], [place] * len(differences[task]), ".", color=INK, markersize=3.5, alpha=0.6, zorder=3
            )
    axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
    axes.set_yticks(range(len(order)), [readable(task) for task in order], **AS_IT_IS)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlabel(f"{between}, percentage points", fontsize=9, color=INK)
    axes.set_facecolor("none")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(axis="x", labelsize=8, colors=MUTED, length=2)
    axes.tick_params(axis="y", labelsize=7.5, colors=INK, length=0)


def _make_panels(count: int, *, width: float, height: float, share_y: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width * count, height), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, sharey=share_y, squeeze=False)[0]


def draw_drawn_policies(
    spots: Mapping[str, tuple[float, float | None]], chosen: Sequence[str], *, metric: str, split: str
) -> Figure:
    """Networks of drawn policies by multiply-adds and value in 0..1; orange: best on val, grey: no policy was drawn."""
    figure, (axes,) = _make_panels(1, width=6.4, height=4.4)
    known = {name: (cost, 100 * value) for name, (cost, value) in spots.items() if value is not None}
    for name, at in known.items():
        colour = ORANGE if name in chosen else MUTED if name.startswith("shared") else BLUE
        axes.plot(*at, color=colour, marker="o", markersize=8 if name in chosen else 6, linestyle="")
    axes.set_ylabel(f"{MEANS[metric][0]} on {split}, %", color=INK)
    dress(axes, COSTS["multiply_adds"])
    marks = (("best on val", ORANGE), ("other policies", BLUE), ("hard sharing", MUTED))
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=label) for label, colour in marks]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    settle_layout(figure)
    place_labels(axes, [(name, *at) for name, at in known.items()], list(known.values()))
    return figure
