"""Ray Tune over the families of a sweep: one Tuner with our queue, while this thread listens for signals; and what its trials do.

A trial trains one run in the run's own directory. One worker trains in the trial's process; several are an inner Ray trainer,
which nobody but its own stop word may end.

Loads ray, so it is imported when the cluster is joined and not before: ray reads its token when it is loaded.
"""

import json
import logging
import math
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray import tune

from distbranch.config import Config, LaunchConfig, load_config
from distbranch.config.sweep import SweepConfig
from distbranch.data.mixture import read_data
from distbranch.data.shards import DatasetInfo
from distbranch.engine.forks import make_member_config, read_family
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.results import StoppedEarly, read_result
from distbranch.engine.run_directory import RunDirectory, RunInUseError, read_lines
from distbranch.engine.run_log import Event, Report
from distbranch.engine.run_start import begin_run
from distbranch.errors import UserError
from distbranch.launch.drawing import log_decision
from distbranch.launch.on_ray.cluster import get_worker_resources, list_alive_nodes, max_workers
from distbranch.launch.stopping import StopRequest, check_twice_a_second
from distbranch.locks import hold_lock
from distbranch.metrics import list_metrics
from distbranch.models.architecture import multiply_adds
from distbranch.plugins import receive_plugins, send_plugins
from distbranch.streams import hide_secrets_of_record, tolerate_any_text
from distbranch.sweep.plan import Trials, load_base_config
from distbranch.sweep.proposals import OptunaSearch
from distbranch.sweep.queue import Family, FamilyQueue, Judge, LossCallback, SizeClassHalving
from distbranch.sweep.shared_prefix import (
    copy_result_to_siblings,
    group_by_prefix,
    trainable_groups,
)
from distbranch.sweep.trial_status import SweepDirectory

SECONDS_BETWEEN_LOOKS = 0.2  # for a signal: nobody notices so short a wait
SECONDS_BETWEEN_SIGNS = 10.0  # of life: `distbranch ls` calls a sweep silent after minutes
SECONDS_TO_BEGIN = 60.0  # and to end, for a trial whose run nobody trains at the moment
SECONDS_TO_END = 30.0  # for the Tuner, once it is to end
SECONDS_UNTIL_A_LOST_OWNER_LETS_GO = (
    60  # Ray ends the workers of a driver that was killed within about 30
)
NAME_OF_THREAD = "tuner"
logger = logging.getLogger("distbranch")


def train_roots(
    sweep: SweepConfig,
    roots: Sequence[Family],
    begun: Trials,
    directory: SweepDirectory,
    report: Report,
    proposals: OptunaSearch | None,
) -> None:
    """Train all trials of the roots, and of those that are proposed, on the cluster that this process has joined.

    Early stopping first learns what the trials that were `begun` by earlier drivers have reached.

    Raises:
        UserError: Tune itself failed.
        StoppedEarly: a signal asked to stop; every running trial has saved a checkpoint.
    """
    metric = sweep.metric
    if sweep.early_stopping is not None:
        metric = sweep.early_stopping.metric or metric
    launch = load_base_config(sweep).launch
    queue = FamilyQueue(
        list(roots),
        ready=trainable_groups,
        directory=directory,
        concurrency=_count_trials_that_fit(sweep, launch),
        report=report,
        judge=_make_judge(sweep, metric, begun),
    )
    queue.count_room = lambda: _count_trials_that_fit(sweep, launch)
    if proposals is not None:
        queue.propose = lambda: group_by_prefix(proposals.propose_trials())

    # Next to nothing (Ray refuses nothing), in bytes, where an inner trainer asks for its workers itself.
    resources: dict[str, float] = {"memory": 1}
    if sweep.workers_per_trial == 1:
        resources = {"CPU": sweep.cpus_per_trial or 1.0}
        if sweep.gpus_per_trial:
            resources["GPU"] = sweep.gpus_per_trial
    run_tune(
        make_tune_function(metric, send_plugins()),
        queue,
        resources=resources,
        max_failures=sweep.max_failures,
    )


def run_tune(
    function: Callable[[dict[str, Any]], None],
    queue: FamilyQueue,
    *,
    resources: dict[str, float],
    max_failures: int,
) -> None:
    """Run the queue empty on the cluster that this process has joined.

    Raises:
        UserError: Tune itself failed.
        StoppedEarly: after a signal to this process.
    """
    # Removed at the end: what Tune writes of its own is read by nobody.
    storage = queue.directory.tune
    failure: list[Exception] = []
    tuner = tune.Tuner(
        tune.with_resources(function, resources),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,  # as many as the queue hands out
            reuse_actors=True,  # a process that has loaded torch trains many small trials
            trial_name_creator=_get_trial_id,
            trial_dirname_creator=_get_trial_id,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[LossCallback(queue)],
            stop=EndWhenAbandoned(queue),
            verbose=0,
        ),
    )

    def run_tuner() -> None:
        try:
            tuner.fit()
        except Exception as error:  # of any kind: it is explained in this thread
            failure.append(error)

    try:
        stopped = wait_for_tuner(
            threading.Thread(target=run_tuner, name=NAME_OF_THREAD, daemon=True), queue
        )
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if failure:
        reason = " ".join(str(failure[0]).split())[:300]
        raise UserError(
            f"Ray Tune failed ({type(failure[0]).__name__} {reason}). Run the same command again: nothing finished is repeated."
        )
    if stopped is not None:
        raise stopped


def wait_for_tuner(thread: threading.Thread, queue: FamilyQueue) -> StoppedEarly | None:
    """Wait for the Tuner; a signal, or the stop word of the sweep, closes the queue and gives every running trial its own."""
    request = StopRequest()
    own = RunDirectory(queue.directory.path)
    has_word = check_twice_a_second(own.stop_word.exists)
    seen_at = -math.inf
    trained_at = time.monotonic()
    with request.receive_signals():
        thread.start()
        while thread.is_alive():
            thread.join(SECONDS_BETWEEN_LOOKS)
            # Whoever asks from another machine sees no lock of this one.
            if time.monotonic() - seen_at >= SECONDS_BETWEEN_SIGNS:
                seen_at = time.monotonic()
                _show_life(own)
            if not (request() or has_word()):
                continue
            if not queue.closed:
                queue.report({"kind": "stopping"})
                queue.closed = True
                trained_at = time.monotonic()
            leaders = [
                RunDirectory(family[0].run_directory) for family, _ in list(queue.running.values())
            ]
            for files in leaders:  # again and again: a run that begins removes an old stop word
                if files.path.exists():
                    files.stop_word.touch()
            if any(map(_is_being_trained, leaders)):
                trained_at = time.monotonic()
            # Ray waits for room, perhaps for hours.
            idle = time.monotonic() - trained_at
            queue.abandoned = idle > SECONDS_TO_BEGIN
            # Nor does the Tuner end where its cluster is gone.
            if idle > SECONDS_TO_BEGIN + SECONDS_TO_END:
                break
    if request() or has_word():
        return request.make_error(
            "The sweep was stopped; running trials saved a checkpoint. The same command resumes."
        )
    return None


class EndWhenAbandoned(tune.Stopper):  # type: ignore[misc]
    """Ends the Tuner, also while it waits for room: Ray ends this process without a word if a thread still asks it after the end."""

    def __init__(self, queue: FamilyQueue) -> None:
        self.queue = queue

    def __call__(self, *_: object) -> bool:
        """Called by Tune for every result: no trial is ended by one."""
        return False

    def stop_all(self) -> bool:
        """Called by Tune again and again."""
        return self.queue.abandoned


def _show_life(files: RunDirectory) -> None:
    """Touch the sign of life of a sweep, which names the machine of its driver."""
    # Storage that fails is reported when something is lost by it.
    with suppress(OSError):
        files.sign_of_life.write_text(platform.node(), encoding="utf-8")


def _is_being_trained(files: RunDirectory) -> bool:
    """Whether a process trains the run at this moment."""
    if not files.path.exists():
        return False
    try:
        with files.locked(patience_s=0):
            return False
    except RunInUseError:
        return True


def _get_trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _count_trials_that_fit(sweep: SweepConfig, launch: LaunchConfig) -> int:
    """As many trials as were asked for and as fit now: an inner trainer that has to wait for long gives up."""
    workers = max_workers(
        list_alive_nodes(), get_worker_resources(launch, gpu=bool(sweep.gpus_per_trial))
    )
    fit_in = max(1, workers // sweep.workers_per_trial)
    return min(sweep.concurrency or fit_in, fit_in)


def _make_judge(sweep: SweepConfig, metric: str, begun: Trials) -> Judge:
    stopping = sweep.early_stopping
    if stopping is None:
        return lambda *_: True
    halving = SizeClassHalving(stopping.grace, stopping.reduction)
    classes: dict[str, int] = {}
    sign = -1 if list_metrics()[metric].lower_is_better else 1

    def judge(config: Config, iteration: int, value: float) -> bool:
        tree = [config.method.groups, config.method.widen_at]
        if config.method.has_scout:  # each may have decided otherwise
            tree.append(config.run.name)
        method = (config.method.name, tree, config.adashare)
        key = repr((config.data.path, config.data.image_size, config.model, method))
        # Measured once per kind of network, for a sweep has hundreds of trials of a few.
        if key not in classes:
            classes[key] = measure_size_class(config, read_data(config.data))
        return halving.passes_rung(str(config.run.name), classes[key], iteration, sign * value)

    # What earlier drivers have seen, in the order of their trials.
    for config in begun:
        files = RunDirectory(config.run_directory)
        siblings = [
            make_member_config(config, name, method)
            for name, method in read_family(files)[0].items()
        ]
        for line in read_lines(files.metrics):
            if (
                line["kind"] == "evaluation"
                and line["split"] == "val"
                and line["mean"].get(metric) is not None
            ):
                for each in (config, *siblings):
                    judge(each, line["iteration"], line["mean"][metric])
    return judge


def measure_size_class(config: Config, info: DatasetInfo) -> int:
    """Trials that cost about the same before they grow: the octave of their first network's multiply-adds."""
    return round(math.log2(multiply_adds(first_architecture(config, info))))


def make_tune_function(
    metric: str, plugins: Sequence[Mapping[str, Any]] = ()
) -> Callable[[dict[str, Any]], None]:
    """The function of one sweep.

    Args:
        metric: the mean over tasks on val that is reported for early stopping.
        plugins: of its trials (`send_plugins`), which may lie on no other node.
    """

    def report(event: Event) -> None:
        if event["kind"] == "decision":
            tune.report({"kind": "decision"})
        elif (
            event["kind"] == "evaluation"
            and event["split"] == "val"
            and event["mean"].get(metric) is not None
        ):
            tune.report(
                {
                    "kind": "evaluation",
                    "iteration": event["iteration"],
                    "value": event["mean"][metric],
                }
            )

    argv = sys.argv

    def train_leader(work: dict[str, Any]) -> None:
        tolerate_any_text()
        sys.argv = argv  # the sweep's, which its trials write down
        reason = None
        try:
            receive_plugins(plugins)
            config = load_config(json.loads(work["leader"]))
            train_trial(config, report)
            copy_result_to_siblings(config, log_decision)
        except (
            UserError
        ) as error:  # trying again would not help; any other error is Tune's, which does try again
            reason = str(error)
        except StoppedEarly:
            pass
        tune.report({"kind": "ended", "reason": reason})

    return train_leader


def train_trial(config: Config, report: Report) -> None:
    """Train one run to its end, or resume it; a finished one is left alone.

    Raises:
        UserError: what stopped it.
        StoppedEarly: by its stop word; a checkpoint holds everything.
    """
    files = RunDirectory(config.run_directory)
    begin_run(config)
    if read_result(files.path) is not None:
        return
    # A process whose driver was killed may hold the run for some seconds more.
    with hold_lock(files.lock, patience_s=SECONDS_UNTIL_A_LOST_OWNER_LETS_GO):
        pass
    with _write_log_to(files.path / "log.txt"):
        if config.launch.most_workers > 1:
            from distbranch.launch.on_ray.train import train_on_ray

            train_on_ray(config, report)
        else:
            from distbranch.launch.local import train_here

            train_here(config, report)


@contextmanager
def _write_log_to(path: Path) -> Iterator[None]:
    """Warnings of this run go to a file of it; the process may train another one afterwards."""
    before = logger.handlers, logger.propagate
    handler = logging.FileHandler(path, delay=True, encoding="utf-8", errors="replace")
    handler.addFilter(hide_secrets_of_record)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
        handler.close()
