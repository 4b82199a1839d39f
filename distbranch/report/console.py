"""The tables at the end of a run on the terminal, and how numbers are written everywhere.

A table is a DataFrame of numbers, then one of text, which `tables` renders. Several seeds show mean ± standard deviation. What no
network of a table has (top-10 recall of few tasks, an error without a task of numbers, a latency that was not measured) has no
column.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from distbranch.data.label_maps import get_dense_kind
from distbranch.data.shards import DatasetInfo, list_dense_tasks
from distbranch.kinds import KINDS, UNIT_OF_TASK
from distbranch.kinds.digits import count_decimals, write_digits
from distbranch.metrics import list_dense_metrics, list_metrics
from distbranch.report.tables import render_markdown, render_rich
from distbranch.tasks import Task

# what a running progress display imports stays quick to load
if TYPE_CHECKING:
    import pandas

Results = Mapping[
    str, Sequence[Mapping[str, Any]]
]  # {network: [content of result.json of every seed]}
# Of classes: a table has these even where they are undefined, and says so.
USUAL = ("accuracy", "balanced_accuracy", "average_precision")
SIZES = {
    "num_groups_top": "groups",
    "parameters": "parameters",
    "weights": "weights",
    "folded_weights": "folded weights",
    "multiply_adds": "multiply adds",
    "head_weights": "weights of heads",
    "head_multiply_adds": "multiply adds of heads",
    "latency_ms": "latency ms",
}
# columns only where a network has them
RARE_SIZES = ("folded_weights", "head_weights", "head_multiply_adds", "latency_ms")
HEADS = SIZES | {"seeds": "seeds"}
UNDEFINED = "\u2013"
# from a million on nobody counts the digits
UNITS = ((1e9, " G"), (1e6, " M"))
MOST_COLUMNS = 8  # as many, after the name, as leave room for it in 80 characters
# the first to go where there are more
LEAST_TOLD = (
    *("head_multiply_adds", "head_weights"),
    *("below_22_5", "below_30", "rmse_angle", "delta3", "delta2", "mean_class_accuracy"),
    *("median_angle", "delta1", "rmse", "pixel_accuracy", "rel_error", "below_11_25"),
    *("num_groups_top", "parameters", "seeds", "top5", "top3", "balanced_accuracy"),
    *("quadratic_kappa", "rank_correlation"),
)
MOST_OF_A_KIND = 6  # metrics of a dense task in one table
DIGITS = 3  # that matter of an error, which may be of any size
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


def format_number(value: float | None, *, unit: str = "") -> str:
    """A number of any size, with as many decimals as its first three digits need, and its unit: 0.0123, 12.3 kg, 1,234."""
    if value is None or value != value:
        return UNDEFINED
    return f"{write_digits(value, DIGITS)} {unit}".rstrip()


def format_value(
    key: str, mean: float | None, deviation: float | None = None, *, unit: str = ""
) -> str:
    """A value by the name of its column: a metric, which may begin with its split, a latency, or a count.

    `unit` is that of the task, for errors that have it.
    """
    metric = list_metrics().get(key.removeprefix("val_").removeprefix("test_"))
    if metric is not None:
        if metric.unit == "%":
            return format_percent(mean, deviation)
        if metric.unit == UNIT_OF_TASK:
            return format_number(mean, unit=unit)  # which has no mean over tasks
        decimals = DIGITS
        if metric.unit and mean is not None:  # metres, degrees: of any size
            decimals = count_decimals(mean, DIGITS)
        return format_amount(mean, deviation, decimals=decimals)
    if key == "latency_ms":
        return format_amount(mean, deviation, decimals=2)
    return format_size(mean, deviation)


def describe_metric(key: str) -> str:
    """The title of a metric as the head of a column or an axis, with its unit: `accuracy %`, `standardised error`, `RMSE m`."""
    metric = list_metrics()[key]
    return (
        metric.in_words if metric.unit in ("", UNIT_OF_TASK) else f"{metric.in_words} {metric.unit}"
    )


def get_scale(key: str) -> float:
    """What a metric, or a difference of it, is multiplied with to be told: 100 of a share."""
    metric = list_metrics().get(key)
    return 100 if metric is None or metric.unit == "%" else 1


def name_difference(key: str) -> str:
    """In what differences of a metric are told: points of a share, else its unit."""
    if get_scale(key) == 100:
        return "points"
    unit = list_metrics()[key].unit
    return "" if unit == UNIT_OF_TASK else unit


def format_difference(
    key: str, value: float, deviation: float | None = None, *, largest: float | None = None
) -> str:
    """A difference of a metric, in what `name_difference` says: `1.90`, `0.0123`; with the decimals of `largest` if that is given."""
    scale = get_scale(key)
    # networks often differ by tenths of a point, so differences have a decimal more
    decimals = 2 if scale == 100 else count_decimals(largest or value, DIGITS)
    return format_amount(value, deviation, scale=scale, decimals=decimals)


def make_head(key: str) -> str:
    """What stands above a column of these values."""
    return HEADS[key] if key in HEADS else describe_metric(key)


def describe_units(keys: Sequence[str]) -> str:
    """In what the metrics among these are, for the title of a table."""
    metrics = [metric for key, metric in list_metrics().items() if key in keys]
    if all(metric.unit == "%" for metric in metrics):
        return "in %"
    shares = "shares in %; " if any(metric.unit == "%" for metric in metrics) else ""
    return f"{shares}of errors less is better"


def select_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that any of the rows has, in the order of every table."""
    metrics = list_metrics()
    known = {key for key in metrics for row in rows if row.get(key) is not None}
    of_images = known - list_dense_metrics().keys()
    if (of_images or not known) and all(metrics[key].unit == "%" for key in of_images):
        known |= set(USUAL)
    return [key for key in metrics if key in known]


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
        pandas.DataFrame(rows, columns=["network", *list_metrics(), *SIZES])
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
    # heads of what is no share are longer
    most = MOST_COLUMNS if describe_units(keys) == "in %" else MOST_COLUMNS - 2
    for key in LEAST_TOLD:
        if len(keys) > most and key in keys:
            keys.remove(key)
    # a size without its deviation, and nothing with blanks
    cells = _format_results(values.drop(columns=[f"{key}_sd" for key in SIZES]), keys)
    cells[cells.columns[1:]] = cells[cells.columns[1:]].map(lambda text: text.replace(" ", ""))
    return render_rich(
        cells,
        f"Means over tasks, {split} split, {describe_units(keys)} (± standard deviation over seeds)",
    )


def _list_known(values: "pandas.DataFrame") -> list[str]:
    rows = values.astype(object).where(values.notna(), None).to_dict("records")
    sizes = [key for key in SIZES if key not in RARE_SIZES or values[key].notna().any()]
    return ["seeds", *select_metrics(rows), *sizes]


def _format_results(values: "pandas.DataFrame", keys: Sequence[str]) -> "pandas.DataFrame":
    cells = values[["network"]].copy()
    for key in keys:
        cells[make_head(key)] = format_column(values, key)
    return cells


def format_column(values: "pandas.DataFrame", key: str) -> list[str]:
    """A column of means as text, with the deviations where the table has some."""
    if f"{key}_sd" not in values:
        return [format_value(key, mean) for mean in values[key]]
    return [format_value(key, *pair) for pair in zip(values[key], values[f"{key}_sd"], strict=True)]


# ---- one evaluation


def tabulate_scores(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    head: str,
    keys: Sequence[str] | None = None,
    units: Mapping[str, str] | None = None,
) -> "pandas.DataFrame":
    """Metrics of every row, named under `head`: those of `keys`, or all that any row has; `units` are those of tasks."""
    import pandas

    of_rows = [(units or {}).get(name, "") for name in names]
    cells = pandas.DataFrame({head: list(names)})
    for key in keys or select_metrics(rows):
        cells[make_head(key)] = [
            format_value(key, row.get(key), unit=unit)
            for row, unit in zip(rows, of_rows, strict=True)
        ]
    return cells


def make_score_table(scores: Mapping[str, Any], title: str = "") -> Group:
    """One evaluation: a row per task, one per exclusive set (the arg-max over its tasks), and the means.

    Shares are in %; what numbers have stands in a second table, each error in the unit of its task.
    """
    # an exclusive set is scored as one choice and not as its tasks
    exclusive = {f"{name} (arg-max)": row for name, row in scores.get("exclusive", {}).items()}
    rows = {**scores["tasks"], **exclusive}
    tables = []
    for keys in divide_metrics(list(rows.values())):
        shown = {name: row for name, row in rows.items() if any(key in row for key in keys)}
        shown["mean"] = scores["mean"]
        values = list(shown.values())
        cells = tabulate_scores(
            list(shown), values, head="task", keys=keys, units=scores.get("units")
        )
        cells["labelled"] = [format_amount(row.get("num_labelled")) for row in values]
        tables.append(render_rich(cells, title))
    return Group(*tables)


def divide_metrics(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The metrics of the rows by tables: shares first, then what is no share, then those of each kind of dense task.

    Only those tables that have a row.
    """
    keys = select_metrics(rows)
    metrics, dense = list_metrics(), list_dense_metrics()
    parts: dict[str, list[str]] = {"shares": [], "others": []}
    for key in keys:
        usual = "shares" if metrics[key].unit == "%" else "others"
        parts.setdefault(dense.get(key, usual), []).append(key)
    # A kind of dense task may have more than a row of panels has room for: bytes beside angles.
    pieces = [keys for kind, keys in parts.items() if kind in ("shares", "others")]
    for kind, keys in parts.items():
        if kind not in ("shares", "others"):
            pieces += [keys[at : at + MOST_OF_A_KIND] for at in range(0, len(keys), MOST_OF_A_KIND)]
    return list(filter(None, pieces))


def describe_scout(scout: Mapping[str, Any]) -> str:
    """What the scout of a run cost beside the training of the tree that it decided on."""
    return (
        f"scout: {scout['steps']:,} steps at {format_size(scout['multiply_adds'])} multiply-adds, {format_size(scout['weights'])} weights "
        f"({scout['directory']}); scout and tree together took {scout['cost_in_all']:.2f} times the multiply-adds of training the tree"
    )


def describe_best(summary: Mapping[str, Any]) -> str:
    """Which evaluation on val was the best, what the run made of it, and whether patience ended it."""
    best = summary["best"]
    if best["value"] is None:  # the metric was undefined
        return f"no evaluation on val has a value of {best['metric']}"
    told = f"best on val: {best['metric']} {best['value']:.4g} after step {best['iteration']:,} of {summary['iterations']:,}"
    if best["is_kept"]:
        told += ", whose weights are kept"
    if "ended_by" in summary:
        told += f"; {summary['ended_by']} ended the run"
    return told


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
    keys = select_metrics([part["mean"] for part in parts.values()])
    return render_rich(
        cells, f"Means over the tasks of each data set, {split} split, {describe_units(keys)}"
    )


def describe_means(means: Mapping[str, float | None]) -> dict[str, str]:
    """The means of an evaluation as texts by metric, without those that few data sets have and this one has not.

    Of the many metrics of a dense task one stands for it.
    """
    metrics, dense = list_metrics(), list_dense_metrics()
    keys = select_metrics([means])
    shown = [key for key in keys if key not in dense or metrics[key].is_drawn]
    return {key: format_value(key, means.get(key)) for key in shown}


# ---- a sweep, a data set


def make_front_table(directory: Path) -> Table:
    """The settings on the Pareto front of any cost, chosen on val, cheapest first."""
    from distbranch.report.sweep_files import (
        FRONT,
        TIED,
        read_sweep,
        tabulate_points,
    )

    sweep = read_sweep(directory)
    points = sweep.points
    # no deviations of the costs: names need the room
    cells = tabulate_points(sweep, points.drop(columns=[f"{cost}_sd" for cost in sweep.costs]))
    marks = f"{FRONT}|{TIED}"
    is_best = cells.apply(lambda row: row.str.contains(marks).any(), axis="columns")
    shown = points[is_best].sort_values("multiply_adds").head(MOST_SETTINGS).index
    cells = cells.loc[shown].drop(columns="no.").map(lambda text: text.replace(" ", ""))
    title = f"Pareto fronts ({FRONT}), chosen on val: mean {describe_metric(sweep.metric)}"
    if cells.apply(lambda row: row.str.contains(TIED).any(), axis="columns").any():
        title += f"; {TIED} a better one may be as fast"
    return render_rich(cells, title, num_names=len(sweep.keys))


def describe_dataset(info: DatasetInfo) -> list[str]:
    """What is in a packed data set: samples per split, tasks by kind, the size of images, and what was left out."""
    by_kind: dict[str, list[Task]] = {"binary": [], "categorical": []}
    for task in info.tasks:
        by_kind.setdefault(task.kind, []).append(task)
    texts = [_describe_kind(kind, tasks) for kind, tasks in by_kind.items()]
    height, width = info.image_size
    lines = [
        "samples: "
        + ", ".join(f"{split.num_samples:,} {name}" for name, split in info.splits.items()),
        "tasks: " + ", ".join(filter(None, texts)),
        f"images: {height}x{width} pixels (height x width of the first)",
    ]
    lines += describe_maps(info)
    if info.skipped:
        lines.append(
            "left out: " + ", ".join(f"{count:,} {what}" for what, count in info.skipped.items())
        )
    return lines


def describe_maps(info: DatasetInfo) -> list[str]:
    """What the labels of every dense task are, in train or else the first split: by them wrong classes and units are seen."""
    split = "train" if "train" in info.splits else next(iter(info.splits))
    texts = []
    for task in list_dense_tasks(info.tasks):
        counts = info.splits[split].labels[task.name]
        texts.append(get_dense_kind(task).describe_counts(task, counts))
    return [f"{split}, {text}" for text in filter(None, texts)]


def _describe_kind(kind: str, tasks: Sequence[Task]) -> str:
    if not tasks:
        return ""
    exclusive = Counter(task.exclusive for task in tasks if task.exclusive)
    details = [f"{count} of the exclusive set {name}" for name, count in exclusive.items()]
    details += filter(None, map(KINDS[kind].describe_task, tasks))
    return f"{len(tasks)} {kind} ({', '.join(details)})" if details else f"{len(tasks)} {kind}"
