"""A driver that waits for what its cluster does not have ends at a signal; Ray itself would wait for hours."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import config_of

from distbranch.errors import StoppedEarly
from distbranch.launch.on_ray.train import NOTHING_BEGUN

pytestmark = pytest.mark.cluster


def signal_when(is_time: Any, number: int) -> None:
    """Send a signal to this process as soon as something holds."""

    def send() -> None:
        while not is_time():
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def wait_for_nodes(config: dict[str, Any], number: int) -> dict[str, Any]:
    """A job: a driver that waits for a GPU that no node has."""
    from distbranch.config import load_config
    from distbranch.launch.on_ray import train as ray_train
    from distbranch.launch.prepare import prepare_run

    resolved = prepare_run(load_config(config), fresh=False, report=print)
    launch = resolved.launch.model_copy(update={"device": "cuda"})
    told: list[dict[str, Any]] = []
    signal_when(lambda: told, number)
    try:
        ray_train.train_on_ray(resolved.model_copy(update={"launch": launch}), told.append)
    except StoppedEarly as stopped:
        return {"code": stopped.exit_code, "message": str(stopped)}
    return {}


def wait_for_room(config: dict[str, Any], number: int) -> dict[str, Any]:
    """A job: a driver whose workers need what is not there by the time that they are to begin."""
    from distbranch.config import load_config
    from distbranch.launch.on_ray import train as ray_train
    from distbranch.launch.prepare import prepare_run

    needed = ray_train.get_worker_resources
    ray_train.get_worker_resources = lambda launch, *, gpu: {
        **needed(launch, gpu=gpu),
        "nowhere": 1.0,
    }
    started = threading.Event()
    real = ray_train._make_trainer

    def trainer(*given: Any) -> Any:
        started.set()
        return real(*given)

    ray_train._make_trainer = trainer
    signal_when(started.is_set, number)
    try:
        ray_train.train_on_ray(prepare_run(load_config(config), fresh=False, report=print), print)
    except StoppedEarly as stopped:
        return {"code": stopped.exit_code, "message": str(stopped)}
    return {}


# A signal of each kind, each in one of the two: which number it becomes is tested in test_ending.
def test_a_driver_that_waits_for_nodes_ends_at_a_signal(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(
        tiny_data, tmp_path, **{"launch.workers": 2, "launch.wait_for_nodes_min": 10}
    )
    found = ranks.call(wait_for_nodes, config=config, number=int(signal.SIGTERM))
    assert found == {"code": 75, "message": NOTHING_BEGUN}


def test_a_driver_whose_workers_find_no_room_ends_at_a_signal(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"launch.workers": 2})
    found = ranks.call(wait_for_room, config=config, number=int(signal.SIGINT))
    assert found == {"code": 130, "message": NOTHING_BEGUN}
