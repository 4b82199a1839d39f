"""What every Ray worker runs, and the words between workers and driver.

Events go through a file of the run directory, a stop word the other way; how the run ended goes through Ray, since it
may be the storage that failed.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbranch.config import load_config
from distbranch.engine.contact import LostRankError
from distbranch.engine.metrics import Event, Report
from distbranch.engine.results import StoppedEarly
from distbranch.engine.run_directory import RunDirectory, append_line, write_aside
from distbranch.engine.session import train_rank
from distbranch.errors import SharedError, UserError
from distbranch.launch.stopping import stop_word

logger = logging.getLogger("distbranch")
SECONDS_BETWEEN_LOOKS = 0.5
NAMESPACE = b"distbranch"


def work(loop: dict[str, Any]) -> None:
    """What every Ray worker runs; `loop` holds the config and the folder of this attempt."""
    config = load_config(loop["config"])
    attempt = Path(loop["attempt"])
    if ending(attempt):  # Ray restarts the workers after any error; this one is not for restarts to mend
        return
    rank = int(os.environ.get("RANK", "0"))
    asked = stop_word(RunDirectory(config.run_directory).stop_word)
    replaced = _replaced(attempt.parent / "leader") if rank == 0 else _never

    def report(event: Event) -> None:
        with suppress(OSError):  # what is lost is a line on the terminal; the run's own files tell of failing storage
            append_line(attempt / "events.jsonl", event)

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


def ending(attempt: Path) -> dict[str, str]:
    """How the workers of an attempt ended, in their own words: `kind` and `message`; empty if they did not say."""
    from ray.experimental.internal_kv import _internal_kv_get

    value = _internal_kv_get(_key(attempt), namespace=NAMESPACE)
    return json.loads(value) if value else {}


def forget_ending(attempt: Path) -> None:
    """Take the word of an attempt out of Ray's memory."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(_key(attempt), namespace=NAMESPACE)


def _end(attempt: Path, kind: str, message: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    word = json.dumps({"kind": kind, "message": message}).encode()
    _internal_kv_put(_key(attempt), word, overwrite=False, namespace=NAMESPACE)  # the first rank's word counts


def _key(attempt: Path) -> bytes:
    return f"ending {attempt}".encode()


def _replaced(leader: Path) -> Callable[[], bool]:
    """Whether another rank 0 has begun since: that of a driver started again while its old workers were still dying."""
    own, looked = secrets.token_hex(8), time.monotonic()
    write_aside(leader, own)

    def replaced() -> bool:
        nonlocal looked
        if time.monotonic() - looked < SECONDS_BETWEEN_LOOKS:
            return False
        looked = time.monotonic()
        try:
            return leader.read_text() != own
        except OSError:
            return False

    return replaced


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
