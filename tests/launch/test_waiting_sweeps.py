"""A sweep that is asked to stop does not wait for trials that nobody trains."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import config_of

from distbranch.config import load_config

SECONDS_TO_SAVE = 2.0


def stop_a_waiting_sweep(config: dict[str, Any]) -> dict[str, Any]:
    """A job: a driver that hears a signal while Ray waits for room for its only trial."""
    from distbranch.engine.results import StoppedEarly
    from distbranch.engine.run_directory import RunDirectory
    from distbranch.launch.on_ray.cluster import open_cluster

    trial = load_config(config)
    events: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "begun":
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGHUP)).start()

    with open_cluster(trial.launch):
        from distbranch.sweep import tuning
        from distbranch.sweep.queue import FamilyQueue
        from distbranch.sweep.trial_status import SweepDirectory

        tuning.SECONDS_TO_BEGIN = 0.5
        folder = trial.run_directory.parent
        queue = FamilyQueue(
            [[trial]],
            ready=lambda root: [root],
            directory=SweepDirectory(folder, folder),
            concurrency=1,
            report=report,
        )
        try:
            tuning.run_tune(lambda _: None, queue, resources={"CPU": 1000.0}, max_failures=0)
        except StoppedEarly:
            return {
                "tunes": tuning.NAME_OF_THREAD in [one.name for one in threading.enumerate()],
                "asked": RunDirectory(trial.run_directory).stop_word.exists(),
                "told": [event["kind"] for event in events],
            }
    return {}


def stop_a_saving_sweep(config: dict[str, Any]) -> dict[str, Any]:
    """A job: a driver that hears a signal while somebody trains its only trial, for as long as a checkpoint takes."""
    from distbranch.engine.run_directory import RunDirectory
    from distbranch.sweep import tuning
    from distbranch.sweep.queue import FamilyQueue
    from distbranch.sweep.trial_status import SweepDirectory

    tuning.SECONDS_TO_BEGIN = 0.5
    trial = load_config(config)
    folder = trial.run_directory.parent
    events: list[dict[str, Any]] = []
    queue = FamilyQueue(
        [[trial]],
        ready=lambda root: [root],
        directory=SweepDirectory(folder, folder),
        concurrency=1,
        report=events.append,
    )
    assert queue.suggest("first") is not None
    files = RunDirectory(trial.run_directory)

    def tune() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        with files.locked():
            time.sleep(SECONDS_TO_SAVE)

    began = time.monotonic()
    stopped = tuning.wait_for_tuner(threading.Thread(target=tune, daemon=True), queue)
    return {
        "kind": type(stopped).__name__,
        "waited": time.monotonic() - began >= SECONDS_TO_SAVE,
        "abandoned": queue.abandoned,
        "asked": files.stop_word.exists(),
        "told": [event["kind"] for event in events],
    }


@pytest.mark.cluster
def test_a_trial_that_waits_for_room_is_not_awaited(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = ranks.call(stop_a_waiting_sweep, config=config_of(tiny_data, tmp_path))
    # A thread that asks Ray when it was shut down would end the process without a word.
    assert (found["tunes"], found["asked"]) == (False, False)
    assert found["told"][:2] == ["begun", "stopping"]


def test_a_trial_that_is_being_saved_is_awaited(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = ranks.call(stop_a_saving_sweep, config=config_of(tiny_data, tmp_path))
    assert found == {
        "kind": "StoppedEarly",
        "waited": True,
        "abandoned": False,
        "asked": True,
        "told": ["begun", "stopping"],
    }
