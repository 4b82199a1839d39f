"""The report of a run: one HTML page that needs nothing else, and the same figures as PNG beside it.

The page is a template (`templates/run.html`): here is what it shows. The figures stand in it as SVG whose ink, grid and paper
are CSS variables, so that they suit a light and a dark screen. A table is a DataFrame of texts and of `Markup`.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from distbranch.config import ModelConfig
from distbranch.errors import UserError
from distbranch.report.console import (
    HEADS,
    METRICS,
    UNDEFINED,
    format_amount,
    format_percent,
    format_size,
    tabulate_scores,
)
from distbranch.report.figure_style import (
    BLUE,
    GRID,
    INK,
    MUTED,
    PAPER,
    choose_text_colour,
    group_colour,
    render_in_style,
)
from distbranch.report.figures import TASK_METRICS, sort_tasks
from distbranch.report.layers import format_name, group_numbers, list_top_groups
from distbranch.report.pictures import TEXTS, choose_shown_split, list_pictures
from distbranch.report.run_files import RunFiles, read_run

VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
}
CHIP = Markup('<span class="chip" style="background:{};color:{}">{}</span>')
BAR = Markup('<span class="rail"><i style="width:{}%;background:{}"></i></span>{}')


def report_run(run_directory: Path | str, out: Path | str | None = None) -> Path:
    """Write the page (by default RUN/report.html) and its figures (report/*.png beside it); returns the page's path.

    Raises:
        UserError: no run directory, a damaged file in it, or a place that cannot be written.
    """
    run = read_run(run_directory)
    page = Path(out) if out is not None else run.directory / "report.html"
    # all, before a file of an earlier report is replaced
    drawn = {name: draw() for name, draw in list_pictures(run).items()}
    files = {page.parent / "report" / f"{name}.png": figure for name, figure in drawn.items()}
    write_page(page, files, lambda: render_run(run, drawn))
    return page


def write_page(page: Path, figures: Mapping[Path, Figure], render: Callable[[], str]) -> None:
    """Write a page and its figures as PNG; UserError where they cannot be written."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for file, figure in figures.items():
            file.parent.mkdir(exist_ok=True)
            with render_in_style():
                figure.savefig(file)
        page.write_text(render(), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {page} ({error.strerror}). Give another place with --out."
        ) from None


def render_run(run: RunFiles, drawn: Mapping[str, Figure]) -> str:
    """The page of a run with these figures."""
    numbers = group_numbers(list_top_groups(run.layers))
    split = choose_shown_split(run)
    scores = run.get_scores().get(split, {"tasks": {}, "mean": {}})
    model = run.config.get("model", {})
    # what is not known is not checked: the run may be of an older version
    widths = ModelConfig.model_construct(
        width=model.get("width"), width_fraction=model.get("width_fraction")
    )
    return render_template(
        "run.html",
        run=run,
        name=run.name,
        folder=run.directory.name,
        split=split,
        mean=scores["mean"],
        metrics=METRICS,
        width_text=widths.width_text,
        last_iteration=max((line["iteration"] for line in run.metrics), default=0),
        pictures={name: draw_svg(figure, TEXTS[name][0]) for name, figure in drawn.items()},
        texts=TEXTS,
        tasks=_tabulate_tasks(scores, numbers),
        means=_tabulate_means(run),
        decisions=_tabulate_decisions(run, numbers),
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
    templates.filters |= {
        "percent": format_percent,
        "size": format_size,
        "duration": format_duration,
    }
    templates.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False)
    return templates


def draw_svg(figure: Figure, label: str) -> Markup:
    """The figure as an SVG element that takes its neutral colours from the page."""
    file = io.StringIO()
    with render_in_style():
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None},
        )
    # the element alone: a page has its own head, and no address of a schema is looked up
    _, start, rest = file.getvalue().partition("<svg ")
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    # these colours stand nowhere else, so that text suffices
    for colour, variable in VARIABLES.items():
        rest = rest.replace(colour, variable)
    width = re.findall(r'width="([\d.]+pt)"', rest)[0]
    return Markup(
        f'{start}role="img" aria-label="{html.escape(label)}" style="max-width: {width}" {rest}'
    )


# ---- the tables


def _tabulate_tasks(scores: Mapping[str, Any], numbers: Mapping[str, int]) -> pandas.DataFrame:
    """A row per task, best first, then one per exclusive set (the arg-max over its tasks)."""
    rows = []
    for name in sort_tasks(scores):
        values = scores["tasks"][name]
        colour = BLUE
        group = ""
        if name in numbers:
            colour = group_colour(numbers[name])
            group = draw_chip(numbers[name])
        rows.append(_make_task_row(format_name(name), group, values, colour))
    for name, values in scores.get("exclusive", {}).items():
        rows.append(_make_task_row(f"{format_name(name)} (arg-max)", "", values, MUTED))
    # as objects: a column of texts would make plain ones of Markup
    return pandas.DataFrame(rows, dtype=object)


def _make_task_row(name: str, group: str, values: Mapping[str, Any], colour: str) -> dict[str, str]:
    row = {"task": name, "group": group}
    for key in TASK_METRICS:
        text = format_percent(values.get(key))
        row[HEADS[key]] = text if text == UNDEFINED else BAR.format(text, colour, text)
    row["positives"] = format_amount(values.get("num_positive"))
    return row


def draw_chip(number: int) -> Markup:
    """The number of a group in its colour."""
    colour = group_colour(number)
    return CHIP.format(colour, choose_text_colour(colour), number + 1)


def _tabulate_means(run: RunFiles) -> pandas.DataFrame:
    """The means of every split, and of every data set of a joint run over its own tasks."""
    parts = {}
    for split, scores in run.get_scores().items():
        parts[split] = scores.get("mean")
        for name, part in scores.get("datasets", {}).items():
            parts[f"{split}, {name}"] = part.get("mean")
    known = {name: mean for name, mean in parts.items() if mean}
    return tabulate_scores(list(known), list(known.values()), head="split")


def _tabulate_decisions(run: RunFiles, numbers: Mapping[str, int]) -> pandas.DataFrame:
    """Every decision, with the groups and the tasks of every branch in the order of the groups."""
    rows = []
    for decision in run.decisions:
        branches = []
        for tasks in decision["tasks"]:
            groups = sorted({numbers[task] for task in tasks})
            branches.append((groups, ", ".join(map(format_name, tasks))))
        shown = Markup("all tasks")
        if len(branches) > 1:
            shown = Markup("").join(_draw_branch(*branch) for branch in sorted(branches))
        rows.append(
            {
                "round": decision["round"],
                "iteration": f"{decision['iteration']:,}",
                "layer": decision["layer_name"],
                "branches": decision["num_groups"],
                "price of one more": f"{_find_price(decision):.4f}",
                "cost": f"{decision['costs'][str(decision['num_groups'])]:.4f}",
                "tasks of every branch": shown,
            }
        )
    return pandas.DataFrame(rows, dtype=object)


def _find_price(decision: Mapping[str, Any]) -> float:
    """Of one more branch; runs of before wrote what it comes from alone."""
    by_pools = decision["unit_cost"] * 2 ** decision["pools_above"]
    return float(decision.get("price", by_pools))


def _draw_branch(groups: Sequence[int], tasks: str) -> Markup:
    chips = Markup("").join(map(draw_chip, groups))
    return Markup("<div>{} {}</div>").format(chips, tasks)


def format_duration(seconds: float) -> str:
    """Seconds as 45 s, 10 min or 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
