"""The report of a run: one HTML page that needs nothing else, and the same figures as PNG beside it.

The page is a template (`templates/run.html`): here is what it shows. The figures stand in it as SVG whose ink, grid and paper
are CSS variables, so that they suit a light and a dark screen.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from distbranch.config import ModelConfig
from distbranch.errors import UserError
from distbranch.report.console import METRICS, UNDEFINED, format_count, format_percent, size
from distbranch.report.figure_style import BLUE, GRID, INK, MUTED, PAPER, choose_text_colour, group_colour, rendering
from distbranch.report.figures import TASK_METRICS, sort_tasks
from distbranch.report.layers import format_name, group_numbers, top_groups
from distbranch.report.pictures import Picture, list_pictures, shown_split
from distbranch.report.run_files import RunFiles, read_run

PNG_DPI = 160
TILES = ("average_precision", "balanced_accuracy", "accuracy", "top10_recall")  # most telling first
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table of a page: its text, the value to sort it by, and how it is drawn."""

    text: str
    value: float | str | None = None
    colour: str = ""  # of a bar as long as the text says in per cent
    groups: tuple[int, ...] = ()  # shown as coloured numbers instead of the text
    link: str = ""


UNKNOWN = Cell(UNDEFINED, -1.0)  # sorted before every number, as all of ours are positive
NO_GROUP = Cell("", "None")  # sorted behind the numbers of groups


def report(run_directory: Path | str, out: Path | str | None = None) -> Path:
    """Write the page (by default RUN/report.html) and its figures (report/*.png beside it); returns the page's path.

    Raises:
        UserError: no run directory, a damaged file in it, or a place that cannot be written.
    """
    run = read_run(run_directory)
    page = Path(out) if out is not None else run.directory / "report.html"
    # all, before a file of an earlier report is replaced
    drawn = [(picture, picture.draw()) for picture in list_pictures(run)]
    files = {page.parent / "report" / f"{picture.name}.png": figure for picture, figure in drawn}
    write_page(page, files, lambda: render_run(run, drawn))
    return page


def write_page(page: Path, figures: Mapping[Path, Figure], render: Callable[[], str]) -> None:
    """Write a page and its figures as PNG; UserError where they cannot be written."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for file, figure in figures.items():
            file.parent.mkdir(exist_ok=True)
            with rendering():
                figure.savefig(file, dpi=PNG_DPI)
        page.write_text(render(), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {page} ({error.strerror}). Give another place with --out."
        ) from None


def render_run(run: RunFiles, drawn: Sequence[tuple[Picture, Figure]]) -> str:
    """The page of a run with these figures."""
    numbers = group_numbers(top_groups(run.layers))
    split = shown_split(run)
    means = _collect_means(run)
    known = {key for mean in means.values() for key in mean if mean[key] is not None}
    return render_template(
        "run.html",
        name=run.name,
        folder=run.directory.name,
        subtitle=_describe_run(run),
        tiles=_list_tiles(run),
        notices=_list_notices(run),
        pictures=[(picture, draw_svg(figure, picture.heading)) for picture, figure in drawn],
        task_heads=["Task", "Group", *(METRICS[key] for key in TASK_METRICS), "Positives"],
        task_rows=_list_task_rows(run.scores()[split], numbers) if split else [],
        means=means,
        means_labels={key: label for key, label in METRICS.items() if key in known},
        decisions=run.decisions,
        branches_of=lambda decision: _describe_branches(decision["tasks"], numbers),
        settings={"Configuration": run.config, "Environment": run.environment},
    )


def render_template(template: str, **values: Any) -> str:
    """One of the files of `templates/`; every text in it is escaped, and a value that it lacks is an error."""
    return _load_templates().get_template(template).render(**values)


@cache
def _load_templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("distbranch.report"),
        # names of runs and tasks are the users' own and may hold < and &
        autoescape=True,
        # a misspelt name is an error and not a gap on a page
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["percent"] = format_percent
    templates.filters["group_colour"] = group_colour
    templates.filters["text_on"] = choose_text_colour
    templates.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False)
    return templates


def draw_svg(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element that takes its neutral colours from the page."""
    file = io.StringIO()
    with rendering():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # the element alone: a page has its own head, and no address of a schema is looked up
    _, start, rest = file.getvalue().partition("<svg ")
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    # these colours stand nowhere else, so that text suffices
    for colour, variable in VARIABLES.items():
        rest = rest.replace(colour, variable)
    width = figure.get_figwidth() * 96  # of a CSS inch
    return Markup(f'{start}role="img" aria-label="{html.escape(label)}" style="max-width: {width:.0f}px" {rest}')


def _describe_run(run: RunFiles) -> str:
    model = run.config.get("model", {})
    method = run.config.get("method", {})
    text = f"Method {run.method}"
    if run.method == "branching":
        text += f" ({method.get('affinity', '?')} affinity, alpha {method.get('alpha', '?')})"
    # what is not known is not checked: the run may be of an older version
    widths = ModelConfig.model_construct(width=model.get("width"), width_fraction=model.get("width_fraction"))
    backbone = model.get("backbone", "?")
    return f"{text}, backbone {backbone}, {widths.width_text}, seed {run.config.get('seed', '?')}"


def _list_tiles(run: RunFiles) -> list[tuple[str, str]]:
    """(number, what it is) of what a reader wants to know first."""
    result = run.result or {}
    split = shown_split(run)
    mean = run.scores()[split]["mean"] if split else {}
    metrics = [key for key in TILES if mean.get(key) is not None]
    tiles = [(f"{format_percent(mean[key])} %", f"{METRICS[key].lower()}, {split}") for key in metrics]
    if run.layers:
        tiles.append((str(len(run.layers[-1].branches)), "groups at the top layer"))
    for key, label in {"weights": "weights", "multiply_adds": "multiply-adds per image"}.items():
        if result.get(key) is not None:
            tiles.append((size(result[key]), label))
    if result.get("seconds") is not None:
        tiles.append((format_duration(result["seconds"]), f"for {result.get('iterations', 0):,} iterations"))
    if result.get("world_size"):
        tiles.append((str(result["world_size"]), "workers" if result["world_size"] != 1 else "worker"))
    return tiles


def _list_notices(run: RunFiles) -> list[str]:
    # a page tells what it lacks and why, so that no one looks for it
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
    return texts


def _list_task_rows(scores: Mapping[str, Any], numbers: Mapping[str, int]) -> list[list[Cell]]:
    """A row per task, best first, then one per exclusive set (the arg-max over its tasks)."""
    rows = []
    for name in sort_tasks(scores):
        group = NO_GROUP
        colour = BLUE
        if name in numbers:
            group = Cell("", numbers[name], groups=(numbers[name],))
            colour = group_colour(numbers[name])
        values = scores["tasks"][name]
        bars = [_make_bar(values.get(key), colour) for key in TASK_METRICS]
        count = values.get("num_positive")
        rows.append([Cell(format_name(name)), group, *bars, Cell(format_count(count), count or 0)])
    for name, values in scores.get("exclusive", {}).items():
        bars = [_make_bar(values.get(key), MUTED) for key in TASK_METRICS]
        rows.append([Cell(f"{format_name(name)} (arg-max)"), NO_GROUP, *bars, Cell(UNDEFINED, 0)])
    return rows


def _make_bar(share: float | None, colour: str) -> Cell:
    if share is None:
        return UNKNOWN
    return Cell(format_percent(share), f"{100 * share:.4f}", colour=colour)


def _collect_means(run: RunFiles) -> dict[str, Mapping[str, float | None]]:
    """The means of every split, and of every data set of a joint run over its own tasks."""
    means = {}
    for split, scores in run.scores().items():
        means[split] = scores.get("mean")
        for name, part in scores.get("datasets", {}).items():
            means[f"{split}, {name}"] = part.get("mean")
    return {name: mean for name, mean in means.items() if mean}


def _describe_branches(branches: Sequence[Sequence[str]], numbers: Mapping[str, int]) -> list[tuple[list[int], str]]:
    """The groups and the tasks of every branch, in the order of the groups; empty if all tasks stay together."""
    described = []
    for tasks in branches:
        groups = sorted({numbers[task] for task in tasks})
        described.append((groups, ", ".join(map(format_name, tasks))))
    # the order of their colours in every figure
    return sorted(described) if len(described) > 1 else []


def format_duration(seconds: float) -> str:
    """Seconds as 45 s, 10 min or 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
