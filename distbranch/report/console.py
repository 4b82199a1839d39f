"""The end of a run on the terminal: networks against each other in one table, as rich, Markdown or CSV rows.

A row is a network, given as the results (`result.json`) of its seeds; several seeds show mean ± standard deviation. What no
network of a table has (top-10 recall of few tasks, top-3 without exclusive classes, a latency that was not measured) has no column.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from distbranch.data.shards import DatasetInfo

Result = Mapping[str, Any]
Row = Mapping[str, Any]
METRICS = {
    "accuracy": "accuracy %",
    "balanced_accuracy": "balanced accuracy %",
    "average_precision": "average precision %",
    "top10_recall": "top-10 recall %",
    "top3": "top-3 %",
    "top5": "top-5 %",
}
SIZES = {
    "num_groups_top": "groups",
    "parameters": "parameters",
    "weights": "weights",
    "multiply_adds": "multiply adds",
    "latency_ms": "latency ms",
}
HEADS = {"network": "network", "seeds": "seeds", **METRICS, **SIZES}
UNDEFINED = "\u2013"
NOT_EVERYWHERE = ("top10_recall", "top3", "top5", "latency_ms")


def result_table(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> Table:
    """The networks as a rich table; the best mean of every metric is bold."""
    rows = result_rows(results, split=split)
    several = any(row["seeds"] > 1 for row in rows)
    title = f"Means over tasks, {split} split, in %" + (" (± standard deviation over seeds)" if several else "")
    # 84 characters: on a narrow terminal only the names of the networks are folded
    known = _keys(rows)
    left_out = {"num_groups_top" if several else "seeds"} | ({"parameters"} if "latency_ms" in known else set())
    left_out |= {"num_groups_top", "parameters"} if "top3" in known else set()
    keys = [key for key in known[1:] if key not in left_out]
    table = _table("network", [HEADS[key] for key in keys], title)
    best = {key: max((row[key] for row in rows if row[key] is not None), default=None) for key in METRICS}
    for row in rows:
        bold = {key for key in METRICS if len(rows) > 1 and row[key] is not None and row[key] == best[key]}
        cells = (f"[bold]{_short(row, key)}[/bold]" if key in bold else _short(row, key) for key in keys)
        table.add_row(escape(str(row["network"])), *cells)
    return table


def result_markdown(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> str:
    """The same table in Markdown."""
    rows = result_rows(results, split=split)
    keys = _keys(rows)
    lines = ["| " + " | ".join(HEADS[key] for key in keys) + " |", "|---|" + "---:|" * (len(keys) - 1)]
    lines += ["| " + " | ".join(_cell(row, key) for key in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def result_rows(results: Mapping[str, Sequence[Result]], *, split: str = "test") -> list[dict[str, Any]]:
    """One flat row per network for a CSV file: means over seeds (metrics 0..1) and `<name>_sd` (None with one seed)."""
    rows = []
    for network, runs in results.items():
        row: dict[str, Any] = {"network": network, "seeds": len(runs)}
        for key in METRICS:
            row[key], row[f"{key}_sd"] = spread([_mean_metric(run, split, key) for run in runs])
        for key in SIZES:
            row[key], row[f"{key}_sd"] = spread([run.get(key) for run in runs])
        rows.append(row)
    return rows


def score_table(scores: Mapping[str, Any], title: str = "") -> Table:
    """One evaluation: a row per task, one per exclusive set (the arg-max over its tasks), and the means; in %."""
    metrics = _shown_metrics(scores["mean"])
    table = _table("task", [*metrics.values(), "labelled"], title)
    groups = [
        scores["tasks"],
        {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()},
        {"mean": scores["mean"]},
    ]
    for rows in groups:
        for name, row in rows.items():
            values = [amount(row[key], None, scale=100, decimals=1) if key in row else "" for key in metrics]
            table.add_row(escape(name), *values, str(row.get("num_labelled", "")))
        table.add_section()
    return table


def dataset_table(scores: Mapping[str, Any], *, split: str) -> Table:
    """The means of every data set of a joint run, each over its own tasks, and over the tasks of all."""
    metrics = _shown_metrics(scores["mean"])
    title = f"Means over the tasks of each data set, {split} split, in %"
    table = _table("data set", ["samples", "tasks", *metrics.values()], title)
    for name, part in [*scores["datasets"].items(), ("all", scores)]:
        num_tasks = sum(bool(row["num_labelled"]) for row in part["tasks"].values())
        cells = [amount(part["mean"].get(key), None, scale=100, decimals=1) for key in metrics]
        table.add_row(escape(name), f"{part['num_samples']:,}", str(num_tasks), *cells)
    return table


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the known values; no deviation of one."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def amount(mean: float | None, deviation: float | None, *, scale: float = 1, decimals: int = 0) -> str:
    """`74.5 ± 0.7`: both in the same unit with the same decimals; a dash for what is unknown."""
    if mean is None:
        return UNDEFINED
    text = f"{scale * mean:,.{decimals}f}"
    return f"{text} ± {scale * deviation:,.{decimals}f}" if deviation else text


def dataset_lines(info: DatasetInfo) -> list[str]:
    """What is in a packed data set: samples per split, tasks by kind, the size of images, and what was left out."""
    exclusive = Counter(task.exclusive for task in info.tasks if task.exclusive)
    sets = [f"{count} of the exclusive set {name}" for name, count in exclusive.items()]
    classes = [f"{task.name}: {len(task.classes)} classes" for task in info.tasks if task.classes]
    kinds = {"binary": (len(info.tasks) - len(classes), sets), "categorical": (len(classes), classes)}
    told = [
        f"{count} {kind}" + (f" ({', '.join(more)})" if more else "") for kind, (count, more) in kinds.items() if count
    ]
    height, width = info.image_size
    lines = [
        "samples: " + ", ".join(f"{split.num_samples:,} {name}" for name, split in info.splits.items()),
        "tasks: " + ", ".join(told),
        f"images: {height}x{width} pixels (height x width of the first)",
    ]
    if info.skipped:
        lines.append("left out: " + ", ".join(f"{count:,} {what}" for what, count in info.skipped.items()))
    return lines


def size(mean: float | None, deviation: float | None = None) -> str:
    """A count; from a million on in millions."""
    if mean is None or mean < 1e6:
        return amount(mean, deviation)
    return amount(mean, deviation, scale=1e-6, decimals=2) + " M"


def _table(first: str, headings: Sequence[str], title: str) -> Table:
    """An empty table whose first column is folded where there is little room, and no other."""
    table = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 0)
    table.add_column(first, overflow="fold")
    for heading in headings:
        lines = heading.removesuffix(" %").replace("parameters", "para- meters").replace(" ", "\n")
        table.add_column(lines, justify="right", no_wrap=True)
    return table


def _shown_metrics(means: Mapping[str, float | None]) -> dict[str, str]:
    """The metrics of a table and their headings; one that is undefined for all tasks is shown as such."""
    return {
        key: heading
        for key, heading in METRICS.items()
        if key in means and (means[key] is not None or key not in NOT_EVERYWHERE)
    }


def _mean_metric(result: Result, split: str, key: str) -> float | None:
    value = result.get("metrics", {}).get(split, {}).get("mean", {}).get(key)
    return None if value is None else float(value)


def _keys(rows: Sequence[Row]) -> list[str]:
    return [key for key in HEADS if key not in NOT_EVERYWHERE or any(row[key] is not None for row in rows)]


def _cell(row: Row, key: str) -> str:
    if key in METRICS:
        return amount(row[key], row[f"{key}_sd"], scale=100, decimals=1)
    if key == "latency_ms":
        return amount(row[key], row[f"{key}_sd"], decimals=2)
    return size(row[key], row[f"{key}_sd"]) if key in SIZES else str(row[key])


def _short(row: Row, key: str) -> str:
    """A cell without spaces; sizes without their deviation."""
    text = _cell({**row, f"{key}_sd": None}, key) if key in SIZES else _cell(row, key)
    return text.replace(" ", "")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Any other table in Markdown; all columns but the first are numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
