"""The other figures of a sweep: the curves of all trials, a panel per searched key, and how much each key explains.

Blue is what was measured and orange what is best, as in every figure; what ended early is faint and hollow.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from distbranch.engine.run_directory import RunDirectory
from distbranch.metrics import list_metrics
from distbranch.report.console import get_scale
from distbranch.report.cost_figures import set_value_label
from distbranch.report.figure_style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    add_grid,
    hide_frame,
    in_style,
    make_figure,
)
from distbranch.report.sweep_files import FINISHED, SweepFiles

Curve = tuple[tuple[int, float], ...]  # (step, value) of every evaluation
STOPPED_EARLY, FAILED = "stopped early", "failed"
WIDTH = 11.6  # inches: that of the page
PANELS_PER_ROW = 4
FEW_DECADES = 100  # between the ends of a logarithmic axis that needs more marks than powers of ten
MOST_LINES = (
    150  # as paths of an SVG; more are pixels, for a page of thousands of lines is slow to scroll
)
MOST_CURVES_REMEMBERED = 4096


# ---- curves


@in_style
def draw_curves(sweep: SweepFiles) -> Figure | None:
    """The metric on val over steps: every trial faint, the best setting in colour; None where no trial has two evaluations."""
    curves = {}
    for _, row in sweep.rows.iterrows():
        curves[row["trial"]] = read_curve(Path(row["directory"]), sweep.metric)
    if not any(len(curve) > 1 for curve in curves.values()):
        return None
    scale = get_scale(sweep.metric)
    best = _list_best_trials(sweep)
    lines: dict[str, list[Any]] = {"all trials": [], "best on val": []}
    ends = []
    for trial, status in zip(sweep.rows["trial"], sweep.rows["status"], strict=True):
        line = [(step, scale * value) for step, value in curves[trial]]
        part = "best on val" if trial in best else "all trials"
        if line:
            lines[part].append(line)
        if line and status in (STOPPED_EARLY, FAILED):
            ends.append(line[-1])

    figure = make_figure(WIDTH, 3.8)
    axes = figure.subplots()
    _add_lines(
        axes, lines["all trials"], BLUE, alpha=_choose_alpha(len(curves)), label="all trials"
    )
    _add_lines(axes, lines["best on val"], ORANGE, linewidth=1.8, zorder=4, label="best on val")
    if ends:
        style: dict[str, Any] = {
            "marker": "x",
            "s": 16,
            "linewidths": 1,
            "color": MUTED,
            "zorder": 3,
        }
        axes.scatter(*zip(*ends, strict=True), label="ended early", **style)
    axes.autoscale()
    axes.set_xlim(left=0)
    add_grid(axes)
    axes.set_xlabel("step", color=INK)
    set_value_label(axes, sweep.metric, "val")
    legend = figure.legend(loc="outside lower center", ncols=3)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)  # one of thousands of lines cannot be seen by itself
    return figure


def read_curve(run: Path, metric: str) -> Curve:
    """A mean over tasks on val at every evaluation of a run: (step, value in 0..1 of a share); empty where it has none."""
    file = RunDirectory(run).metrics
    if not file.exists():
        return ()
    # A page is drawn again and again while a sweep runs, and hundreds of its trials do not change any more.
    stat = file.stat()
    return _read_curve(file, metric, stat.st_mtime_ns, stat.st_size)


@lru_cache(MOST_CURVES_REMEMBERED)
def _read_curve(file: Path, metric: str, *_: int) -> Curve:
    found = {}
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        # One line in hundreds is an evaluation, and reading JSON is what takes the time.
        if '"evaluation"' not in text:
            continue
        try:
            line = json.loads(text)
        except ValueError:  # torn: the writer was killed in it, or has not ended it yet
            continue
        if line["kind"] == "evaluation" and line["split"] == "val":
            value = line["mean"].get(metric)
            if value is not None:
                found[line["iteration"]] = value
    return tuple(sorted(found.items()))


def _list_best_trials(sweep: SweepFiles) -> set[str]:
    """The trials of the best setting on val, one per seed."""
    points = sweep.points
    number = sweep.find_best(points)
    if number is None:
        return set()
    rows = sweep.rows[sweep.rows["status"] == FINISHED]
    for key in sweep.keys:
        rows = rows[rows[key] == points.loc[number, key]]
    return set(rows["trial"])


def _add_lines(axes: Axes, lines: list[Any], colour: str, *, label: str, **style: Any) -> None:
    if lines:
        look: dict[str, Any] = {"linewidth": 0.9, "zorder": 2, **style}
        collection = LineCollection(lines, colors=colour, label=label, **look)
        collection.set_rasterized(len(lines) > MOST_LINES)
        axes.add_collection(collection)


def _choose_alpha(num_lines: int) -> float:
    """Fainter the more there are: thousands would be one blue area."""
    return min(0.6, max(0.08, 15 / num_lines))


# ---- keys


@in_style
def draw_keys(sweep: SweepFiles) -> Figure | None:
    """The metric on val against every key that was drawn from a range; None where there is none or nothing has finished."""
    spans: Mapping[str, Any] = sweep.config.get("space") or {}
    keys = [key for key in sweep.keys if spans.get(key, {}).get("low") is not None]
    points = sweep.points
    value = f"val_{sweep.metric}"
    points = points[points["is_complete"]].dropna(subset=value)
    if not keys or points.empty:
        return None
    num_columns = min(PANELS_PER_ROW, len(keys))
    num_rows = math.ceil(len(keys) / num_columns)
    figure = make_figure(WIDTH / max(3, num_columns) * num_columns, 2.7 * num_rows + 0.5)
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    early = _gather_early_ends(sweep)
    best = _choose_highlighted(sweep, points)
    for axes, key in zip(panels.flat, keys, strict=False):
        _draw_key(axes, sweep, key, (points, early, best))
        if spans[key].get("log"):
            axes.set_xscale("log")
            # Without powers, for texts are no mathematics here.
            low, high = axes.get_xlim()
            if high < FEW_DECADES * low:
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif spans[key].get("int"):
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    for row in panels:
        set_value_label(row[0], sweep.metric, "val")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw_key(
    axes: Axes,
    sweep: SweepFiles,
    key: str,
    parts: tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame],
) -> None:
    """One panel: settings, those that ended early, and the best."""
    points, early, best = parts
    value, scale = f"val_{sweep.metric}", get_scale(sweep.metric)
    look: dict[str, Any] = {"fmt": "o", "markersize": 4, "elinewidth": 0.9}
    if len(early):
        place = early[key].astype(float), scale * early[value]
        hollow = {"markerfacecolor": PAPER, "alpha": 0.7, "zorder": 2, "label": "ended early"}
        axes.errorbar(*place, color=MUTED, **look | hollow)
    named = _name_highlighted(sweep)
    for part, colour, label in (
        (points.drop(best.index), BLUE, "settings"),
        (best, ORANGE, named),
    ):
        if len(part):
            deviations = scale * part[f"{value}_sd"]
            axes.errorbar(
                part[key].astype(float),
                scale * part[value],
                yerr=None if deviations.isna().all() else deviations,
                color=colour,
                label=label,
                zorder=4 if part is best else 3,
                **look,
            )
    add_grid(axes)
    axes.set_xlabel(key, color=INK)


def _gather_early_ends(sweep: SweepFiles) -> pandas.DataFrame:
    """The trials that did not finish, at their last evaluation on val."""
    rows = sweep.rows[sweep.rows["status"].isin((STOPPED_EARLY, FAILED))]
    return rows.dropna(subset=f"val_{sweep.metric}")


def _choose_highlighted(sweep: SweepFiles, points: pandas.DataFrame) -> pandas.DataFrame:
    """The best setting, or the front where the search weighed a cost against the metric."""
    cost = sweep.config.get("cost")
    if cost:
        return points.loc[sweep.find_fronts(points)[cost]]
    best = sweep.find_best(points)
    return points.loc[[best]]


def _name_highlighted(sweep: SweepFiles) -> str:
    cost = sweep.config.get("cost")
    return f"Pareto front ({sweep.costs[cost].lower()})" if cost else "best on val"


# ---- importances


@in_style
def draw_importances(sweep: SweepFiles) -> Figure | None:
    """The share of every key in what makes settings differ, a panel per objective; None where the sweep wrote none."""
    file = sweep.directory / "importances.json"
    if not file.exists():
        return None
    importances = json.loads(file.read_text(encoding="utf-8"))
    num_keys = max(map(len, importances.values()))
    figure = make_figure(WIDTH / 2 * len(importances), 0.32 * num_keys + 0.6)
    panels = figure.subplots(1, len(importances), squeeze=False)[0]
    for axes, (name, shares) in zip(panels, importances.items(), strict=True):
        keys = list(shares)[::-1]
        amounts = [100 * shares[key] for key in keys]
        bars = axes.barh(keys, amounts, height=0.6, color=BLUE)
        axes.bar_label(bars, [f"{amount:.0f} %" for amount in amounts], padding=4, color=INK)
        axes.set_xlim(0, 112)  # room for the labels
        title = sweep.costs.get(name) or f"{list_metrics()[name].title} on val"
        axes.set_title(title)
        hide_frame(axes)
        axes.set_xticks([])
    return figure
