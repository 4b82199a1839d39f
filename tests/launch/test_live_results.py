"""Table and page of a sweep while it runs, with a driver that is this test: what a trial that ends changes at once."""

import csv
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_files import write_sweep

from distbranch.config import Config
from distbranch.config.sweep import SweepConfig, load_sweep
from distbranch.launch.jobs import read_summary
from distbranch.sweep import live_results, results
from distbranch.sweep.live_results import LiveResults, choose_pause
from distbranch.sweep.plan import list_trials
from distbranch.sweep.trial_status import FAILED, FINISHED, SweepDirectory

Events = list[dict[str, Any]]


class Driven:
    """A sweep of four trials, and what its driver is told."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        grid = {"model.width": [2, 3], "optim.lr": [0.01, 0.02]}
        self.sweep: SweepConfig = load_sweep(write_sweep(folder, grid=grid, **keys))
        self.trials: list[Config] = list_trials(self.sweep)
        self.directory = SweepDirectory(self.sweep.path)
        self.directory.path.mkdir(parents=True)
        self.directory.record_sweep(self.sweep)
        self.events: Events = []
        self.live = LiveResults(self.sweep, self.trials, self.directory, self.events.append)

    def finish(self, number: int, value: float | None) -> dict[str, Any]:
        """Let a trial finish with this value of the sweep's metric on val; what is told of it."""
        config = self.trials[number]
        config.run_directory.mkdir(parents=True, exist_ok=True)
        means = {self.sweep.metric: value}
        summary = {"metrics": {"val": {"mean": means}}, "parameters": 10, "seconds": 1.0}
        (config.run_directory / "result.json").write_text(json.dumps(summary))
        return self.end(number, FINISHED)

    def end(self, number: int, status: str) -> dict[str, Any]:
        name = self.trials[number].run.name
        self.live({"kind": "ended", "trial": name, "status": status, "reason": ""})
        return self.events[-1]

    def statuses(self) -> list[str]:
        with self.directory.results.open(newline="") as file:
            return [row["status"] for row in csv.DictReader(file)]


@pytest.fixture
def awaited(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bool]], None]:
    """Lets pages follow each other at once, and waits until something holds."""
    monkeypatch.setattr(live_results, "SECONDS_BETWEEN_PAGES", 0.0)
    monkeypatch.setattr(live_results, "SHARE_OF_TIME", 1e9)

    def wait(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.02)

    return wait


def test_every_trial_that_ends_brings_table_and_page_up_to_date(
    tmp_path: Path, awaited: Callable[[Callable[[], bool]], None]
) -> None:
    driven = Driven(tmp_path)
    page = driven.directory.path / "report.html"
    with driven.live.rewritten():
        awaited(page.exists)
        assert driven.statuses() == ["unfinished"] * 4
        driven.finish(1, 0.7)
        awaited(lambda: driven.statuses()[1] == "finished")
        awaited(lambda: "70.0" in page.read_text())
        driven.directory.record_end(str(driven.trials[2].run.name), FAILED, "lost")
        driven.end(2, FAILED)
        awaited(lambda: driven.statuses() == ["unfinished", "finished", "failed", "unfinished"])
    assert not list(driven.directory.path.glob(".re*")), "nothing half written is left"


@pytest.mark.parametrize(
    ("metric", "bests"),
    [("average_precision", [0.5, 0.7, 0.7]), ("standardised_error", [0.5, 0.5, 0.4])],
)
def test_a_trial_that_finished_is_told_with_its_value_and_the_best_so_far(
    metric: str, bests: list[float], tmp_path: Path
) -> None:
    driven = Driven(tmp_path, metric=metric)
    told = [driven.finish(number, value) for number, value in enumerate((0.5, 0.7, 0.4))]
    assert [event["value"] for event in told] == [0.5, 0.7, 0.4]
    assert [event["best"] for event in told] == bests
    names = [config.run.name for config in driven.trials]
    assert told[1]["best_trial"] == names[bests[1] == 0.7]
    assert "value" not in driven.finish(3, None), "undefined on val"
    assert "value" not in driven.end(3, FAILED)


def test_what_earlier_drivers_have_reached_counts_for_the_best(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.finish(0, 0.9)
    again = LiveResults(driven.sweep, driven.trials, driven.directory, driven.events.append)
    driven.live = again
    with again.rewritten():
        assert driven.finish(1, 0.6)["best"] == 0.9


def test_the_result_of_a_finished_trial_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven, read = Driven(tmp_path), []

    def count(files: Any) -> Any:
        read.append(files.path.name)
        return read_summary(files)

    monkeypatch.setattr(results, "read_summary", count)
    driven.finish(0, 0.5)
    driven.finish(1, 0.6)
    first, second = driven.live.make_rows(), driven.live.make_rows()
    assert first == second
    assert len(read) == 2


def test_a_page_that_cannot_be_written_is_warned_of_once_and_ends_nothing(
    tmp_path: Path,
    awaited: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[Path] = []

    def fail(path: Path, _: Path) -> Path:
        tried.append(path)
        raise OSError("no space")

    monkeypatch.setattr(live_results, "report_sweep", fail)
    driven = Driven(tmp_path)
    with caplog.at_level(logging.WARNING, "distbranch"), driven.live.rewritten():
        awaited(lambda: len(tried) == 1)
        driven.finish(0, 0.5)
        awaited(lambda: len(tried) == 2)
        awaited(lambda: driven.statuses()[0] == "finished")
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "Table and page of the sweep cannot be brought up to date"
    ]


def test_a_damaged_result_is_a_trial_that_failed_and_neither_ends_the_sweep_nor_hides_the_others(
    tmp_path: Path,
    awaited: Callable[[Callable[[], bool]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driven = Driven(tmp_path)
    damaged = driven.trials[1].run_directory / "result.json"
    monkeypatch.setattr(results, "measure_latencies", lambda *_: json.loads("{"))
    with driven.live.rewritten():
        awaited(driven.directory.results.exists)
        driven.finish(0, 0.5)
        damaged.parent.mkdir()
        damaged.write_text('{"metrics": {')
        assert "value" not in driven.end(1, FINISHED)
        assert driven.finish(2, 0.6)["best"] == 0.6
        awaited(lambda: driven.statuses() == [FINISHED, FAILED, FINISHED, "unfinished"])
    rows = driven.live.make_rows()
    assert "is damaged" in rows[1]["reason"]
    assert "Remove result.json there" in rows[1]["reason"]
    results.write_results(rows, driven.directory)
    assert driven.statuses() == [FINISHED, FAILED, FINISHED, "unfinished"]


def test_a_page_that_takes_long_comes_seldom_and_none_more_often_than_every_ten_seconds() -> None:
    assert choose_pause(0.2) == 10
    assert choose_pause(6) == 60
