"""What a job of Slurm is, through submitit: the parameters of sbatch, the lines of its batch script, and its submission."""

import io
import math
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from distbranch.config import LaunchConfig
from distbranch.errors import UsageError, UserError
from distbranch.launch.job_command import FOLDER
from distbranch.launch.jobs import TIME_FORMAT, Job
from distbranch.launch.on_slurm import hold_signals
from distbranch.launch.on_slurm.containers import list_container_words, make_container_setup
from distbranch.launch.on_slurm.queue import explain_refusal
from distbranch.launch.on_slurm.resources import Resources, count_gpus, list_variables_against
from distbranch.launch.on_slurm.task import Task
from distbranch.launch.processes import restored_environment

MAX_TIMEOUTS = 1000  # a long run is requeued at every time limit
# A step that Slurm warns before its program has begun dies of it. Nothing is lost by then, so the job waits again, as one that was
# warned later does; unless every start is warned at once, as by a time limit below the seconds that a run wants for its end.
REQUEUE_WARNED = (
    f'srun() {{ command srun "$@" || {{ code=$?; [ $code != {128 + signal.SIGUSR2} ] || [ "${{SLURM_RESTART_COUNT:-0}}" -ge '
    f'{MAX_TIMEOUTS} ] || scontrol requeue "$SLURM_JOB_ID"; return $code; }}; }}'
)
# A task may use every core of its job on the node, also where they are not counted by --cpus-per-node (--exclusive, mincpus): a
# site may bind each task to one core. Its ranks share them out by threads.
ALL_CORES = "--cpu-bind=none"
# Without site-packages it starts in milliseconds, of which REQUEUE_WARNED makes no failure.
PYTHON = shlex.join([sys.executable, "-I", "-S", hold_signals.__file__])


def make_sbatch_parameters(
    resources: Resources, shared_folder: Path, *, name: str, cores: int, at_once: int = 1
) -> dict[str, Any]:
    """The parameters of submitit's executor: for a job of this name, whose nodes need so many cores at least.

    Raises:
        UsageError: a folder whose name Slurm would not take as it is.
    """
    if set("%\\\n") & set(str(shared_folder)):
        raise UsageError(
            "The folder of a job of Slurm should have no %, backslash or line break in its path, for Slurm reads them otherwise in "
            f"names of logs, found {shared_folder}: give another run.directory (of a sweep: directory)."
        )
    further: dict[str, Any] = {"requeue": True}
    # Without --cpus-per-node Slurm may give a node one core: no fewer than its ranks need, and more if the site says so.
    if resources.cpus_per_node is None and cores > 1:
        further["mincpus"] = cores
    # submitit's form of them; True: an option without a value.
    further |= {key.replace("-", "_"): value or True for key, value in resources.further.items()}
    gpus = None if count_gpus(resources.further) else resources.gpus_per_node or None
    typed_gpus = f"{resources.gpu_type}:{gpus}" if gpus and resources.gpu_type else gpus
    container = resources.container
    inside = (
        list_container_words(container, shared_folder, num_gpus=resources.num_gpus)
        if container
        else []
    )
    given = {
        "job_name": resources.job_name or name,
        "time": resources.timeout_min,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus_per_node,
        "gpus_per_node": typed_gpus,
        "stderr_to_stdout": True,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "mem": resources.memory,
        "exclusive": resources.exclusive or None,
        "signal_delay_s": resources.signal_delay_s,
        "wckey": os.environ.get("SBATCH_WCKEY", ""),  # submitit writes one into every script
        "array_parallelism": at_once,
        "setup": _make_setup(resources, shared_folder),
        "srun_args": [ALL_CORES, *resources.srun, *inside],
        "additional_parameters": further,
    }
    return {key: value for key, value in given.items() if value is not None}


def count_cores(launch: LaunchConfig, resources: Resources) -> int:
    """The cores that the workers of a run, or of a trial, need on each node."""
    return math.ceil(-(-launch.most_workers // resources.nodes) * launch.cpus_per_worker)


def let_container_see(resources: Resources, folders: Sequence[Path]) -> Resources:
    """What is asked of Slurm, with the folders that a command reads and writes mounted."""
    if resources.container is None:
        return resources
    seen = tuple(dict.fromkeys(folders))
    return replace(resources, container=replace(resources.container, folders=seen))


def render_script(parameters: dict[str, Any], folder: Path, *, num_tasks: int = 1) -> str:
    """The batch script with these parameters, whose logs go into a folder."""
    from submitit import SlurmExecutor

    class OnPaper(SlurmExecutor):  # type: ignore[misc]  # of an untyped library
        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = OnPaper(folder, python=PYTHON)
    executor.update_parameters(**parameters)
    if num_tasks > 1:
        executor.parameters["map_count"] = num_tasks
    # submitit has no public way to see a script before it is submitted.
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit_tasks(tasks: Sequence[Task], parameters: dict[str, Any], folder: Path) -> list[Job]:
    """Submit tasks as one job, or several as an array; its script and logs go into a folder."""
    import submitit

    folder.mkdir(parents=True, exist_ok=True)
    against = list_variables_against([*parameters, *parameters["additional_parameters"]])
    with redirect_stderr(io.StringIO()), warnings.catch_warnings(), restored_environment(against):
        warnings.simplefilter("ignore")
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS, python=PYTHON)
            executor.update_parameters(**parameters)
            found = executor.submit_array(tasks) if len(tasks) > 1 else [executor.submit(tasks[0])]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(explain_refusal(str(error))) from None
    where = f"partition {parameters.get('partition', 'of the site')}"
    return [
        Job("slurm", one.job_id, where, str(one.task(0).paths.stdout), time.strftime(TIME_FORMAT))
        for one in found
    ]


def _make_setup(resources: Resources, shared_folder: Path) -> list[str]:
    """Commands of the batch script before its tasks begin: the site's, then every node must see what the first one writes now."""
    container = resources.container
    # The folder comes as a word: in the text of a command a shell would read what its name has of quotes and `$`.
    advice = "does not see $1 as the first node does. Give a run.directory on storage that all nodes share."
    look = f'trap "" USR2; test -e "$0" || {{ echo "Error: the node $SLURMD_NODENAME {advice}"; exit 1; }}'
    folder = shlex.quote(str(shared_folder))
    return [
        *map(_make_setup_line, resources.setup),
        # From 22.05 on srun does not read how many cores its job has for a task; and it exports no more than sbatch --export allows.
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        "unset SLURM_EXPORT_ENV",
        # One task per node, also after `scontrol update` gave a waiting job another number of nodes: Slurm keeps the first number.
        "export SLURM_NTASKS=$SLURM_JOB_NUM_NODES SLURM_NPROCS=$SLURM_JOB_NUM_NODES",
        REQUEUE_WARNED,
        f'marker={folder}/.seen-$SLURM_JOB_ID; touch "$marker"',
        f'srun --ntasks-per-node=1 --kill-on-bad-exit=0 sh -c {shlex.quote(look)} "$marker" {folder} || {{ rm -f "$marker"; exit 1; }}',
        'rm -f "$marker"',
        *(make_container_setup(container, shared_folder / FOLDER) if container else ()),
    ]


def _make_setup_line(line: str) -> str:
    """A line of --setup as the batch script has it: where it fails, or is no shell at all, the job ends with one sentence."""
    told = f'"Error: on $SLURMD_NODENAME this line of --setup failed with exit code $?:" {shlex.quote(line)}'
    return f"eval {shlex.quote(line)} || {{ echo {told}; exit 1; }}"
