"""Training in this process: alone, or as one of the processes that torchrun started."""

import os

from distbranch.config import Config
from distbranch.engine.results import RunResult, StoppedEarly
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_log import Report
from distbranch.engine.session import train_rank
from distbranch.launch.drawing import log_decision
from distbranch.launch.on_ray.gauges import find_ray_gauges
from distbranch.launch.stopping import StopRequest, check_twice_a_second
from distbranch.track import track_run


def train_here(config: Config, report: Report) -> RunResult:
    """Train as the rank that this process is.

    Raises:
        StoppedEarly: after SIGTERM, SIGUSR2, SIGHUP or a stop word.
        Interrupted: after Ctrl-C.
    """
    files = RunDirectory(config.run_directory)
    first = os.environ.get("RANK", "0") == "0"
    request = StopRequest()
    asked = check_twice_a_second(files.stop_word.exists)

    def train() -> RunResult:
        # Of several ranks the first alone has something to report.
        with track_run(config, report, log_decision, find_ray_gauges()) as (own_report, draw):
            return train_rank(
                config,
                report=own_report,
                draw=draw,
                should_stop=lambda: request() or (first and asked()),
            )

    def locked() -> RunResult:
        # Of the ranks on one machine only one can hold the lock.
        if not first:
            return train()
        with files.locked():
            files.stop_word.unlink(missing_ok=True)
            return train()

    with request.receive_signals():
        try:
            return locked()
        except StoppedEarly as stopped:
            raise request.make_error(str(stopped), by_one_rank=stopped.by_one_rank) from None
