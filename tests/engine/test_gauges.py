"""Gauges of a run: the text that Prometheus reads has the values of metrics.jsonl, and the slowest rank is found."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_text import expected_values, take_times, values_of
from rank_server import RankServer
from tiny_runs import config_of, lines_of, train_tiny

from distbranch.engine.checkpoint import list_checkpoints
from distbranch.engine.gauges import GAUGES, Gauge, describe_slowest, format_gauges
from distbranch.engine.run_directory import RunDirectory

SLOWER_S = 0.3  # than a busy machine makes one rank by chance


def train_with_a_slow_rank(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: train; rank 1 takes longer for every step."""
    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def step(self: TrainingStep, *batch: Any) -> None:
        if self.ranks.rank == 1:
            time.sleep(SLOWER_S)
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    return train_tiny(config)


def test_the_text_has_the_values_of_metrics_jsonl_and_names_the_slow_rank(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    # Whole groups of norm on each rank: else they wait for each other in the middle of the forward pass.
    changes = {"launch.workers": 2, "train.iterations": 8, "track": [], "train.norm_batch": 6}
    config = config_of(tiny_data, tmp_path, **changes)
    before = time.time()
    ended = ranks.call_all(train_with_a_slow_rank, 2, config=config)
    assert {one["end"] for one in ended} == {"done"}, ended
    run = tmp_path / "tiny"
    assert not (run / "tensorboard").exists()

    text = (run / "metrics.prom").read_text()
    values = values_of(text)
    times = take_times(values)
    assert values == expected_values(run)
    newest = list_checkpoints(RunDirectory(run).checkpoints)[-1]
    assert times["checkpoint_timestamp_seconds"] == newest.stat().st_mtime
    assert before < times["logged_timestamp_seconds"] < time.time()
    assert {family.name for family in text_string_to_metric_families(text)} == set(GAUGES)
    assert {family.type for family in text_string_to_metric_families(text)} == {"gauge"}

    for line in lines_of(run / "metrics.jsonl", "train"):
        alone = line["seconds_alone"]
        assert alone["rank"] == 1
        assert alone["slowest"] >= SLOWER_S


def test_names_with_any_sign_are_read_back_as_they_were() -> None:
    labels = {"run": 'a "b"\\n\nc', "sweep": "", "layer": "ü"}
    text = format_gauges([Gauge("distbranch_branches", labels, 0.1 + 0.2)])
    ((sample,),) = [family.samples for family in text_string_to_metric_families(text)]
    assert sample.labels == labels
    assert sample.value == 0.1 + 0.2


def test_the_slowest_rank_is_named_with_its_host() -> None:
    found = describe_slowest([0.1, 0.4, 0.2], ["a", "b", "c"])
    assert found == {"median": 0.2, "slowest": 0.4, "rank": 1, "host": "b"}
