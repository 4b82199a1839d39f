"""What every Ray worker runs, and the words between workers and driver.

Events, the word to stop and how the run ended all go through Ray, since it may be the storage that failed, and a run directory at
a URL is another folder on every node.
"""

import json
import os
import platform
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.lost_ranks import LostRankError
from distbranch.engine.results import StoppedEarly
from distbranch.engine.run_directory import RunDirectory, write_atomically
from distbranch.engine.run_log import Event
from distbranch.engine.session import train_rank
from distbranch.errors import SharedError, UserError
from distbranch.launch.drawing import log_decision
from distbranch.launch.on_ray.driver import forward_warnings
from distbranch.launch.on_ray.gauges import find_ray_gauges
from distbranch.launch.stopping import check_twice_a_second
from distbranch.plugins import receive_plugins
from distbranch.streams import tolerate_any_text

NAMESPACE = "distbranch"
LOST_BOARD = "The process through which driver and workers speak was lost, perhaps for lack of memory. The same command resumes."


def train_worker(loop: dict[str, Any]) -> None:
    """What every Ray worker runs; `loop` holds what it needs of the driver.

    These are the `config`, its `plugins`, which may lie on no other node, the driver's `argv` and the name of this `attempt`.
    """
    tolerate_any_text()
    sys.argv = loop["argv"]  # which a run writes down, and not how Ray starts a worker
    attempt = str(loop["attempt"])
    # Ray restarts the workers after any error; this one is not for restarts to mend.
    if ask_board(attempt, "get", "outcome"):
        return
    try:
        receive_plugins(loop["plugins"])
        config = load_config(loop["config"])
    except UserError as error:  # this node lacks what a plug-in imports, say
        message = f"On {platform.node()}: {error}"
        ask_board(attempt, "put", "outcome", {"kind": "failed", "message": message})
        raise
    ask_board(attempt, "put", "begun", True)

    # Rank 0 alone looks for the word to stop and for its successor, and tells the others with the next batch.
    rank = int(os.environ.get("RANK", "0"))
    should_stop = _make_stop_check(config, attempt) if rank == 0 else lambda: False

    def report(event: Event) -> None:
        ask_board(attempt, "add_event", json.dumps(event))

    from distbranch.track import track_run

    if rank == 0:
        # Warnings travel as events: what a worker writes to its own terminal ends in a file of Ray's.
        forward_warnings(lambda _, text: report({"kind": "warning", "message": text}))
    try:
        with track_run(config, report, log_decision, find_ray_gauges()) as (own_report, draw):
            train_rank(config, report=own_report, draw=draw, should_stop=should_stop)
    except StoppedEarly as stopped:
        ask_board(attempt, "put", "outcome", {"kind": "stopped", "message": str(stopped)})
    except LostRankError:
        raise  # Ray starts all ranks anew
    except UserError as error:
        ask_board(attempt, "put", "outcome", {"kind": "failed", "message": str(error)})
        if not isinstance(error, SharedError):
            raise  # the other ranks know nothing of it and wait: Ray ends them


@contextmanager
def open_board(attempt: str) -> Iterator[None]:
    """Hold the board of an attempt, on which driver and workers write for each other, while this block lasts.

    A named actor, so that it outlives any worker. It takes no CPU, so that it stands before any node is free, and it lives on
    the driver's own node, so that no other one takes it along when it dies.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": attempt, "namespace": NAMESPACE, "num_cpus": 0, "scheduling_strategy": here}
    # Not restarted: with its memory it would lose what was said, and whoever asks learns from the error that it is gone.
    board = ray.remote(_make_board_class()).options(**options).remote()
    try:
        yield
    finally:
        ray.kill(board)
        _find_board.cache_clear()


def _make_board_class() -> type:
    """Made in a function, so that Ray sends its source: the actor's process then starts without importing torch."""

    class Board:
        def __init__(self) -> None:
            self.words: dict[str, Any] = {}
            self.events: list[str] = []

        def put(self, what: str, value: Any) -> None:
            self.words.setdefault(what, value)  # of several ranks the first one's word counts

        def get(self, what: str) -> Any:
            return self.words.get(what)

        def add_event(self, event: str) -> None:
            self.events.append(event)

        def take_events(self) -> list[str]:
            taken = self.events
            self.events = []
            return taken

    return Board


@cache
def _find_board(attempt: str) -> Any:
    import ray

    return ray.get_actor(attempt, namespace=NAMESPACE)


def ask_board(attempt: str, method: str, *values: Any) -> Any:
    """The answer of the board of an attempt; awaited, so that a word stands there before its worker can be killed.

    The words: `begun` (a worker has), `stop` (the driver asks for it), `outcome` (`kind` and `message`: how the workers ended); and
    the events of rank 0 as JSON.

    Raises:
        LostRankError: the board is gone, mostly because the driver has ended: then Ray is about to end this worker too.
    """
    import ray

    try:
        return ray.get(getattr(_find_board(attempt), method).remote(*values))
    except (ray.exceptions.RayActorError, ValueError):  # a ValueError: no actor has that name
        raise LostRankError(LOST_BOARD) from None


def _make_stop_check(config: Config, attempt: str) -> Callable[[], bool]:
    """Whether rank 0 should stop.

    Raises (the check):
        LostRankError: another rank 0 has begun since, that of a driver started again while its old workers were still dying.
    """
    own = secrets.token_hex(8)
    leader = RunDirectory(config.run_directory).path / "ray" / "leader"
    leader.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(leader, own)

    def should_stop() -> bool:
        with suppress(OSError):  # storage that fails for a while replaces nobody
            if leader.read_text() != own:
                raise LostRankError("Other workers have taken over this run.")
        return bool(ask_board(attempt, "get", "stop"))

    return check_twice_a_second(should_stop)
