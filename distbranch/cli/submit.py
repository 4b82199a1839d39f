"""`distbranch submit`: commands as jobs of a cluster."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from distbranch.cli.job_words import (
    check_run_is_there,
    make_job_command,
    read_job_words,
    read_train,
)
from distbranch.cli.site import SiteCommand
from distbranch.cli.slurm_options import (
    Account,
    Constraint,
    Cpus,
    Exclusive,
    Further,
    Gpus,
    Image,
    ImageKind,
    JobName,
    Memory,
    Mounts,
    Partition,
    Qos,
    Setup,
    SignalDelay,
    Srun,
    Time,
    make_resources,
)
from distbranch.cli.terminal import Overrides, complete_key, print_piece, print_plain
from distbranch.errors import UsageError

if TYPE_CHECKING:  # loads torch
    from distbranch.config.sweep import SweepConfig
    from distbranch.launch.job_command import JobCommand
    from distbranch.launch.jobs import Job
    from distbranch.launch.on_slurm.resources import Resources

submit_app = typer.Typer(
    no_args_is_help=True,
    help="Run a command as a job of a cluster: train, sweep, experiment, evaluate, predict, export, report or doctor.",
)
Words = Annotated[
    list[str] | None,
    Argument(
        metavar="CONFIG KEY=VALUE | -- COMMAND",
        help="What the job runs: a config file and dotted keys of `train`, or after -- one of train, sweep, experiment, evaluate, "
        "predict, export, report and doctor with all that it takes.",
        autocompletion=complete_key,
    ),
]
Wait = Annotated[
    bool,
    Option("--wait/--no-wait", help="Show the log until the job has ended, and end as it did."),
]
TryRay = Annotated[
    bool, Option("--dry-run", help="Check everything, print what would be submitted.")
]


@submit_app.command("ray", cls=SiteCommand)
def submit_ray(
    words: Words = None,
    address: Annotated[
        str | None,
        Option(
            help="The cluster's dashboard; if empty that of RAY_ADDRESS, else http://127.0.0.1:8265."
        ),
    ] = None,
    dry_run: TryRay = False,
    wait: Wait = False,
) -> None:
    """Run a command as a job of a Ray cluster: this folder is uploaded, without what .gitignore names.

    Run directory and data lie outside it: absolute paths on storage that all nodes see, or URLs. The trials of a sweep or an
    experiment run on all nodes of the cluster, anything but training on its head.

    Examples:
    - `distbranch submit ray configs/celeba-branch-32-2.yaml launch.workers=16 run.directory=/shared/runs --address http://HEAD:8265`
    - `distbranch submit ray --wait -- sweep configs/sweep-quickstart.yaml directory=/shared/runs data.path=/shared/data`
    """
    from distbranch.launch.on_ray.command_jobs import submit_ray_command
    from distbranch.launch.on_ray.job import submit_ray_job

    given = read_job_words(words or [])
    options: dict[str, Any] = {"address": address, "wait": wait, "dry_run": dry_run}
    options |= {"say": print_plain, "show": print_piece}
    if given.name == "train":
        config, overrides = read_train(given)
        code = submit_ray_job(config, overrides, **options)
    else:
        code = submit_ray_command(make_job_command(given, looks_at_data=False), **options)
    # The job's exit code becomes that of the command, so that a script may wait for it.
    if code:
        raise typer.Exit(code)


DryRun = Annotated[bool, Option("--dry-run", help="Print the batch script, submit nothing.")]


@submit_app.command("slurm", cls=SiteCommand)
def submit_slurm(
    words: Words = None,
    partition: Partition = None,
    nodes: Annotated[int, Option(help="Nodes; several are joined by Ray.", min=1)] = 1,
    gpus_per_node: Gpus = "0",
    cpus_per_node: Cpus = None,
    time: Time = "60",
    account: Account = None,
    qos: Qos = None,
    constraint: Constraint = None,
    mem: Memory = None,
    exclusive: Exclusive = False,
    job_name: JobName = None,
    signal_delay: SignalDelay = 90,
    sbatch: Further = None,
    srun: Srun = None,
    setup: Setup = None,
    container: Image = None,
    container_kind: ImageKind = "apptainer",
    mounts: Mounts = None,
    port: Annotated[
        int | None, Option(help="Port of the Ray head; a free one if empty.", min=1, max=65535)
    ] = None,
    executor: Annotated[
        Literal["slurm", "local"],
        Option(help="`local`: this machine, to try without Slurm (and without --time)."),
    ] = "slurm",
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Run a command as a job of Slurm, or resume it. At its time limit a run, sweep or experiment saves everything and queues again.

    The trials of a sweep or an experiment run on all nodes of the job; anything but training runs on one node, and a time limit
    ends it.

    Examples:
    - `distbranch submit slurm configs/celeba-branch-32-2.yaml --partition gpu --nodes 2 --gpus-per-node 8 --time 12:00:00`
    - `distbranch submit slurm --nodes 4 --gpus-per-node 8 --time 12:00:00 -- sweep configs/sweep-thinness-branching.yaml gpus_per_trial=1`
    - `distbranch submit slurm --gpus-per-node 1 --wait -- evaluate runs/celeba-branch-32-2 --split test`
    """
    from distbranch.launch.on_slurm.resources import parse_gpus

    gpu_type, num_gpus = parse_gpus(gpus_per_node)
    resources = make_resources(
        time=time,
        sbatch=sbatch,
        srun=srun,
        container=(container, container_kind, mounts or []),
        partition=partition,
        nodes=nodes,
        gpus_per_node=num_gpus,
        gpu_type=gpu_type,
        cpus_per_node=cpus_per_node,
        account=account,
        qos=qos,
        constraint=constraint,
        memory=mem,
        exclusive=exclusive,
        job_name=job_name,
        signal_delay_s=signal_delay,
        setup=setup or (),
        port=port,
        executor=executor,
    )
    given = read_job_words(words or [])
    if given.name == "train":
        config, overrides = read_train(given)
        return _submit_run_to_slurm(config, overrides, resources, dry_run=dry_run, wait=wait)
    command = make_job_command(given, looks_at_data=True)
    check_run_is_there(command)
    return _submit_command_to_slurm(command, resources, dry_run=dry_run, wait=wait)


def _submit_run_to_slurm(
    config: Path, overrides: Sequence[str], resources: "Resources", *, dry_run: bool, wait: bool
) -> None:
    from distbranch.config import load_config
    from distbranch.launch.on_slurm import submission
    from distbranch.launch.prepare import with_absolute_paths

    resolved = load_config(config, overrides)
    if dry_run:
        return print_plain(submission.render_batch_script(resolved, resources))
    jobs = submission.submit_runs([resolved], resources, say=print_plain)
    # None is new: the run is finished, or its job is still there, which was said.
    directory = with_absolute_paths(resolved).run_directory
    job = jobs[0] if jobs else submission.find_job(directory)
    if job is None:
        return None
    if jobs:
        _tell_job(job, directory)
    if wait:
        code = submission.wait_for_job(directory, job, say=print_plain, show=print_piece)
        if code:
            raise typer.Exit(code)
    return None


def _submit_command_to_slurm(
    command: "JobCommand", resources: "Resources", *, dry_run: bool, wait: bool
) -> None:
    from distbranch.launch.on_slurm import command_jobs

    if dry_run:
        return print_plain(command_jobs.render_command_script(command, resources))
    job, is_new = command_jobs.submit_command(command, resources, say=print_plain)
    if is_new and command.launch is not None:
        _tell_job(job, command.directory)
    elif is_new:
        print_plain(f"Submitted job {job.id} ({job.where}); its log is {job.log}")
        if job.kind == "slurm":
            print_plain(
                f"`{command.name}` saves nothing on its way: at the limit of {resources.timeout_min} minutes (--time) it ends unfinished."
            )
    if wait:
        code = command_jobs.wait_for_command(command, job, say=print_plain, show=print_piece)
        if code:
            raise typer.Exit(code)
    return None


def _tell_job(job: "Job", directory: Path) -> None:
    print_plain(f"Submitted job {job.id} ({job.where}); its log is {job.log}")
    print_plain(
        f"`distbranch status {directory}` shows its state, `distbranch logs` and `distbranch cancel` take the same folder."
    )


@submit_app.command("slurm-array", cls=SiteCommand)
def submit_slurm_array(
    sweep: Annotated[Path, Argument(help="A sweep file, see configs/.")],
    overrides: Overrides = None,
    partition: Partition = None,
    gpus: Annotated[
        int | None,
        Option("--gpus-per-trial", help="GPUs of each trial, as the key `gpus_per_trial`.", min=0),
    ] = None,
    cpus: Annotated[
        int | None,
        Option("--cpus-per-trial", help="CPUs of each trial, as the key `cpus_per_trial`.", min=1),
    ] = None,
    at_once: Annotated[
        int | None,
        Option(help="Trials that may run at the same time, as `concurrency`; 64 if empty.", min=1),
    ] = None,
    time: Time = "60",
    account: Account = None,
    qos: Qos = None,
    constraint: Constraint = None,
    mem: Memory = None,
    job_name: JobName = None,
    signal_delay: SignalDelay = 90,
    sbatch: Further = None,
    srun: Srun = None,
    setup: Setup = None,
    container: Image = None,
    container_kind: ImageKind = "apptainer",
    mounts: Mounts = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Train every trial of a sweep as a job of its own, in one array of Slurm. Finished trials are not repeated.

    Examples:
    - `distbranch submit slurm-array configs/sweep-thinness-branching.yaml --partition gpu --gpus-per-trial 1 --time 4:00:00`
    """
    from distbranch.config.sweep import load_sweep

    # Options are written as overrides, so that they are checked and recorded as keys of the sweep.
    given = {"gpus_per_trial": gpus, "cpus_per_trial": cpus}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    loaded = load_sweep(sweep, [*(overrides or []), *options])
    if loaded.early_stopping is not None:
        raise UsageError(
            "The trials of an array do not know of each other, so none is stopped early: give early_stopping=null to train all of "
            "them to their end, or use `distbranch sweep`."
        )
    resources = make_resources(
        time=time,
        sbatch=sbatch,
        srun=srun,
        container=(container, container_kind, mounts or []),
        partition=partition,
        gpus_per_node=math.ceil(loaded.gpus_per_trial),  # Slurm gives whole ones only
        cpus_per_node=math.ceil(loaded.cpus_per_trial or loaded.workers_per_trial),
        account=account,
        qos=qos,
        constraint=constraint,
        memory=mem,
        job_name=job_name or loaded.name,
        signal_delay_s=signal_delay,
        setup=setup or (),
    )
    # A site's limit on the jobs of a user is often in the hundreds.
    most = at_once or loaded.concurrency or 64
    if dry_run:
        return _print_array(loaded, resources, most)
    # The sweep itself makes the table, for it repeats no finished trial.
    table = shlex.join(["distbranch", "sweep", str(sweep), *(overrides or [])])
    return _submit_array(loaded, resources, most, table=table, wait=wait)


def _print_array(sweep: "SweepConfig", resources: "Resources", at_once: int) -> None:
    from distbranch.launch.on_slurm.submission import render_array_script
    from distbranch.sweep.plan import list_trials

    trials = list_trials(sweep)
    print_plain(render_array_script(trials, resources, folder=sweep.path, at_once=at_once))


def _submit_array(
    sweep: "SweepConfig", resources: "Resources", at_once: int, *, table: str, wait: bool
) -> None:
    from distbranch.launch.on_slurm.submission import submit_runs, wait_for_runs
    from distbranch.sweep.plan import list_trials
    from distbranch.sweep.trial_status import SweepDirectory

    trials = list_trials(sweep)
    jobs = submit_runs(trials, resources, folder=sweep.path, at_once=at_once, say=print_plain)
    if jobs:
        SweepDirectory(sweep.path).record_sweep(sweep)  # `distbranch ls` shows one row of it
        print_plain(
            f"Submitted {len(jobs)} of {len(trials)} trials as the array {jobs[0].id.partition('_')[0]}."
        )
    print_plain(
        f"`distbranch ls {sweep.path}` lists them, `distbranch cancel` ends all. When all have ended, `{table}` makes the table "
        "of them; it trains again what failed."
    )
    if wait:
        code = wait_for_runs(trials, say=print_plain)
        if code:
            raise typer.Exit(code)
