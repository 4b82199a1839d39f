"""What every Ray worker runs, and the words between workers and driver.

Events, the word to stop and how the run ended all go through Ray, since it may be the storage that failed, and a run directory at
a URL is another folder on every node.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distbranch.config import load_config
from distbranch.engine.lost_ranks import LostRankError
from distbranch.engine.results import StoppedEarly
from distbranch.engine.run_directory import RunDirectory, write_atomically
from distbranch.engine.run_log import Event, Report
from distbranch.engine.session import train_rank
from distbranch.errors import SharedError, UserError
from distbranch.launch.stopping import looked_up_at_times
from distbranch.streams import tolerate_any_text

logger = logging.getLogger("distbranch")
NAMESPACE = b"distbranch"


def work(loop: dict[str, Any]) -> None:
    """What every Ray worker runs; `loop` holds the config and the name of this attempt."""
    tolerate_any_text()
    config, attempt = load_config(loop["config"]), str(loop["attempt"])
    if ending(attempt):  # Ray restarts the workers after any error; this one is not for restarts to mend
        return
    _put("begun", attempt, {"begun": True})
    rank = int(os.environ.get("RANK", "0"))
    asked = looked_up_at_times(lambda: bool(_get("stop", attempt)))
    replaced = _replaced(RunDirectory(config.run_directory).path / "ray" / "leader") if rank == 0 else _never

    def report(event: Event) -> None:
        _put("event", f"{attempt} {time.time_ns():020d}", event)

    def should_stop() -> bool:
        if replaced():
            raise LostRankError("Other workers have taken over this run.")
        return rank == 0 and asked()

    from distbranch.report.tensorboard import log_decision

    if rank == 0:
        logger.handlers, logger.propagate = [_EventHandler(report)], False
    try:
        train_rank(config, report=report, draw=log_decision, should_stop=should_stop)
    except StoppedEarly as stopped:
        _end(attempt, "stopped", str(stopped))
    except LostRankError:
        raise  # Ray starts all ranks anew
    except UserError as error:
        _end(attempt, "failed", str(error))
        if not isinstance(error, SharedError):
            raise  # the other ranks know nothing of it and wait: Ray ends them


def ask_to_stop(attempt: str) -> None:
    """Tell the workers of an attempt to save everything and stop."""
    _put("stop", attempt, {"asked": True})


def has_begun(attempt: str) -> bool:
    """Whether any worker of an attempt has ever begun."""
    return bool(_get("begun", attempt))


def new_events(attempt: str) -> Iterator[Event]:
    """What rank 0 reported since the last look."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list

    for key in sorted(_internal_kv_list(f"event {attempt} ", namespace=NAMESPACE)):
        yield json.loads(_internal_kv_get(key, namespace=NAMESPACE))
        _internal_kv_del(key, namespace=NAMESPACE)


def ending(attempt: str) -> dict[str, str]:
    """How the workers of an attempt ended, in their own words: `kind` and `message`; empty if they did not say."""
    return _get("ending", attempt)


def forget(attempt: str) -> None:
    """Take the words of an attempt out of Ray's memory."""
    from ray.experimental.internal_kv import _internal_kv_del

    for what in ("begun", "ending", "stop", "event"):
        _internal_kv_del(f"{what} {attempt}", del_by_prefix=True, namespace=NAMESPACE)


def _end(attempt: str, kind: str, message: str) -> None:
    _put("ending", attempt, {"kind": kind, "message": message})  # the first rank's word counts


def _put(what: str, name: str, value: dict[str, Any]) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(f"{what} {name}", json.dumps(value), overwrite=False, namespace=NAMESPACE)


def _get(what: str, name: str) -> dict[str, Any]:
    from ray.experimental.internal_kv import _internal_kv_get

    value = _internal_kv_get(f"{what} {name}", namespace=NAMESPACE)
    return json.loads(value) if value else {}


def _replaced(leader: Path) -> Callable[[], bool]:
    """Whether another rank 0 has begun since: that of a driver started again while its old workers were still dying."""
    own = secrets.token_hex(8)
    leader.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(leader, own)

    def replaced() -> bool:
        try:
            return leader.read_text() != own
        except OSError:
            return False

    return looked_up_at_times(replaced)


def _never() -> bool:
    return False


class _EventHandler(logging.Handler):
    """Log records as events, so that warnings of rank 0 reach the terminal of the driver."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Report one record."""
        self.report({"kind": "warning", "message": record.getMessage()})
