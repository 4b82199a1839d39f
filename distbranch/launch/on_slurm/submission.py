"""Runs as jobs of Slurm, through submitit: one task per node, a Ray cluster of the job's own when there are several.

What each task does is in `task`. This file says what is asked of Slurm, and records who trains the run.
"""

import io
import math
import os
import re
import shlex
import shutil
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from distbranch.config import Config, LaunchConfig, load_config, to_yaml
from distbranch.data.shards import is_remote
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, write_atomically
from distbranch.engine.run_start import begin_run
from distbranch.errors import UsageError, UserError
from distbranch.launch.jobs import Job, describe_job_state, is_waiting_or_running, read_job, read_log, write_job
from distbranch.launch.on_slurm.queue import check_partition, explain_refusal
from distbranch.launch.on_slurm.resources import Resources, has_gpu_options, restrict_environment
from distbranch.launch.on_slurm.task import Task
from distbranch.launch.prepare import check_data, is_to_be_packed, read_packed_data, with_absolute_paths
from distbranch.launch.stopping import EXIT_PREEMPTED

FOLDER = "slurm"  # in the run directory: the batch script, the logs, what tasks tell each other
MAX_TIMEOUTS = 1000  # a long run is requeued at every time limit
SECONDS_BETWEEN_LOOKS = 2
# A task may use every core of its job on the node, also where they are not counted by --cpus-per-node (--exclusive, mincpus): a
# site may bind each task to one core. Its ranks share them out by threads.
ALL_CORES = "--cpu-bind=none"


def submit_run(config: Config, resources: Resources, *, say: Callable[[str], None]) -> Job | None:
    """Submit one run and record its job in the run directory; None if it is finished or submitted already.

    Raises:
        UsageError: options that cannot be.
        UserError: data, run directory or Slurm are not as they should be.
    """
    _check_resources(resources)
    checked = _resolve_config(config, resources)
    if _is_settled(checked.run_directory, say):
        return None
    [job] = _submit_runs([checked], resources, checked.run_directory / FOLDER)
    return job


def submit_array(
    trials: Sequence[Config], folder: Path, resources: Resources, *, at_once: int, say: Callable[[str], None]
) -> list[Job]:
    """Submit independent runs as one array, those that are finished or on their way left out.

    Raises:
        UsageError, UserError: as for `submit_run`.
    """
    if resources.nodes > 1 or resources.executor == "local":
        raise UsageError("An array is of runs on one node each: leave --nodes and --executor out.")
    _check_resources(resources)
    checked = [_resolve_config(trial, resources) for trial in trials]
    waiting = [trial for trial in checked if not _is_settled(trial.run_directory, say)]
    if not waiting:
        return []
    return _submit_runs(waiting, resources, folder / FOLDER, at_once=at_once)


def render_batch_script(config: Config, resources: Resources, *, num_runs: int = 1, at_once: int = 1) -> str:
    """The batch script that would be submitted; nothing is written and no Slurm is needed."""
    from submitit.slurm.slurm import SlurmExecutor

    class OnPaper(SlurmExecutor):  # type: ignore[misc]  # of an untyped library
        @classmethod
        def affinity(cls) -> int:
            return 1

    checked = _resolve_config(config, resources)
    # submitit has no public way to see a script before it is submitted.
    executor = OnPaper(checked.run_directory / FOLDER)
    parameters = make_submitit_parameters(checked, resources, checked.run_directory)
    given = {key.removeprefix("slurm_"): value for key, value in parameters.items()}
    if num_runs > 1:
        given |= {"map_count": num_runs, "array_parallelism": at_once}
    executor.parameters.update(executor._convert_parameters(given))
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def wait_for_job(run_directory: Path, job: Job, *, say: Callable[[str], None], show: Callable[[str], None]) -> int:
    """Show the job's log until it has ended; 0 if the run is finished, 75 if it was stopped with a checkpoint, else 1."""
    say(f"Waiting for the job; Ctrl-C leaves it alone (`distbranch status {run_directory}`).")
    told = ""
    while (state := describe_job_state(job)).startswith("waiting"):
        if state != told:
            say(state)
        told = state
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for piece in read_log(run_directory, follow=True):
        show(piece)
    if read_result(run_directory) is not None:
        return 0
    state = describe_job_state(job)
    say(f"The job has {state}, and the run is not finished; the same command continues it.")
    # A job that saved its run ends in order; one that was killed, or failed, is in another state.
    if "COMPLETED" in state or "CANCELLED" in state:
        return EXIT_PREEMPTED
    return 1


def _resolve_config(config: Config, resources: Resources) -> Config:
    """The configuration as the job will train it: absolute paths, and ranks as many as the allocation has room for."""
    if config.run_url is not None:
        raise UsageError(
            "A job of Slurm keeps its log in the run directory: give a run.directory on storage that all nodes share, "
            f"found {config.run_url}."
        )
    if resources.executor == "slurm" and resources.signal_delay_s >= 60 * resources.timeout_min:
        raise UsageError(
            f"--signal-delay {resources.signal_delay_s} (seconds) should be shorter than --time, which is {resources.timeout_min} "
            "minute(s): the run would stop as soon as it begins."
        )
    config = _fit_to_allocation(with_absolute_paths(config), resources)
    if not is_to_be_packed(config) and not any(map(is_remote, config.data.paths)):
        check_data(config, read_packed_data(config))
    return config


def _fit_to_allocation(config: Config, resources: Resources) -> Config:
    """One rank per GPU, or per node where there are none, unless the configuration asks for more."""
    per_node = resources.num_gpus or 1
    if config.launch.address not in (None, "local"):
        raise UsageError(
            f"A job of Slurm starts a cluster of its own: leave launch.address out, found {config.launch.address}."
        )
    # 1 is the default, so nobody asked for it: a run of one rank on several GPUs would leave all but one idle.
    values: dict[str, Any] = {"launch.address": "local"}
    if config.launch.workers == 1:
        values["launch.workers"] = resources.nodes * per_node
    workers = values.get("launch.workers", config.launch.workers)
    if resources.nodes > 1 and isinstance(workers, int):
        if workers < resources.nodes:
            raise UsageError(
                f"launch.workers={workers} ranks leave some of --nodes {resources.nodes} idle; ask for fewer nodes."
            )
        values["launch.placement"] = "spread"  # as many on each node: Ray would fill the first one
        if resources.cpus_per_node:
            values["launch.cpus_per_worker"] = resources.cpus_per_node / -(-workers // resources.nodes)
    if resources.num_gpus:
        _check_gpus(load_config(config, values).launch, resources)
        values["launch.device"] = "cuda"  # a torch that finds no GPU should not train beside one
    else:
        if config.launch.device == "cuda":
            raise UsageError("launch.device=cuda needs --gpus-per-node.")
        values["launch.device"] = "cpu"  # a node may have GPUs that belong to others
    return load_config(config, values)


def _check_gpus(launch: LaunchConfig, resources: Resources) -> None:
    """No GPU that is asked for stays idle, and no rank is without one."""
    asked = resources.nodes * resources.num_gpus
    each = launch.gpus_per_worker
    if launch.device == "cpu":
        raise UsageError(
            f"launch.device=cpu leaves the {asked} GPU(s) idle that are asked for: use launch.device=cuda (of a sweep: "
            "--gpus-per-trial), or ask for none."
        )
    if math.ceil(round(launch.most_workers * each, 6)) != asked:
        share = "one per GPU" if each == 1 else f"{each:g} of a GPU each"
        raise UsageError(
            f"The ranks should fill the GPUs that are asked for, found launch.workers={launch.most_workers} on {asked} GPU(s): give "
            f"launch.workers={round(asked / each, 6):.0f} ({share})."
        )


def _check_resources(resources: Resources) -> None:
    if resources.executor == "slurm":
        return check_partition(resources.partition)
    if resources.nodes > 1:
        raise UsageError(f"--executor local has one node, this machine, found --nodes {resources.nodes}.")
    return None


def _is_settled(run_directory: Path, say: Callable[[str], None]) -> bool:
    if read_result(run_directory) is not None:
        say(f"The run {run_directory} is finished already.")
        return True
    job = read_job(run_directory)
    if job is not None and is_waiting_or_running(job):
        say(f"The run {run_directory} has the {job.kind} job {job.id} already, which is {describe_job_state(job)}.")
        return True
    return False


def _submit_runs(configs: Sequence[Config], resources: Resources, folder: Path, *, at_once: int = 1) -> list[Job]:
    """Submit the runs as one job, or several as an array, and write a `job.json` for each."""
    import submitit

    # The files of a run are there before its job, which may begin at once.
    new = [config.run_directory for config in configs if not config.run_directory.exists()]
    tasks = [_create_task(config, resources) for config in configs]
    said = io.StringIO()
    folder.mkdir(parents=True, exist_ok=True)
    options = {f"{resources.executor}_max_num_timeout": MAX_TIMEOUTS}
    with redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executor = submitit.AutoExecutor(folder, cluster=resources.executor, **options)
        executor.update_parameters(**make_submitit_parameters(configs[0], resources, folder.parent, at_once=at_once))

        is_local = resources.executor == "local"
        # Variables of the shell would win over what stands in the script; a local job must not end with this terminal.
        of_sbatch = [] if is_local else parse_sbatch_options(executor._executor._make_submission_file_text("", ""))
        apart = _detach_from_terminal() if is_local else nullcontext()
        try:
            with restrict_environment(of_sbatch), apart:
                found = executor.submit_array(tasks) if len(tasks) > 1 else [executor.submit(tasks[0])]
        except submitit.core.utils.FailedJobError as error:
            for directory in new:  # else a corrected configuration would be refused as that of another run
                shutil.rmtree(directory, ignore_errors=True)
            raise UserError(explain_refusal(str(error))) from None

    # Record who trains each run.
    submitted = time.strftime("%Y-%m-%d %H:%M:%S")  # no process of the job began later
    where = socket.gethostname() if is_local else f"partition {resources.partition or 'of the site'}"
    jobs = []
    for config, one in zip(configs, found, strict=True):
        log = str(one.task(0).paths.stdout)
        job = Job(resources.executor, one.job_id, where, log, submitted)
        write_job(config.run_directory, job)
        jobs.append(job)
    return jobs


@contextmanager
def _detach_from_terminal() -> Iterator[None]:
    """What is started meanwhile outlives this process: it writes nowhere of ours, and no key of this terminal reaches it."""
    # Whoever reads this process's output to its end would wait for the job.
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(nowhere, number)
    # Ctrl-C goes to all processes of a terminal, and so does its end; what is blocked now stays so in what is started.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, stream in zip((1, 2), kept, strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.close(nowhere)


def _create_task(config: Config, resources: Resources) -> Task:
    files = RunDirectory(config.run_directory)
    files.job.unlink(missing_ok=True)  # of one that has ended
    begin_run(config)
    file = config.run_directory / FOLDER / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_yaml(config))
    return Task(
        config=str(file),
        run_directory=str(config.run_directory),
        gpus_per_node=resources.num_gpus,
        cpus_per_node=resources.cpus_per_node,
        seconds_to_save=max(10, resources.signal_delay_s - 20),  # the rest is for the end of Ray and of the task
        port=resources.port,
    )


def make_submitit_parameters(
    config: Config, resources: Resources, shared_folder: Path, *, at_once: int = 1
) -> dict[str, Any]:
    """The parameters of submitit's AutoExecutor."""
    shared = {
        "name": resources.job_name or str(config.run.name),
        "timeout_min": resources.timeout_min,
        "nodes": resources.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": resources.cpus_per_node,
        "gpus_per_node": None if has_gpu_options(resources.further) else resources.gpus_per_node or None,
        "stderr_to_stdout": True,
    }
    if resources.executor == "local":
        return shared
    further: dict[str, Any] = {"requeue": True, **_get_least_cpus(config.launch, resources)}
    further |= {key.replace("-", "_"): value for key, value in resources.further.items()}  # submitit's form of them
    if resources.memory is not None:
        further["mem"] = resources.memory
    slurm = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclusive": resources.exclusive or None,
        "signal_delay_s": resources.signal_delay_s,
        "wckey": "",
        "array_parallelism": at_once,
        "setup": _make_setup(shared_folder),
        "srun_args": [ALL_CORES],
        "additional_parameters": further,
    }
    return shared | {f"slurm_{key}": value for key, value in slurm.items() if value is not None}


def parse_sbatch_options(script: str) -> list[str]:
    """The options of sbatch that stand in a batch script, without dashes in front."""
    return re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)


def _get_least_cpus(launch: LaunchConfig, resources: Resources) -> dict[str, int]:
    """Without --cpus-per-node Slurm may give a node one core: no fewer than the ranks on it need, and more if the site says so."""
    needed = math.ceil(-(-launch.most_workers // resources.nodes) * launch.cpus_per_worker)
    if resources.cpus_per_node is not None or needed <= 1:
        return {}
    return {"mincpus": needed}


def _make_setup(shared_folder: Path) -> list[str]:
    """Commands of the batch script before its tasks begin: every node must see what the first one writes now."""
    # From 22.05 on srun does not read how many cores its job has for a task; and it exports no more than sbatch --export allows.
    inherit = [
        '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
        "unset SLURM_EXPORT_ENV",
    ]
    marker = f"{shlex.quote(str(shared_folder))}/.seen-$SLURM_JOB_ID"
    advice = (
        f"does not see {shared_folder} as the first node does. Give a run.directory on storage that all nodes share."
    )
    look = f'test -e "$0" || {{ echo "Error: the node $SLURMD_NODENAME {advice}"; exit 1; }}'
    return [
        *inherit,
        f'marker={marker}; touch "$marker"',
        f'srun --ntasks-per-node=1 --kill-on-bad-exit=0 sh -c {shlex.quote(look)} "$marker" || {{ rm -f "$marker"; exit 1; }}',
        'rm -f "$marker"',
    ]
