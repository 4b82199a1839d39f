"""The figures of experiments: what permuting costs, beginnings, kinds of affinity.

Every comparison of tasks is made of `draw_differences`; value against cost is in `cost_figures.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distbranch.errors import UserError
from distbranch.metrics import list_metrics
from distbranch.report.console import get_scale, name_difference
from distbranch.report.cost_figures import set_value_label
from distbranch.report.figure_style import (
    BLUE,
    INK,
    ORANGE,
    add_grid,
    group_colour,
    in_style,
    make_figure,
    render_in_style,
)
from distbranch.report.figures import AFFINITY_MAP, KINDS, draw_bars, draw_matrix, smooth_curve
from distbranch.report.layers import Branches, format_name

Line = tuple[Sequence[float], Any]  # x and the values there
AFFINITIES_IN_A_ROW = 3  # a page is as wide
LIGHT_TEXT_ABOVE = 0.6  # of an index, on the dark end of its colours


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG; UserError where it cannot be written."""
    try:
        with render_in_style():
            figure.savefig(file)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror}). Give another run.directory."
        ) from None


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
