"""The numbers of a line of metrics.jsonl or policies.jsonl by name, as TensorBoard and every other tracker show them."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from distbranch.kinds import KINDS

Line = Mapping[str, Any]


def list_values(line: Line) -> dict[str, float]:
    """Names such as `train/loss`, `tree/conv4_1` or `val/average_precision` and their values; none of a line without numbers.

    Example:
        >>> list_values({"kind": "evaluation", "split": "val", "mean": {"accuracy": 0.5}, "tasks": {}})
        {'val/accuracy': 0.5}
    """
    lists = {"train": _list_training, "evaluation": _list_scores, "policy": _list_policy}
    kind = line["kind"]
    found = lists[kind](line) if kind in lists else {}
    return {name: value for name, value in found.items() if value is not None}


def _list_training(line: Line) -> dict[str, float | None]:
    keys = ("loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait")
    values = {f"train/{key}": line[key] for key in keys}
    values |= {f"train_loss/{task}": loss for task, loss in line["task_loss"].items()}
    for task, weight in line.get("loss_weights", {}).items():
        values[f"train_loss_weight/{task}"] = weight
    alone = line.get("seconds_alone", {})  # which lines of earlier versions lack
    for which in ("median", "slowest"):
        values[f"seconds_alone/{which}"] = alone.get(which)
    return values | {f"tree/{layer}": width for layer, width in line["branches"].items()}


def _list_scores(line: Line) -> dict[str, float | None]:
    split = line["split"]
    metrics = chain.from_iterable(kind.metrics.items() for kind in KINDS.values())
    drawn = dict.fromkeys(name for name, metric in metrics if metric.is_drawn)
    values = {f"{split}/{metric}": value for metric, value in line["mean"].items()}
    for name, part in line.get("datasets", {}).items():
        values |= {f"{split}_{name}/{metric}": value for metric, value in part["mean"].items()}
    for task, row in line["tasks"].items():
        for metric in drawn:
            values[f"{split}_{metric}/{task}"] = row.get(metric)
    return values


def _list_policy(line: Line) -> dict[str, float | None]:
    values: dict[str, float | None] = {
        f"policy/{key}": line[key] for key in ("num_released", "temperature")
    }
    for task, probabilities in zip(line["tasks"], line["execute_probability"], strict=True):
        values[f"policy_executes/{task}"] = sum(probabilities) / len(probabilities)
    columns = zip(*line["execute_probability"], strict=True)
    for block, column in zip(line["blocks"], columns, strict=True):
        values[f"policy_executed/{block}"] = sum(column) / len(column)
    return values
