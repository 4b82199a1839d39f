"""`distbranch submit`: runs as jobs of a cluster."""

import math
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from distbranch.cli.site import SiteCommand
from distbranch.cli.terminal import Overrides, print_piece, print_plain
from distbranch.errors import UsageError

submit_app = typer.Typer(no_args_is_help=True, help="Train a run as a job of a cluster.")


@submit_app.command("ray", cls=SiteCommand)
def submit_ray(
    config: Annotated[Path, Argument(help="A YAML file inside this folder, which is uploaded.")],
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        Option(
            help="The cluster's dashboard; if empty that of RAY_ADDRESS, else http://127.0.0.1:8265."
        ),
    ] = None,
    wait: Annotated[
        bool, Option("--wait/--no-wait", help="Show the log; end with the job's exit code.")
    ] = True,
) -> None:
    """Train a run as a job of a Ray cluster: this folder is uploaded, without what .gitignore names.

    Run directory and data lie outside it: absolute paths on storage that all nodes see, or URLs.

    Examples:
    - `distbranch submit ray configs/celeba-branch-32-2.yaml launch.workers=16 run.directory=/shared/runs --address http://HEAD:8265`
    """
    from distbranch.launch.on_ray.job import submit_ray_job

    # The job's exit code becomes that of the command, so that a script may wait for it.
    code = submit_ray_job(
        config, overrides or [], address=address, wait=wait, say=print_plain, show=print_piece
    )
    if code:
        raise typer.Exit(code)


# What both commands ask of Slurm; their words are those of sbatch.
Partition = Annotated[str | None, Option(help="Partition; the site's default if empty.")]
Gpus = Annotated[
    str,
    Option(
        "--gpus-per-node",
        metavar="[TYPE:]NUMBER",
        help="GPUs of each node, such as 2, a100:2 or 1g.10gb:2; one rank on each.",
    ),
]
Cpus = Annotated[
    int | None,
    Option(
        "--cpus-per-node",
        help="Cores of each node; if empty one for each of its ranks, or more.",
        min=1,
    ),
]
Time = Annotated[
    str, Option("--time", metavar="TIME", help="Time limit: MINUTES, 12:00:00 or 2-00:00:00.")
]
Account = Annotated[str | None, Option(help="Account to charge.")]
Qos = Annotated[str | None, Option(help="Quality of service.")]
Constraint = Annotated[str | None, Option(help="Features that nodes must have.")]
Memory = Annotated[str | None, Option("--mem", help="Memory of each node, such as 64G.")]
Exclusive = Annotated[bool, Option("--exclusive", help="Share the nodes with no other job.")]
JobName = Annotated[str | None, Option(help="Name in the queue; the run's if empty.")]
SignalDelay = Annotated[
    int, Option(help="Seconds before the time limit at which the run saves itself.", min=30)
]
Further = Annotated[
    list[str] | None,
    Option("--sbatch", metavar="KEY=VALUE", help="Another option of sbatch; may be given again."),
]
Setup = Annotated[
    list[str] | None,
    Option(
        metavar="LINE",
        help="A line of shell before the tasks, such as 'module load cuda'; may be given again.",
    ),
]
Srun = Annotated[
    list[str] | None,
    Option("--srun", metavar="KEY=VALUE", help="Another option of srun; may be given again."),
]
Image = Annotated[
    str | None,
    Option(
        "--container",
        metavar="IMAGE",
        help="The image in which the job runs, which has this package; empty for none.",
    ),
]
ImageKind = Annotated[
    Literal["apptainer", "singularity", "pyxis"], Option("--container-kind", help="What starts it.")
]
Mounts = Annotated[
    list[str] | None,
    Option(
        metavar="OUTSIDE[:INSIDE]",
        help="Further folders that the container sees, separated by commas; those of the run and its data are seen anyway.",
    ),
]
DryRun = Annotated[bool, Option("--dry-run", help="Print the batch script, submit nothing.")]


@submit_app.command("slurm", cls=SiteCommand)
def submit_slurm(
    config: Annotated[Path, Argument(help="A YAML file, see configs/.")],
    overrides: Overrides = None,
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
    wait: Annotated[
        bool, Option("--wait/--no-wait", help="Show the log until the job has ended.")
    ] = False,
) -> None:
    """Train a run as a job of Slurm, or resume it. At its time limit the job saves everything and queues again.

    Examples:
    - `distbranch submit slurm configs/celeba-branch-32-2.yaml --partition gpu --nodes 2 --gpus-per-node 8 --time 12:00:00`
    """
    from distbranch.config import load_config
    from distbranch.launch.on_slurm import submission
    from distbranch.launch.on_slurm.containers import parse_container
    from distbranch.launch.on_slurm.resources import (
        Resources,
        parse_further_options,
        parse_gpus,
        parse_minutes,
        parse_srun_options,
    )

    gpu_type, num_gpus = parse_gpus(gpus_per_node)
    resources = Resources(
        partition=partition,
        nodes=nodes,
        gpus_per_node=num_gpus,
        gpu_type=gpu_type,
        cpus_per_node=cpus_per_node,
        timeout_min=parse_minutes(time),
        account=account,
        qos=qos,
        constraint=constraint,
        memory=mem,
        exclusive=exclusive,
        job_name=job_name,
        signal_delay_s=signal_delay,
        further=parse_further_options(sbatch or [], gpus_per_node=num_gpus),
        setup=setup or (),
        srun=parse_srun_options(srun or []),
        container=parse_container(container, container_kind, mounts or []),
        port=port,
        executor=executor,
    )
    resolved = load_config(config, overrides or [])
    if dry_run:
        return print_plain(submission.render_batch_script(resolved, resources))
    jobs = submission.submit_runs([resolved], resources, say=print_plain)
    # The run is finished, or its job is still there: that was said.
    if not jobs:
        return None
    [job] = jobs
    print_plain(f"Submitted job {job.id} ({job.where}); its log is {job.log}")
    directory = Path(job.log).parent.parent  # logs lie in a folder of the run directory
    if wait:
        code = submission.wait_for_job(directory, job, say=print_plain, show=print_piece)
        if code:
            raise typer.Exit(code)
    else:
        print_plain(
            f"`distbranch status {directory}` shows its state, `distbranch logs` and `distbranch cancel` take the same folder."
        )
    return None


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
) -> None:
    """Train every trial of a sweep as a job of its own, in one array of Slurm. Finished trials are not repeated.

    Examples:
    - `distbranch submit slurm-array configs/sweep-thinness-branching.yaml --partition gpu --gpus-per-trial 1 --time 4:00:00`
    """
    from distbranch.config.sweep import load_sweep
    from distbranch.launch.on_slurm import submission
    from distbranch.launch.on_slurm.containers import parse_container
    from distbranch.launch.on_slurm.resources import (
        Resources,
        parse_further_options,
        parse_minutes,
        parse_srun_options,
    )
    from distbranch.sweep.plan import list_trials
    from distbranch.sweep.trial_status import SweepDirectory

    # Options are written as overrides, so that they are checked and recorded as keys of the sweep.
    given = {"gpus_per_trial": gpus, "cpus_per_trial": cpus}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    loaded = load_sweep(sweep, [*(overrides or []), *options])
    if loaded.early_stopping is not None:
        raise UsageError(
            "The trials of an array do not know of each other, so none is stopped early: give early_stopping=null to train all of "
            "them to their end, or use `distbranch sweep`."
        )
    trials = list_trials(loaded)
    most = (
        at_once or loaded.concurrency or 64
    )  # a site's limit on the jobs of a user is often in the hundreds
    # Slurm gives whole GPUs only.
    gpus_per_trial = math.ceil(loaded.gpus_per_trial)
    resources = Resources(
        partition=partition,
        gpus_per_node=gpus_per_trial,
        cpus_per_node=math.ceil(loaded.cpus_per_trial or loaded.workers_per_trial),
        timeout_min=parse_minutes(time),
        account=account,
        qos=qos,
        constraint=constraint,
        memory=mem,
        job_name=job_name or loaded.name,
        signal_delay_s=signal_delay,
        further=parse_further_options(sbatch or [], gpus_per_node=gpus_per_trial),
        setup=setup or (),
        srun=parse_srun_options(srun or []),
        container=parse_container(container, container_kind, mounts or []),
    )
    if dry_run:
        return print_plain(
            submission.render_batch_script(trials[0], resources, num_runs=len(trials), at_once=most)
        )
    jobs = submission.submit_runs(
        trials, resources, folder=loaded.path, at_once=most, say=print_plain
    )
    if jobs:
        SweepDirectory(loaded.path).record_sweep(loaded)  # `distbranch ls` shows one row of it
        print_plain(
            f"Submitted {len(jobs)} of {len(trials)} trials as the array {jobs[0].id.partition('_')[0]}."
        )
    # The sweep itself makes the table, for it repeats no finished trial.
    table = shlex.join(["distbranch", "sweep", str(sweep), *(overrides or [])])
    return print_plain(
        f"`distbranch ls {loaded.path}` lists them, `distbranch cancel` ends all. When all have ended, `{table}` makes the table "
        "of them; it trains again what failed."
    )
