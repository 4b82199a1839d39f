"""The gauges of a run as Prometheus reads them, and as metrics.jsonl says that they should be."""

import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tiny_runs import lines_of

from distbranch.engine.gauges import GAUGES

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values_of(text: str, prefix: str = "") -> Values:
    """Of the gauges of a run in a text for Prometheus: name and labels without those of the run, and value."""
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(prefix)
            if name in GAUGES:
                own = {key: sample.labels[key] for key in GAUGES[name][1]}
                found[name.removeprefix("distbranch_"), frozenset(own.items())] = sample.value
    return found


def expected_values(run: Path) -> Values:
    """The same as metrics.jsonl has them at its end, but for times."""
    lines = lines_of(run / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"][-1]
    alone = train["seconds_alone"]
    slowest = {"rank": str(alone["rank"]), "host": alone["host"]}
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
        ("iteration", ()): train["iteration"],
        ("iterations", ()): json.loads((run / "result.json").read_text())["iterations"],
        ("loss", ()): train["loss"],
        ("samples_per_second", ()): train["samples_per_second"],
        ("data_wait_ratio", ()): train["data_wait"],
        ("median_rank_seconds", ()): alone["median"],
        ("slowest_rank_seconds", tuple(slowest.items())): alone["slowest"],
        ("resumes", ()): len([line for line in lines if line["kind"] == "resumed"]),
    }
    for layer, width in train["branches"].items():
        found["branches", (("layer", layer),)] = width
    for line in lines:
        if line["kind"] == "evaluation":
            for metric, value in line["mean"].items():
                labels = (("split", line["split"]), ("metric", metric))
                if value is not None:
                    found["score", labels] = value
    return {(name, frozenset(labels)): value for (name, labels), value in found.items()}


def take_times(values: Values) -> dict[str, float]:
    """Take those gauges out that are times."""
    return {
        name: values.pop((name, frozenset()))
        for name, _ in list(values)
        if name.endswith("_timestamp_seconds")
    }
