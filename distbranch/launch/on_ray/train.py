"""Training under Ray Train: Ray places the ranks and replaces lost ones; the run directory alone says where they resume."""

import json
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

from distbranch.config import Config
from distbranch.engine.process_group import uses_nccl
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.results import RunResult, read_result
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_log import Report
from distbranch.errors import UserError
from distbranch.launch.on_ray.address import find_last_line
from distbranch.launch.on_ray.cluster import (
    check_resources,
    check_storage,
    get_worker_resources,
    open_cluster,
    uses_gpu,
)
from distbranch.launch.on_ray.worker import ask_board, open_board, train_worker
from distbranch.launch.ray_folder import explain_full_folder
from distbranch.launch.stopping import StopRequest
from distbranch.plugins import send_plugins

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = 30  # for Ray's trainer, once the board is gone
NAME_OF_THREAD = "trainer"
NOTHING_BEGUN = "Stopped before any worker had begun. The same command continues."
NCCL_SECONDS_MORE = 60  # than gloo, which then is the first to say who is late


def train_on_ray(config: Config, report: Report) -> RunResult:
    """Train on `launch.workers` Ray workers, on a local cluster, the one at `launch.address` or that of this Ray job.

    Raises:
        UserError: resources that cannot be met, storage that a node does not see, or what stopped the ranks.
        StoppedEarly: after a signal to this process or a stop word.
        Interrupted: after Ctrl-C.
    """
    files = RunDirectory(config.run_directory)
    seconds_for_room, _ = _choose_patience(config)
    settings = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(seconds_for_room)}
    with files.locked(), open_cluster(config.launch, settings) as address:
        with StopRequest().receive_and_raise(NOTHING_BEGUN) as request:
            check_resources(config.launch, report, request)
            if address is not None:
                check_storage(config, request)
        files.stop_word.unlink(missing_ok=True)
        attempt = files.path / "ray" / time.strftime("%Y%m%d-%H%M%S")
        attempt.mkdir(parents=True, exist_ok=True)
        try:
            return _run_trainer(config, str(attempt), report)
        finally:
            if read_result(files.path) is not None:
                shutil.rmtree(files.path / "ray", ignore_errors=True)


def _run_trainer(config: Config, attempt: str, report: Report) -> RunResult:
    """Run the trainer in a thread, for this one receives the signals and passes on events and the word to stop."""
    files = RunDirectory(config.run_directory)
    failure: list[Exception] = []
    asked = False

    def fit() -> None:
        try:
            _make_trainer(config, attempt).fit()
        except Exception as error:  # of any kind: it is explained in this thread
            failure.append(error)

    thread = threading.Thread(target=fit, name=NAME_OF_THREAD, daemon=True)
    request = StopRequest()
    with ExitStack() as thread_ended, open_board(attempt):
        with request.receive_signals():
            thread.start()
            # Ray ends this process without a word if a thread comes back to it after it was shut down.
            thread_ended.callback(thread.join, SECONDS_TO_END)
            while thread.is_alive():
                thread.join(SECONDS_BETWEEN_LOOKS)

                # Pass on the word to stop, once.
                if not asked and (request() or files.stop_word.exists()):
                    asked = True
                    report({"kind": "stopping"})
                    ask_board(attempt, "put", "stop", True)
                if asked and not ask_board(
                    attempt, "get", "begun"
                ):  # Ray waits for room, perhaps for hours
                    raise request.make_error(NOTHING_BEGUN)

                _report_events(attempt, report)
        _report_events(attempt, report)  # what came between the last look and the end of the thread
        return _read_result(config, attempt, failure, request)


def _report_events(attempt: str, report: Report) -> None:
    """Show what rank 0 reported since the last look."""
    for event in ask_board(attempt, "take_events"):
        report(json.loads(event))


def _read_result(
    config: Config, attempt: str, failure: list[Exception], request: StopRequest
) -> RunResult:
    ended = ask_board(attempt, "get", "outcome") or {}
    if ended.get("kind") == "stopped":
        raise request.make_error(ended["message"])
    if ended.get("kind") == "failed":
        raise UserError(ended["message"])
    RemoteRun.from_config(config).download()  # rank 0 may have been on another machine
    result = read_result(config.run_directory)
    if result is not None and not failure:
        return result
    reason = "the workers ended without a result"
    if failure:
        reason = find_last_line(failure[0], type(failure[0]).__name__)
    raise UserError(
        explain_full_folder()
        or f"Ray could not finish the run, also after {config.launch.max_failures} restarts: {reason}. What was saved is in "
        f"{config.run_url or config.run_directory}; run the same command again to resume."
    )


def _make_trainer(config: Config, attempt: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from distbranch.launch.on_ray.backend import ClusterTorchConfig, EndsWithBoard, LeanTrainer

    gpu = uses_gpu(config.launch)
    # Decided here for all ranks: a worker alone cannot know whether the others found a GPU.
    device = "cuda" if gpu else "cpu"
    launch = config.launch.model_copy(update={"device": device})
    config = config.model_copy(update={"launch": launch})
    nccl = gpu and uses_nccl(launch)
    seconds = max(1, round(60 * launch.timeout_min))
    if nccl:
        seconds += NCCL_SECONDS_MORE
    # Ray counts restarts after lost workers and waits for room apart; `controller_failure_limit` is of the latter.
    _, most_waits = _choose_patience(config)
    failures = FailureConfig(max_failures=launch.max_failures, controller_failure_limit=most_waits)
    backend = "nccl" if nccl else "gloo"
    return LeanTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "plugins": send_plugins(),
            "argv": sys.argv,
            "attempt": attempt,
        },
        scaling_config=ScalingConfig(
            num_workers=launch.workers,
            use_gpu=gpu,
            resources_per_worker=get_worker_resources(launch, gpu=gpu),
            placement_strategy=launch.placement.upper(),
            elastic_resize_monitor_interval_s=60 * launch.resize_every_min,
        ),
        torch_config=ClusterTorchConfig(backend=backend, timeout_s=seconds),
        run_config=RunConfig(
            name="state",
            storage_path=attempt,
            failure_config=failures,
            callbacks=[EndsWithBoard(attempt)],
        ),
    )


def _choose_patience(config: Config) -> tuple[int, int]:
    """How many seconds Ray waits for room on the nodes, and how many such waits there are before it gives up."""
    # An elastic run waits without effect whenever a node dies that Ray still counts on, and then asks for fewer workers.
    if config.launch.most_workers > config.launch.least_workers:
        return 10, 30
    return 30, 5
