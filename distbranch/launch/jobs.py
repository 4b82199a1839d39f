"""Who trains a run (`job.json` in its directory), and what can be asked of a run and its job: status, logs, cancel.

What the run itself has come to stands in the run directory alone, so that status and cancel also work for a run that was
started by plain `train`.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from distbranch.config import load_config
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines, write_json
from distbranch.errors import UserError, reason_of
from distbranch.launch.on_ray.address import cancel_ray_job, read_ray_job_state, read_ray_log
from distbranch.launch.on_slurm.queue import cancel_slurm_job, read_slurm_state
from distbranch.locks import is_held
from distbranch.permissions import denied

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_OF_SILENCE = 600  # of whoever keeps the queue; a controller that is started anew is away for some minutes


@dataclass(frozen=True)
class Job:
    """Who trains a run: a job of Slurm or Ray, or a process of this machine.

    kind: who knows of the job; id: its name there; where: the partition, the address of the cluster, or the host;
    log: a file that holds what the job says, or empty; submitted: when, as text.
    """

    kind: Literal["ray", "slurm", "local"]
    id: str
    where: str
    log: str
    submitted: str


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
        raise denied(error) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({reason_of(error)}). Remove it; the run itself does not need it."
        ) from None


def describe_status(run_directory: Path) -> list[tuple[str, str]]:
    """What the run has come to and what its job does: pairs of what is asked about and the answer.

    Raises:
        UserError: no such run.
    """
    files = _open_run(run_directory)
    job, result = read_job(files.path), read_result(files.path)
    config, lines = load_config(files.config), read_lines(files.metrics)
    iterations = config.train.iterations
    steps = [line for line in lines if line.get("kind") == "train"]
    saved = sorted(file.name for file in files.checkpoints.glob("step-*"))
    pairs = [("run", config.run_url or str(files.path))]
    if result is not None:
        pairs.append(("finished", f"after {iterations:,} steps"))
    else:
        step = steps[-1]["iteration"] if steps else 0
        pairs.append(("step", f"{step:,} of {iterations:,} (as last logged)"))
    pairs.append(("decisions", str(len(read_lines(files.decisions)))))
    pairs.append(("last checkpoint", saved[-1] if saved else "none yet"))
    if resumed := [line for line in lines if line.get("kind") == "resumed"]:
        pairs.append(("resumed", f"{len(resumed)} time(s), last from step {resumed[-1]['iteration']:,}"))
    pairs.append(("trained by", _describe_trainer(files, job)))
    if job is not None and result is None and (word := _explain_missing_log(job)):
        pairs.append(("log", word))
    elif job is not None and job.log:
        pairs.append(("log", job.log))
    return pairs


def read_log(run_directory: Path, *, follow: bool) -> Iterator[str]:
    """What the job of a run has said, piece by piece; with `follow` until the job has ended.

    Raises:
        UserError: the run has no job, or no log of it is to be found; or nobody knows what its job does.
    """
    files = _open_run(run_directory)
    job = read_job(files.path)
    if job is None:
        raise UserError(f"The run {files.path} was started by `distbranch train`, which wrote to its own terminal.")
    position = 0
    known_at = time.monotonic()
    while True:
        # Ask first: what a job said before it ended stands in the log afterwards.
        state = describe_job_state(job) if follow else ""
        if not state.startswith("unknown"):
            known_at = time.monotonic()
        silent = time.monotonic() - known_at > SECONDS_OF_SILENCE
        running = not silent and state.startswith(("waiting", "running", "unknown"))

        # Whole lines only, while there will be more: half a character cannot be shown.
        piece = _read_log_bytes(job)[position:]
        whole = piece[: piece.rfind(b"\n") + 1] if running else piece
        position += len(whole)
        if whole:
            yield whole.decode(errors="replace")
        if not running:
            break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if silent:
        raise UserError(f"Whether the job {job.id} still runs is {state}.")
    if position == 0:
        raise UserError(_explain_missing_log(job) or f"The job {job.id} has said nothing yet.")


def _read_log_bytes(job: Job) -> bytes:
    if job.kind == "ray":
        return read_ray_log(job.where, job.id).encode()
    with suppress(FileNotFoundError):
        return Path(job.log).read_bytes()
    return b""


def cancel_run(run_directory: Path, *, patience_s: float, say: Callable[[str], None]) -> None:
    """End the training of a run with everything saved: by a stop word, and only if that takes too long by its job.

    Args:
        run_directory: of the run.
        patience_s: how long the run has to save itself, in seconds.
        say: receives one line for every thing done.

    Raises:
        UserError: no such run, nothing trains it, nobody knows whether its job does, or it is not ours to stop.
    """
    files = _open_run(run_directory)
    training = _find_trained_files(files)
    job = read_job(files.path)
    state = "" if job is None else describe_job_state(job)

    # Nothing to stop.
    if read_result(files.path) is not None:
        return say(f"The run {load_config(files.config).run_url or files.path} is finished already.")
    if job is not None and state.startswith("waiting"):
        _stop_job(job)
        return say(f"The job {job.id} had not begun; it is taken out of the queue.")
    if not state.startswith("running") and not _is_trained(training):
        if job is not None and state.startswith("unknown"):
            raise UserError(f"Whether the job {job.id} trains the run {files.path} is {state}.")
        raise UserError(_explain_nothing_to_cancel(files))

    # Ask it; the word to stop is a file, which reaches this machine's copy of a run at a URL and no other.
    here = training is files or _is_trained(training)
    if here:
        _ask_to_stop(training)
    elif job is not None:
        _stop_job(job)
    say("Asked the run to save everything and stop.")

    # Wait until it has saved everything.
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if here:
            _ask_to_stop(training)  # again: a job that begins takes the word away
        if not _is_trained(training) and (job is None or _has_ended(job)):
            training.stop_word.unlink(missing_ok=True)
            return say("The run has stopped; the same command continues it.")
        time.sleep(SECONDS_BETWEEN_LOOKS)

    # Its job can be ended; a process that somebody started by hand is theirs.
    if job is None:
        raise UserError(
            f"The run has not stopped within {patience_s:g} s; it will after its next step, or kill its process."
        )
    _stop_job(job)
    return say(f"It has not stopped within {patience_s:g} s: its job {job.id} is ended; the last checkpoint is kept.")


def _explain_nothing_to_cancel(files: RunDirectory) -> str:
    url = load_config(files.config).run_url
    if url is None:
        return f"Nothing trains the run {files.path} now, so there is nothing to cancel."
    return (
        f"No job trains the run {url} and no process of this machine does; the word to stop is a file, which does not reach another "
        "machine over a URL: give it there, or end the process there with SIGTERM (`distbranch status` names it)."
    )


def describe_job_state(job: Job) -> str:
    """What a job does: 'waiting ...', 'running ...', 'ended ...' or 'unknown (reason)'."""
    if job.kind == "slurm":
        try:
            return read_slurm_state(job.id)
        except UserError as error:
            return f"unknown ({error})"
    if job.kind == "ray":
        state = read_ray_job_state(job.where, job.id)
        known = {"pending": "waiting (pending)", "running": f"running at {job.where}"}
        return known.get(state, state if state.startswith("unknown") else f"ended ({state})")
    return f"running as process {job.id}" if _is_process_alive(job) else "ended"


def is_waiting_or_running(job: Job) -> bool:
    """Whether a job waits or runs, as far as is known."""
    return describe_job_state(job).startswith(("waiting", "running"))


def _has_ended(job: Job) -> bool:
    """Whether a job is known to have ended."""
    return describe_job_state(job).startswith("ended")


def _ask_to_stop(files: RunDirectory) -> None:
    try:
        files.stop_word.touch()
    except OSError as error:
        raise UserError(
            f"The run {files.path} cannot be asked to stop, for {files.stop_word.name} cannot be written there "
            f"({error.strerror}). Whoever started it can cancel it."
        ) from None


def _stop_job(job: Job) -> None:
    if job.kind == "slurm":
        cancel_slurm_job(job.id)
    elif job.kind == "ray":
        cancel_ray_job(job.where, job.id)
    elif _is_process_alive(job):
        psutil.Process(int(job.id)).terminate()


def _is_process_alive(job: Job) -> bool:
    """Whether the process of a local job runs; a later process with the same number is another one."""
    try:
        process = psutil.Process(int(job.id))
        begun = time.mktime(time.strptime(job.submitted, "%Y-%m-%d %H:%M:%S"))
        # Five seconds, for a clock that jumps a little.
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= begun + 5
    except psutil.Error:
        return False


def _describe_trainer(files: RunDirectory, job: Job | None) -> str:
    if job is None and _is_trained(_find_trained_files(files)):
        return "a process of `distbranch train`"
    if job is None:
        owner = RemoteRun(load_config(files.config).run_url, files.path).describe_owner()
        return f"{owner}, unless that has ended" if owner and read_result(files.path) is None else "nobody now"
    name = {"slurm": "Slurm", "ray": "Ray", "local": "this machine"}[job.kind]
    return f"{name} job {job.id} ({job.where}), submitted {job.submitted}: {describe_job_state(job)}"


def _explain_missing_log(job: Job) -> str:
    """Why a job that has ended said nothing; empty if it did, or if it has not ended."""
    if job.kind != "slurm" or not _has_ended(job) or Path(job.log).exists():
        return ""
    return (
        f"The job {job.id} has ended and left no log in {Path(job.log).parent}: its nodes seem not to see that folder. "
        "Give a run.directory on storage that all nodes share."
    )


def _find_trained_files(files: RunDirectory) -> RunDirectory:
    """The files on which a process of this machine trains the run: these, or for a run at a URL another copy of it."""
    config = load_config(files.config)
    return files if config.run_url is None else RunDirectory(config.run_directory)


def _is_trained(files: RunDirectory) -> bool:
    return is_held(files.lock)


def _open_run(run_directory: Path) -> RunDirectory:
    files = RunDirectory(run_directory.absolute())
    if not files.config.exists():
        raise UserError(
            f"{run_directory} is no run directory: it should hold config.yaml. Runs are in runs/ by default."
        )
    return files
