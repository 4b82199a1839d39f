"""The diagrams of value against cost: networks as points with their spread over seeds, and names that cover nothing.

Every one is made of `draw_spots`; up and to the left is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from distbranch.metrics import DELTA, list_metrics
from distbranch.report.console import get_scale
from distbranch.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    blend_colours,
    group_colour,
    in_style,
    make_figure,
    set_cost_axis,
)

Spread = tuple[float | None, float | None]  # mean and standard deviation over seeds
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
    if table.empty:  # a legend names what can be seen
        return table
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
        points = [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
        lines = [
            Path(part)
            for line, part in zip(axes.lines, points, strict=True)
            if line.get_linestyle() in ("-", "--") and len(part)
        ]
        bars = [bar for bar in axes.collections if isinstance(bar, LineCollection)]
        lines += [
            Path(bar.get_transform().transform(part))
            for bar in bars
            for part in bar.get_segments()
            if len(part) and np.isfinite(part).all()
        ]
        taken: list[Bbox] = []
        for name in axes.texts:
            if isinstance(name, Annotation):
                _settle_name(name, axes, np.concatenate(points), lines, taken)


def _settle_name(
    name: Annotation, axes: Axes, points: np.ndarray, lines: Sequence[Path], taken: list[Bbox]
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
        covered += 3 * any(line.intersects_bbox(box, filled=False) for line in lines)
        found.append((covered, number, place))
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
