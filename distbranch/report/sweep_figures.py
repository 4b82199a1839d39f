"""The Pareto fronts of a sweep: quality against parameters, multiply-adds and latency, with error bars over seeds."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from distbranch.config.sweep import VARIANT
from distbranch.report.figure_style import (
    BLUE,
    GRID,
    INK,
    MUTED,
    PAPER,
    font_families,
    group_colour,
    place_labels,
    settle_layout,
)
from distbranch.report.figures import MEANS
from distbranch.report.sweep_files import COSTS, Point, SweepFiles, pareto_front

MOST_COLOURS = 10


def draw_pareto(sweep: SweepFiles) -> Figure:
    """One panel per cost that is known, all with the same vertical axis; None of the points without a finished seed."""
    points = sweep.points
    costs = [cost for cost in COSTS if any(point.spread(cost) for point in points)]
    figure = Figure(figsize=(3.85 * max(len(costs), 1) + 0.6, 4.5), facecolor=PAPER)
    figure.set_layout_engine("constrained", w_pad=0.1)  # marks at the ends of two axes keep apart
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(len(costs), 1), sharey=True, squeeze=False)[0]
    colours = _choose_colours(sweep, points)
    for axes, cost in zip(panels, costs, strict=False):
        _draw_panel(axes, sweep, points, cost, colours)
    if not costs:
        panels[0].text(0.5, 0.5, "No trial has finished yet.", ha="center", color=MUTED, transform=panels[0].transAxes)
        panels[0].set_axis_off()
        return figure
    panels[0].set_ylabel(f"{MEANS[sweep.metric][0]} on {sweep.shown_split}, %", color=INK)
    handles = _list_legend(sweep, colours)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 8),
        frameon=False,
        prop={"size": 8.5, "family": font_families()},
        labelcolor=INK,
    )
    settle_layout(figure)
    for axes, cost in zip(panels, costs, strict=True):
        _label_front(axes, sweep, points, cost)
    return figure


def point_label(sweep: SweepFiles, point: Point, number: int) -> str:
    """What stands beside a point: the values of the keys that are not its colour, or its number in the table."""
    return ", ".join(readable_value(point.setting[key]) for key in named_keys(sweep)) or str(number + 1)


def named_keys(sweep: SweepFiles) -> list[str]:
    """The keys whose values name a point: all that are not the colour; none where they would be too long to read."""
    others = sweep.keys[1:] if _is_coloured(sweep, sweep.points) else sweep.keys
    longest = max((sum(len(readable_value(point.setting[key])) for key in others) for point in sweep.points), default=0)
    return others if len(others) <= 2 and longest <= 12 else []


def _draw_panel(axes: Axes, sweep: SweepFiles, points: Sequence[Point], cost: str, colours: Sequence[str]) -> None:
    value = f"{sweep.shown_split}_{sweep.metric}"
    front = pareto_front(points, cost, f"val_{sweep.metric}")
    for number, point in enumerate(points):
        price, worth = point.spread(cost), point.spread(value)
        if price is None or worth is None:
            continue
        best = number in front
        axes.errorbar(
            price.mean,
            100 * worth.mean,
            xerr=price.deviation,
            yerr=100 * worth.deviation if worth.deviation is not None else None,
            fmt="o",
            markersize=7.5 if best else 5,
            color=colours[number],
            markerfacecolor=colours[number] if point.is_complete else PAPER,
            markeredgecolor=INK if best else colours[number],
            ecolor=colours[number],
            elinewidth=1,
            alpha=1.0 if best else 0.5,
            zorder=3 if best else 2,
        )
    line = [(points[n].spread(cost), points[n].spread(value)) for n in front]
    pairs = [(x.mean, 100 * y.mean) for x, y in line if x is not None and y is not None]
    axes.plot([x for x, _ in pairs], [y for _, y in pairs], color=MUTED, linewidth=1, zorder=1)
    dress(axes, COSTS[cost])


def dress(axes: Axes, label: str) -> None:
    """A logarithmic axis of costs with readable marks, faint lines, no frame."""
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    low, high = axes.get_xlim()
    if high / low < 30:  # less than a decade and a half has too few marks of its own
        few, some, many = (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
        axes.xaxis.set_major_locator(LogLocator(subs=few if high / low > 5 else some if high / low > 2.5 else many))
    axes.xaxis.set_major_formatter(FuncFormatter(_format_tick))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(label, color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.tick_params(which="both", labelsize=8.5, colors=MUTED)
    for side in axes.spines.values():
        side.set_color(GRID)


def _label_front(axes: Axes, sweep: SweepFiles, points: Sequence[Point], cost: str) -> None:
    """Name the best points; where there is no room, the table tells."""
    value = f"{sweep.shown_split}_{sweep.metric}"
    places = {number: _locate_point(point, cost, value) for number, point in enumerate(points)}
    spots = {number: place for number, place in places.items() if place is not None}
    front = [number for number in pareto_front(points, cost, f"val_{sweep.metric}") if number in spots]
    names = [(point_label(sweep, points[number], number), *spots[number]) for number in front]
    ends = [end for number in spots for end in _list_bar_ends(points[number], cost, value)]
    place_labels(axes, names, [*spots.values(), *ends])


def _list_bar_ends(point: Point, cost: str, value: str) -> list[tuple[float, float]]:
    """The ends of the bars of a point."""
    price, worth = point.spread(cost), point.spread(value)
    if price is None or worth is None:
        return []
    across, up = price.deviation or 0.0, 100 * (worth.deviation or 0.0)
    shifts = ((across, 0.0), (-across, 0.0), (0.0, up), (0.0, -up))
    return [(price.mean + dx, 100 * worth.mean + dy) for dx, dy in shifts if (dx or dy) and price.mean + dx > 0]


def _locate_point(point: Point, cost: str, value: str) -> tuple[float, float] | None:
    price, worth = point.spread(cost), point.spread(value)
    return None if price is None or worth is None else (price.mean, 100 * worth.mean)


def _is_coloured(sweep: SweepFiles, points: Sequence[Point]) -> bool:
    return bool(sweep.keys) and 1 < len({point.setting[sweep.keys[0]] for point in points}) <= MOST_COLOURS


def _choose_colours(sweep: SweepFiles, points: Sequence[Point]) -> list[str]:
    """One per point: that of its value of the first key, if these are few."""
    if not _is_coloured(sweep, points):
        return [BLUE] * len(points)
    values = list(dict.fromkeys(point.setting[sweep.keys[0]] for point in points))
    return [group_colour(values.index(point.setting[sweep.keys[0]])) for point in points]


def _list_legend(sweep: SweepFiles, colours: Sequence[str]) -> list[Line2D]:
    points = sweep.points
    handles = []
    if _is_coloured(sweep, points):
        named = {point.setting[sweep.keys[0]]: colour for point, colour in zip(points, colours, strict=True)}
        key = "" if sweep.keys[0] == VARIANT else sweep.keys[0].rpartition(".")[2].replace("_", " ")
        handles = [_make_dot(colour, f"{key} {readable_value(value)}".strip()) for value, colour in named.items()]
    front = Line2D([], [], color=MUTED, marker="o", markeredgecolor=INK, markerfacecolor=MUTED)
    named_by = ", ".join(key.rpartition(".")[2].replace("_", " ") for key in named_keys(sweep)) or "number in the table"
    front.set_label(f"Pareto front, chosen on val (beside it: {named_by})")
    handles.append(front)
    if any(point.finished and not point.is_complete for point in points):
        handles.append(
            Line2D(
                [], [], linestyle="", marker="o", markerfacecolor=PAPER, markeredgecolor=MUTED, label="seeds missing"
            )
        )
    return handles


def _make_dot(colour: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker="o", color=colour, label=label)


def readable_value(value: str) -> str:
    """1.0 as 1; an empty cell is the key's `none`."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value or "none"


def _format_tick(value: float, _: object) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g} {unit}"
    return f"{value:g}"
