"""The report of a sweep: one HTML page that needs nothing else, and its figure as PNG beside it.

The first figure shows the Pareto fronts: quality against parameters, multiply-adds and latency, with error bars over seeds. Others
(sweep_figures.py) show how the trials came there and what the searched keys did.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distbranch.engine.forks import read_family
from distbranch.engine.run_directory import RunDirectory
from distbranch.metrics import list_metrics
from distbranch.report.console import format_size, format_value
from distbranch.report.cost_figures import (
    ABOVE,
    Spot,
    draw_spots,
    set_value_label,
    settle_names,
)
from distbranch.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    PAPER,
    group_colour,
    in_style,
    make_figure,
    set_cost_axis,
)
from distbranch.report.page import draw_svg, render_template, write_page
from distbranch.report.sweep_figures import draw_curves, draw_importances, draw_keys
from distbranch.report.sweep_files import (
    FINISHED,
    FRONT,
    INTERVAL,
    LATENCY,
    TIED,
    SweepFiles,
    format_setting,
    read_sweep,
    shorten_key,
    tabulate_points,
)

# Longer tables are folded: nobody reads them whole, and what is below them would not be found.
MOST_ENDED, MOST_SETTINGS = 12, 200
NUM_BEST = 20  # settings that are shown openly beside those on a front, where the table is folded
MOST_COLOURS = 10  # as many hues are told apart; more values of a key have none
# Of the other figures, in the order of the page: what each shows, and what its reader should know.
HEADINGS = {
    "curves": (
        "How every trial came there",
        "The metric on val at every evaluation. A cross: ended there, stopped early or failed.",
    ),
    "keys": (
        "What the searched keys did",
        "A point per setting, the mean over its seeds on val; the axis is logarithmic where the values were drawn so. What looks like "
        "a trend may be that of another key: the search tries what it takes for good more often.",
    ),
    "importances": (
        "Which key mattered",
        "The share of each key in the variance that a forest explains over all finished settings (fANOVA), in the ranges that were "
        "searched.",
    ),
}
LINK = Markup('<a href="{}">{}</a>')


def report_sweep(run_directory: Path | str, out: Path | str | None = None) -> Path:
    """Write the page (by default SWEEP/report.html), pareto.png and report/*.png beside it; returns the page's path.

    Raises:
        UserError: no results yet, or a place that cannot be written.
    """
    sweep = read_sweep(run_directory)
    page = Path(out) if out is not None else sweep.directory / "report.html"
    pareto = draw_pareto(sweep)
    others = _draw_others(sweep)
    files = {page.parent / "pareto.png": pareto}
    files |= {page.parent / "report" / f"{name}.png": figure for name, figure in others.items()}
    write_page(page, files, lambda: _render_sweep(sweep, pareto, others, page.parent))
    return page


def _draw_others(sweep: SweepFiles) -> dict[str, Figure]:
    """The figures that not every sweep has, by name: without a search no keys, without evaluations no curves."""
    drawn = {
        "curves": draw_curves(sweep),
        "keys": draw_keys(sweep),
        "importances": draw_importances(sweep),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _render_sweep(
    sweep: SweepFiles, figure: Figure, others: Mapping[str, Figure], folder: Path
) -> str:
    # Who failed comes before who was stopped early, and both before those that still wait.
    ended = sweep.rows[sweep.rows["status"] != FINISHED].sort_values("status", kind="stable")
    counts = ended["status"].value_counts(sort=False)
    points = sweep.points
    cells = tabulate_points(sweep, points)
    return render_template(
        "sweep.html",
        name=str(sweep.config.get("name", sweep.directory.name)),
        folder=sweep.directory.name,
        sweep=sweep,
        seconds=_measure_seconds(sweep),
        figure=draw_svg(figure, "Pareto fronts"),
        others={name: draw_svg(other, HEADINGS[name][0]) for name, other in others.items()},
        headings=HEADINGS,
        marks={"front": FRONT, "tied": TIED},
        has_interval=bool(sweep.rows[INTERVAL[0]].notna().any()),
        metric=list_metrics()[sweep.metric].in_words,
        points=cells,
        best=cells.loc[_choose_best(sweep, points)],
        num_best=NUM_BEST,
        most_settings=MOST_SETTINGS,
        ended=ended[["trial", "status", "reason"]],
        ended_counts=", ".join(f"{count} {status}" for status, count in counts.items()),
        most_ended=MOST_ENDED,
        trials=_tabulate_trials(sweep, folder),
        settings={"Configuration of the sweep": sweep.config},
    )


def _choose_best(sweep: SweepFiles, points: pandas.DataFrame) -> list[int]:
    """The numbers of the points on a front and of the best ones on val, the best first."""
    best = sweep.rank_points(points)
    on_front = set().union(*sweep.find_fronts(points).values())
    return best[:NUM_BEST] + [number for number in best[NUM_BEST:] if number in on_front]


def _measure_seconds(sweep: SweepFiles) -> float:
    """Seconds of training in all trials; a beginning that trials share counts once, for the trial that trained it."""
    seconds = 0.0
    for _, row in sweep.rows.dropna(subset="seconds").iterrows():
        _, origin = read_family(RunDirectory(Path(row["directory"])))
        seconds += row["seconds"]
        if origin:
            seconds -= origin.seconds
    return seconds


def _tabulate_trials(sweep: SweepFiles, folder: Path) -> pandas.DataFrame:
    rows = sweep.rows
    # relative, so that it holds where the folder is moved or served
    links = [os.path.relpath(directory, folder.absolute()) for directory in rows["directory"]]
    return pandas.DataFrame(
        {
            "trial": [
                LINK.format(link, trial) for link, trial in zip(links, rows["trial"], strict=True)
            ],
            "status": rows["status"],
            f"val {sweep.unit}".rstrip(): _format_metric(sweep, "val"),
            f"test {sweep.unit}".rstrip(): _format_metric(sweep, "test"),
            "parameters": rows["parameters"].map(format_size),
            "seconds": rows["seconds"].map(format_size),
        },
        dtype=object,
    )


def _format_metric(sweep: SweepFiles, split: str) -> list[str]:
    return [format_value(sweep.metric, value) for value in sweep.rows[f"{split}_{sweep.metric}"]]


# ---- the figure


@in_style
def draw_pareto(sweep: SweepFiles) -> Figure:
    """One panel per cost that is known, all with the same vertical axis; None of the points without a finished seed."""
    points = sweep.points
    fronts = sweep.find_fronts(points)
    # latency is known only where it was measured
    costs = [cost for cost in sweep.costs if points[cost].notna().any()]
    ties = sweep.find_ties(points)
    figure = make_figure(3.85 * max(len(costs), 1) + 0.6, 4.5)
    if not costs:
        figure.suptitle("No trial has finished yet.")
        return figure
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    keys = _list_naming_keys(sweep)
    beside = f" (beside it: {shorten_key(keys[0])})" if len(keys) == 1 else ""
    for axes, cost in zip(panels, costs, strict=True):
        _draw_points(axes, sweep, points, cost)
        if cost == LATENCY:
            _draw_intervals(axes, sweep, points)
        front = _make_spots(sweep, points.loc[fronts[cost]])
        # a ring around its point
        ring: dict[str, Any] = {
            "markersize": 8.5,
            "markerfacecolor": "none",
            "markeredgecolor": INK,
        }
        draw_spots(
            axes,
            front,
            cost,
            MUTED,
            names=ABOVE,
            scale=_choose_scale(sweep),
            fmt="o-",
            label=f"Pareto front, chosen on val{beside}",
            **ring,
        )
        if cost == LATENCY and ties:
            _mark_ties(axes, _make_spots(sweep, points.loc[ties]), _choose_scale(sweep))
        set_cost_axis(axes, sweep.costs[cost])
        if cost == LATENCY:
            axes.xaxis.set_major_formatter("{x:g}")  # 0.8 ms and not 800 m
    set_value_label(panels[0], sweep.metric, sweep.shown_split)
    found = [axes.get_legend_handles_labels() for axes in panels]
    entries = {
        label: handle
        for handles, labels in found
        for handle, label in zip(handles, labels, strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=6)
    settle_names(figure)
    return figure


def _draw_intervals(axes: Axes, sweep: SweepFiles, points: pandas.DataFrame) -> None:
    """Bars of latency, unlike to either side: what disturbs a machine makes it slower and not faster."""
    known = points.dropna(subset=INTERVAL)
    values = _choose_scale(sweep) * known[f"{sweep.shown_split}_{sweep.metric}"]
    low, high = INTERVAL
    axes.hlines(values, known[low], known[high], color=MUTED, linewidth=1, zorder=2)


def _mark_ties(axes: Axes, spots: Sequence[Spot], scale: float) -> None:
    """A hole in the point, as their mark in the table has one."""
    bare = [
        Spot(spot.name, {LATENCY: (spot.costs[LATENCY][0], None)}, (spot.value[0], None))
        for spot in spots
    ]
    hole: dict[str, Any] = {"markersize": 3, "markerfacecolor": PAPER, "zorder": 5}
    label = "on the front, but a better one may be as fast"
    draw_spots(axes, bare, LATENCY, MUTED, scale=scale, label=label, **hole)


def _draw_points(axes: Axes, sweep: SweepFiles, points: pandas.DataFrame, cost: str) -> None:
    """The settings, coloured by the value of the first key; those of which seeds are missing are hollow."""
    scale = _choose_scale(sweep)
    complete = points[points["is_complete"]]
    missing = points[~points["is_complete"] & points[cost].notna()]
    if _is_coloured(sweep):
        key = sweep.keys[0]
        for number, value in enumerate(points[key].unique()):
            label = f"{shorten_key(key)} {format_setting(value)}"
            spots = _make_spots(sweep, complete[complete[key] == value])
            draw_spots(axes, spots, cost, group_colour(number), scale=scale, label=label)
    else:
        draw_spots(axes, _make_spots(sweep, complete), cost, BLUE, scale=scale)
    if len(missing):
        spots = _make_spots(sweep, missing)
        label = "seeds missing"
        draw_spots(axes, spots, cost, MUTED, scale=scale, markerfacecolor=PAPER, label=label)


def _make_spots(sweep: SweepFiles, points: pandas.DataFrame) -> list[Spot]:
    """Points under the value of the key that is not their colour; where there are more such keys, under their number."""
    keys = _list_naming_keys(sweep)
    value = f"{sweep.shown_split}_{sweep.metric}"
    spots = []
    for number, point in points.iterrows():
        name = f"no. {number + 1}"
        # two values beside every point would cover others
        if len(keys) == 1:
            name = format_setting(point[keys[0]])
        costs = {cost: (point[cost], point[f"{cost}_sd"]) for cost in sweep.costs}
        if point[INTERVAL[0]] == point[INTERVAL[0]]:  # its bar is that, see `_draw_intervals`
            costs[LATENCY] = (point[LATENCY], None)
        spots.append(Spot(name, costs, (point[value], point[f"{value}_sd"])))
    return spots


def _choose_scale(sweep: SweepFiles) -> float:
    return 100 if sweep.unit == "%" else 1


def _list_naming_keys(sweep: SweepFiles) -> list[str]:
    """All keys but that of the colour."""
    return sweep.keys[1:] if _is_coloured(sweep) else sweep.keys


def _is_coloured(sweep: SweepFiles) -> bool:
    """Whether the points have the colour of their value of the first key; a single key is the name of its points."""
    return len(sweep.keys) > 1 and sweep.rows[sweep.keys[0]].nunique() <= MOST_COLOURS
