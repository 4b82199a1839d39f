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

from distbranch.config.network import BASELINES, WIDTHS, ModelConfig
from distbranch.errors import UserError
from distbranch.kinds.kind import PER_CLASS
from distbranch.metrics import list_metrics
from distbranch.report.answers import (
    list_answer_pictures,
    list_sheets,
    read_answers,
    tabulate_answers,
)
from distbranch.report.console import (
    UNDEFINED,
    describe_units,
    format_amount,
    format_percent,
    format_size,
    format_value,
    make_head,
    select_metrics,
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
from distbranch.report.figures import list_task_metrics, list_tasks_with, measure_bars
from distbranch.report.layers import format_name, group_numbers, list_top_groups, name_decision
from distbranch.report.pictures import choose_shown_split, describe_picture, list_pictures
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
    answers = read_answers(run.directory)
    if answers is not None:
        drawn |= {name: draw() for name, (_, _, draw) in list_answer_pictures(answers).items()}
    files = {page.parent / "report" / f"{name}.png": figure for name, figure in drawn.items()}
    write_page(page, files, lambda: render_run(run, drawn, answers))
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


def render_run(
    run: RunFiles, drawn: Mapping[str, Figure], answers: Mapping[str, Any] | None = None
) -> str:
    """The page of a run with these figures."""
    of_answers = list_answer_pictures(answers) if answers is not None else {}
    numbers = group_numbers(list_top_groups(run.layers))
    split = choose_shown_split(run)
    scores = run.get_scores().get(split, {"tasks": {}, "mean": {}})
    means = _list_means(run)
    texts = {name: describe_picture(name) for name in drawn if name not in of_answers}
    model = run.config.get("model", {})
    # what is not known is not checked: the run may be of an older version
    widths = ModelConfig.model_construct(**{key: model.get(key) for key in WIDTHS})
    return render_template(
        "run.html",
        run=run,
        baselines=BASELINES,
        name=run.name,
        folder=run.directory.name,
        split=split,
        mean=scores["mean"],
        metrics=list_metrics(),
        width_text=widths.width_text,
        last_iteration=max((line["iteration"] for line in run.metrics), default=0),
        pictures={name: draw_svg(drawn[name], text) for name, (text, _) in texts.items()},
        texts=texts,
        tasks=_tabulate_tasks(scores, numbers),
        means=tabulate_scores(list(means), list(means.values()), head="split"),
        means_note=f"{describe_units(select_metrics(list(means.values())))}.".capitalize(),
        classes=_tabulate_classes(scores),
        decisions=_tabulate_decisions(run, numbers),
        answers=answers,
        answer_table=tabulate_answers(answers["tasks"]) if answers is not None else None,
        answer_pictures=[
            (heading, note, draw_svg(drawn[name], heading))
            for name, (heading, note, _) in of_answers.items()
        ],
        answer_sheets=list_sheets(run.directory, answers) if answers is not None else [],
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
        "size": format_size,
        "duration": format_duration,
    }
    templates.globals["format_value"] = format_value
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


def _tabulate_tasks(
    scores: Mapping[str, Any], numbers: Mapping[str, int]
) -> list[tuple[pandas.DataFrame, int]]:
    """A row per task, best first, then one per exclusive set (the arg-max over its tasks); numbers in a table of their own.

    With each table how many of its columns are to the left.
    """
    exclusive = {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()}
    tables = []
    for keys in list_task_metrics(scores):
        rows = {name: scores["tasks"][name] for name in list_tasks_with(scores, keys)}
        rows |= {name: row for name, row in exclusive.items() if set(keys) & set(row)}
        cells = _tabulate_metrics(rows, keys, numbers, scores.get("units", {}))
        tables.append((cells, 2 + len(keys)))
    return tables


def _tabulate_metrics(
    rows: Mapping[str, Mapping[str, Any]],
    keys: Sequence[str],
    numbers: Mapping[str, int],
    units: Mapping[str, str],
) -> pandas.DataFrame:
    """The metrics of the rows in the order of `keys`, each with a bar in the colour of its group."""
    colours = [_choose_colour(name, numbers) for name in rows]
    columns: dict[str, list[Any]] = {"task": list(map(format_name, rows))}
    columns["group"] = [draw_chip(numbers[name]) if name in numbers else "" for name in rows]
    for key in keys:
        values = [row.get(key) for row in rows.values()]
        texts = [
            format_value(key, value, unit=units.get(name, ""))
            for name, value in zip(rows, values, strict=True)
        ]
        bars = zip(texts, measure_bars(key, values), colours, strict=True)
        columns[make_head(key)] = [_draw_rail(*bar) for bar in bars]
    for count, head in (("num_positive", "positives"), ("num_labelled", "labelled")):
        found = [row.get(count) for row in rows.values()]
        if any(number is not None for number in found):
            columns[head] = [format_amount(number) for number in found]
    # as objects: a column of texts would make plain ones of Markup
    return pandas.DataFrame(columns, dtype=object)


def _tabulate_classes(scores: Mapping[str, Any]) -> dict[str, pandas.DataFrame]:
    """The intersection over union of every class of a segmentation, best first, by task; those that the truth lacks last."""
    tables = {}
    for task, row in scores["tasks"].items():
        ious = {
            name.removeprefix(PER_CLASS): value
            for name, value in row.items()
            if name.startswith(PER_CLASS)
        }
        if ious:
            order = sorted(ious, key=lambda name: -1 if ious[name] is None else ious[name])
            names = order[::-1]
            bars = [_draw_rail(format_percent(ious[name]), ious[name], BLUE) for name in names]
            cells = {"class": list(map(format_name, names)), "IoU %": bars}
            tables[task] = pandas.DataFrame(cells, dtype=object)
    return tables


def _choose_colour(name: str, numbers: Mapping[str, int]) -> str:
    if name in numbers:
        return group_colour(numbers[name])
    return MUTED if name.endswith("(arg-max)") else BLUE


def _draw_rail(text: str, length: float | None, colour: str) -> str:
    """A value with its bar; what is unknown, or in a unit of its own, has none."""
    if text == UNDEFINED or length is None:
        return text
    return BAR.format(f"{100 * length:.1f}", colour, text)


def draw_chip(number: int) -> Markup:
    """The number of a group in its colour."""
    colour = group_colour(number)
    return CHIP.format(colour, choose_text_colour(colour), number + 1)


def _list_means(run: RunFiles) -> dict[str, Mapping[str, Any]]:
    """The means of every split, and of every data set of a joint run over its own tasks."""
    parts = {}
    for split, scores in run.get_scores().items():
        parts[split] = scores.get("mean")
        for name, part in scores.get("datasets", {}).items():
            parts[f"{split}, {name}"] = part.get("mean")
    return {name: mean for name, mean in parts.items() if mean}


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
                "layer": name_decision(decision)[1],
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
