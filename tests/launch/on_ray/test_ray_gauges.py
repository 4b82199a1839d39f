"""What Ray's metrics agent tells Prometheus of a run on two workers."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_text import expected_values, take_times, values_of
from rank_server import RankServer
from tiny_runs import config_of, train_tiny

from distbranch.engine.gauges import Gauge
from distbranch.launch.on_ray import gauges


def scraped_work(loop: dict[str, Any]) -> None:
    """What a Ray worker runs here: at its end rank 0 waits until the agent was asked."""
    import time

    from distbranch.engine.results import RunFiles
    from distbranch.launch.on_ray import worker as ray_worker

    marks = Path(loop["attempt"]).parents[2]
    real = RunFiles.write_end

    def write_end(self: RunFiles, *arguments: Any) -> Any:
        (marks / "ready").touch()
        while not (marks / "scraped").exists():
            time.sleep(0.05)
        return real(self, *arguments)

    RunFiles.write_end = write_end  # type: ignore[method-assign]
    ray_worker.train_worker(loop)


def train_and_scrape(config: Mapping[str, Any], marks: str) -> dict[str, Any]:
    """A job: the driver; it asks the agents of all nodes for their text when all is logged, as Prometheus does."""
    import threading
    import time
    import urllib.request

    from distbranch.launch.on_ray import train as ray_train

    ray_train.train_worker = scraped_work
    here = Path(__file__)
    folders = (here.parents[3], here.parents[2], here.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, folders))  # of workers
    os.environ.update(RAY_metrics_report_interval_ms="500")

    def scrape() -> None:
        while not (Path(marks) / "ready").exists():
            time.sleep(0.1)
        import ray  # not before the run has: it sets what Ray reads then

        ports = [node["MetricsExportPort"] for node in ray.nodes()]
        text = ""
        while 'split="test"' not in text:  # the last that is logged
            time.sleep(0.2)
            answers = [
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read() for port in ports
            ]
            text = b"\n".join(answers).decode()
        (Path(marks) / "text").write_text(text)
        (Path(marks) / "scraped").touch()

    threading.Thread(target=scrape, daemon=True).start()
    return train_tiny(config)


def test_the_agent_of_ray_has_the_values_of_metrics_jsonl(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes = {"launch.workers": 2, "train.iterations": 12, "track": []}
    config = config_of(tiny_data, tmp_path, **changes)
    ended = ranks.run(train_and_scrape, config=config, marks=str(tmp_path), timeout_s=300)[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value

    found = values_of((tmp_path / "text").read_text(), prefix="ray_")
    # That of a rank which was the slowest before is no number any longer.
    found = {key: value for key, value in found.items() if value == value}
    written = values_of((tmp_path / "tiny" / "metrics.prom").read_text())
    assert found.keys() == written.keys()
    assert take_times(found) == take_times(written)
    assert found == written == expected_values(tmp_path / "tiny")


def test_a_process_that_trains_the_next_trial_says_no_more_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, float] = {}

    class KeptGauge:
        """What Ray's agent would have."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def set(self, value: float, tags: Mapping[str, str]) -> None:
            told[tags["run"]] = value

    monkeypatch.setattr("ray.util.metrics.Gauge", KeptGauge)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    gauges._make_gauges.cache_clear()
    for number, run in enumerate(("first", "second")):
        use_gauges = gauges.find_ray_gauges()
        assert use_gauges is not None
        use_gauges([Gauge("distbranch_iteration", {"run": run}, number)])
    gauges._make_gauges.cache_clear()
    assert math.isnan(told.pop("first"))
    assert told == {"second": 1}
