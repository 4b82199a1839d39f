"""Runs as jobs of a Ray cluster, through the HTTP address of its dashboard: the source is uploaded, the driver runs there.

The uploaded copy vanishes with the job, so the run directory and the data lie outside it, on storage that all nodes see.
"""

import asyncio
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.mirror import Mirror
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError, UserError
from distbranch.launch.job import Job, read_job, write_job
from distbranch.launch.prepare import bring_down, lock_beside, with_absolute_paths
from distbranch.launch.stopping import EXIT_INTERRUPTED, EXIT_PREEMPTED
from distbranch.locks import hold_lock

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_SAVE = 120  # from the wish to stop to the kill; Ray's own 3 are too few for a checkpoint
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def submit(
    config_path: Path,
    overrides: Sequence[str],
    *,
    address: str,
    wait: bool,
    say: Callable[[str], None],
    show: Callable[[str], None] = lambda _: None,
) -> int:
    """Train a run as a job of the cluster whose dashboard answers at `address`; the exit code of the job, 0 if not awaited.

    Args:
        config_path: a YAML file inside the current folder, which is uploaded without what .gitignore names.
        overrides: `key=value`.
        address: such as http://HEAD:8265.
        wait: show the log until the job has ended.
        say: called with sentences.
        show: called with pieces of the job's log.

    Raises:
        UsageError: a config file that would not be uploaded, an address that is none.
        UserError: nobody answers there, the token is wrong, or the run directory is not as it should be.
    """
    config = with_absolute_paths(load_config(config_path, overrides))
    place = config.run_url or config.run_directory
    command = _command(config_path, overrides, config)
    here = _is_seen(config)
    if read_result(config.run_directory) is not None:
        say(f"The run {place} is finished; nothing was submitted.")
        return 0
    client = _client(address)
    if here:
        _begin(config)
    if here and (job := read_job(config.run_directory)) is not None and job.kind == "ray" and is_running(job):
        say(f"The run {place} is on its way already: job {job.id} at {job.where}.")
        return _follow(client, job, say, show) if wait else 0
    job = Job("ray", _send(client, command), address, "", time.strftime("%Y-%m-%d %H:%M:%S"))
    say(f"Submitted job {job.id} to {address}; its run directory is {place} on all nodes")
    if here:
        write_job(config.run_directory, job)
        Mirror.of(config).send_files("config.yaml", RunDirectory(config.run_directory).job.name)
        say(f"`distbranch status|logs|cancel {place}` ask about it.")
    else:
        say(
            f"This machine does not see that place: `ray job status|logs|stop --address {address} {job.id}` ask about it."
        )
    return _follow(client, job, say, show) if wait else 0


def job_state(job: Job) -> str:
    """What the cluster says of a job: `pending`, `running`, `succeeded`, `failed`, `stopped`, or why it says nothing."""
    try:
        return str(_client(job.where).get_job_status(job.id)).lower()
    except UserError as error:
        return f"unknown ({error})"
    except RuntimeError:
        return "the cluster knows no such job"


def is_running(job: Job) -> bool:
    """Whether a job is on its way or running."""
    return job_state(job) in ("pending", "running")


def job_log(job: Job) -> str:
    """All that a job has said so far.

    Raises:
        UserError: the cluster does not answer, or knows no such job.
    """
    try:
        return str(_client(job.where).get_job_logs(job.id))
    except RuntimeError as error:
        raise UserError(f"The log of job {job.id} cannot be had from {job.where} ({_brief(error)}).") from None


def cancel_job(job: Job) -> None:
    """Ask a job to end; it saves everything first.

    Raises:
        UserError: the cluster does not answer, or knows no such job.
    """
    try:
        _client(job.where).stop_job(job.id)
    except RuntimeError as error:
        raise UserError(f"Job {job.id} of {job.where} cannot be stopped ({_brief(error)}).") from None


def _command(config_path: Path, overrides: Sequence[str], config: Config) -> str:
    """What the job runs in the uploaded copy; paths that were relative to this folder are given in full."""
    here = Path.cwd()
    try:
        inside = config_path.absolute().resolve().relative_to(here.resolve())
    except ValueError:
        raise UsageError(
            f"The config file {config_path} lies outside {here}, which is the folder that a job takes with it. "
            "Copy it into this folder, or submit from its own."
        ) from None
    paths = config.data.paths
    data = paths[0] if len(paths) == 1 else json.dumps(paths)  # a list in YAML
    full = [f"run.directory={config.run.directory}", f"run.name={config.run.name}", f"data.path={data}"]
    cache = config.data.cache_directory
    given = {**config.begins_from, **({"data.cache_directory": cache} if cache else {})}
    full += [f"{key}={path}" for key, path in given.items()]
    return shlex.join(["python", "-m", "distbranch", "train", str(inside), *overrides, *full])


def _is_seen(config: Config) -> bool:
    """Whether this machine sees where the run directory is to be."""
    if config.run_url is None:
        return config.run_directory.parent.is_dir() or config.run_directory.parent.parent.is_dir()
    try:
        bring_down(config)
    except UserError:  # the nodes may have what this machine lacks; the job checks it
        return False
    return True


def _begin(config: Config) -> None:
    """Begin the run directory, to keep the job's name in it."""
    with hold_lock(lock_beside(config.run_directory)):
        RunDirectory(config.run_directory).begin(config)


def _client(address: str) -> Any:
    """A client of the cluster's jobs, when somebody answers there who knows us."""
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"--address should be that of the Ray dashboard, such as http://HEAD:8265, found '{address}'.")
    from distbranch.launch.on_ray.cluster import use_token_if_there

    use_token_if_there()
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    if "RAY_ADDRESS" in os.environ or "RAY_API_SERVER_ADDRESS" in os.environ:
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would count more than what was asked
            os.environ.pop(name, None)
    try:
        return JobSubmissionClient(address)
    except (RuntimeError, ConnectionError, ValueError, OSError, RayError) as error:
        if any(word in str(error).lower() for word in ("token", "unauthorized", "401", "403")):
            raise UserError(
                f"The Ray cluster at {address} answers only to those who hold its token. Set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH to the file that holds it, which whoever started the cluster can give you."
            ) from None
        raise UserError(
            f"No Ray dashboard answers at {address} ({_brief(error)}). Check the address, and that the head was started so "
            "that others reach its dashboard (`ray start --head --dashboard-host 0.0.0.0`)."
        ) from None


def _send(client: Any, command: str) -> str:
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_SAVE), "COLUMNS": "120"}
    try:
        return str(
            client.submit_job(entrypoint=command, runtime_env={"working_dir": str(Path.cwd()), "env_vars": environment})
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"The job could not be submitted ({_brief(error)}). What is uploaded is {Path.cwd()} without what .gitignore and "
            ".rayignore name, 512 MiB at most."
        ) from None


def _follow(client: Any, job: Job, say: Callable[[str], None], show: Callable[[str], None]) -> int:
    """Show the log until the job has ended; its exit code."""
    shown = 0

    async def tail() -> None:
        nonlocal shown
        skip = shown  # after a lost connection the log comes from its beginning
        async for piece in client.tail_job_logs(job.id):
            show(piece[skip:])
            shown += len(piece[skip:])
            skip = max(0, skip - len(piece))

    try:
        while str(client.get_job_status(job.id)) not in ENDED:
            try:
                asyncio.run(tail())
            except (RuntimeError, OSError) as error:
                say(f"The connection to {job.where} was lost ({_brief(error)}); trying again.")
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        say(f"The job {job.id} goes on without this terminal.")
        return EXIT_INTERRUPTED
    found = client.get_job_info(job.id)
    if str(found.status) == "STOPPED":
        say("The job was stopped; the same command continues the run.")
        return EXIT_PREEMPTED
    if str(found.status) == "FAILED" and found.driver_exit_code is None:
        say(f"The job {job.id} failed before it began: {_brief(found.message)}")
    return int(found.driver_exit_code if found.driver_exit_code is not None else str(found.status) != "SUCCEEDED")


def _brief(reason: object) -> str:
    return " ".join(str(reason).split())[:300].rstrip(".")
