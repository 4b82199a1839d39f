"""What a Ray Tune trial does: train one run in its own run directory, from wherever that directory stands.

One worker trains in this process; several are an inner Ray trainer, which nobody but its own stop word may end.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.results import StoppedEarly, read_result
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_log import Event, Report
from distbranch.errors import UserError
from distbranch.locks import hold_lock
from distbranch.streams import tolerate_any_text
from distbranch.sweep.shared_prefix import share_result

SECONDS_UNTIL_A_LOST_OWNER_LETS_GO = 60
logger = logging.getLogger("distbranch")


def tune_function(metric: str) -> Callable[[dict[str, Any]], None]:
    """The function of one sweep; `metric` is the mean over tasks on val that is reported for early stopping."""

    def train_leader(work: dict[str, Any]) -> None:
        from ray import tune

        from distbranch.report.tensorboard import log_decision

        def report(event: Event) -> None:
            if event["kind"] == "decision":
                tune.report({"kind": "decision"})
            value = (
                event.get("mean", {}).get(metric) if event["kind"] == "evaluation" and event["split"] == "val" else None
            )
            if value is not None:
                tune.report({"kind": "evaluation", "iteration": event["iteration"], "value": value})

        tolerate_any_text()
        reason = None
        try:
            config = load_config(json.loads(work["leader"]))
            train_trial(config, report)
            share_result(config, log_decision)
        except UserError as error:  # trying again would not help; any other error is Tune's, which does try again
            reason = str(error)
        except StoppedEarly:
            pass
        tune.report({"kind": "ended", "reason": reason})

    return train_leader


def train_trial(config: Config, report: Report) -> None:
    """Train one run to its end, or go on with it; a finished one is left alone.

    Raises:
        UserError: what stopped it.
        StoppedEarly: by its stop word; a checkpoint holds everything.
    """
    files = RunDirectory(config.run_directory)
    files.begin(config)
    if read_result(files.path) is not None:
        return
    _wait_for_lock(files.lock)
    with _log_to(files.path / "log.txt"):
        if config.launch.most_workers > 1:
            from distbranch.launch.on_ray.train import train_on_ray

            train_on_ray(config, report)
        else:
            from distbranch.launch.local import train_here

            train_here(config, report)


def _wait_for_lock(path: Path) -> None:
    """A process whose driver was killed may hold the run for some seconds more."""
    with hold_lock(path, patience_s=SECONDS_UNTIL_A_LOST_OWNER_LETS_GO):
        pass


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Warnings of this run go to a file of it; the process may train another one afterwards."""
    before, propagate = logger.handlers, logger.propagate
    handler = logging.FileHandler(path, delay=True, encoding="utf-8", errors="replace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate
        handler.close()
