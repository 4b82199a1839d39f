"""The report of a run: one HTML page that needs nothing else, and the same figures as PNG beside it.

The figures stand in the page as SVG whose ink, grid and paper are CSS variables, so that they suit a light and a dark screen.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from distbranch.config import ModelConfig
from distbranch.errors import UserError
from distbranch.report import figures
from distbranch.report.groups_figure import draw_groups
from distbranch.report.layers import Branches, group_numbers, readable, top_groups
from distbranch.report.page_style import CSS, SCRIPT
from distbranch.report.palette import BLUE, GRID, INK, MUTED, PAPER, group_colour, text_on
from distbranch.report.policy_figure import draw_policy, draw_search
from distbranch.report.run_files import RunFiles, read_run, task_order
from distbranch.report.tree_figure import draw_growth, draw_tree

PNG_DPI = 160
UNKNOWN = "\u2013"
GROUPS_NOTE = (
    "From the top layer on the left down to the image: a box is a branch with the number of its tasks, a colour is a group of the "
    "top layer. Layers with the same groups share a column."
)
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}


@dataclass(frozen=True)
class Picture:
    """One figure of the page: the name of its PNG, its heading, what it shows, how it is drawn."""

    name: str
    heading: str
    note: str
    draw: Callable[[], Figure]


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
    figure.savefig(folder / f"{picture.name}.png", dpi=PNG_DPI)
    if picture.name == "tasks":  # in the page as a real table: it can be sorted and copied
        return _section(picture, _task_table(run))
    return _section(picture, f'<div class="figure">{as_svg(figure, picture.heading)}</div>')


def pictures(run: RunFiles) -> list[Picture]:
    """The figures that the run has something for, in the order of the page."""
    groups, decisions = top_groups(run.layers), run.decisions
    training, evaluations = run.logged("train"), run.logged("evaluation")
    found = []
    if run.layers:
        found.append(
            Picture(
                "tree",
                "The network that grew" if decisions else "The network",
                _tree_note(run),
                lambda: draw_tree(run.layers),
            )
        )
    if run.policy:
        policy, note = (
            run.policy,
            "A row per task, a column per block from the image to the heads; blue: executes, empty: skips.",
        )
        if "execute_probability" in policy:
            note = "A row per task, a column per block from the image to the heads: the probability of executing it, in percent. "
            note += "A blue frame: executed by the most probable policy."
        found.append(Picture("policy", "Who executes which block", note, lambda: draw_policy(policy)))
    if run.policies:
        note = "The search from its first cycle to its last."
        found.append(Picture("search", "How the policy was found", note, lambda: draw_search(run.policies)))
    if run.layers and decisions:
        note = "One picture per decision; the layer that was decided upon is shaded."
        found.append(Picture("growth", "Round by round", note, lambda: draw_growth(run.layers, decisions)))
    if len(groups) > 1:
        found.append(Picture("groups", "Who is together at which layer", GROUPS_NOTE, lambda: draw_groups(run.layers)))
    if run.layers and decisions:
        found.append(_affinity_picture(run, groups))
        note = "Total cost of splitting the layer into d branches; the smallest total wins, the smallest d on ties."
        found.append(Picture("costs", "Why that many branches", note, lambda: figures.draw_costs(decisions)))
    if training:
        note = (
            "Dotted lines: decisions, with the layer and its number of branches." if decisions else "Every logged step."
        )
        found.append(Picture("curves", "Training", note, lambda: figures.draw_curves(training, evaluations, decisions)))
    if _shown_split(run):
        found.append(_task_picture(run, groups))
    if training:
        note, resumed = "More branches cost time; waiting for data should stay near zero.", run.logged("resumed")
        found.append(
            Picture("throughput", "Speed", note, lambda: figures.draw_throughput(training, decisions, resumed))
        )
    return found


def as_svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element that takes its neutral colours from the page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width = float(figure.get_figwidth()) * 96
    opening = f'<svg role="img" aria-label="{html.escape(label)}" style="max-width: {width:.0f}px" '
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", opening, 1)


def _tree_note(run: RunFiles) -> str:
    top = len(run.layers[-1].branches)
    note = f"{len(run.layers[-1].tasks)} tasks in {top} group{'s' if top != 1 else ''} at the top layer. "
    return (
        note
        + "Each coloured strand is one group on its way from the image to its tasks; a box is one layer of one branch."
    )


def _affinity_picture(run: RunFiles, groups: Branches) -> Picture:
    top = len(run.layers)
    decision = next((d for d in run.decisions if d["layer"] == top and d["num_groups"] > 1), run.decisions[0])
    tasks = task_order(run.decisions)
    title = f"Round {decision['round']}, iteration {decision['iteration']:,}"
    note = (
        "How often two tasks are difficult for the same photographs: blue together, white independent, brown at different "
        f"times. Ordered by group. The decision used {decision['affinity_kind']}."
    )
    draw = lambda: figures.draw_affinity(run.affinity(decision), tasks, groups, title=title)  # noqa: E731
    return Picture("affinity", "Which tasks are difficult together", note, draw)


def _task_picture(run: RunFiles, groups: Branches) -> Picture:
    split, scores = _shown_split(run), run.scores()
    note = f"Split: {split}. In per cent; best average precision first. Colours and numbers are those of the groups."
    draw = lambda: figures.draw_task_table(scores[split], groups, title=f"{run.name}: {split}")  # noqa: E731
    return Picture("tasks", "Every task", note, draw)


def _shown_split(run: RunFiles) -> str:
    """The split whose tasks are shown: test, else val, else any; empty if nothing was evaluated yet."""
    scores = {split for split, values in run.scores().items() if values.get("tasks")}
    return next((split for split in ("test", "val", *sorted(scores)) if split in scores), "")


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
    split, result = _shown_split(run), run.result or {}
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
    split = _shown_split(run)
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
