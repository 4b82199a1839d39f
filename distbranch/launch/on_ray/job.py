"""Runs as jobs of a Ray cluster, through the HTTP address of its dashboard: the source is uploaded, the driver runs there.

The uploaded copy vanishes with the job, so the run directory and the data lie outside it, on storage that all nodes see.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.config.packaged import PACKAGED
from distbranch.config.paths import is_remote
from distbranch.config.reading import read_with_bases
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_start import begin_run, changes_iterations
from distbranch.errors import UsageError, UserError
from distbranch.launch.jobs import (
    TIME_FORMAT,
    Job,
    Say,
    describe_job_state,
    is_under_way,
    read_job,
    show_log,
    write_job,
)
from distbranch.launch.on_ray.address import (
    dashboard_address,
    find_last_line,
    open_job_client,
    shorten,
)
from distbranch.launch.prepare import (
    MARKER,
    create_begin_lock,
    download_run,
    list_run_paths,
    refuse_vanishing_paths,
    with_absolute_paths,
)
from distbranch.launch.processes import look_until
from distbranch.launch.stopping import EXIT_PREEMPTED
from distbranch.locks import hold_lock
from distbranch.plugins import is_module

PLAIN = re.compile(r"[\w./:-]+")  # a path or URL that YAML reads as what it is
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_BEGIN = 90  # of a job, until it says whether it sees the run directory
SECONDS_TO_SAVE = 120  # from the wish to stop to the kill; Ray's own 3 are too few for a checkpoint


def submit_ray_job(
    config_path: Path,
    overrides: Sequence[str],
    *,
    address: str | None,
    wait: bool,
    say: Say,
    show: Say = lambda _: None,
    dry_run: bool = False,
) -> int:
    """Train a run as a job of the cluster whose dashboard answers at `address`; the exit code of the job, 0 if not awaited.

    Args:
        config_path: a YAML file inside the current folder, which is uploaded without what .gitignore names.
        overrides: `key=value`.
        address: such as http://HEAD:8265; if None that of RAY_ADDRESS, else of this machine.
        wait: show the log until the job has ended.
        say: called with sentences.
        show: called with pieces of the job's log.
        dry_run: only say what would be submitted.

    Raises:
        UsageError: a config file that would not be uploaded, relative paths, an address that is none.
        UserError: nobody answers there, the token is wrong, or the run directory is not as it should be.
    """
    # What needs no cluster is checked first.
    given = load_config(config_path, overrides)
    config = with_absolute_paths(given)
    paths = list_run_paths(given)
    if given.data.cache_directory is not None:
        paths.append(("data.cache_directory", given.data.cache_directory))
    refuse_relative_paths(paths)
    address = dashboard_address(address)
    typed = [str(values) for _, values in read_with_bases(config_path)]
    expanded = write_expanded(paths, [*typed, *overrides])
    command = _make_command(config_path, [*overrides, *expanded], config.plugins)
    place = config.run_url or config.run_directory
    if dry_run:
        say(describe_submission(command, str(place), address))
        return 0
    is_seen = _is_seen(config)
    if read_result(config.run_directory) is not None and not changes_iterations(config):
        say(f"The run {place} is finished; nothing was submitted.")
        return 0

    client = open_job_client(address)
    job = read_job(config.run_directory) if is_seen else None
    if job is not None and is_under_way(describe_job_state(job)):
        say(f"The run {place} is submitted already: {job.kind} job {job.id} at {job.where}.")
    else:
        job = _submit_run(client, config, command, address, is_seen=is_seen, say=say)
    if not wait:
        return 0
    return wait_for_ray_job(job, say=say, show=show)


def refuse_relative_paths(places: Sequence[tuple[str, str]]) -> None:
    """A relative path would lie in the uploaded copy of this folder: name all of them, if there are any."""
    relative = [
        (key, path) for key, path in places if not is_remote(path) and not os.path.isabs(path)
    ]
    refuse_vanishing_paths(relative, UsageError)


def write_expanded(places: Sequence[tuple[str, str]], typed: Sequence[str]) -> list[str]:
    """Overrides for places that nobody typed as they are: `~` and `$NAME` in them are those of this machine, not of the cluster.

    Example:
        >>> write_expanded([("run.directory", "/home/me/runs"), ("data.path", "/data")], ["run.directory=~/runs", "data.path=/data"])
        ['run.directory=/home/me/runs']
    """
    found = []
    for key in dict.fromkeys(key for key, _ in places):
        paths = [path for one, path in places if one == key]
        # As a whole, for /home/me is in /home/me/data too.
        patterns = [re.compile(rf"(?<![\w./-]){re.escape(path)}(?![\w./-])") for path in paths]
        if all(any(map(pattern.search, typed)) for pattern in patterns):
            continue
        value = paths[0]
        # In quotes where YAML might read something else.
        if len(paths) > 1 or not PLAIN.fullmatch(value):
            value = json.dumps(paths if len(paths) > 1 else value, ensure_ascii=False)
        found.append(f"{key}={value}")
    return found


def describe_submission(command: str, place: str, address: str) -> str:
    """What a dry run says."""
    return f"Would be submitted to {address}, with the folder {Path.cwd()}:\n{command}\nIt works on {place}."


def _make_command(config_path: Path, overrides: Sequence[str], plugins: Sequence[str]) -> str:
    """What the job runs in the uploaded copy."""
    configs = [find_inside(str(file), "config file") for file, _ in read_with_bases(config_path)]
    command = ["python", "-m", "distbranch", "train", configs[0], *overrides]
    if plugins:
        # A module is in this folder too, or installed on the nodes.
        inside = [one if is_module(one) else find_inside(one, "plug-in") for one in plugins]
        command.append(f"plugins={json.dumps(inside)}")
    return shlex.join(command)


def find_inside(file: str, what: str) -> str:
    """The path of a file relative to this folder, which is uploaded; the name of a config of the package."""
    here = Path.cwd().resolve()
    if Path(file).resolve().parent == PACKAGED.resolve() and not PACKAGED.is_relative_to(here):
        return Path(file).stem  # the nodes have the same package
    if not Path(file).resolve().is_relative_to(here):
        raise UsageError(
            f"The {what} {file} lies outside {here}, which is the folder that a job takes with it. "
            "Copy it into this folder, or submit from its own."
        )
    return str(Path(file).resolve().relative_to(here))


def _is_seen(config: Config) -> bool:
    """Whether this machine sees where the run directory is to be."""
    if config.run_url is None:
        return sees_folder_of(config.run_directory)
    try:
        download_run(config)
    except UserError:  # the nodes may have what this machine lacks; the job checks it
        return False
    return True


def sees_folder_of(directory: Path) -> bool:
    """Whether this machine has the folder in which a directory is to be made, or could make it."""
    folder = directory.parent
    return folder.is_dir() or (folder.parent.is_dir() and folder.parent != Path(folder.anchor))


def _submit_run(
    client: Any, config: Config, command: str, address: str, *, is_seen: bool, say: Say
) -> Job:
    """Submit a run. Where this machine sees its directory too, the job's name is kept in it.

    Raises:
        UserError: the node of the job sees another folder under that path; nothing new is left in this one.
    """
    place, files = config.run_url or config.run_directory, RunDirectory(config.run_directory)
    is_new = not files.path.exists()

    def record(job: Job) -> None:
        write_job(files.path, job)
        RemoteRun.from_config(config).upload_files("config.yaml", files.job.name)

    if is_seen:
        with hold_lock(create_begin_lock(files.path)):
            begin_run(config)
    job = submit_and_record(
        client,
        command,
        address,
        about=f"its run directory is {place} on all nodes",
        name="train",
        record=record if is_seen else None,
        # At a URL both machines mean the same place; a path may be another folder there.
        seen_in=files.path if is_seen and config.run_url is None else None,
        remove=files.path if is_seen and is_new else None,
        say=say,
    )
    if is_seen:
        say(f"`distbranch status|logs|cancel {place}` ask about it.")
    return job


def submit_and_record(
    client: Any,
    command: str,
    address: str,
    *,
    about: str,
    name: str,
    record: Callable[[Job], None] | None,
    seen_in: Path | None,
    remove: Path | None,
    say: Say,
) -> Job:
    """Submit a command, keep the job's name, and wait until its node says that it sees the same folder.

    Args:
        client: of the dashboard at `address`.
        command: that the job runs in the uploaded copy.
        address: of the dashboard.
        about: what the job works on, the end of a sentence.
        name: of the command.
        record: keeps the job; None where this machine does not see what the job works on.
        seen_in: a folder that the node must see too, if it may see another one.
        remove: what is new here, and goes if nothing is trained.
        say: called with sentences.

    Raises:
        UserError: the job was refused, or has ended before it trained; one that still waits needs what is here.
    """
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_SAVE), "COLUMNS": "120"}
    marker = None
    if seen_in is not None:
        marker = seen_in / f".seen-{secrets.token_hex(8)}"
        marker.touch()
        environment[MARKER] = str(marker)
    try:
        job_id = submit_to_cluster(client, command, environment)
        job = Job("ray", job_id, address, "", time.strftime(TIME_FORMAT), name)
        say(f"Submitted job {job_id} to {address}; {about}")
        if record is None:
            say(
                f"This machine does not see that place: `ray job status|logs|stop --address {address} {job_id}` ask about it."
            )
            return job
        record(job)
        if marker is not None:
            wait_for_answer(client, job, marker, say)
    except UserError:
        if marker is not None:
            marker.unlink(missing_ok=True)
        if remove is not None:
            shutil.rmtree(remove, ignore_errors=True)
        raise
    return job


def submit_to_cluster(client: Any, command: str, environment: Mapping[str, str]) -> str:
    """Upload this folder and submit a command in it; the name of the job."""
    runtime = {"working_dir": str(Path.cwd()), "env_vars": environment}
    try:
        return str(client.submit_job(entrypoint=command, runtime_env=runtime))
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"The job could not be submitted ({shorten(error)}). What is uploaded is {Path.cwd()} without what .gitignore and "
            ".rayignore name, 512 MiB at most."
        ) from None


def wait_for_answer(client: Any, job: Job, marker: Path, say: Say) -> None:
    """Wait until the job takes the marker away; a job that has not begun for long is left to check it by itself.

    Raises:
        UserError: the job ended before; in its own words.
    """
    for _ in look_until(SECONDS_TO_BEGIN, SECONDS_BETWEEN_LOOKS):
        state = describe_job_state(job)
        if marker.name not in os.listdir(
            marker.parent
        ):  # a listing is fresh where a look at one file is remembered
            return
        if state.startswith("ended"):
            reason = find_last_line(client.get_job_logs(job.id), "it said nothing.").removeprefix(
                "Error: "
            )
            raise UserError(f"The job {job.id} ended before it trained: {reason}")
    say(
        f"The job has not begun within {SECONDS_TO_BEGIN} s; when it does, it checks that it sees {marker.parent}."
    )


def wait_for_ray_job(job: Job, *, say: Say, show: Say) -> int:
    """Show what a job says until it has ended; its exit code.

    Raises:
        UserError: a job that was submitted otherwise, and is still there.
    """
    if job.kind != "ray":
        raise UserError(
            f"--wait of `submit ray` waits for a job of Ray, found the {job.kind} job {job.id}. `distbranch logs --follow` shows it, "
            "`distbranch cancel` ends it."
        )
    show_log(job, say=say, show=show)
    # One that was there already may be at another address.
    try:
        found = open_job_client(job.where).get_job_info(job.id)
    except RuntimeError as error:  # a cluster that was started anew
        raise UserError(
            f"How the job {job.id} ended is not known at {job.where} ({shorten(error)}); the same command resumes it."
        ) from None
    if str(found.status) == "STOPPED":
        say("The job was stopped; the same command resumes it.")
        return EXIT_PREEMPTED
    if found.driver_exit_code is None:
        say(f"The job {job.id} failed before it began: {shorten(found.message)}")
        return 1
    return int(found.driver_exit_code)
