"""A sweep that is asked to stop does not wait for trials that nobody trains."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from rank_server import RankServer
from tiny_runs import config_of

from distbranch.config import load_config


def stop_a_sweep(config: dict[str, Any], is_trained: bool) -> dict[str, Any]:
    """A job: two signals' worth of a driver whose only trial waits for room, or is being trained for a while."""
    from distbranch.engine.run_directory import RunDirectory
    from distbranch.sweep import tuning
    from distbranch.sweep.queue import FamilyQueue
    from distbranch.sweep.trial_status import SweepDirectory

    tuning.SECONDS_TO_BEGIN = 0.5
    trial = load_config(config)
    directory = SweepDirectory(trial.run_directory.parent, trial.run_directory.parent)
    events: list[dict[str, Any]] = []
    queue = FamilyQueue(
        [[trial]],
        ready=lambda root: [root],
        directory=directory,
        concurrency=1,
        report=events.append,
    )
    assert queue.suggest("first") is not None
    files, ended = RunDirectory(trial.run_directory), threading.Event()
    seconds = 2.0 if is_trained else 600.0

    def tune() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        if is_trained:
            with files.locked():
                ended.wait(seconds)  # as long as a checkpoint takes
        else:
            ended.wait(seconds)

    began = time.monotonic()
    stopped = tuning.wait_for_tuner(threading.Thread(target=tune, daemon=True), queue)
    return {
        "kind": type(stopped).__name__,
        "waited": time.monotonic() - began >= seconds,
        "asked": files.stop_word.exists(),
        "told": [event["kind"] for event in events],
    }


def test_a_trial_that_waits_for_room_is_not_awaited(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = ranks.call(stop_a_sweep, config=config_of(tiny_data, tmp_path), is_trained=False)
    assert found == {
        "kind": "StoppedEarly",
        "waited": False,
        "asked": False,
        "told": ["begun", "stopping"],
    }


def test_a_trial_that_is_being_saved_is_awaited(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = ranks.call(stop_a_sweep, config=config_of(tiny_data, tmp_path), is_trained=True)
    assert found == {
        "kind": "StoppedEarly",
        "waited": True,
        "asked": True,
        "told": ["begun", "stopping"],
    }
