"""Runs as jobs of a Ray cluster, through the HTTP address of its dashboard: the source is uploaded, the driver runs there.

The uploaded copy vanishes with the job, so the run directory and the data lie outside it, on storage that all nodes see.
"""

import asyncio
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.config.paths import is_remote
from distbranch.config.reading import read_with_bases
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_start import begin_run
from distbranch.errors import UsageError, UserError
from distbranch.launch.jobs import Job, read_job, write_job
from distbranch.launch.on_ray.address import (
    dashboard_address,
    find_last_line,
    open_job_client,
    read_ray_job_state,
    shorten,
)
from distbranch.launch.prepare import (
    MARKER,
    create_begin_lock,
    download_run,
    list_run_paths,
    with_absolute_paths,
)
from distbranch.launch.stopping import EXIT_INTERRUPTED, EXIT_PREEMPTED
from distbranch.locks import hold_lock

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_BEGIN = 90  # of a job, until it says whether it sees the run directory
SECONDS_TO_SAVE = 120  # from the wish to stop to the kill; Ray's own 3 are too few for a checkpoint
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def submit_ray_job(
    config_path: Path,
    overrides: Sequence[str],
    *,
    address: str | None,
    wait: bool,
    say: Callable[[str], None],
    show: Callable[[str], None] = lambda _: None,
) -> int:
    """Train a run as a job of the cluster whose dashboard answers at `address`; the exit code of the job, 0 if not awaited.

    Args:
        config_path: a YAML file inside the current folder, which is uploaded without what .gitignore names.
        overrides: `key=value`.
        address: such as http://HEAD:8265; if None that of RAY_ADDRESS, else of this machine.
        wait: show the log until the job has ended.
        say: called with sentences.
        show: called with pieces of the job's log.

    Raises:
        UsageError: a config file that would not be uploaded, relative paths, an address that is none.
        UserError: nobody answers there, the token is wrong, or the run directory is not as it should be.
    """
    given = load_config(config_path, overrides)
    config = with_absolute_paths(given)

    # What needs no cluster is checked first.
    _refuse_relative_paths(given)
    address = dashboard_address(address)
    place = config.run_url or config.run_directory
    command = _make_command(config_path, overrides)
    here = _is_seen(config)
    if read_result(config.run_directory) is not None:
        say(f"The run {place} is finished; nothing was submitted.")
        return 0

    client = open_job_client(address)
    job = read_job(config.run_directory) if here else None
    if job is not None and job.kind == "ray" and _is_running(job):  # a second submission joins the first
        say(f"The run {place} is submitted already: job {job.id} at {job.where}.")
    elif here:
        job = _submit_to_shared(client, config, command, address, say)
        say(f"`distbranch status|logs|cancel {place}` ask about it.")
    else:  # the job's name cannot be kept in a place that this machine does not see
        job = _submit_command(client, command, {}, address)
        say(f"Submitted job {job.id} to {address}; its run directory is {place} on all nodes")
        say(
            f"This machine does not see that place: `ray job status|logs|stop --address {address} {job.id}` ask about it."
        )
    return _show_log_until_end(client, job, say, show) if wait else 0


def _submit_to_shared(client: Any, config: Config, command: str, address: str, say: Callable[[str], None]) -> Job:
    """Submit a run whose directory this machine sees too; the job's name is kept in it.

    Raises:
        UserError: the node of the job sees another folder under that path; nothing new is left in this one.
    """
    place = config.run_url or config.run_directory
    is_new = not config.run_directory.exists()
    with hold_lock(create_begin_lock(config.run_directory)):
        begin_run(config)
    marker = config.run_directory / f".seen-{secrets.token_hex(8)}"
    environment = {}
    # At a URL both machines mean the same place; a path may be another folder there.
    if config.run_url is None:
        marker.touch()
        environment = {MARKER: str(marker)}
    try:
        job = _submit_command(client, command, environment, address)
        write_job(config.run_directory, job)
        RemoteRun.from_config(config).upload_files("config.yaml", RunDirectory(config.run_directory).job.name)
        say(f"Submitted job {job.id} to {address}; its run directory is {place} on all nodes")
        if environment:
            _wait_for_answer(client, job, marker, say)
    except UserError:  # nothing was submitted, or the job has ended; one that still waits needs the marker
        marker.unlink(missing_ok=True)
        if is_new:
            shutil.rmtree(config.run_directory, ignore_errors=True)
        raise
    return job


def _wait_for_answer(client: Any, job: Job, marker: Path, say: Callable[[str], None]) -> None:
    """Wait until the job takes the marker away; a job that has not begun for long is left to check it by itself.

    Raises:
        UserError: the job ended before; in its own words.
    """
    end = time.monotonic() + SECONDS_TO_BEGIN
    while time.monotonic() < end:
        ended = _read_status(client, job) in ENDED
        if marker.name not in os.listdir(marker.parent):  # a listing is fresh where a look at one file is remembered
            return
        if ended:
            reason = find_last_line(client.get_job_logs(job.id), "it said nothing.").removeprefix("Error: ")
            raise UserError(f"The job {job.id} ended before it trained: {reason}")
        time.sleep(SECONDS_BETWEEN_LOOKS)
    say(f"The job has not begun within {SECONDS_TO_BEGIN} s; when it does, it checks that it sees {marker.parent}.")


def _read_status(client: Any, job: Job) -> str:
    """What the cluster says; empty while it does not answer."""
    with suppress(RuntimeError, OSError):
        return str(client.get_job_status(job.id))
    return ""


def _refuse_relative_paths(config: Config) -> None:
    """Relative paths would lie in the uploaded copy of this folder."""
    places = [*list_run_paths(config), ("data.cache_directory", config.data.cache_directory or "/")]
    local = [(key, path) for key, path in places if not is_remote(path)]
    relative = [(key, path) for key, path in local if not Path(path).is_absolute()]
    if relative:
        names = ", ".join(f"{key}={path}" for key, path in relative)
        raise UsageError(
            f"{relative[0][0]} should be an absolute path on storage that all nodes see, found {names}: of this folder only a "
            f"copy is uploaded, which vanishes with the job. Give {relative[0][0]}=/shared/..."
        )


def _is_running(job: Job) -> bool:
    """Whether a job waits or runs."""
    return read_ray_job_state(job.where, job.id) in ("pending", "running")


def _make_command(config_path: Path, overrides: Sequence[str]) -> str:
    """What the job runs in the uploaded copy."""
    here = Path.cwd()
    for file, _ in read_with_bases(config_path):
        if not file.resolve().is_relative_to(here.resolve()):
            raise UsageError(
                f"The config file {file} lies outside {here}, which is the folder that a job takes with it. "
                "Copy it into this folder, or submit from its own."
            )
    inside = config_path.resolve().relative_to(here.resolve())
    return shlex.join(["python", "-m", "distbranch", "train", str(inside), *overrides])


def _is_seen(config: Config) -> bool:
    """Whether this machine sees where the run directory is to be."""
    if config.run_url is None:
        folder = config.run_directory.parent
        return folder.is_dir() or (folder.parent.is_dir() and folder.parent != Path(folder.anchor))
    try:
        download_run(config)
    except UserError:  # the nodes may have what this machine lacks; the job checks it
        return False
    return True


def _submit_command(client: Any, command: str, further: Mapping[str, str], address: str) -> Job:
    """Submit the command; `further` environment variables are the job's."""
    environment = {**further, "RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_SAVE), "COLUMNS": "120"}
    runtime = {"working_dir": str(Path.cwd()), "env_vars": environment}
    try:
        job_id = str(client.submit_job(entrypoint=command, runtime_env=runtime))
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"The job could not be submitted ({shorten(error)}). What is uploaded is {Path.cwd()} without what .gitignore and "
            ".rayignore name, 512 MiB at most."
        ) from None
    return Job("ray", job_id, address, log="", submitted=time.strftime("%Y-%m-%d %H:%M:%S"))


def _show_log_until_end(client: Any, job: Job, say: Callable[[str], None], show: Callable[[str], None]) -> int:
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
        has_ended = False
        while not has_ended:
            # Asked before the log is read, so that the last lines of a job that ends meanwhile are shown too.
            has_ended = str(client.get_job_status(job.id)) in ENDED
            try:
                asyncio.run(tail())
            except (RuntimeError, OSError) as error:
                say(f"The connection to {job.where} was lost ({shorten(error)}); trying again.")
            if not has_ended:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        say(f"The job {job.id} continues without this terminal.")
        return EXIT_INTERRUPTED
    found = client.get_job_info(job.id)
    if str(found.status) == "STOPPED":
        say("The job was stopped; the same command continues the run.")
        return EXIT_PREEMPTED
    if str(found.status) == "FAILED" and found.driver_exit_code is None:
        say(f"The job {job.id} failed before it began: {shorten(found.message)}")
    if found.driver_exit_code is not None:
        return int(found.driver_exit_code)
    return int(str(found.status) != "SUCCEEDED")
