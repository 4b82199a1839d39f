"""The tables at the end of a run on the terminal, and how numbers are written everywhere.

A table is a DataFrame of numbers, then one of text, which `tables` renders. Several seeds show mean ± standard deviation. What no
network of a table has (top-10 recall of few tasks, top-3 without exclusive classes, a latency that was not measured) has no column.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from distbranch.data.shards import DatasetInfo
from distbranch.report.tables import render_markdown, render_rich

# what a running progress display imports stays quick to load
if TYPE_CHECKING:
    import pandas

Results = Mapping[
    str, Sequence[Mapping[str, Any]]
]  # {network: [content of result.json of every seed]}
# The only list of the metrics, in the order of every table and legend.
METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "average_precision": "Average precision",
    "top10_recall": "Top-10 recall",
    "top3": "Top-3",
    "top5": "Top-5",
}
SIZES = {
    "num_groups_top": "groups",
    "parameters": "parameters",
    "weights": "weights",
    "multiply_adds": "multiply adds",
    "latency_ms": "latency ms",
}
HEADS = {key: f"{label.lower()} %" for key, label in METRICS.items()} | SIZES | {"seeds": "seeds"}
UNDEFINED = "\u2013"
# what only some networks have: a column of dashes would say nothing
NOT_EVERYWHERE = ("top10_recall", "top3", "top5", "latency_ms")
# from a million on nobody counts the digits
UNITS = ((1e9, " G"), (1e6, " M"))
MOST_COLUMNS = 8  # as many, after the name, as leave room for it in 80 characters
LEAST_TOLD = ("num_groups_top", "parameters", "seeds")  # the first to go where there are more
MOST_SETTINGS = (
    30  # in the table at the end of a sweep: as many as a screen shows; the page has all
)


# ---- numbers as text


def format_amount(
    mean: float | None,
    deviation: float | None = None,
    *,
    scale: float = 1,
    decimals: int = 0,
) -> str:
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


def compute_spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and sample standard deviation of the known values; NaN where there are none, or one for the deviation."""
    import pandas

    known = pandas.Series(values, dtype=float)
    return known.mean(), known.std()


# ---- networks against each other


def tabulate_results(results: Results, *, split: str = "test") -> "pandas.DataFrame":
    """A row per network: means over seeds (metrics in 0..1) and their `<name>_sd`; NaN where unknown."""
    import pandas

    rows = []
    for network, runs in results.items():
        for run in runs:
            means = run.get("metrics", {}).get(split, {}).get("mean", {})
            rows.append({**run, **means, "network": network})
    table = (
        pandas.DataFrame(rows, columns=["network", *METRICS, *SIZES])
        .set_index("network")
        .astype(float)
    )
    networks = table.groupby("network", sort=False)
    means = compute_seed_means(networks)
    means.insert(0, "seeds", networks.size())
    return means.reset_index()


def compute_seed_means(groups: Any) -> "pandas.DataFrame":
    """Means over the rows of every group, and their sample standard deviations as `<name>_sd`; none of one row."""
    means: pandas.DataFrame = groups.mean()
    return means.join(groups.std().add_suffix("_sd"))


def make_result_markdown(results: Results, *, split: str = "test") -> str:
    """The networks as a table in Markdown, with all that is known."""
    values = tabulate_results(results, split=split)
    return render_markdown(_format_results(values, _list_known(values)))


def make_result_table(results: Results, *, split: str = "test") -> Table:
    """The networks as a rich table, as far as it leaves room for their names."""
    values = tabulate_results(results, split=split)
    keys = _list_known(values)
    for key in LEAST_TOLD:
        if len(keys) > MOST_COLUMNS:
            keys.remove(key)
    # a size without its deviation, and nothing with blanks
    cells = _format_results(values.drop(columns=[f"{key}_sd" for key in SIZES]), keys)
    cells[cells.columns[1:]] = cells[cells.columns[1:]].map(lambda text: text.replace(" ", ""))
    return render_rich(
        cells,
        f"Means over tasks, {split} split, in % (± standard deviation over seeds)",
    )


def _list_known(values: "pandas.DataFrame") -> list[str]:
    keys = ["seeds", *METRICS, *SIZES]
    return [key for key in keys if key not in NOT_EVERYWHERE or values[key].notna().any()]


def _format_results(values: "pandas.DataFrame", keys: Sequence[str]) -> "pandas.DataFrame":
    cells = values[["network"]].copy()
    for key in keys:
        cells[HEADS[key]] = format_column(values, key)
    return cells


def format_column(values: "pandas.DataFrame", key: str) -> list[str]:
    """A column of means as text, with the deviations where the table has some."""
    if f"{key}_sd" not in values:
        return [format_value(key, mean) for mean in values[key]]
    return [format_value(key, *pair) for pair in zip(values[key], values[f"{key}_sd"], strict=True)]


# ---- one evaluation


def tabulate_scores(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], *, head: str
) -> "pandas.DataFrame":
    """The metrics of every row, named under `head`, in %; without those that none of the rows has, where few have them."""
    import pandas

    values = pandas.DataFrame(rows, columns=list(METRICS))
    unknown = [key for key in NOT_EVERYWHERE if key in values and values[key].isna().all()]
    cells = values.drop(columns=unknown).map(format_percent).rename(columns=HEADS)
    cells.insert(0, head, names)
    return cells


def make_score_table(scores: Mapping[str, Any], title: str = "") -> Table:
    """One evaluation: a row per task, one per exclusive set (the arg-max over its tasks), and the means; in %."""
    names = list(scores["tasks"])
    # an exclusive set is scored as one choice and not as its tasks
    exclusive = scores.get("exclusive", {})
    names += [f"{name} (arg-max)" for name in exclusive] + ["mean"]
    rows = [*scores["tasks"].values(), *exclusive.values(), scores["mean"]]
    cells = tabulate_scores(names, rows, head="task")
    cells["labelled"] = [format_amount(row.get("num_labelled")) for row in rows]
    return render_rich(cells, title)


def make_dataset_table(scores: Mapping[str, Any], *, split: str) -> Table:
    """The means of every data set of a joint run, each over its own tasks, and over the tasks of all."""
    parts = {**scores["datasets"], "all": scores}
    cells = tabulate_scores(list(parts), [part["mean"] for part in parts.values()], head="data set")
    cells.insert(
        1,
        "samples",
        [format_amount(part["num_samples"]) for part in parts.values()],
    )
    num_tasks = [
        sum(bool(row["num_labelled"]) for row in part["tasks"].values()) for part in parts.values()
    ]
    cells.insert(2, "tasks", list(map(str, num_tasks)))
    return render_rich(cells, f"Means over the tasks of each data set, {split} split, in %")


def select_known(means: Mapping[str, float | None]) -> dict[str, float | None]:
    """The means without those that few data sets have and this one has not."""
    return {
        key: mean for key, mean in means.items() if mean is not None or key not in NOT_EVERYWHERE
    }


# ---- a sweep, a data set


def make_front_table(directory: Path) -> Table:
    """The settings on the Pareto front of any cost, chosen on val, cheapest first."""
    from distbranch.report.sweep_files import (
        COSTS,
        FRONT,
        read_sweep,
        tabulate_points,
    )

    sweep = read_sweep(directory)
    points = sweep.points
    # no deviations of the costs: names need the room
    cells = tabulate_points(sweep, points.drop(columns=[f"{cost}_sd" for cost in COSTS]))
    is_best = cells.apply(lambda row: row.str.contains(FRONT).any(), axis="columns")
    shown = points[is_best].sort_values("multiply_adds").head(MOST_SETTINGS).index
    cells = cells.loc[shown].drop(columns="no.").map(lambda text: text.replace(" ", ""))
    title = f"Pareto fronts ({FRONT}), chosen on val: mean {METRICS[sweep.metric].lower()} in %"
    return render_rich(cells, title, num_names=len(sweep.keys))


def describe_dataset(info: DatasetInfo) -> list[str]:
    """What is in a packed data set: samples per split, tasks by kind, the size of images, and what was left out."""
    exclusive = Counter(task.exclusive for task in info.tasks if task.exclusive)
    sets = [f"{count} of the exclusive set {name}" for name, count in exclusive.items()]
    classes = [f"{task.name}: {len(task.classes)} classes" for task in info.tasks if task.classes]
    kinds = {
        "binary": (len(info.tasks) - len(classes), sets),
        "categorical": (len(classes), classes),
    }
    texts = [_describe_kind(kind, *found) for kind, found in kinds.items()]
    height, width = info.image_size
    lines = [
        "samples: "
        + ", ".join(f"{split.num_samples:,} {name}" for name, split in info.splits.items()),
        "tasks: " + ", ".join(filter(None, texts)),
        f"images: {height}x{width} pixels (height x width of the first)",
    ]
    if info.skipped:
        lines.append(
            "left out: " + ", ".join(f"{count:,} {what}" for what, count in info.skipped.items())
        )
    return lines


def _describe_kind(kind: str, count: int, details: Sequence[str]) -> str:
    if not count:
        return ""
    return f"{count} {kind} ({', '.join(details)})" if details else f"{count} {kind}"
