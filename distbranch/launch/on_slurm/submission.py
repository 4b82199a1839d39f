"""Runs as jobs of Slurm: one task per node, a Ray cluster of the job's own when there are several.

What each task does is in `task`, what is asked of Slurm in `batch_script`. This file fits runs to it, and records who trains them.
"""

import math
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config, to_yaml
from distbranch.config.paths import is_remote
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import write_atomically
from distbranch.engine.run_start import begin_run, changes_iterations
from distbranch.errors import UsageError, UserError
from distbranch.launch.job_command import FOLDER
from distbranch.launch.jobs import (
    SECONDS_BETWEEN_LOOKS,
    SECONDS_OF_SILENCE,
    TIME_FORMAT,
    Job,
    Say,
    describe_job_state,
    is_under_way,
    read_job,
    show_log,
    write_job,
)
from distbranch.launch.on_slurm import local_job
from distbranch.launch.on_slurm.batch_script import (
    count_cores,
    let_container_see,
    make_sbatch_parameters,
    render_script,
    submit_tasks,
)
from distbranch.launch.on_slurm.local_job import EXIT_CODE
from distbranch.launch.on_slurm.queue import check_partition, read_slurm_states
from distbranch.launch.on_slurm.resources import Resources
from distbranch.launch.on_slurm.task import Task
from distbranch.launch.prepare import (
    check_data,
    is_to_be_packed,
    list_run_paths,
    read_packed_data,
    with_absolute_paths,
)
from distbranch.launch.processes import wait_for_command_line
from distbranch.launch.ray_folder import find_existing_folder
from distbranch.launch.stopping import EXIT_PREEMPTED


def submit_runs(
    runs: Sequence[Config],
    resources: Resources,
    *,
    folder: Path | None = None,
    at_once: int = 1,
    say: Say,
) -> list[Job]:
    """Submit independent runs, one as a job and several as one array, and record their jobs in the run directories.

    Those that are finished or on their way are left out.

    Args:
        runs: see above.
        resources: of each run.
        folder: whose subfolder holds the batch script and the logs; that of the run if None.
        at_once: runs at the same time.
        say: told which runs are left out.

    Raises:
        UsageError: options that cannot be.
        UserError: data, run directory or Slurm are not as they should be.
    """
    check_executor(resources, say)
    checked = [_resolve_config(config, resources) for config in runs]
    waiting = [config for config in checked if not _is_settled(config, say)]
    if not waiting:
        return []

    # The files of a run are there before its job, which may begin at once.
    new = [config.run_directory for config in waiting if not config.run_directory.exists()]
    folder = folder or waiting[0].run_directory
    try:
        tasks = [_create_task(config, resources) for config in waiting]
        if resources.executor == "local":
            jobs = [start_here(tasks[0])]
        else:
            parameters = _make_parameters(waiting, resources, folder, at_once=at_once)
            jobs = submit_tasks(tasks, parameters, folder / FOLDER)
    except UserError:
        # Else a corrected configuration would be refused as that of another run.
        for directory in new:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    for config, job in zip(waiting, jobs, strict=True):
        write_job(config.run_directory, job)
    return jobs


def find_job(run_directory: Path) -> Job | None:
    """The job of a run that is not finished, which was submitted before."""
    return None if read_result(run_directory) is not None else read_job(run_directory)


def _make_parameters(
    runs: Sequence[Config], resources: Resources, folder: Path, *, at_once: int
) -> dict[str, Any]:
    """Those of one batch script for all runs, whose data and launch may differ."""
    resources = let_container_see(resources, [*chain(*map(_list_folders, runs))])
    cores = max(count_cores(config.launch, resources) for config in runs)
    name = str(runs[0].run.name)
    return make_sbatch_parameters(resources, folder, name=name, cores=cores, at_once=at_once)


def check_executor(resources: Resources, say: Say) -> None:
    """There is a Slurm with this partition, or this machine is asked for alone."""
    if resources.executor == "slurm":
        check_partition(resources.partition)
    elif resources.nodes > 1:
        raise UsageError(
            f"--executor local has one node, this machine, found --nodes {resources.nodes}."
        )
    elif resources.setup or resources.srun or resources.container:
        say("--executor local runs here as it is, without --setup, --srun and --container.")


def render_batch_script(config: Config, resources: Resources) -> str:
    """The batch script that would be submitted; nothing is written and no Slurm is needed."""
    return render_array_script([config], resources)


def render_array_script(
    runs: Sequence[Config], resources: Resources, *, folder: Path | None = None, at_once: int = 1
) -> str:
    """The same of several runs; arguments as of `submit_runs`."""
    checked = [_resolve_config(config, resources) for config in runs]
    folder = folder or checked[0].run_directory
    parameters = _make_parameters(checked, resources, folder, at_once=at_once)
    return render_script(parameters, folder / FOLDER, num_tasks=len(checked))


def wait_for_job(run_directory: Path, job: Job, *, say: Say, show: Say) -> int:
    """Show the job's log until it has ended; 0 if the run is finished, 75 if it was stopped with a checkpoint, else 1."""
    show_log(job, say=say, show=show)
    if read_result(run_directory) is not None:
        return 0
    state = describe_job_state(job)
    say(f"The job has {state}, and the run is not finished; the same command resumes it.")
    # A job that saved its run ends in order; one that was killed, or failed, is in another state.
    return EXIT_PREEMPTED if _has_saved(state) else 1


def _has_saved(state: str) -> bool:
    return "COMPLETED" in state or "CANCELLED" in state


def wait_for_runs(runs: Sequence[Config], *, say: Say) -> int:
    """Say how each job of an array ends until all have ended; 0 if all runs are finished, 1 if some failed, else 75.

    Raises:
        UserError: Slurm does not answer for long.
    """
    waiting = {}
    for config in runs:
        job = read_job(config.run_directory)
        if job is not None and job.kind == "slurm":
            waiting[config.run_directory] = job
    codes = {0}
    known_at = time.monotonic()
    while waiting:
        # One question about all of them: the queue has others to answer too.
        try:
            queued = set(read_slurm_states())
            known_at = time.monotonic()
        except UserError:
            if time.monotonic() - known_at > SECONDS_OF_SILENCE:
                raise
            queued = {job.id for job in waiting.values()}

        for directory, job in [*waiting.items()]:
            if job.id in queued:
                continue
            del waiting[directory]
            outcome = "is finished"
            if read_result(directory) is None:
                state = describe_job_state(job)
                codes.add(EXIT_PREEMPTED if _has_saved(state) else 1)
                outcome = f"is not finished: its job has {state}"
            say(f"{directory.name} {outcome} ({len(waiting)} left)")
        if waiting:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return 1 if 1 in codes else max(codes)


def _resolve_config(config: Config, resources: Resources) -> Config:
    """The configuration as the job will train it: absolute paths, and ranks as many as the allocation has room for."""
    if config.run_url is not None:
        raise UsageError(
            "A job of Slurm keeps its log in the run directory: give a run.directory on storage that all nodes share, "
            f"found {config.run_url}."
        )
    check_signal_delay(resources)
    config = _fit_to_allocation(with_absolute_paths(config), resources)
    if not is_to_be_packed(config) and not any(map(is_remote, config.data.paths)):
        check_data(config, read_packed_data(config))
    return config


def check_signal_delay(resources: Resources) -> None:
    """A job is warned some time after its start."""
    if resources.executor == "slurm" and resources.signal_delay_s >= 60 * resources.timeout_min:
        raise UsageError(
            f"--signal-delay {resources.signal_delay_s} (seconds) should be shorter than --time, which is {resources.timeout_min} "
            "minute(s): the run would stop as soon as it begins."
        )


def _fit_to_allocation(config: Config, resources: Resources) -> Config:
    """One rank per GPU, or per node where there are none, unless the configuration asks for more."""
    launch, nodes, num_gpus = config.launch, resources.nodes, resources.num_gpus
    if launch.address not in (None, "local"):
        raise UsageError(
            f"A job of Slurm starts a cluster of its own: leave launch.address out, found {launch.address}."
        )
    if num_gpus and launch.device == "cpu":
        raise UsageError(
            f"launch.device=cpu leaves the {nodes * num_gpus} GPU(s) idle that are asked for: use launch.device=cuda (of a sweep: "
            "--gpus-per-trial), or ask for none."
        )
    if launch.device == "cuda" and not num_gpus:
        raise UsageError("launch.device=cuda needs --gpus-per-node.")

    # A torch that finds no GPU should not train beside one, and a node may have GPUs that belong to others.
    values: dict[str, Any] = {
        "launch.address": "local",
        "launch.device": "cuda" if num_gpus else "cpu",
    }
    # 1 is the default, so nobody asked for it: a run of one rank on several GPUs would leave all but one idle.
    workers = launch.workers
    if workers == 1:
        workers = nodes * (num_gpus or 1)
    values["launch.workers"] = workers
    if nodes > 1 and isinstance(workers, int):
        if workers < nodes:
            raise UsageError(
                f"launch.workers={workers} ranks leave some of --nodes {nodes} idle; ask for fewer nodes."
            )
        values["launch.placement"] = "spread"  # as many on each node: Ray would fill the first one
        if resources.cpus_per_node:
            values["launch.cpus_per_worker"] = resources.cpus_per_node / -(-workers // nodes)
    config = load_config(config, values)

    # No GPU that is asked for stays idle, and no rank is without one.
    most, each = config.launch.most_workers, launch.gpus_per_worker
    if num_gpus and math.ceil(round(most * each, 6)) != nodes * num_gpus:
        raise UsageError(
            f"The ranks should fill the GPUs that are asked for, found launch.workers={most} on {nodes * num_gpus} GPU(s): give "
            f"launch.workers={nodes * num_gpus / each:.0f} (launch.gpus_per_worker={each:g})."
        )
    return config


def _is_settled(config: Config, say: Say) -> bool:
    run_directory = config.run_directory
    if read_result(run_directory) is not None and not changes_iterations(config):
        say(f"The run {run_directory} is finished already.")
        return True
    job = read_job(run_directory)
    state = "" if job is None else describe_job_state(job)
    if job is not None and is_under_way(state):
        say(f"The run {run_directory} has the {job.kind} job {job.id} already, which is {state}.")
        return True
    return False


def _create_task(config: Config, resources: Resources) -> Task:
    begin_run(config)
    file = config.run_directory / FOLDER / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_yaml(config))
    words = ("train", str(file))
    return make_task(words, file.parent, resources, directory=config.run_directory)


def make_task(
    words: Sequence[str],
    folder: Path,
    resources: Resources,
    *,
    directory: Path | None,
    here: Path | None = None,
) -> Task:
    """The task of a job; arguments as those of `Task`."""
    return Task(
        words,
        str(folder),
        None if directory is None else str(directory),
        None if here is None else str(here),
        gpus_per_node=resources.num_gpus,
        cpus_per_node=resources.cpus_per_node,
        seconds_to_save=max(
            10, resources.signal_delay_s - 20
        ),  # the rest is for the end of Ray and of the task
        port=resources.port,
    )


def start_here(task: Task) -> Job:
    """A process of this machine in a session of its own, which outlives this terminal and hears none of its keys."""
    log = Path(task.folder) / "local_log.out"
    log.with_name(EXIT_CODE).unlink(missing_ok=True)
    command = [sys.executable, "-m", local_job.__name__, task.folder, *task.words]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for_command_line(process)  # by which `status` finds it, else it would seem to have ended
    return Job(
        "local", str(process.pid), socket.gethostname(), str(log), time.strftime(TIME_FORMAT)
    )


def _list_folders(config: Config) -> list[Path]:
    read = [path for key, path in list_run_paths(config) if key != "run.directory"]
    # Data that the job is to pack are not there yet, but what is to hold them.
    seen = [find_existing_folder(Path(path)) for path in read if not is_remote(path)]
    return [Path(config.run.directory), *seen]
