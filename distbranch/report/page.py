"""The report of a run: one HTML page that needs nothing else, and the same figures as PNG beside it.

The figures stand in the page as SVG whose ink, grid and paper are CSS variables, so that they suit a light and a dark screen.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from distbranch.config import ModelConfig
from distbranch.errors import UserError
from distbranch.report import figures
from distbranch.report.fonts import one_warning_of_missing_letters
from distbranch.report.layers import group_numbers, readable, top_groups
from distbranch.report.page_style import CSS, SCRIPT
from distbranch.report.palette import BLUE, GRID, INK, MUTED, PAPER, group_colour, text_on
from distbranch.report.pictures import Picture, pictures, shown_split
from distbranch.report.run_files import RunFiles, read_run

PNG_DPI = 160
UNKNOWN = "\u2013"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}


def report(run_directory: Path | str, out: Path | str | None = None) -> Path:
    """Write the page (by default RUN/report.html) and its figures (report/*.png beside it); returns the page's path."""
    run = read_run(run_directory)
    page = Path(out) if out is not None else run.directory / "report.html"
    folder = page.parent / "report"
    drawn = [
        (picture, picture.draw()) for picture in pictures(run)
    ]  # all, before a file of an earlier report is replaced
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = [_written(run, picture, figure, folder) for picture, figure in drawn]
        page.write_text(_page(run, sections), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {page} ({error.strerror}). Give another place with --out."
        ) from None
    return page


def _written(run: RunFiles, picture: Picture, figure: Figure, folder: Path) -> str:
    """Save a figure as PNG; returns its section of the page."""
    with one_warning_of_missing_letters():
        figure.savefig(folder / f"{picture.name}.png", dpi=PNG_DPI)
    if picture.name == "tasks":  # in the page as a real table: it can be sorted and copied
        return _section(picture, _task_table(run))
    return _section(picture, f'<div class="figure">{as_svg(figure, picture.heading)}</div>')


def as_svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element that takes its neutral colours from the page."""
    text = io.StringIO()
    with one_warning_of_missing_letters():
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width = float(figure.get_figwidth()) * 96
    opening = f'<svg role="img" aria-label="{html.escape(label)}" style="max-width: {width:.0f}px" '
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", opening, 1)


def _page(run: RunFiles, sections: Sequence[str]) -> str:
    name = html.escape(run.name)
    body = [
        f"<h1>{name}</h1>",
        f'<p class="lead">{html.escape(_subtitle(run))}</p>',
        _tiles(run),
        *_notices(run),
        *sections,
    ]
    body += [_means_section(run), _decision_section(run), _settings_section(run)]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
        f"<body><main>{''.join(body)}<footer>Written by distbranch report from {html.escape(run.directory.name)}.</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _subtitle(run: RunFiles) -> str:
    model, method = run.config.get("model", {}), run.config.get("method", {})
    parts = [f"Method {run.method}"]
    if run.method == "branching":
        parts[0] += f" ({method.get('affinity', '?')} affinity, alpha {method.get('alpha', '?')})"
    width = ModelConfig.model_construct(**{key: model.get(key) for key in ("width", "width_fraction")}).width_text
    return ", ".join([*parts, f"backbone {model.get('backbone', '?')}, {width}", f"seed {run.config.get('seed', '?')}"])


def _tiles(run: RunFiles) -> str:
    split, result = shown_split(run), run.result or {}
    tiles = []
    if split:
        mean = run.scores()[split]["mean"]
        keys = ("average_precision", "balanced_accuracy", "accuracy", "top10_recall")
        tiles += [
            (f"{percent(mean[key])} %", f"{figures.MEANS[key][0].lower()}, {split}")
            for key in keys
            if mean.get(key) is not None
        ]
    if run.layers:
        tiles.append((str(len(run.layers[-1].branches)), "groups at the top layer"))
    tiles += [(large(result[key]), label) for key, label in _SIZES.items() if result.get(key) is not None]
    if result.get("seconds") is not None:
        tiles.append((duration(result["seconds"]), f"for {result.get('iterations', 0):,} iterations"))
    if result.get("world_size"):
        tiles.append((str(result["world_size"]), "workers" if result["world_size"] != 1 else "worker"))
    inner = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
        for value, label in tiles
    )
    return f'<div class="tiles">{inner}</div>'


_SIZES = {"weights": "weights", "multiply_adds": "multiply-adds per image"}


def _notices(run: RunFiles) -> list[str]:
    texts = []
    if run.result is None:
        last = max((line["iteration"] for line in run.metrics), default=0)
        total = run.config.get("train", {}).get("iterations")
        of = f" of {total:,}" if isinstance(total, int) else ""
        texts.append(
            f"This run has not ended: it logged {last:,}{of} iterations so far. The same train command continues it."
        )
    if not run.layers:
        texts.append("This run has no tree: tree.json is absent. A run that grows one writes it when training begins.")
    elif not run.decisions and not run.policy:
        texts.append("No decision was taken in this run: every layer has the branches it started with.")
    bad = run.logged("bad_samples")
    if bad:
        counts = ", ".join(f"{count} {kind}" for kind, count in bad[-1]["counts"].items() if count)
        texts.append(f"Samples left out because they were damaged: {counts or 'none'}.")
    return [f'<section class="notice">{html.escape(text)}</section>' for text in texts]


def _section(picture: Picture, body: str) -> str:
    heading, note = html.escape(picture.heading), html.escape(picture.note)
    return f'<section id="{picture.name}"><h2>{heading}</h2><p class="note">{note}</p>{body}</section>'


def _task_table(run: RunFiles) -> str:
    split = shown_split(run)
    scores, numbers = run.scores()[split], group_numbers(top_groups(run.layers))
    keys = list(figures.MEANS)[:3]
    heads = ["Task", "Group", *(figures.MEANS[key][0] for key in keys), "Positives"]
    rows = []
    for name in figures.sorted_tasks(scores):
        values, group = scores["tasks"][name], numbers.get(name)
        bars = "".join(_bar_cell(values.get(key), BLUE if group is None else group_colour(group)) for key in keys)
        count = values.get("num_positive")
        number = f'<td class="number" data-value="{count or 0}">{UNKNOWN if count is None else f"{count:,}"}</td>'
        rows.append(
            f"<tr><td>{html.escape(readable(name))}</td><td data-value='{group}'>{_chip(group)}</td>{bars}{number}</tr>"
        )
    for name, values in scores.get("exclusive", {}).items():
        bars = "".join(_bar_cell(values.get(key), MUTED) for key in keys)
        title = f"<td>{html.escape(readable(name))} (arg-max)</td><td data-value='None'></td>"
        rows.append(f'<tr>{title}{bars}<td class="number" data-value="0">{UNKNOWN}</td></tr>')
    return _table(heads, rows, sortable=True)


def _bar_cell(value: float | None, colour: str) -> str:
    if value is None:
        return '<td class="bar" data-value="-1">' + UNKNOWN + "</td>"
    share = 100 * value
    rail = f'<span class="rail"><i style="width:{share:.1f}%;background:{colour}"></i></span>'
    return f'<td class="bar" data-value="{share:.4f}">{rail}{share:.1f}</td>'


def _chip(group: int | None) -> str:
    if group is None:
        return ""
    colour = group_colour(group)
    return f'<span class="chip" style="background:{colour};color:{text_on(colour)}">{group + 1}</span>'


def _means_section(run: RunFiles) -> str:
    """The means of every split, and of every data set of a joint run over its own tasks."""
    scores: dict[str, Any] = {}
    for split, values in run.scores().items():
        parts = {f"{split}, {name}": part for name, part in values.get("datasets", {}).items()}
        scores |= {name: part["mean"] for name, part in {split: values, **parts}.items() if part.get("mean")}
    if not scores:
        return ""
    known = {key for mean in scores.values() for key, value in mean.items() if value is not None}
    labels = {key: label for key, (label, _) in figures.MEANS.items() if key in known}
    heads = ["Split", *labels.values()]
    rows = []
    for split, mean in scores.items():
        cells = "".join(f'<td class="number">{percent(mean.get(key))}</td>' for key in labels)
        rows.append(f"<tr><td>{html.escape(split)}</td>{cells}</tr>")
    return f'<section id="means"><h2>Means over tasks</h2><p class="note">In per cent.</p>{_table(heads, rows, numbers=1)}</section>'


def _decision_section(run: RunFiles) -> str:
    if not run.decisions:
        return ""
    colours = group_numbers(top_groups(run.layers))
    rows = []
    for decision in run.decisions:
        branches = sorted(decision["tasks"], key=lambda tasks: min(colours[task] for task in tasks))
        groups = "".join(f"<div>{_group_line(tasks, colours)}</div>" for tasks in branches)
        groups = groups if len(branches) > 1 else "all tasks"
        best = decision["costs"][str(decision["num_groups"])]
        numbers = (
            f"{decision['round']}",
            f"{decision['iteration']:,}",
            decision["layer_name"],
            f"{decision['num_groups']}",
        )
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in numbers)
        rows.append(f'<tr>{cells}<td class="number">{best:.4f}</td><td>{groups}</td></tr>')
    heads = ["Round", "Iteration", "Layer", "Branches", "Cost", "Tasks of every branch"]
    return f'<section id="decisions"><h2>Every decision in words</h2>{_table(heads, rows)}</section>'


def _group_line(tasks: Sequence[str], colours: Mapping[str, int]) -> str:
    chips = "".join(_chip(number) for number in sorted({colours[task] for task in tasks}))
    return f"{chips} {html.escape(', '.join(map(readable, tasks)))}"


def _settings_section(run: RunFiles) -> str:
    parts: list[tuple[str, Any]] = [("Configuration", run.config), ("Environment", run.environment)]
    body = "".join(
        f"<details><summary>{title}</summary><pre>{html.escape(yaml.safe_dump(value, sort_keys=False))}</pre></details>"
        for title, value in parts
        if value
    )
    return f'<section id="settings"><h2>Settings</h2>{body}</section>'


def _table(heads: Sequence[str], rows: Sequence[str], *, sortable: bool = False, numbers: int | None = None) -> str:
    """An HTML table; columns from index `numbers` on hold numbers."""
    sort = ' data-sort=""' if sortable else ""
    cells = ""
    for index, head in enumerate(heads):
        right = head in ("Positives", "Cost") or (numbers is not None and index >= numbers)
        cells += f"<th{sort}{' class=number' if right else ''}>{html.escape(head)}</th>"
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def percent(value: float | None) -> str:
    """A share as per cent with one decimal."""
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def large(value: float) -> str:
    """A count as people read it: 132,536 or 31.4 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds as 45 s, 10 min or 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
