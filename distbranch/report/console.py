"""The tables at the end of a run on the terminal, and how numbers are written everywhere.

A table is a DataFrame of numbers, then one of text, which `tables` renders. Several seeds show mean ± standard deviation. What no
network of a table has (top-10 recall of few tasks, top-3 without exclusive classes, a latency that was not measured) has no column.
"""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from distbranch.data.shards import DatasetInfo
from distbranch.report.tables import render_markdown, render_rich

# what a running progress display imports stays quick to load
if TYPE_CHECKING:
    import pandas

Result = Mapping[str, Any]
Results = Mapping[str, Sequence[Result]]
# The only list of the metrics, in the order of every table and legend.
METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "average_precision": "Average precision",
    "top10_recall": "Top-10 recall",
    "top3": "Top-3 accuracy",
    "top5": "Top-5 accuracy",
}
SIZES = {
    "num_groups_top": "groups",
    "parameters": "parameters",
    "weights": "weights",
    "multiply_adds": "multiply adds",
    "latency_ms": "latency ms",
}
# "top-3" is narrower, where six metrics stand side by side in 80 columns
METRIC_HEADS = {key: re.sub(r"(top-\d) accuracy", r"\1", label.lower()) + " %" for key, label in METRICS.items()}
HEADS = {"network": "network", "seeds": "seeds", **METRIC_HEADS, **SIZES}
UNDEFINED = "\u2013"
# what only some networks have: a column of dashes would say nothing
NOT_EVERYWHERE = ("top10_recall", "top3", "top5", "latency_ms")
# from a million on nobody counts the digits
UNITS = ((1e9, " G"), (1e6, " M"))
MOST_COLUMNS = 8  # as many, after the name, as leave room for it in 80 characters
LEAST_TOLD = ("num_groups_top", "parameters", "seeds")  # the first to go where there are more
MOST_SETTINGS = 30  # in the table at the end of a sweep: as many as a screen shows; the page has all


# ---- numbers as text


def format_amount(mean: float | None, deviation: float | None = None, *, scale: float = 1, decimals: int = 0) -> str:
    """`74.5 ± 0.7`: both in the same unit with the same decimals; a dash for what is unknown (None or NaN)."""
    if mean is None or mean != mean:
        return UNDEFINED
    text = f"{scale * mean:,.{decimals}f}"
    # neither None nor zero nor NaN
    if deviation and deviation == deviation:
        text += f" ± {scale * deviation:,.{decimals}f}"
    return text


def format_size(mean: float | None, deviation: float | None = None) -> str:
    """A count as people read it: 132,536, 31.40 M or 15.50 G; its deviation in the same unit."""
    for limit, unit in UNITS:
        if mean is not None and mean >= limit:
            return format_amount(mean, deviation, scale=1 / limit, decimals=2) + unit
    return format_amount(mean, deviation)


def format_percent(share: float | None, deviation: float | None = None) -> str:
    """A share (0..1) as per cent with one decimal."""
    return format_amount(share, deviation, scale=100, decimals=1)


def format_value(key: str, mean: float | None, deviation: float | None = None) -> str:
    """A value by the name of its column: a metric, which may begin with its split, a latency, or a count."""
    if key.removeprefix("val_").removeprefix("test_") in METRICS:
        return format_percent(mean, deviation)
    if key == "latency_ms":
        return format_amount(mean, deviation, decimals=2)
    return format_size(mean, deviation)


def compute_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the known values; no deviation of one."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None, None
    if len(known) == 1:
        return known[0], None
    # both are exact, so the order of the seeds does not matter
    return statistics.fmean(known), statistics.stdev(known)


# ---- networks against each other


def tabulate_results(results: Results, *, split: str = "test") -> "pandas.DataFrame":
    """A row per network: means over seeds (metrics in 0..1) and their `<name>_sd`; NaN where unknown.

    results: {network: [content of result.json of every seed]}.
    """
    import pandas

    rows = []
    for network, runs in results.items():
        row: dict[str, Any] = {"network": network, "seeds": len(runs)}
        means = [run.get("metrics", {}).get(split, {}).get("mean", {}) for run in runs]
        for key in METRICS:
            row[key], row[f"{key}_sd"] = compute_spread([mean.get(key) for mean in means])
        for key in SIZES:
            row[key], row[f"{key}_sd"] = compute_spread([run.get(key) for run in runs])
        rows.append(row)
    # as numbers: a column without a value would be one of objects
    table = pandas.DataFrame(rows).set_index("network").astype(float)
    return table.astype({"seeds": int}).reset_index()


def result_markdown(results: Results, *, split: str = "test") -> str:
    """The networks as a table in Markdown, with all that is known."""
    import pandas

    values = tabulate_results(results, split=split)
    cells = pandas.DataFrame({"network": values["network"], "seeds": values["seeds"].astype(str)})
    for key in _list_known([*METRICS, *SIZES], values):
        cells[HEADS[key]] = format_column(values, key)
    return render_markdown(cells)


def result_table(results: Results, *, split: str = "test") -> Table:
    """The networks as a rich table; the best mean of every metric is bold."""
    import pandas

    values = tabulate_results(results, split=split)
    title = f"Means over tasks, {split} split, in %"
    keys = ["seeds", *_list_known([*METRICS, *SIZES], values)]
    if (values["seeds"] > 1).any():
        title += " (± standard deviation over seeds)"
    for key in LEAST_TOLD:
        if len(keys) > MOST_COLUMNS:
            keys.remove(key)

    cells = pandas.DataFrame({"network": values["network"]})
    for key in keys:
        # a size without its deviation, and nothing with blanks: names need the room
        column = format_column(values, key)
        if key not in METRICS:
            column = [format_value(key, mean) for mean in values[key]]
        cells[HEADS[key]] = [text.replace(" ", "") for text in column]
        # one network alone is no best
        if key in METRICS and len(values) > 1:
            is_best = values[key] == values[key].max()
            cells.loc[is_best, HEADS[key]] = "[bold]" + cells[HEADS[key]] + "[/bold]"
    return render_rich(cells, title)


def format_column(values: "pandas.DataFrame", key: str) -> list[str]:
    """A column of means as text, with the deviations where the table has some."""
    if f"{key}_sd" not in values:
        return [format_value(key, mean) for mean in values[key]]
    return [format_value(key, *pair) for pair in zip(values[key], values[f"{key}_sd"], strict=True)]


def _list_known(keys: Iterable[str], values: "pandas.DataFrame") -> list[str]:
    return [key for key in keys if key not in NOT_EVERYWHERE or values[key].notna().any()]


# ---- one evaluation


def score_table(scores: Mapping[str, Any], title: str = "") -> Table:
    """One evaluation: a row per task, one per exclusive set (the arg-max over its tasks), and the means; in %."""
    rows = list(scores["tasks"].items())
    # an exclusive set is scored as one choice and not as its tasks
    rows += [(f"{name} (arg-max)", row) for name, row in scores.get("exclusive", {}).items()]
    rows.append(("mean", scores["mean"]))
    about = [{"task": name} for name, _ in rows]
    labelled = [{"labelled": format_amount(row.get("num_labelled"))} for _, row in rows]
    return _make_score_table(about, [row for _, row in rows], labelled, scores["mean"], title)


def dataset_table(scores: Mapping[str, Any], *, split: str) -> Table:
    """The means of every data set of a joint run, each over its own tasks, and over the tasks of all."""
    parts = {**scores["datasets"], "all": scores}
    about = []
    for name, part in parts.items():
        num_tasks = sum(bool(row["num_labelled"]) for row in part["tasks"].values())
        about.append({"data set": name, "samples": format_amount(part["num_samples"]), "tasks": str(num_tasks)})
    title = f"Means over the tasks of each data set, {split} split, in %"
    means = [part["mean"] for part in parts.values()]
    return _make_score_table(about, means, [{}] * len(parts), scores["mean"], title)


def _make_score_table(
    before: Sequence[Mapping[str, str]],
    scores: Sequence[Mapping[str, Any]],
    behind: Sequence[Mapping[str, str]],
    means: Mapping[str, float | None],
    title: str,
) -> Table:
    """The metrics of every row between what stands before them and behind them."""
    import pandas

    # one that is undefined for all tasks is shown as such
    shown = select_known(means)
    rows = []
    for first, row, last in zip(before, scores, behind, strict=True):
        cells = {HEADS[key]: format_percent(row.get(key)) for key in METRICS if key in shown}
        rows.append({**first, **cells, **last})
    return render_rich(pandas.DataFrame(rows), title)


def select_known(means: Mapping[str, float | None]) -> dict[str, float | None]:
    """The means without those that few data sets have and this one has not."""
    return {key: mean for key, mean in means.items() if mean is not None or key not in NOT_EVERYWHERE}


# ---- a sweep, a data set


def front_table(directory: Path) -> Table:
    """The settings on the Pareto front of any cost, chosen on val, cheapest first."""
    import pandas

    from distbranch.report.sweep_files import COSTS, format_setting, read_sweep

    sweep = read_sweep(directory)
    points = sweep.points
    fronts = sweep.find_fronts(points)
    on_any = set().union(*fronts.values())
    shown = points.loc[sorted(on_any)].sort_values("multiply_adds").head(MOST_SETTINGS)

    cells = pandas.DataFrame(index=shown.index)
    for key in sweep.keys:
        cells[key] = shown[key].map(format_setting)
    cells["seeds"] = shown["seeds"].astype(str)
    for split in ("val", "test"):
        cells[split] = format_column(shown, f"{split}_{sweep.metric}")
    for cost in _list_known(COSTS, shown):
        marks = ["*" * (number in fronts[cost]) for number in shown.index]
        texts = [format_value(cost, mean) for mean in shown[cost]]
        cells[SIZES[cost]] = [mark + text for mark, text in zip(marks, texts, strict=True)]
    for column in cells.columns[len(sweep.keys) :]:
        cells[column] = cells[column].str.replace(" ", "")
    title = f"Pareto fronts (*), chosen on val: mean {METRICS[sweep.metric].lower()} in %"
    # only now, as the last parts of two keys may be the same word
    cells = cells.rename(columns=lambda key: key.rpartition(".")[2])
    return render_rich(cells, title, num_names=len(sweep.keys))


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
