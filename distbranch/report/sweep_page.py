"""The report of a sweep: one HTML page that needs nothing else, and its figure as PNG beside it."""

import html
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from distbranch.engine.forks import read_family
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.report.figures import MEANS
from distbranch.report.fonts import one_warning_of_missing_letters
from distbranch.report.page import PNG_DPI, UNKNOWN, as_svg, duration
from distbranch.report.page_style import CSS, SCRIPT
from distbranch.report.sweep_figures import draw_pareto, readable_value
from distbranch.report.sweep_files import COSTS, FINISHED, Point, Spread, SweepFiles, pareto_front, read_sweep

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
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with one_warning_of_missing_letters():
            figure.savefig(page.parent / "pareto.png", dpi=PNG_DPI)
        page.write_text(_page(sweep, as_svg(figure, "Pareto fronts"), page.parent), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {page} ({error.strerror}). Give another place with --out."
        ) from None
    return page


def _page(sweep: SweepFiles, figure: str, folder: Path) -> str:
    name = html.escape(str(sweep.config.get("name", sweep.directory.name)))
    metric = MEANS[sweep.metric][0].lower()
    note = (
        f"Mean over tasks, {metric} on {sweep.shown_split}; bars: standard deviation over seeds. The front was chosen on val, so on "
        f"{sweep.shown_split} it may bend. Points with a missing seed are hollow and never on the front."
    )
    sections = [
        f"<h1>{name}</h1>",
        f'<p class="lead">{html.escape(_subtitle(sweep))}</p>',
        _tiles(sweep),
        f'<section id="pareto"><h2>What a network is worth and what it costs</h2><p class="note">{html.escape(note)}</p>'
        f'<div class="figure">{figure}</div></section>',
        _points_section(sweep),
        _trials_section(sweep, folder),
        f'<section id="settings"><h2>Settings</h2><details><summary>Configuration of the sweep</summary><pre>'
        f"{html.escape(yaml.safe_dump(sweep.config, sort_keys=False))}</pre></details></section>",
        f"<footer>Written by distbranch report from {html.escape(sweep.directory.name)}.</footer>",
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
        f"<body><main>{''.join(sections)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _subtitle(sweep: SweepFiles) -> str:
    seeds = {row["seed"] for row in sweep.rows}
    keys = ", ".join(sweep.keys) or "the seed alone"
    return f"{len(sweep.rows)} trials over {keys}; {len(seeds)} seed{'s' if len(seeds) != 1 else ''}; search: {sweep.config.get('search')}"


def _tiles(sweep: SweepFiles) -> str:
    counts = Counter(row["status"] for row in sweep.rows)
    seconds = sum(map(_own_seconds, sweep.rows))
    tiles = [(f"{count}", status) for status, count in counts.items()] + [
        (duration(seconds), "of training in all trials")
    ]
    inner = "".join(f'<div class="tile"><b>{html.escape(a)}</b><span>{html.escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{inner}</div>'


def _own_seconds(row: Mapping[str, str]) -> float:
    """Seconds of training without a beginning that the trial has from another one, whose they are."""
    if not row.get("seconds"):
        return 0.0
    _, origin = read_family(RunDirectory(Path(row["directory"])))
    return float(row["seconds"]) - (origin.seconds if origin else 0.0)


def _points_section(sweep: SweepFiles) -> str:
    """Every setting with its means, those on a front marked."""
    points = sweep.points
    fronts = {cost: pareto_front(points, cost, f"val_{sweep.metric}") for cost in COSTS}
    heads = ["No.", *(key.rpartition(".")[2] for key in sweep.keys), "Seeds", *VALUE_HEADS, *COST_HEADS.values()]
    rows = []
    for number, point in enumerate(points):
        seeds = f"{len(point.finished)}" if point.is_complete else f"{len(point.finished)} of {len(point.rows)}"
        cells = [_cell(str(number + 1), number + 1)]
        cells += [_cell(readable_value(value), _sortable(value)) for value in point.setting.values()]
        cells.append(_cell(seeds, len(point.finished)))
        cells += [_value(point, f"{split}_{sweep.metric}", percent=True) for split in ("val", "test")]
        cells += [_value(point, cost, percent=False, mark=number in front) for cost, front in fronts.items()]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = (
        f"{MEANS[sweep.metric][0]} and costs: mean ± standard deviation over the finished seeds. \u25cf on the Pareto front of this "
        "cost. Click on a column head to sort."
    )
    return f'<section id="points"><h2>Every setting</h2><p class="note">{note}</p>{_table(heads, rows)}</section>'


def _trials_section(sweep: SweepFiles, folder: Path) -> str:
    """Trials that did not finish with their reasons, then all of them folded away."""
    ended = [row for row in sweep.rows if row["status"] != FINISHED]
    body = ""
    if ended:
        rows = [f"<tr>{_cell(row['trial'])}{_cell(row['status'])}{_cell(row['reason'])}</tr>" for row in ended]
        body = f'<section class="notice" id="ended"><h2>Not finished</h2>{_table(["Trial", "How it stands", "Why"], rows)}</section>'
    heads = ["Trial", "How it stands", *VALUE_HEADS, "Parameters", "Seconds"]
    rows = [_trial_row(row, sweep, folder) for row in sweep.rows]
    return (
        f'{body}<section id="trials"><h2>Every trial</h2><details><summary>{len(rows)} trials</summary>'
        f"{_table(heads, rows)}</details></section>"
    )


def _trial_row(row: Mapping[str, str], sweep: SweepFiles, folder: Path) -> str:
    link = html.escape(os.path.relpath(row["directory"], folder.absolute()))
    name = html.escape(row["trial"])
    cells = [f'<td><a href="{link}">{name}</a></td>', _cell(row["status"])]
    for split in ("val", "test"):
        value = row.get(f"{split}_{sweep.metric}")
        cells.append(_cell(f"{100 * float(value):.1f}" if value else UNKNOWN, value or -1, number=True))
    cells += [
        _cell(f"{float(row[key]):,.0f}" if row.get(key) else UNKNOWN, row.get(key) or -1, number=True)
        for key in ("parameters", "seconds")
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _value(point: Point, column: str, *, percent: bool, mark: bool = False) -> str:
    spread = point.spread(column)
    if spread is None:
        return _cell(UNKNOWN, -1, number=True)
    return _cell(("\u25cf " if mark else "") + _amount(spread, percent=percent), spread.mean, number=True)


def _amount(spread: Spread, *, percent: bool) -> str:
    """Both numbers in the same unit with the same decimals."""
    if percent:
        scale, unit, decimals = 0.01, "", 1
    else:
        scale, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M")) if spread.mean >= s), (1.0, ""))
        decimals = 2 if unit or spread.mean < 100 else 0
    numbers = [spread.mean] if not spread.deviation else [spread.mean, spread.deviation]
    return " ± ".join(f"{number / scale:,.{decimals}f}" for number in numbers) + unit


def _sortable(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _cell(text: str, value: float | str | None = None, *, number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    data = "" if value is None else f' data-value="{html.escape(str(value))}"'
    return f"<td{kind}{data}>{html.escape(text)}</td>"


def _table(heads: list[str], rows: list[str]) -> str:
    cells = "".join(f'<th data-sort=""{_right(head)}>{html.escape(head)}</th>' for head in heads)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _right(head: str) -> str:
    numbers = (*COST_HEADS.values(), "Seconds")
    return ' class="number"' if head in numbers or head.endswith("%") else ""
