"""The end of a run on the terminal: networks against each other in one table, as rich, Markdown or CSV rows.

A row is a network, given as the results (`result.json`) of its seeds; several seeds show mean ± standard deviation.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Result = Mapping[str, Any]
METRICS = {
    "accuracy": "accuracy %",
    "balanced_accuracy": "balanced accuracy %",
    "average_precision": "average precision %",
    "top10_recall": "top-10 recall %",
}
SIZES = {"num_groups_top": "groups", "parameters": "parameters", "weights": "weights", "multiply_adds": "multiply-adds"}
COLUMNS = ("network", "seeds", *METRICS.values(), *SIZES.values())


def result_table(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> Table:
    """The networks as a rich table; the best mean of every metric is bold."""
    table = Table(
        title=f"Means over tasks, {split} split", title_justify="left", title_style="bold", header_style="bold"
    )
    for column in COLUMNS:
        numeric = column != "network"
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric)
    rows = result_rows(results, split=split)
    best = {key: max((row[key] for row in rows if row[key] is not None), default=None) for key in METRICS}
    for row in rows:
        bold = {key for key in METRICS if len(rows) > 1 and row[key] is not None and row[key] == best[key]}
        cells = zip(_keys(), _cells(row), strict=True)
        table.add_row(*(f"[bold]{text}[/bold]" if key in bold else text for key, text in cells))
    return table


def result_markdown(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> str:
    """The same table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in result_rows(results, split=split)]
    return "\n".join(lines) + "\n"


def result_rows(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> list[dict[str, Any]]:
    """One flat row per network for a CSV file: means over seeds (metrics 0..1) and `<name>_sd` (None with one seed)."""
    rows = []
    for network, runs in results.items():
        row: dict[str, Any] = {"network": network, "seeds": len(runs)}
        for key in METRICS:
            row[key], row[f"{key}_sd"] = _spread([_mean_metric(run, split, key) for run in runs])
        for key in SIZES:
            row[key], row[f"{key}_sd"] = _spread([run.get(key) for run in runs])
        rows.append(row)
    return rows


def _mean_metric(result: Result, split: str, key: str) -> float | None:
    value = result.get("metrics", {}).get(split, {}).get("mean", {}).get(key)
    return None if value is None else float(value)


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the known values."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def _keys() -> tuple[str, ...]:
    return ("network", "seeds", *METRICS, *SIZES)


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [str(row["network"]), str(row["seeds"])]
    cells += [_number(row[key], row[f"{key}_sd"], scale=100, decimals=1) for key in METRICS]
    cells += [_number(row[key], row[f"{key}_sd"], scale=1, decimals=0) for key in SIZES]
    return cells


def _number(mean: float | None, deviation: float | None, *, scale: int, decimals: int) -> str:
    if mean is None:
        return "\u2013"
    text = f"{scale * mean:,.{decimals}f}"
    return f"{text} ± {scale * deviation:,.{decimals}f}" if deviation else text
