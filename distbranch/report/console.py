"""The end of a run on the terminal: networks against each other in one table, as rich, Markdown or CSV rows.

A row is a network, given as the results (`result.json`) of its seeds; several seeds show mean ± standard deviation.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

Result = Mapping[str, Any]
METRICS = {
    "accuracy": "accuracy %",
    "balanced_accuracy": "balanced accuracy %",
    "average_precision": "average precision %",
    "top10_recall": "top-10 recall %",
}
CHOICES = {"top3": "top-3 %", "top5": "top-5 %"}  # of runs with exclusive categories
SIZES = {"num_groups_top": "groups", "parameters": "parameters", "weights": "weights", "multiply_adds": "multiply adds"}
COLUMNS = ("network", "seeds", *METRICS.values(), *SIZES.values())


def result_table(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> Table:
    """The networks as a rich table; the best mean of every metric is bold."""
    rows = result_rows(results, split=split)
    headings = _headings(rows)
    metrics = [key for key in headings if key not in ("network", "seeds", *SIZES)]
    several = any(row["seeds"] > 1 for row in rows)
    title = f"Means over tasks, {split} split, in %" + (" (± standard deviation over seeds)" if several else "")
    # 84 characters: on a narrow terminal only the names of the networks are folded
    left_out = {"num_groups_top" if several else "seeds", *(("num_groups_top", "parameters") if _choices(rows) else ())}
    keys = [key for key in [*headings][1:] if key not in left_out]
    table = _table("network", [headings[key] for key in keys], title)
    best = {key: max((row[key] for row in rows if row[key] is not None), default=None) for key in metrics}
    for row in rows:
        bold = {key for key in metrics if len(rows) > 1 and row[key] is not None and row[key] == best[key]}
        cells = (f"[bold]{_short(row, key)}[/bold]" if key in bold else _short(row, key) for key in keys)
        table.add_row(escape(str(row["network"])), *cells)
    return table


def result_markdown(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> str:
    """The same table in Markdown."""
    rows = result_rows(results, split=split)
    headings = _headings(rows)
    lines = ["| " + " | ".join(headings.values()) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(_cell(row, key) for key in headings) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def result_rows(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> list[dict[str, Any]]:
    """One flat row per network for a CSV file: means over seeds (metrics 0..1) and `<name>_sd` (None with one seed).

    Top-3 and top-5 accuracy are there if one of the networks has exclusive categories.
    """
    means = [run.get("metrics", {}).get(split, {}).get("mean", {}) for runs in results.values() for run in runs]
    metrics = [*METRICS, *(key for key in CHOICES if any(key in mean for mean in means))]
    rows = []
    for network, runs in results.items():
        row: dict[str, Any] = {"network": network, "seeds": len(runs)}
        for key in metrics:
            row[key], row[f"{key}_sd"] = _spread([_mean_metric(run, split, key) for run in runs])
        for key in SIZES:
            row[key], row[f"{key}_sd"] = _spread([run.get(key) for run in runs])
        rows.append(row)
    return rows


def score_table(scores: Mapping[str, Any], title: str = "") -> Table:
    """One evaluation: a row per task, one per exclusive set (the arg-max over its tasks), and the means; in %."""
    metrics = {key: heading for key, heading in (METRICS | CHOICES).items() if key in scores["mean"]}
    table = _table("task", [*metrics.values(), "labelled"], title)
    groups = [
        scores["tasks"],
        {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()},
        {"mean": scores["mean"]},
    ]
    for rows in groups:
        for name, row in rows.items():
            values = [_number(row[key], None, scale=100, decimals=1) if key in row else "" for key in metrics]
            table.add_row(escape(name), *values, str(row.get("num_labelled", "")))
        table.add_section()
    return table


def dataset_table(scores: Mapping[str, Any], *, split: str) -> Table:
    """The means of every data set of a joint run, each over its own tasks, and over the tasks of all."""
    metrics = {key: heading for key, heading in (METRICS | CHOICES).items() if key in scores["mean"]}
    title = f"Means over the tasks of each data set, {split} split, in %"
    table = _table("data set", ["samples", "tasks", *metrics.values()], title)
    for name, part in [*scores["datasets"].items(), ("all", scores)]:
        num_tasks = sum(bool(row["num_labelled"]) for row in part["tasks"].values())
        cells = [_number(part["mean"].get(key), None, scale=100, decimals=1) for key in metrics]
        table.add_row(escape(name), f"{part['num_samples']:,}", str(num_tasks), *cells)
    return table


def _table(first: str, headings: Sequence[str], title: str) -> Table:
    """An empty table whose first column is folded where there is little room, and no other."""
    table = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 0)
    table.add_column(first, overflow="fold")
    for heading in headings:
        lines = heading.removesuffix(" %").replace("parameters", "para- meters").replace(" ", "\n")
        table.add_column(lines, justify="right", no_wrap=True)
    return table


def _mean_metric(result: Result, split: str, key: str) -> float | None:
    value = result.get("metrics", {}).get(split, {}).get("mean", {}).get(key)
    return None if value is None else float(value)


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the known values."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _headings(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The headings of the table by key."""
    return {"network": "network", "seeds": "seeds", **METRICS, **_choices(rows), **SIZES}


def _choices(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {key: heading for key, heading in CHOICES.items() if rows and key in rows[0]}


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key in ("network", "seeds"):
        return str(row[key])
    if key in SIZES:
        return _size(row[key], row[f"{key}_sd"])
    return _number(row[key], row[f"{key}_sd"], scale=100, decimals=1)


def _short(row: Mapping[str, Any], key: str) -> str:
    """A cell without spaces; sizes without their deviation."""
    text = _size(row[key], None) if key in SIZES else _cell(row, key)
    return text.replace(" ", "")


def _number(mean: float | None, deviation: float | None, *, scale: float, decimals: int) -> str:
    if mean is None:
        return "\u2013"
    text = f"{scale * mean:,.{decimals}f}"
    return f"{text} ± {scale * deviation:,.{decimals}f}" if deviation else text


def _size(mean: float | None, deviation: float | None) -> str:
    """A count; from a million on in millions."""
    if mean is None or mean < 1e6:
        return _number(mean, deviation, scale=1, decimals=0)
    return _number(mean, deviation, scale=1e-6, decimals=2) + " M"
