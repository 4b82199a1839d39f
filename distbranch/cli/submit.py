"""`distbranch submit`: runs as jobs of a cluster."""

import math
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.terminal import Overrides, console
from distbranch.errors import UsageError

submit_app = typer.Typer(no_args_is_help=True, help="Train a run as a job of a cluster.")


@submit_app.command("ray")
def submit_ray(
    config: Annotated[Path, typer.Argument(help="A YAML file inside this folder, which is uploaded.")],
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard; if empty that of RAY_ADDRESS, else http://127.0.0.1:8265."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the log; end with the job's exit code.")] = True,
) -> None:
    """Train a run as a job of a Ray cluster: this folder is uploaded, without what .gitignore names.

    Run directory and data lie outside it: absolute paths on storage that all nodes see, or URLs.

    Examples:
    `distbranch submit ray configs/celeba-branch-32-2.yaml launch.workers=16 run.directory=/shared/runs --address http://HEAD:8265`
    """
    from distbranch.launch.on_ray.job import submit_ray_job

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(piece: str) -> None:
        console.file.write(piece)
        console.file.flush()

    code = submit_ray_job(config, overrides or [], address=address, wait=wait, say=say, show=show)
    if code:
        raise typer.Exit(code)


class Executor(StrEnum):
    """Who runs the job."""

    slurm = "slurm"
    local = "local"


Partition = Annotated[str | None, typer.Option(help="Partition; the site's default if empty.")]
Gpus = Annotated[
    int,
    typer.Option(
        "--gpus-per-node", help="GPUs of each node; one rank on each. With a type: --sbatch gres=gpu:a100:2.", min=0
    ),
]
Cpus = Annotated[
    int | None,
    typer.Option("--cpus-per-node", help="Cores of each node; if empty no fewer than its ranks need, one each.", min=1),
]
Time = Annotated[str, typer.Option("--time", help="Time limit: MINUTES, 12:00:00 or 2-00:00:00.")]
Account = Annotated[str | None, typer.Option(help="Account to charge.")]
Qos = Annotated[str | None, typer.Option(help="Quality of service.")]
Constraint = Annotated[str | None, typer.Option(help="Features that nodes must have.")]
Memory = Annotated[str | None, typer.Option("--mem", help="Memory of each node, such as 64G.")]
Exclusive = Annotated[bool, typer.Option("--exclusive", help="Share the nodes with no other job.")]
JobName = Annotated[str | None, typer.Option(help="Name in the queue; the run's if empty.")]
SignalDelay = Annotated[int, typer.Option(help="Seconds before the time limit at which the run saves itself.", min=30)]
Further = Annotated[list[str] | None, typer.Option("--sbatch", help="Another option of sbatch: KEY=VALUE.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the batch script, submit nothing.")]


@submit_app.command("slurm")
def submit_slurm(
    config: Annotated[Path, typer.Argument(help="A YAML file, see configs/.")],
    overrides: Overrides = None,
    partition: Partition = None,
    nodes: Annotated[int, typer.Option(help="Nodes; several are joined by Ray.", min=1)] = 1,
    gpus_per_node: Gpus = 0,
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
    port: Annotated[
        int | None, typer.Option(help="Port of the Ray head; a free one if empty.", min=1, max=65535)
    ] = None,
    executor: Annotated[
        Executor, typer.Option(help="`local`: this machine, to try without Slurm (and without --time).")
    ] = Executor.slurm,
    dry_run: DryRun = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the log until the job has ended.")] = False,
) -> None:
    """Train a run as a job of Slurm, or go on with it. At its time limit the job saves everything and queues again.

    Examples:
    `distbranch submit slurm configs/celeba-branch-32-2.yaml --partition gpu --nodes 2 --gpus-per-node 8 --time 12:00:00`
    """
    from distbranch.config import load_config
    from distbranch.launch.on_slurm import submission
    from distbranch.launch.on_slurm.resources import Resources, parse_further_options, parse_minutes

    resources = Resources(
        partition=partition,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        timeout_min=parse_minutes(time),
        account=account,
        qos=qos,
        constraint=constraint,
        memory=mem,
        exclusive=exclusive,
        job_name=job_name,
        signal_delay_s=signal_delay,
        further=parse_further_options(sbatch or [], gpus_per_node=gpus_per_node),
        port=port,
        executor=executor.value,
    )
    resolved = load_config(config, overrides or [])
    if dry_run:
        return _print_line(submission.render_batch_script(resolved, resources))
    jobs = submission.submit_runs([resolved], resources, say=_print_line)
    if not jobs:
        return None
    [job] = jobs
    _print_line(f"Submitted job {job.id} ({job.where}); its log is {job.log}")
    directory = Path(job.log).parent.parent
    if wait:
        code = submission.wait_for_job(directory, job, say=_print_line, show=_print_piece)
        if code:
            raise typer.Exit(code)
    else:
        _print_line(
            f"`distbranch status {directory}` says how it goes, `distbranch logs` and `distbranch cancel` take the same folder."
        )
    return None


@submit_app.command("slurm-array")
def submit_slurm_array(
    sweep: Annotated[Path, typer.Argument(help="A sweep file, see configs/.")],
    overrides: Overrides = None,
    partition: Partition = None,
    gpus: Annotated[int | None, typer.Option("--gpus-per-trial", help="As `gpus_per_trial`.", min=0)] = None,
    cpus: Annotated[int | None, typer.Option("--cpus-per-trial", help="As `cpus_per_trial`.", min=1)] = None,
    at_once: Annotated[
        int | None, typer.Option(help="Trials that may run at the same time, as `concurrency`; 64 if empty.", min=1)
    ] = None,
    time: Time = "60",
    account: Account = None,
    qos: Qos = None,
    constraint: Constraint = None,
    mem: Memory = None,
    job_name: JobName = None,
    signal_delay: SignalDelay = 90,
    sbatch: Further = None,
    dry_run: DryRun = False,
) -> None:
    """Train every trial of a sweep as a job of its own, in one array of Slurm. Finished trials are not repeated.

    Examples:
    `distbranch submit slurm-array configs/sweep-thinness-branching.yaml --partition gpu --gpus-per-trial 1 --time 4:00:00`
    """
    from distbranch.config.sweep import load_sweep
    from distbranch.launch.on_slurm import submission
    from distbranch.launch.on_slurm.resources import Resources, parse_further_options, parse_minutes
    from distbranch.sweep.plan import list_trials

    given = {"gpus_per_trial": gpus, "cpus_per_trial": cpus}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    loaded = load_sweep(sweep, [*(overrides or []), *options])
    if loaded.early_stopping is not None:
        raise UsageError(
            "The trials of an array do not know of each other, so none is stopped early: give early_stopping=null to train all of "
            "them to their end, or use `distbranch sweep`."
        )
    trials = list_trials(loaded)
    most = at_once or loaded.concurrency or 64
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
    )
    if dry_run:
        return _print_line(submission.render_batch_script(trials[0], resources, num_runs=len(trials), at_once=most))
    jobs = submission.submit_runs(trials, resources, folder=loaded.path, at_once=most, say=_print_line)
    if jobs:
        _print_line(f"Submitted {len(jobs)} of {len(trials)} trials as the array {jobs[0].id.partition('_')[0]}.")
    table = shlex.join(["distbranch", "sweep", str(sweep), *(overrides or [])])
    return _print_line(f"When all have ended, `{table}` makes the table of them; it trains again what failed.")


def _print_line(text: str) -> None:
    console.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)


def _print_piece(piece: str) -> None:
    console.file.write(piece)
    console.file.flush()
