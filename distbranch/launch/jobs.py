"""Who trains a run (`job.json` in its directory), and what can be asked of a run and its job: status, logs, cancel.

What the run itself has come to stands in the run directory alone, so that status and cancel also work for a run that was
started by plain `train`. Nothing here loads torch or ray, for who asks does not want to wait.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from distbranch.config import load_config
from distbranch.engine.run_directory import RunDirectory, read_lines, write_json
from distbranch.errors import UserError, reason_of
from distbranch.launch.on_ray.dashboard import JobClient, ask_ray_job
from distbranch.launch.on_slurm.queue import call_slurm, read_slurm_state
from distbranch.launch.processes import look_until
from distbranch.locks import is_held
from distbranch.permissions import explain_damage, make_denied_error

SECONDS_BETWEEN_LOOKS = 1.0  # each asks the queue or the dashboard, which have others to answer too
SECONDS_OF_SILENCE = (
    600  # of whoever keeps the queue; a controller that is started anew is away for some minutes
)
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
Say = Callable[[str], None]
KEEPERS = {"slurm": "Slurm", "ray": "Ray", "local": "this machine"}


@dataclass(frozen=True)
class Job:
    """Who trains a run: a job of Slurm or Ray, or a process of this machine.

    kind: who knows of the job; id: its name there; where: the partition, the address of the cluster, or the host;
    log: a file that holds what the job says, or empty; submitted: when, as text; command: of distbranch that it runs.
    """

    kind: Literal["ray", "slurm", "local"]
    id: str
    where: str
    log: str
    submitted: str
    command: str = "train"  # as of all jobs of earlier releases


def write_job(run_directory: Path, job: Job) -> None:
    """Record the newest job of a run."""
    write_json(RunDirectory(run_directory).job, asdict(job))


def read_job(run_directory: Path) -> Job | None:
    """The newest job of a run; None if it was started by plain `train`.

    Raises:
        UserError: the file is damaged.
    """
    file = RunDirectory(run_directory).job
    try:
        return Job(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise make_denied_error(error) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({reason_of(error)}). Remove it; the run itself does not need it."
        ) from None


def describe_job_state(job: Job) -> str:
    """What a job does: 'waiting ...', 'running ...', 'ended ...' or 'unknown (reason)'."""
    try:
        if job.kind == "slurm":
            return read_slurm_state(job.id)
        if job.kind == "ray":
            status = JobClient(job.where).get_job_status(job.id)
            return describe_ray_status(status, job.where)
    except UserError as error:
        return f"unknown ({error})"
    except RuntimeError as error:
        if "status code 404" in str(error):
            return "ended (the cluster knows no such job)"
        return f"unknown ({reason_of(error)})"
    return f"running as process {job.id}" if _find_process(job) else "ended"


def describe_ray_status(status: str, address: str) -> str:
    """The status of a job of Ray in the words of `describe_job_state`."""
    state = str(status).lower()
    known = {"pending": "waiting (pending)", "running": f"running at {address}"}
    return known.get(state, f"ended ({state})")


def stop_job(job: Job) -> None:
    """Ask a job to end; it saves everything first."""
    process = _find_process(job)
    if job.kind == "slurm":
        call_slurm(
            "scancel", job.id
        )  # SIGTERM to all its processes, and an end after the site's KillWait
    elif job.kind == "ray":
        ask_ray_job("stop_job", job.where, job.id)
    elif process is not None:
        process.terminate()


def _find_process(job: Job) -> psutil.Process | None:
    """The process of a local job while it runs; a later process with the same number has another command line, a zombie none."""
    if job.kind == "local":
        with suppress(psutil.Error):
            process = psutil.Process(int(job.id))
            folder = os.path.dirname(job.log)
            words = process.cmdline()
            if folder and {folder, os.path.join(folder, "config.yaml")} & set(words):
                return process
    return None


def describe_status(run_directory: Path) -> list[tuple[str, str]]:
    """What the run has come to and what its job does: pairs of what is asked about and the answer.

    Raises:
        UserError: no such run.
    """
    files, training = open_run(run_directory)
    config, lines = load_config(files.config), read_lines(files.metrics)
    result = read_summary(files)
    steps, resumed = _list_steps(lines, "train"), _list_steps(lines, "resumed")
    saved = sorted(file.name for file in files.checkpoints.glob("step-*"))

    # The run.
    answers = {"run": config.run_url or str(files.path)}
    if result is not None:
        answers["finished"] = f"after {result['iterations']:,} steps"
    else:
        answers["step"] = f"{[0, *steps][-1]:,} of {config.train.iterations:,} (as last logged)"
    scout = RunDirectory(files.scout)
    if scout.config.exists():
        of_scout = [0, *_list_steps(read_lines(scout.metrics), "train")]
        last = load_config(scout.config).train.iterations
        answers["scout"] = f"step {of_scout[-1]:,} of {last:,} (as last logged)"
    answers["decisions"] = str(len(read_lines(files.decisions)))
    answers["last checkpoint"] = ["none yet", *saved][-1]
    if resumed:
        answers["resumed"] = f"{len(resumed)} time(s), last from step {resumed[-1]:,}"

    # Its job.
    job = read_job(files.path)
    answers["trained by"] = "nobody now"
    if job is not None:
        state = describe_job_state(job)
        answers["trained by"] = (
            f"{KEEPERS[job.kind]} job {job.id} ({job.where}), submitted {job.submitted}: {state}"
        )
        answers["log"] = _explain_missing_log(job, state) or job.log
    elif is_held(training.lock):
        answers["trained by"] = "a process of `distbranch train`"
    elif result is None and config.run_url is not None:
        from distbranch.engine.remote_run import RemoteRun  # loads torch

        if owner := RemoteRun(config.run_url, files.path).describe_owner():
            answers["trained by"] = f"{owner}, unless that has ended"
    return [(what, answer) for what, answer in answers.items() if answer]


def read_summary(files: RunDirectory) -> dict[str, Any] | None:
    """The content of result.json; None of a run that has not finished.

    Raises:
        UserError: it is damaged.
    """
    if not files.result.exists():
        return None
    advice = "Remove result.json there and run the same command again."
    with explain_damage(f"The result of {files.path} is damaged", advice):
        return dict(json.loads(files.result.read_text()))


def _list_steps(lines: Sequence[Mapping[str, Any]], kind: str) -> list[int]:
    """The steps of one kind of line of metrics.jsonl."""
    return [line["iteration"] for line in lines if line.get("kind") == kind]


def is_under_way(state: str) -> bool:
    """Whether a job of that state waits or runs, as far as is known."""
    return state.startswith(("waiting", "running"))


def show_log(job: Job, *, say: Say, show: Say) -> None:
    """Say what a job waits for, and show what it says until it has ended."""
    say("Waiting for the job; Ctrl-C leaves it alone.")
    told = ""
    while (state := describe_job_state(job)).startswith("waiting"):
        if state != told:
            say(state)
        told = state
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for piece in follow_log(job, follow=True):
        show(piece)


def follow_log(job: Job, *, follow: bool) -> Iterator[str]:
    """What a job has said, piece by piece; with `follow` until it has ended.

    Raises:
        UserError: no log of it is to be found, or nobody knows what it does.
    """
    position = 0
    known_at = time.monotonic()
    state, is_running = "", True
    while is_running:
        # Ask first: what a job said before it ended stands in the log afterwards.
        if follow:
            state = describe_job_state(job)
        is_known = not state.startswith("unknown")
        if is_known:
            known_at = time.monotonic()
        elif time.monotonic() - known_at > SECONDS_OF_SILENCE:
            raise UserError(f"Whether the job {job.id} still runs is {state}.")
        is_running = is_under_way(state) or not is_known

        # Whole lines only, while there will be more: half a character cannot be shown.
        try:
            piece = _read_log_bytes(job, position)
        except UserError:
            if not is_running:
                raise
            piece = b""  # the dashboard is away for a moment
        if is_running:
            piece = piece[: piece.rfind(b"\n") + 1]
        position += len(piece)
        if piece:
            yield piece.decode(errors="replace")
        if is_running:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if position == 0 and job.kind != "ray":  # whose own error says more
        raise UserError(
            _explain_missing_log(job, describe_job_state(job))
            or f"The job {job.id} has said nothing yet."
        )


def _read_log_bytes(job: Job, position: int) -> bytes:
    """What stands in a log from there on; a dashboard has no other answer than all of it."""
    if job.kind == "ray":
        return ask_ray_job("get_job_logs", job.where, job.id).encode()[position:]
    with suppress(FileNotFoundError), open(job.log, "rb") as file:
        file.seek(position)
        return file.read()
    return b""


def _explain_missing_log(job: Job, state: str) -> str:
    """Why a job that has ended said nothing; empty if it did, or if it has not ended."""
    if job.kind != "slurm" or not state.startswith("ended") or Path(job.log).exists():
        return ""
    return (
        f"The job {job.id} has ended and left no log in {Path(job.log).parent}: its nodes seem not to see that folder. "
        "Give a run.directory on storage that all nodes share."
    )


def cancel_run(run_directory: Path, *, patience_s: float, say: Say) -> None:
    """End the training of a run with everything saved: by a stop word, and only if that takes too long by its job.

    Args:
        run_directory: of the run.
        patience_s: how long the run has to save itself, in seconds.
        say: receives one line for every thing done.

    Raises:
        UserError: no such run, nothing trains it, nobody knows whether its job does, or it is not ours to stop.
    """
    files, training = open_run(run_directory)
    job = read_job(files.path)
    state = "none" if job is None else describe_job_state(job)

    # Nothing to stop.
    if files.result.exists():
        return say(f"The run {files.path} is finished already.")
    if job is not None and state.startswith("waiting"):
        stop_job(job)
        return say(f"The job {job.id} had not begun; it is taken out of the queue.")
    is_here = is_held(training.lock)
    if not is_here and not state.startswith("running"):
        raise UserError(
            f"Nothing is there to cancel, as far as this machine sees: no process of it trains the run {files.path}, whose job is {state}. "
            "A process of another machine ends at SIGTERM there (`distbranch status` names it)."
        )

    # Ask it; the word to stop is a file, which reaches this machine's copy of a run at a URL and no other.
    reaches = training.path == files.path or is_here
    if job is not None and not reaches:
        stop_job(job)
    say("Asked the run to save everything and stop.")

    # Wait until it has saved everything.
    for _ in look_until(patience_s, SECONDS_BETWEEN_LOOKS):
        if reaches:
            ask_to_stop(training)  # again: a job that begins takes the word away
        if not is_held(training.lock) and (
            job is None or describe_job_state(job).startswith("ended")
        ):
            training.stop_word.unlink(missing_ok=True)
            return say("The run has stopped; the same command continues it.")

    # Its job can be ended; a process that somebody started by hand is theirs.
    late = f"The run has not stopped within {patience_s:g} s"
    if job is None:
        raise UserError(f"{late}; it will after its next step, or kill its process.")
    stop_job(job)
    return say(f"{late}: its job {job.id} is ended; the last checkpoint is kept.")


def ask_to_stop(files: RunDirectory) -> None:
    """Write the stop word of a run or a sweep.

    Raises:
        UserError: it cannot be written.
    """
    try:
        files.stop_word.touch()
    except OSError as error:
        raise UserError(
            f"{files.path} cannot be asked to stop, for {files.stop_word.name} cannot be written there "
            f"({error.strerror}). Whoever started it can cancel it."
        ) from None


def open_run(run_directory: Path) -> tuple[RunDirectory, RunDirectory]:
    """The files of a run, and those on which a process of this machine trains it: of a run at a URL another copy."""
    files = RunDirectory(run_directory.absolute())
    if not files.config.exists():
        raise UserError(
            f"{run_directory} is no run directory: it should hold config.yaml. Runs are in runs/ by default."
        )
    config = load_config(files.config)
    return files, files if config.run_url is None else RunDirectory(config.run_directory)
