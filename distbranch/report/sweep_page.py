"""The report of a sweep: one HTML page that needs nothing else, and its figure as PNG beside it."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from markupsafe import Markup

from distbranch.engine.forks import read_family
from distbranch.engine.run_directory import RunDirectory
from distbranch.report.console import METRICS, format_cost, format_count, format_percent
from distbranch.report.page import UNKNOWN, Cell, draw_svg, duration, render_template, write_page
from distbranch.report.sweep_figures import draw_pareto, readable_value
from distbranch.report.sweep_files import COSTS, FINISHED, Point, SweepFiles, read_sweep

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
    return [*tiles, (duration(seconds), "of training in all trials")]


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
