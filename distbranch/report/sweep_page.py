"""The report of a sweep: one HTML page that needs nothing else, and its figure as PNG beside it.

The figure shows the Pareto fronts: quality against parameters, multiply-adds and latency, with error bars over seeds.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distbranch.config.sweep import VARIANT
from distbranch.engine.forks import read_family
from distbranch.engine.run_directory import RunDirectory
from distbranch.report.console import METRICS, format_cost, format_count, format_percent
from distbranch.report.experiment_figures import Spot, draw_spot, list_obstacles, name_spots
from distbranch.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    PAPER,
    draw_legend_below,
    draw_notice,
    group_colour,
    in_style,
    make_dot,
    make_figure,
    set_cost_axis,
    settle_layout,
)
from distbranch.report.page import UNKNOWN, Cell, draw_svg, format_duration, render_template, write_page
from distbranch.report.sweep_files import COSTS, FINISHED, Point, SweepFiles, read_sweep

MOST_COLOURS = 10  # as many hues are told apart; more values of a key have none
VALUE_HEADS = ("val, %", "test, %")
COST_HEADS = {"parameters": "Parameters", "multiply_adds": "Multiply-adds", "latency_ms": "Latency, ms"}


def report_sweep(run_directory: Path | str, out: Path | str | None = None) -> Path:
    """Write the page (by default SWEEP/report.html) and pareto.png beside it; returns the page's path.

    Raises:
        UserError: no results yet, or a place that cannot be written.
    """
    sweep = read_sweep(run_directory)
    page = Path(out) if out is not None else sweep.directory / "report.html"
    figure = draw_pareto(sweep)
    files = {page.parent / "pareto.png": figure}
    write_page(page, files, lambda: _render_sweep(sweep, draw_svg(figure, "Pareto fronts"), page.parent))
    return page


def _render_sweep(sweep: SweepFiles, figure: Markup, folder: Path) -> str:
    ended = [row for row in sweep.rows if row["status"] != FINISHED]
    keys = [key.rpartition(".")[2] for key in sweep.keys]
    return render_template(
        "sweep.html",
        name=str(sweep.config.get("name", sweep.directory.name)),
        folder=sweep.directory.name,
        subtitle=_describe_sweep(sweep),
        tiles=_list_tiles(sweep),
        figure=figure,
        metric=METRICS[sweep.metric],
        split=sweep.shown_split,
        point_heads=["No.", *keys, "Seeds", *VALUE_HEADS, *COST_HEADS.values()],
        point_rows=_list_points(sweep),
        ended=[[Cell(row[column]) for column in ("trial", "status", "reason")] for row in ended],
        trial_heads=["Trial", "How it stands", *VALUE_HEADS, "Parameters", "Seconds"],
        trial_rows=[_make_trial_row(row, sweep, folder) for row in sweep.rows],
        settings={"Configuration of the sweep": sweep.config},
    )


def _describe_sweep(sweep: SweepFiles) -> str:
    num_seeds = len({row["seed"] for row in sweep.rows})
    seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
    keys = ", ".join(sweep.keys) or "the seed alone"
    return f"{len(sweep.rows)} trials over {keys}; {seeds}; search: {sweep.config.get('search')}"


def _list_tiles(sweep: SweepFiles) -> list[tuple[str, str]]:
    counts = Counter(row["status"] for row in sweep.rows)
    seconds = sum(map(_measure_own_seconds, sweep.rows))
    tiles = [(f"{count}", status) for status, count in counts.items()]
    return [*tiles, (format_duration(seconds), "of training in all trials")]


def _measure_own_seconds(row: Mapping[str, str]) -> float:
    """Seconds of training without a beginning that the trial has from another one, whose they are."""
    if not row.get("seconds"):
        return 0.0
    _, origin = read_family(RunDirectory(Path(row["directory"])))
    return float(row["seconds"]) - (origin.seconds if origin else 0.0)


def _list_points(sweep: SweepFiles) -> list[list[Cell]]:
    """Every setting with its means, those on a front marked."""
    fronts = sweep.fronts()
    rows = []
    for number, point in enumerate(sweep.points):
        seeds = str(len(point.finished))
        if not point.is_complete:
            seeds += f" of {len(point.rows)}"
        rows.append(
            [
                Cell(str(number + 1), number + 1),
                *(Cell(readable_value(value), _parse_sortable(value)) for value in point.setting.values()),
                Cell(seeds, len(point.finished)),
                _make_value(point, f"val_{sweep.metric}"),
                _make_value(point, f"test_{sweep.metric}"),
                *(_make_value(point, cost, mark=number in front) for cost, front in fronts.items()),
            ]
        )
    return rows


def _make_trial_row(row: Mapping[str, str], sweep: SweepFiles, folder: Path) -> list[Cell]:
    # relative, so that it holds where the folder is moved or served
    link = os.path.relpath(row["directory"], folder.absolute())
    cells = [Cell(row["trial"], link=link), Cell(row["status"])]
    renderers: dict[str, Callable[[float], str]] = {
        f"val_{sweep.metric}": format_percent,
        f"test_{sweep.metric}": format_percent,
        "parameters": format_count,
        "seconds": format_count,
    }
    for column, render in renderers.items():
        value = row.get(column)
        cells.append(Cell(render(float(value)), value) if value else UNKNOWN)
    return cells


def _make_value(point: Point, column: str, *, mark: bool = False) -> Cell:
    spread = point.spread(column)
    if spread is None:
        return UNKNOWN
    text = format_cost(column, *spread) if column in COSTS else format_percent(*spread)
    return Cell(f"\u25cf {text}" if mark else text, spread.mean)


def _parse_sortable(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


@in_style
def draw_pareto(sweep: SweepFiles) -> Figure:
    """One panel per cost that is known, all with the same vertical axis; None of the points without a finished seed."""
    points = sweep.points
    spots = [_make_spot(sweep, point, number) for number, point in enumerate(points)]
    # latency is known only where it was measured
    costs = [cost for cost in COSTS if any(spot.costs[cost][0] is not None for spot in spots)]
    num_panels = max(len(costs), 1)
    figure = make_figure(3.85 * num_panels + 0.6, 4.5)
    figure.set_layout_engine("constrained", w_pad=0.1)  # marks at the ends of two axes keep apart
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    if not costs:
        draw_notice(panels[0], "No trial has finished yet.")
        return figure
    fronts = sweep.fronts()
    colours = _choose_colours(sweep)
    for axes, cost in zip(panels, costs, strict=True):
        front = fronts[cost]
        for number, (point, spot) in enumerate(zip(points, spots, strict=True)):
            _draw_point(axes, point, spot, cost, colours[number], best=number in front)
        places = [spots[number].locate(cost) for number in front]
        known = [place for place in places if place is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], color=MUTED, linewidth=1, zorder=1)
        set_cost_axis(axes, COSTS[cost])
    panels[0].set_ylabel(f"{METRICS[sweep.metric]} on {sweep.shown_split}, %", color=INK, fontsize=10)
    draw_legend_below(figure, _list_legend(sweep))
    # Names only of the best points, and where there is room: the table tells the others.
    settle_layout(figure)
    for axes, cost in zip(panels, costs, strict=True):
        name_spots(axes, [spots[number] for number in fronts[cost]], cost, list_obstacles(spots, cost))
    return figure


def _make_spot(sweep: SweepFiles, point: Point, number: int) -> Spot:
    """A point under what stands beside it: the values of the keys that are not its colour, or its number in the table."""
    values = [readable_value(point.setting[key]) for key in list_naming_keys(sweep)]
    costs = {cost: point.spread(cost) or (None, None) for cost in COSTS}
    value = point.spread(f"{sweep.shown_split}_{sweep.metric}") or (None, None)
    return Spot(", ".join(values) or str(number + 1), costs, value)


def _draw_point(axes: Axes, point: Point, spot: Spot, cost: str, colour: str, *, best: bool) -> None:
    """The best stand out; a setting of which seeds are missing is hollow."""
    style = {"markersize": 5, "markeredgecolor": colour, "alpha": 0.5, "zorder": 2}
    if best:
        style = {"markersize": 7.5, "markeredgecolor": INK, "alpha": 1.0, "zorder": 3}
    inside = colour if point.is_complete else PAPER
    draw_spot(axes, spot, cost, colour, markerfacecolor=inside, markeredgewidth=1.0, **style)


def list_naming_keys(sweep: SweepFiles) -> list[str]:
    """The keys whose values name a point: all that are not the colour; none where they would be too long to read."""
    others = sweep.keys[1:] if _is_coloured(sweep) else sweep.keys
    if len(others) > 2:
        return []
    # longer names would cover other points
    names = ["".join(readable_value(point.setting[key]) for key in others) for point in sweep.points]
    return others if max(map(len, names), default=0) <= 12 else []


def _is_coloured(sweep: SweepFiles) -> bool:
    """Whether the points have the colour of their value of the first key."""
    return bool(sweep.keys) and 1 < len(_list_first_values(sweep)) <= MOST_COLOURS


def _list_first_values(sweep: SweepFiles) -> list[str]:
    return list(dict.fromkeys(point.setting[sweep.keys[0]] for point in sweep.points))


def _choose_colours(sweep: SweepFiles) -> list[str]:
    """One per point."""
    if not _is_coloured(sweep):
        return [BLUE] * len(sweep.points)
    values = _list_first_values(sweep)
    return [group_colour(values.index(point.setting[sweep.keys[0]])) for point in sweep.points]


def _list_legend(sweep: SweepFiles) -> list[Line2D]:
    handles = []
    if _is_coloured(sweep):
        key = "" if sweep.keys[0] == VARIANT else _read_last_part(sweep.keys[0])
        for number, value in enumerate(_list_first_values(sweep)):
            handles.append(make_dot(group_colour(number), f"{key} {readable_value(value)}".strip()))
    named_by = ", ".join(map(_read_last_part, list_naming_keys(sweep))) or "number in the table"
    label = f"Pareto front, chosen on val (beside it: {named_by})"
    handles.append(Line2D([], [], color=MUTED, marker="o", markeredgecolor=INK, label=label))
    if any(point.finished and not point.is_complete for point in sweep.points):
        handles.append(make_dot(MUTED, "seeds missing", markerfacecolor=PAPER))
    return handles


def _read_last_part(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def readable_value(value: str) -> str:
    """1.0 as 1; an empty cell is the key's `none`."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return value or "none"
