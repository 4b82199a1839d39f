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
SIZES = {"num_groups_top": "groups", "parameters": "parameters", "weights": "weights", "multiply_adds": "multiply adds"}
COLUMNS = ("network", "seeds", *METRICS.values(), *SIZES.values())


def result_table(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> Table:
    """The networks as a rich table; the best mean of every metric is bold."""
    rows = result_rows(results, split=split)
    several = any(row["seeds"] > 1 for row in rows)
    title = f"Means over tasks, {split} split, in %" + (" (± standard deviation over seeds)" if several else "")
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 0)
    table.add_column("network", overflow="fold")
    keys = [key for key in _keys()[1:] if key != ("num_groups_top" if several else "seeds")]
    for key in keys:  # 84 characters: on a narrow terminal only the names of the networks are folded
        heading = COLUMNS[_keys().index(key)].removesuffix(" %").replace("parameters", "para- meters")
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    best = {key: max((row[key] for row in rows if row[key] is not None), default=None) for key in METRICS}
    for row in rows:
        bold = {key for key in METRICS if len(rows) > 1 and row[key] is not None and row[key] == best[key]}
        cells = (f"[bold]{_short(row, key)}[/bold]" if key in bold else _short(row, key) for key in keys)
        table.add_row(escape(str(row["network"])), *cells)
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
    cells += [_size(row[key], row[f"{key}_sd"]) for key in SIZES]
    return cells


def _short(row: Mapping[str, Any], key: str) -> str:
    """A cell without spaces; sizes without their deviation."""
    text = _size(row[key], None) if key in SIZES else _cells(row)[_keys().index(key)]
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
