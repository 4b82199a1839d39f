"""Any command as a job of Slurm: a sweep or experiment on all nodes of one allocation, anything else on one node.

The trials of a sweep run on the job's own Ray cluster. At its time limit the sweep stops with every trial saved and the job is put
back into the queue, as that of a run is; a command that saves nothing on its way is not.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path

from distbranch.config import LaunchConfig
from distbranch.config.paths import is_remote
from distbranch.errors import UsageError, UserError
from distbranch.launch.job_command import JobCommand
from distbranch.launch.jobs import Job, Say, describe_job_state, show_log, write_job
from distbranch.launch.on_slurm.batch_script import (
    count_cores,
    let_container_see,
    make_sbatch_parameters,
    render_script,
    submit_tasks,
)
from distbranch.launch.on_slurm.local_job import EXIT_CODE, read_exit_code
from distbranch.launch.on_slurm.resources import Resources
from distbranch.launch.on_slurm.submission import (
    check_executor,
    check_signal_delay,
    make_task,
    start_here,
)
from distbranch.launch.ray_folder import find_existing_folder
from distbranch.launch.stopping import EXIT_PREEMPTED


def submit_command(command: JobCommand, resources: Resources, *, say: Say) -> tuple[Job, bool]:
    """Submit a command as a job, and record it; the job, and whether it is a new one: where it waits or runs already that is said.

    Raises:
        UsageError: options that cannot be, or a command that needs others.
        UserError: Slurm refuses.
    """
    _check_allocation(command, resources)
    check_executor(resources, say)
    job = command.find_job(say)
    if job is not None:
        return job, False
    # Made before the job, which may begin at once.
    new = [folder for folder in (command.directory, command.folder) if not folder.exists()]
    command.folder.mkdir(parents=True, exist_ok=True)
    (command.folder / EXIT_CODE).unlink(missing_ok=True)
    directory = command.directory if command.launch is not None else None
    task = make_task(command.words, command.folder, resources, directory=directory, here=Path.cwd())
    try:
        if resources.executor == "local":
            job = start_here(task)
        else:
            [job] = submit_tasks([task], _make_parameters(command, resources), command.folder)
    except UserError:
        for folder in new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    job = replace(job, command=command.name)
    write_job(command.directory, job)
    return job, True


def render_command_script(command: JobCommand, resources: Resources) -> str:
    """The batch script that would be submitted; nothing is written and no Slurm is needed."""
    _check_allocation(command, resources)
    return render_script(_make_parameters(command, resources), command.folder)


def wait_for_command(command: JobCommand, job: Job, *, say: Say, show: Say) -> int:
    """Show the job's log until it has ended; the exit code of its command, or 75 or 1 where Slurm ended it."""
    show_log(job, say=say, show=show)
    # A job of Ray, which was there already, has no such file.
    code = None if job.kind == "ray" else read_exit_code(command.folder)
    state = describe_job_state(job)
    if code == 0 or state == "ended (succeeded)":
        return 0
    resumes = command.launch is not None
    then = "resumes it" if resumes else "begins it anew"
    say(
        f"The job has {state}, and `{command.name}` has not come to its end; the same command {then}."
    )
    if code is None:
        code = EXIT_PREEMPTED if resumes and "CANCELLED" in state else 1
    return code


def _make_parameters(command: JobCommand, resources: Resources) -> dict[str, object]:
    cores = 1 if command.launch is None else count_cores(command.launch, resources)
    resources = let_container_see(resources, _list_folders(command))
    name = f"{command.name.replace(' ', '-')}-{Path(command.place).name}"
    return make_sbatch_parameters(resources, command.directory, name=name, cores=cores)


def _list_folders(command: JobCommand) -> list[Path]:
    """What the command reads and writes: its places, its files, and the folder in which it was typed."""
    places = [Path(place).absolute() for _, place in command.places if not is_remote(place)]
    files = [file.absolute().parent for file in command.configs]
    return [Path(command.place), *map(find_existing_folder, places), *files, Path.cwd()]


def _check_allocation(command: JobCommand, resources: Resources) -> None:
    """What is asked of Slurm has room for what the command needs, and no GPU stays idle."""
    check_signal_delay(resources)
    if command.is_remote:
        raise UsageError(
            "A job of Slurm keeps its log in the directory on which it works: give one on storage that all nodes share, found "
            f"{command.place}."
        )
    if command.launch is not None:
        _check_room_for_trial(command.launch, resources)
    # `doctor` looks at each node, and at what joins them.
    elif resources.nodes > 1 and command.name != "doctor":
        raise UsageError(
            f"`{command.name}` runs on one node, found --nodes {resources.nodes}: leave it out."
        )
    else:
        _ = resources.num_gpus  # says so where two ways of asking do not agree


def _check_room_for_trial(launch: LaunchConfig, resources: Resources) -> None:
    if launch.address not in (None, "local"):
        raise UsageError(
            f"A job of Slurm starts a cluster of its own: leave launch.address out, found {launch.address}."
        )
    gpus, workers = resources.num_gpus, launch.most_workers
    if gpus and launch.device != "cuda":
        raise UsageError(
            f"The trials use no GPU, so that the {resources.nodes * gpus} GPU(s) that are asked for would be idle: give gpus_per_trial "
            "(of an experiment launch.gpus_per_worker), or ask for none."
        )
    if launch.device == "cuda" and not gpus:
        raise UsageError(
            "Trials with gpus_per_trial (of an experiment launch.gpus_per_worker) need --gpus-per-node."
        )
    # A worker never spans two nodes.
    room = {}
    if gpus:
        room[f"{gpus} GPU(s)"] = gpus / launch.gpus_per_worker
    if resources.cpus_per_node is not None:
        room[f"{resources.cpus_per_node} core(s)"] = (
            resources.cpus_per_node / launch.cpus_per_worker
        )
    for what, most in room.items():
        fit = resources.nodes * math.floor(most + 1e-9)
        if fit < workers:
            raise UsageError(
                f"A trial has {workers} worker(s), of which {fit} have room on --nodes {resources.nodes} with {what} each: ask for more, "
                "or make the trials smaller (workers_per_trial, cpus_per_trial, gpus_per_trial)."
            )
