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
from distbranch.config.paths import hide_secrets
from distbranch.engine.provenance import shorten_commit
from distbranch.errors import UserError
from distbranch.kinds.kind import PER_CLASS
from distbranch.metrics import list_metrics
from distbranch.report.answers import (
    list_answer_pictures,
    list_answer_tables,
    list_sheets,
    read_answers,
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
from distbranch.report.figures import list_task_metrics, list_tasks_with, place_marks
from distbranch.report.layers import format_name, group_numbers, list_top_groups, name_decision
from distbranch.report.pictures import describe_picture, list_pictures
from distbranch.report.run_files import (
    RunFiles,
    choose_shown_split,
    read_run,
    read_thin,
)
from distbranch.report.starts import list_repeat_commands, select_last_start, tabulate_starts

LARGEST = 1.5  # of its size to which a wide page stretches a figure; its letters are larger than those of the text then
SMALLEST = 0.6  # of its size to which a narrow page shrinks a figure; smaller letters are not read, so it is moved instead
COMPARABLE = (
    "average_precision",
    "standardised_error",
)  # an absolute error is in the unit of its task
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
}
CHIP = Markup('<span class="chip" style="background:{};color:{}">{}</span>')
MARK = Markup('<i class="{}" style="left:{:.1f}%;color:{}"></i>')
RAIL = Markup('<span class="rail"><span>{}</span></span>{}')


def report_run(
    run_directory: Path | str, out: Path | str | None = None, against: Path | str | None = None
) -> Path:
    """Write the page (by default RUN/report.html) and its figures (report/*.png beside it); returns the page's path.

    Args:
        run_directory: the run.
        out: the file of the page.
        against: the directory of a thin run, over which every task has its gain; the run's scout if it has one.

    Raises:
        UserError: no run directory, a damaged file in it, or a place that cannot be written.
    """
    run = read_run(run_directory)
    thin = read_thin(run, against)
    page = Path(out) if out is not None else run.directory / "report.html"
    # all, before a file of an earlier report is replaced
    drawn = {name: draw() for name, draw in list_pictures(run, thin).items()}
    answers = read_answers(run.directory)
    if answers is not None:
        drawn |= {name: draw() for name, (_, _, draw) in list_answer_pictures(answers).items()}
    files = {page.parent / "report" / f"{name}.png": figure for name, figure in drawn.items()}
    write_page(page, files, lambda: render_run(run, drawn, thin, answers))
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
    run: RunFiles,
    drawn: Mapping[str, Figure],
    thin: RunFiles | None = None,
    answers: Mapping[str, Any] | None = None,
) -> str:
    """The page of a run with these figures, compared with a thin one."""
    of_answers = list_answer_pictures(answers) if answers is not None else {}
    numbers = group_numbers(list_top_groups(run.layers))
    split = choose_shown_split(run)
    scores = run.get_scores().get(split, {"tasks": {}, "mean": {}})
    thin_rows = thin.get_rows(split) if thin else {}
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
        tasks=_tabulate_tasks(scores, numbers, thin_rows),
        gains=_describe_gains(scores, thin_rows, thin.name) if thin else "",
        means=tabulate_scores(list(means), list(means.values()), head="split"),
        means_note=f"{describe_units(select_metrics(list(means.values())))}.".capitalize(),
        classes=_tabulate_classes(scores),
        decisions=_tabulate_decisions(run, numbers),
        answers=answers,
        answer_tables=list_answer_tables(answers["tasks"]) if answers is not None else [],
        answer_pictures=[
            (heading, note, draw_svg(drawn[name], heading))
            for name, (heading, note, _) in of_answers.items()
        ],
        answer_sheets=list_sheets(run.directory, answers) if answers is not None else [],
        commit=shorten_commit(run.environment.get("commit")),
        starts=tabulate_starts(run.environment),
        repeat_commands=list_repeat_commands(run),
        settings={"Configuration": run.config, "Environment": select_last_start(run.environment)},
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
    templates.filters["yaml"] = _show_yaml
    return templates


def _show_yaml(value: Any) -> str:
    """As a configuration is written down, but without the secrets of URLs."""
    return hide_secrets(yaml.safe_dump(value, sort_keys=False))


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
        f'{start}role="img" aria-label="{html.escape(label)}" style="max-width: calc({LARGEST} * {width}); '
        f'min-width: calc({SMALLEST} * {width})" {rest}'
    )


# ---- the tables


def _tabulate_tasks(
    scores: Mapping[str, Any], numbers: Mapping[str, int], thin: Mapping[str, Any]
) -> list[tuple[pandas.DataFrame, int]]:
    """A row per task, best first, then one per exclusive set (the arg-max over its tasks); numbers in a table of their own.

    With each table how many of its columns are to the left. `thin` has the rows of another run.
    """
    exclusive = {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()}
    tables = []
    for keys in list_task_metrics(scores):
        rows = {name: scores["tasks"][name] for name in list_tasks_with(scores, keys)}
        rows |= {name: row for name, row in exclusive.items() if set(keys) & set(row)}
        cells = _tabulate_metrics(rows, keys, numbers, scores.get("units", {}), thin)
        tables.append((cells, 2 + len(keys)))
    return tables


def _tabulate_metrics(
    rows: Mapping[str, Mapping[str, Any]],
    keys: Sequence[str],
    numbers: Mapping[str, int],
    units: Mapping[str, str],
    thin: Mapping[str, Mapping[str, Any]],
) -> pandas.DataFrame:
    """The metrics of the rows in the order of `keys`, each with a mark in the colour of its group and a hollow one of the thin run."""
    colours = [_choose_colour(name, numbers) for name in rows]
    columns: dict[str, list[Any]] = {"task": list(map(format_name, rows))}
    columns["group"] = [draw_chip(numbers[name]) if name in numbers else "" for name in rows]
    for key in keys:
        values = [row.get(key) for row in rows.values()]
        before = [thin.get(name, {}).get(key) for name in rows]
        texts = [
            format_value(key, value, unit=units.get(name, ""))
            for name, value in zip(rows, values, strict=True)
        ]
        places = place_marks(key, values, before)
        thin_places = place_marks(key, before, values)
        cells = zip(texts, places, colours, thin_places, strict=True)
        columns[make_head(key)] = [_draw_rail(*cell) for cell in cells]
    if key := _choose_gain(keys, thin):
        gains = _measure_gains(key, rows, thin)
        columns["gain"] = [_format_gain(key, gains.get(name)) for name in rows]
    for count, head in (("num_positive", "positives"), ("num_labelled", "labelled")):
        found = [row.get(count) for row in rows.values()]
        if any(number is not None for number in found):
            columns[head] = [format_amount(number) for number in found]
    # as objects: a column of texts would make plain ones of Markup
    return pandas.DataFrame(columns, dtype=object)


def _choose_gain(keys: Sequence[str], thin: Mapping[str, Mapping[str, Any]]) -> str:
    """The metric whose gain over the thin run is shown: one whose mean over tasks means something, else the first that both have."""
    known = [key for key in keys if any(key in row for row in thin.values())]
    return min(known, key=lambda key: key not in COMPARABLE, default="")


def _measure_gains(
    key: str, rows: Mapping[str, Mapping[str, Any]], thin: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """By how much each task is better than in the thin run, where both are known."""
    sign = -1 if list_metrics()[key].lower_is_better else 1
    gains = {}
    for name, row in rows.items():
        now, before = row.get(key), thin.get(name, {}).get(key)
        if now is not None and before is not None:
            gains[name] = sign * (now - before)
    return gains


def _format_gain(key: str, gain: float | None) -> str:
    if gain is None:
        return UNDEFINED
    if list_metrics()[key].unit == "%":
        return f"{round(100 * gain, 1) + 0.0:+.1f}"  # a gain of -0.0 is none
    return f"{gain + 0.0:+.3g}"


def _describe_gains(scores: Mapping[str, Any], thin: Mapping[str, Any], name: str) -> str:
    """One sentence per table of tasks: what the gain is of, on how many tasks there is one, and its mean."""
    said = []
    for keys in list_task_metrics(scores):
        if key := _choose_gain(keys, thin):
            gains = list(_measure_gains(key, scores["tasks"], thin).values())
            better = sum(gain > 0 for gain in gains)
            said.append(
                f"Gain: {list_metrics()[key].in_words} less that of {name} (hollow marks); better on {better} of {len(gains)} tasks, "
                f"{_format_gain(key, sum(gains) / max(1, len(gains)))} in the mean."
            )
    return " ".join(said)


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
            values = [ious[name] for name in names]
            places = place_marks("miou", values)
            marks = [
                _draw_rail(format_percent(value), place, BLUE)
                for value, place in zip(values, places, strict=True)
            ]
            cells = {"class": list(map(format_name, names)), "IoU %": marks}
            tables[task] = pandas.DataFrame(cells, dtype=object)
    return tables


def _choose_colour(name: str, numbers: Mapping[str, int]) -> str:
    if name in numbers:
        return group_colour(numbers[name])
    return MUTED if name.endswith("(arg-max)") else BLUE


def _draw_rail(text: str, place: float | None, colour: str, thin: float | None = None) -> str:
    """A value with its mark on a line, and a hollow mark of the thin run; what is unknown, or in a unit of its own, has none."""
    if text == UNDEFINED or place is None:
        return text
    marks = MARK.format("", 100 * place, colour)
    if thin is not None:
        marks = MARK.format("thin", 100 * thin, colour) + marks
    return RAIL.format(marks, text)


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
    shown_before: Markup | None = None
    for decision in run.decisions:
        branches = []
        for tasks in decision["tasks"]:
            groups = sorted({numbers[task] for task in tasks})
            branches.append((groups, ", ".join(map(format_name, tasks))))
        shown = Markup("all tasks")
        if len(branches) > 1:
            shown = Markup(" ").join(_draw_branch(*branch) for branch in sorted(branches))
        told = Markup("as above") if shown == shown_before else shown
        shown_before = shown
        rows.append(
            {
                "round": decision["round"],
                "iteration": f"{decision['iteration']:,}",
                "layer": name_decision(decision)[1],
                "branches": decision["num_groups"],
                "price of one more": f"{_find_price(decision):.4f}",
                "cost": f"{decision['costs'][str(decision['num_groups'])]:.4f}",
                "tasks of every branch": told,
            }
        )
    return pandas.DataFrame(rows, dtype=object)


def _find_price(decision: Mapping[str, Any]) -> float:
    """Of one more branch; runs of before wrote what it comes from alone."""
    by_pools = decision["unit_cost"] * 2 ** decision["pools_above"]
    return float(decision.get("price", by_pools))


def _draw_branch(groups: Sequence[int], tasks: str) -> Markup:
    chips = Markup("").join(map(draw_chip, groups))
    return Markup('<span class="branch">{} {}</span>').format(chips, tasks)


def format_duration(seconds: float) -> str:
    """Seconds as 45 s, 10 min or 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
