"""Training under Ray Train: Ray places the ranks and replaces lost ones; the run directory alone says where they go on.

The driver and rank 0 speak through two files of the run directory: events one way, a stop word the other.
"""

import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.metrics import Event, Report
from distbranch.engine.results import RunResult, StoppedEarly, read_result
from distbranch.engine.run_directory import RunDirectory, append_line
from distbranch.engine.session import train_rank
from distbranch.errors import SharedError, UserError
from distbranch.launch.stopping import StopRequest, stop_word

logger = logging.getLogger("distbranch")
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_ANSWER = 10
# Ray's own defaults cost seconds per report and warn about things that a user of ours did not choose.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_worker_niceness": "0",  # Ray's 15 makes training wait for everything else that runs on the machine
}


def train_on_ray(config: Config, report: Report) -> RunResult:
    """Train on `launch.workers` Ray workers, on a local cluster or the one at `launch.address`.

    Raises:
        UserError: resources that cannot be met, or what stopped the ranks.
        StoppedEarly: after a signal to this process; its `exit_code` says which.
    """
    files = RunDirectory(config.run_directory)
    with files.locked(), _cluster(config):
        files.stop_word.unlink(missing_ok=True)
        attempt = files.path / "ray" / time.strftime("%Y%m%d-%H%M%S")
        attempt.mkdir(parents=True)
        try:
            return _fit(config, attempt, report)
        finally:
            if read_result(files.path) is not None:
                shutil.rmtree(files.path / "ray", ignore_errors=True)


def _fit(config: Config, attempt: Path, report: Report) -> RunResult:
    """Run the trainer in a thread, for this one receives the signals and passes on the events."""
    files, failure = RunDirectory(config.run_directory), []

    def fit() -> None:
        try:
            _trainer(config, attempt).fit()
        except Exception as error:  # of any kind: it is explained in this thread
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    request = StopRequest()
    events = _Tail(attempt / "events.jsonl")
    main = threading.current_thread() is threading.main_thread()
    with request.listening() if main else nullcontext():
        thread.start()
        while thread.is_alive():
            thread.join(SECONDS_BETWEEN_LOOKS)
            if request() and not files.stop_word.exists():
                report({"kind": "stopping"})
                files.stop_word.touch()
            for event in events.new():
                report(event)
    for event in events.new():
        report(event)
    return _outcome(config, attempt, failure, request)


def _outcome(config: Config, attempt: Path, failure: list[Exception], request: StopRequest) -> RunResult:
    outcome = attempt / "outcome.json"
    ended: dict[str, Any] = json.loads(outcome.read_text()) if outcome.exists() else {}
    if ended.get("kind") == "stopped":
        stopped = StoppedEarly(ended["message"])
        stopped.exit_code = request.exit_code
        raise stopped
    if ended.get("kind") == "failed":
        raise UserError(ended["message"])
    result = read_result(config.run_directory)
    if failure or result is None:
        raise UserError(_explain(config, failure))
    return result


def _explain(config: Config, failure: list[Exception]) -> str:
    reason = "the workers ended without a result"
    if failure:
        lines = [line.strip() for line in str(failure[0]).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(failure[0]).__name__
    return (
        f"Ray could not finish the run, also after {config.launch.max_failures} restarts: {reason}. "
        f"What was saved is in {config.run_directory}; run the same command again to go on."
    )


def _work(loop: dict[str, Any]) -> None:
    """What every Ray worker runs."""
    config = load_config(loop["config"])
    attempt = Path(loop["attempt"])
    outcome = attempt / "outcome.json"
    if outcome.exists():  # Ray restarts the workers after any error; this one is not for restarts to mend
        return
    rank = int(os.environ.get("RANK", "0"))
    asked = stop_word(RunDirectory(config.run_directory).stop_word)

    def report(event: Event) -> None:
        append_line(attempt / "events.jsonl", event)

    def end(kind: str, message: str) -> None:
        with suppress(FileExistsError), outcome.open("x") as file:  # the first rank's word is the one that is told
            json.dump({"kind": kind, "message": message}, file)

    from distbranch.report.tensorboard import log_decision

    if rank == 0:
        logger.handlers, logger.propagate = [_EventHandler(report)], False
    try:
        train_rank(config, report=report, draw=log_decision, should_stop=lambda: rank == 0 and asked())
    except StoppedEarly as stopped:
        end("stopped", str(stopped))
    except UserError as error:
        end("failed", str(error))
        if not isinstance(error, SharedError):
            raise  # the other ranks know nothing of it and wait: Ray ends them


def _trainer(config: Config, attempt: Path) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = _uses_gpu(config)
    # Decided here for all ranks: a worker alone cannot know whether the others found a GPU.
    launch = config.launch.model_copy(update={"device": "cuda" if use_gpu else "cpu"})
    config = config.model_copy(update={"launch": launch})
    return TorchTrainer(
        _work,
        train_loop_config={"config": config.model_dump(mode="json"), "attempt": str(attempt)},
        scaling_config=ScalingConfig(
            num_workers=launch.workers,
            use_gpu=use_gpu,
            resources_per_worker=_resources(config),
            placement_strategy="PACK",
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(launch.timeout_min * 60)),
        run_config=RunConfig(
            name="state",
            storage_path=str(attempt),
            failure_config=FailureConfig(max_failures=launch.max_failures, controller_failure_limit=3),
        ),
    )


@contextmanager
def _cluster(config: Config) -> Iterator[None]:
    """Join the cluster at `launch.address`, or start one on this machine that ends with this process."""
    launch = config.launch
    before = dict(os.environ)
    _set_environment(local=launch.address is None)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    try:
        if started and launch.address is None:
            cores = len(os.sched_getaffinity(0))
            cpus = max(cores, round(launch.workers * launch.cpus_per_worker))
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        elif started:
            _knock(str(launch.address))
            ray.init(address=launch.address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The Ray cluster {launch.address or 'of this machine'} cannot be used ({reason}). "
            "Check launch.address and that Ray runs there, or leave it empty to start one here."
        ) from None
    try:
        _check_resources(config)
        yield
    finally:
        if started:
            ray.shutdown()
            _restore_environment(before)


def _knock(address: str) -> None:
    """OSError if nobody answers at `host:port`; Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port) % 65536), timeout=SECONDS_TO_ANSWER).close()


def _set_environment(*, local: bool) -> None:
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    if local and "RAY_AUTH_MODE" not in os.environ:
        # A cluster of ours answers only to those who hold its token; this one lives and dies with this process.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _restore_environment(before: dict[str, str]) -> None:
    """A token of ours must not meet the next cluster that this process joins."""
    for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        if key not in before:
            os.environ.pop(key, None)


def _check_resources(config: Config) -> None:
    """Ray waits for ever for what a cluster will never have: say so at once."""
    import ray

    there = ray.cluster_resources()
    for name, each in _resources(config).items():
        asked = each * config.launch.workers
        if there.get(name, 0) < asked:
            raise UserError(
                f"The run asks for {asked:g} {name} ({config.launch.workers} workers with {each:g} each), but the Ray "
                f"cluster has {there.get(name, 0):g}. Lower launch.workers or launch.cpus_per_worker, or add nodes."
            )


def _resources(config: Config) -> dict[str, float]:
    resources = {"CPU": config.launch.cpus_per_worker}
    return {**resources, "GPU": 1} if _uses_gpu(config) else resources


def _uses_gpu(config: Config) -> bool:
    import ray

    device = config.launch.device
    return device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= config.launch.workers)


class _EventHandler(logging.Handler):
    """Log records as events, so that warnings of rank 0 reach the terminal of the driver."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Report one record."""
        self.report({"kind": "warning", "message": record.getMessage()})


class _Tail:
    """The lines that were added to a .jsonl file since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0

    def new(self) -> Iterator[Event]:
        """Whole lines only; the rest of a line comes with a later look."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.position += len(line)
                yield json.loads(line)
