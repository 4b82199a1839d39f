"""Any command as a job of a Ray cluster: its folder is uploaded, and the command runs on the head; trials run on all nodes.

Ray starts a job once: whatever ends it, the same submission resumes a sweep or experiment, and begins anything else anew.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from distbranch.config.packaged import find_config
from distbranch.launch.job_command import JobCommand
from distbranch.launch.jobs import Job, Say, write_job
from distbranch.launch.on_ray.address import dashboard_address, open_job_client
from distbranch.launch.on_ray.job import (
    describe_submission,
    find_inside,
    refuse_relative_paths,
    sees_folder_of,
    submit_and_record,
    wait_for_ray_job,
    write_expanded,
)


def submit_ray_command(
    command: JobCommand,
    *,
    address: str | None,
    wait: bool,
    say: Say,
    show: Say = lambda _: None,
    dry_run: bool = False,
) -> int:
    """Run a command as a job of the cluster whose dashboard answers at `address`; arguments and errors as of `submit_ray_job`."""
    refuse_relative_paths(command.places)
    line = shlex.join(["python", "-m", "distbranch", *_list_words(command)])
    address = dashboard_address(address)
    if dry_run:
        say(describe_submission(line, command.place, address))
        return 0

    client = open_job_client(address)
    is_seen = not command.is_remote and sees_folder_of(Path(command.place))
    job = command.find_job(say) if is_seen else None
    if job is None:
        job = _submit(client, command, line, address, is_seen=is_seen, say=say)
    if not wait:
        return 0
    return wait_for_ray_job(job, say=say, show=show)


def _list_words(command: JobCommand) -> Sequence[str]:
    """The words of the command, with the files that it reads as they are called in the uploaded copy."""
    inside = {str(file): find_inside(str(file), "config file") for file in command.configs}
    words = [inside.get(word, word) for word in command.words]
    if command.launch is None:
        return words
    typed = [find_config(file).read_text(encoding="utf-8") for file in command.configs]
    keys = Counter(key for key, _ in command.places)
    # Variants that have places of their own keep them as they were typed.
    single = [(key, place) for key, place in command.places if keys[key] == 1]
    return [*words, *write_expanded(single, [*typed, *command.words])]


def _submit(
    client: object, command: JobCommand, line: str, address: str, *, is_seen: bool, say: Say
) -> Job:
    """Submit, and keep the job's name where this machine sees what it works on.

    Raises:
        UserError: the node of the job sees another folder under that path; nothing new is left in this one.
    """
    directory = command.directory
    is_new = not directory.exists()
    trains = command.launch is not None
    if is_seen:
        directory.mkdir(parents=True, exist_ok=True)
    job = submit_and_record(
        client,
        line,
        address,
        about=f"it works on {command.place}",
        name=command.name,
        record=partial(write_job, directory) if is_seen else None,
        # A run that is asked about has to be there.
        seen_in=directory if is_seen and trains else None,
        remove=directory if is_seen and is_new else None,
        say=say,
    )
    if is_seen and trains:
        say(f"`distbranch status|logs|cancel {command.place}` ask about it.")
    elif is_seen:
        say(f"`ray job logs|stop --address {address} {job.id}` ask about it.")
    return job
