"""Ray Tune over the families of a sweep: one Tuner with our queue, while this thread listens for signals.

Loads ray, so it is imported when the cluster is joined and not before: ray reads its token when it is loaded.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray import tune

from distbranch.config import Config
from distbranch.config.sweep import SweepConfig
from distbranch.data.mixture import read_data
from distbranch.engine.forks import member, read_family
from distbranch.engine.results import StoppedEarly
from distbranch.engine.run_directory import RunDirectory, RunInUseError, read_lines
from distbranch.engine.run_log import Report
from distbranch.errors import UserError
from distbranch.launch.on_ray.cluster import get_worker_resources, list_alive_nodes, max_workers
from distbranch.launch.stopping import StopRequest
from distbranch.sweep.early_stopping import SizeClassHalving
from distbranch.sweep.plan import base_config, size_class
from distbranch.sweep.queue import Family, FamilyQueue, Judge, Losses
from distbranch.sweep.shared_prefix import ready
from distbranch.sweep.trial import tune_function
from distbranch.sweep.trial_status import SweepDirectory

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_BEGIN = 60.0  # and to end, for a trial whose run nobody trains at the moment


def train_roots(
    sweep: SweepConfig,
    roots: Sequence[Family],
    begun: Sequence[Config],
    directory: SweepDirectory,
    report: Report,
    propose: Callable[[], Iterable[Family]],
) -> None:
    """Train all trials of the roots, and of those that are proposed, on the cluster that this process has joined.

    Early stopping first learns what the trials that were `begun` by earlier drivers have reached.

    Raises:
        UserError: Tune itself failed.
        StoppedEarly: a signal asked to stop; every running trial has saved a checkpoint.
    """
    metric = sweep.early_stopping.metric if sweep.early_stopping and sweep.early_stopping.metric else sweep.metric
    queue = FamilyQueue(
        roots,
        ready=ready,
        directory=directory,
        concurrency=_concurrency(sweep),
        report=report,
        judge=_judge(sweep, metric, begun),
        propose=propose,
    )
    fit(tune_function(metric), queue, resources=_resources(sweep), max_failures=sweep.max_failures)


def fit(
    function: Callable[[dict[str, Any]], None], queue: FamilyQueue, *, resources: dict[str, float], max_failures: int
) -> None:
    """Run the queue empty on the cluster that this process has joined.

    Raises:
        UserError: Tune itself failed.
        StoppedEarly: after a signal to this process.
    """
    storage, failure = queue.directory.tune, list[Exception]()
    tuner = tune.Tuner(
        tune.with_resources(function, resources),
        tune_config=tune.TuneConfig(
            search_alg=queue,
            num_samples=-1,
            reuse_actors=True,  # a process that has loaded torch trains many small trials
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[Losses(queue)],
            verbose=0,
        ),
    )

    def run() -> None:
        try:
            tuner.fit()
        except Exception as error:  # of any kind: it is explained in this thread
            failure.append(error)

    try:
        stopped = _listen(threading.Thread(target=run, daemon=True), queue)
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    if failure:
        reason = " ".join(str(failure[0]).split())[:300] or type(failure[0]).__name__
        raise UserError(
            f"Ray Tune could not go on ({reason}). Run the same command again: nothing finished is repeated."
        )
    if stopped is not None:
        raise stopped


def _listen(thread: threading.Thread, queue: FamilyQueue) -> StoppedEarly | None:
    """Wait for the Tuner; a signal closes the queue and gives every running trial its stop word."""
    request, trained_at = StopRequest(), time.monotonic()
    with request.receive_signals():
        thread.start()
        while thread.is_alive():
            thread.join(SECONDS_BETWEEN_LOOKS)
            if not request():
                continue
            if not queue.closed:
                queue.report({"kind": "stopping"})
                queue.closed = True
                trained_at = time.monotonic()
            leaders = [queue.directory.run(str(family[0].run.name)) for family, _ in list(queue.running.values())]
            for files in leaders:  # again and again: a run that begins removes an old stop word
                if files.path.exists():
                    files.stop_word.touch()
            if any(map(_is_trained, leaders)):
                trained_at = time.monotonic()
            if time.monotonic() - trained_at > SECONDS_TO_BEGIN:  # Ray waits for room, perhaps for hours
                break
    if not request():
        return None
    return request.make_error("The sweep was stopped; running trials saved a checkpoint. The same command continues.")


def _is_trained(files: RunDirectory) -> bool:
    """Whether a process trains the run at this moment."""
    if not files.path.exists():
        return False
    try:
        with files.locked(patience_s=0):
            return False
    except RunInUseError:
        return True


def _name_of(trial: Any) -> str:
    return str(trial.trial_id)


def _resources(sweep: SweepConfig) -> dict[str, float]:
    """What Tune sets aside for a trial: next to nothing (Ray refuses nothing) where an inner trainer asks for its workers itself."""
    if sweep.workers_per_trial > 1:
        return {"memory": 1}  # byte
    resources = {"CPU": sweep.cpus_per_trial or 1.0}
    return {**resources, "GPU": sweep.gpus_per_trial} if sweep.gpus_per_trial else resources


def _concurrency(sweep: SweepConfig) -> int:
    """As many trials as were asked for and as fit: an inner trainer that has to wait for long gives up."""
    launch = base_config(sweep).launch
    workers = max_workers(list_alive_nodes(), get_worker_resources(launch, gpu=bool(sweep.gpus_per_trial)))
    fit_in = max(1, workers // sweep.workers_per_trial)
    return min(sweep.concurrency or fit_in, fit_in)


def _judge(sweep: SweepConfig, metric: str, begun: Sequence[Config]) -> Judge:
    stopping = sweep.early_stopping
    if stopping is None:
        return lambda *_: True
    halving = SizeClassHalving(stopping.grace, stopping.reduction)
    classes: dict[tuple[Any, ...], int] = {}

    def judge(config: Config, iteration: int, value: float) -> bool:
        method = (config.method.name, str(config.method.groups), config.adashare)
        key = (config.data.path, config.data.image_size, config.model, method)
        if key not in classes:
            classes[key] = size_class(config, read_data(config.data))
        return halving.passes(str(config.run.name), classes[key], iteration, value)

    for config in begun:
        files = RunDirectory(config.run_directory)
        together = [config, *(member(config, name, method) for name, method in read_family(files)[0].items())]
        for line in read_lines(files.metrics):
            if line.get("kind") == "evaluation" and line["split"] == "val" and line["mean"].get(metric) is not None:
                for each in together:
                    judge(each, line["iteration"], line["mean"][metric])
    return judge
