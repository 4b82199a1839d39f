"""The end of a run on the terminal: networks against each other in one table, as rich, Markdown or CSV rows.

A row is a network, given as the results (`result.json`) of its seeds; several seeds show mean ± standard deviation. What no
network of a table has (top-10 recall of few tasks, top-3 without exclusive classes, a latency that was not measured) has no column.
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from distbranch.data.shards import DatasetInfo

Result = Mapping[str, Any]
Row = Mapping[str, Any]
# The only list of the metrics, in the order of every table and legend.
METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "average_precision": "Average precision",
    "top10_recall": "Top-10 recall",
    "top3": "Top-3 accuracy",
    "top5": "Top-5 accuracy",
}
# Narrower where six of them stand side by side in 80 columns.
METRIC_HEADS = {key: re.sub(r"(top-\d) accuracy", r"\1", label.lower()) + " %" for key, label in METRICS.items()}
SIZES = {
    "num_groups_top": "groups",
    "parameters": "parameters",
    "weights": "weights",
    "multiply_adds": "multiply adds",
    "latency_ms": "latency ms",
}
HEADS = {"network": "network", "seeds": "seeds", **METRIC_HEADS, **SIZES}
UNDEFINED = "\u2013"
# what only some networks have: a column of dashes would say nothing
NOT_EVERYWHERE = ("top10_recall", "top3", "top5", "latency_ms")
NOTHING = (None, None)  # a mean and a deviation that nobody knows
# from a million on nobody counts the digits
UNITS = ((1e9, " G"), (1e6, " M"))
MOST_SETTINGS = 30  # in the table at the end of a sweep: as many as a screen shows; the page has all


class Name:
    """A name in a cell, folded behind its hyphens, underscores, dots and slashes before it is broken letter by letter."""

    def __init__(self, text: str) -> None:
        self.text = text
        # each with the marks behind it, so that a line ends with them
        self.pieces = re.findall(r"[^-_./ ]*[-_./ ]+|[^-_./ ]+", text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        # the narrowest column that breaks no piece
        longest = max(map(cell_len, self.pieces), default=0)
        return Measurement(longest, cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for piece in self.pieces:
            if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += piece
        yield Text("\n".join(line.rstrip() for line in lines), overflow="fold")


def result_table(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> Table:
    """The networks as a rich table; the best mean of every metric is bold."""
    rows = result_rows(results, split=split)
    title = f"Means over tasks, {split} split, in %"
    # 84 characters: on a narrow terminal only the names of the networks are folded
    keys = _list_columns(rows)[1:]
    left_out = {"seeds"}
    if any(row["seeds"] > 1 for row in rows):
        title += " (± standard deviation over seeds)"
        left_out = {"num_groups_top"}
    if "latency_ms" in keys:
        left_out.add("parameters")
    if "top3" in keys:
        left_out |= {"num_groups_top", "parameters"}
    keys = [key for key in keys if key not in left_out]

    table = _make_table("network", [HEADS[key] for key in keys], title)
    best = {key: max((row[key] for row in rows if row[key] is not None), default=None) for key in METRICS}
    for row in rows:
        cells = []
        for key in keys:
            cell = _format_short(row, key)
            # one network alone is no best, and an unknown value neither
            if len(rows) > 1 and row[key] is not None and row[key] == best.get(key):
                cell = f"[bold]{cell}[/bold]"
            cells.append(cell)
        table.add_row(Name(row["network"]), *cells)
    return table


def result_markdown(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> str:
    """The same table in Markdown, with all that is known."""
    rows = result_rows(results, split=split)
    keys = _list_columns(rows)
    cells = [[_format_cell(row, key) for key in keys] for row in rows]
    return markdown_table([HEADS[key] for key in keys], cells)


def result_rows(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> list[dict[str, Any]]:
    """One flat row per network for a CSV file: means over seeds (metrics 0..1) and `<name>_sd` (None with one seed)."""
    rows = []
    for network, runs in results.items():
        row: dict[str, Any] = {"network": network, "seeds": len(runs)}
        for key in METRICS:
            row[key], row[f"{key}_sd"] = spread([_read_mean(run, split, key) for run in runs])
        for key in SIZES:
            row[key], row[f"{key}_sd"] = spread([run.get(key) for run in runs])
        rows.append(row)
    return rows


def score_table(scores: Mapping[str, Any], title: str = "") -> Table:
    """One evaluation: a row per task, one per exclusive set (the arg-max over its tasks), and the means; in %."""
    metrics = _select_metrics(scores["mean"])
    table = _make_table("task", [*metrics.values(), "labelled"], title)
    # an exclusive set is scored as one choice and not as its tasks
    exclusive = scores.get("exclusive", {})
    choices = {f"{name} (arg-max)": exclusive[name] for name in exclusive}
    for rows in (scores["tasks"], choices, {"mean": scores["mean"]}):
        for name, row in rows.items():
            # a metric that a row cannot have is empty; a dash is one that its labels do not define
            cells = [format_percent(row[key]) if key in row else "" for key in metrics]
            table.add_row(Name(name), *cells, str(row.get("num_labelled", "")))
        table.add_section()
    return table


def dataset_table(scores: Mapping[str, Any], *, split: str) -> Table:
    """The means of every data set of a joint run, each over its own tasks, and over the tasks of all."""
    metrics = _select_metrics(scores["mean"])
    title = f"Means over the tasks of each data set, {split} split, in %"
    table = _make_table("data set", ["samples", "tasks", *metrics.values()], title)
    for name, part in {**scores["datasets"], "all": scores}.items():
        num_tasks = sum(bool(row["num_labelled"]) for row in part["tasks"].values())
        cells = [format_percent(part["mean"].get(key)) for key in metrics]
        table.add_row(Name(name), format_count(part["num_samples"]), str(num_tasks), *cells)
    return table


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the known values; no deviation of one."""
    known = [float(value) for value in values if value is not None]
    if len(known) < 2:
        return (known[0] if known else None), None
    # both are exact, so the order of the seeds does not matter
    return statistics.fmean(known), statistics.stdev(known)


def amount(mean: float | None, deviation: float | None, *, scale: float = 1, decimals: int = 0) -> str:
    """`74.5 ± 0.7`: both in the same unit with the same decimals; a dash for what is unknown."""
    if mean is None:
        return UNDEFINED
    text = f"{scale * mean:,.{decimals}f}"
    if deviation:
        text += f" ± {scale * deviation:,.{decimals}f}"
    return text


def front_table(directory: Path) -> Table:
    """The settings on the Pareto front of any cost, chosen on val, cheapest first."""
    # these load matplotlib, which a run and its progress do not need
    from distbranch.report.sweep_files import COSTS, read_sweep
    from distbranch.report.sweep_page import readable_value

    sweep = read_sweep(directory)
    points = sweep.points
    fronts = sweep.fronts()
    table = _make_table("", [], f"Pareto fronts (*), chosen on val: mean {METRICS[sweep.metric].lower()} in %")
    table.columns.clear()
    for key in sweep.keys:
        table.add_column(Name(key.rpartition(".")[2]), min_width=5)
    for head in ("seeds", "val", "test", "para-\nmeters", "multiply-\nadds", "latency\nms"):
        table.add_column(head, justify="right", no_wrap=True)

    def read_cost(number: int) -> float:
        cost = points[number].spread("multiply_adds")
        return cost.mean if cost else 0.0

    shown = sorted(set().union(*fronts.values()))
    for number in sorted(shown, key=read_cost)[:MOST_SETTINGS]:
        point = points[number]
        names = [Name(readable_value(value)) for value in point.setting.values()]
        cells = [str(len(point.finished))]
        values = [point.spread(f"{split}_{sweep.metric}") or NOTHING for split in ("val", "test")]
        cells += [format_percent(*value) for value in values]
        for cost in COSTS:
            # no column of dashes for what nobody measured
            spent = point.spread(cost)
            text = format_cost(cost, spent.mean) if spent else ""
            cells.append("*" * (number in fronts[cost]) + text)
        table.add_row(*names, *[cell.replace(" ", "") for cell in cells])
    return table


def dataset_lines(info: DatasetInfo) -> list[str]:
    """What is in a packed data set: samples per split, tasks by kind, the size of images, and what was left out."""
    exclusive = Counter(task.exclusive for task in info.tasks if task.exclusive)
    sets = [f"{count} of the exclusive set {name}" for name, count in exclusive.items()]
    classes = [f"{task.name}: {len(task.classes)} classes" for task in info.tasks if task.classes]
    kinds = []
    for kind, count, details in (
        ("binary", len(info.tasks) - len(classes), sets),
        ("categorical", len(classes), classes),
    ):
        text = f"{count} {kind}"
        if details:
            text += f" ({', '.join(details)})"
        if count:
            kinds.append(text)
    height, width = info.image_size
    lines = [
        "samples: " + ", ".join(f"{split.num_samples:,} {name}" for name, split in info.splits.items()),
        "tasks: " + ", ".join(kinds),
        f"images: {height}x{width} pixels (height x width of the first)",
    ]
    if info.skipped:
        lines.append("left out: " + ", ".join(f"{count:,} {what}" for what, count in info.skipped.items()))
    return lines


def size(mean: float | None, deviation: float | None = None) -> str:
    """A count as people read it: 132,536, 31.40 M or 15.50 G; its deviation in the same unit."""
    for limit, unit in UNITS:
        if mean is not None and mean >= limit:
            return amount(mean, deviation, scale=1 / limit, decimals=2) + unit
    return amount(mean, deviation)


def format_count(count: float | None) -> str:
    """A whole number with its thousands marked; a dash where it is unknown."""
    return amount(count, None)


def format_percent(share: float | None, deviation: float | None = None) -> str:
    """A share (0..1) as per cent with one decimal."""
    return amount(share, deviation, scale=100, decimals=1)


def format_cost(key: str, mean: float | None, deviation: float | None = None) -> str:
    """One of `SIZES`: milliseconds with two decimals, all others are counts."""
    if key == "latency_ms":
        return amount(mean, deviation, decimals=2)
    return size(mean, deviation)


def _make_table(first: str, headings: Sequence[str], title: str) -> Table:
    """An empty table whose first column is folded where there is little room, and no other."""
    table = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    table.box = box.SIMPLE_HEAD
    table.pad_edge = False
    table.padding = (0, 0)
    table.add_column(first, overflow="fold")
    for heading in headings:
        # a word per line: heads wider than their numbers cost the names room
        lines = heading.removesuffix(" %").replace("parameters", "para- meters").replace(" ", "\n")
        table.add_column(lines, justify="right", no_wrap=True)
    return table


def _select_metrics(means: Mapping[str, float | None]) -> dict[str, str]:
    """The metrics of a table and their headings; one that is undefined for all tasks is shown as such."""
    shown = select_known(means)
    return {key: heading for key, heading in METRIC_HEADS.items() if key in shown}


def select_known(means: Mapping[str, float | None]) -> dict[str, float | None]:
    """The means without those that few data sets have and this one has not."""
    return {key: mean for key, mean in means.items() if mean is not None or key not in NOT_EVERYWHERE}


def _read_mean(result: Result, split: str, key: str) -> float | None:
    value = result.get("metrics", {}).get(split, {}).get("mean", {}).get(key)
    return None if value is None else float(value)


def _list_columns(rows: Sequence[Row]) -> list[str]:
    return [key for key in HEADS if key not in NOT_EVERYWHERE or any(row[key] is not None for row in rows)]


def _format_cell(row: Row, key: str) -> str:
    if key in METRICS:
        return format_percent(row[key], row[f"{key}_sd"])
    if key in SIZES:
        return format_cost(key, row[key], row[f"{key}_sd"])
    return str(row[key])


def _format_short(row: Row, key: str) -> str:
    """A cell without spaces; sizes without their deviation."""
    text = format_cost(key, row[key]) if key in SIZES else _format_cell(row, key)
    return text.replace(" ", "")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Any other table in Markdown; all columns but the first are numbers."""
    # first the names, on the left; all else are numbers, on the right
    head, *body = [f"| {' | '.join(row)} |\n" for row in (heads, *rows)]
    return "".join([head, "|---|" + "---:|" * (len(heads) - 1) + "\n", *body])
