"""What may be asked of a directory, be it a run or a sweep: status, log, an end; and whether it can be resumed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.launch import jobs
from distbranch.launch.job_command import FOLDER
from distbranch.launch.job_states import read_job_states
from distbranch.launch.jobs import Job, Say, describe_job_state, is_under_way, read_job, stop_job
from distbranch.launch.on_slurm.queue import call_slurm
from distbranch.launch.processes import look_until
from distbranch.listing.rows import (
    FAILED,
    RUNNING,
    find_last_activity,
    format_age,
    get_section,
    read_settings,
)
from distbranch.listing.run_row import is_alive_elsewhere
from distbranch.listing.sweep_row import (
    Sweep,
    Trial,
    find_sweep_state,
    is_sweep,
    list_jobs,
    read_sweep,
)
from distbranch.locks import is_held

NAMES_SHOWN = 12  # of trials that run, or that failed: `distbranch ls SWEEP` lists all
SECONDS_BETWEEN_LOOKS = 1.0


def describe_status(directory: Path) -> list[tuple[str, str]]:
    """What a run or a sweep has come to and what its job does: pairs of what is asked about and the answer.

    Raises:
        UserError: no such run or sweep.
    """
    if not is_sweep(directory):
        return jobs.describe_status(directory)
    directory = directory.absolute()
    job, sweep, states = _read_with_jobs(directory)
    active_at = find_last_activity(RunDirectory(directory))
    state, detail = find_sweep_state(sweep, states, job, active_at)
    counts = ", ".join(f"{number} {status}" for status, number in sweep.counts.items())
    answers = {
        "sweep": str(directory),
        "state": f"{state} {detail}".strip(),
        "trials": f"{sweep.num_ended} of {sweep.total or '?'} ended ({counts or 'none begun'})",
    }
    if sweep.best is not None:
        score, name = sweep.best
        answers["best"] = f"{score.text} on val, {name}"
    if state == RUNNING and sweep.minutes_left is not None:
        answers["left"] = f"about {format_age(60 * sweep.minutes_left)}"
    answers["running"] = _list_names(sweep.trials, RUNNING)
    answers["failed"] = _list_names(sweep.trials, FAILED)
    if job is not None:
        answers["job"] = (
            f"{jobs.KEEPERS[job.kind]} job {job.id} ({job.where}), submitted {job.submitted}"
        )
        answers["log"] = job.log
    page = directory / "report.html"
    answers["page"] = str(page) if page.exists() else ""
    return [(what, answer) for what, answer in answers.items() if answer]


def read_log(directory: Path, *, follow: bool, command: str | None = None) -> Iterator[str]:
    """What the job of a run or a sweep has said, piece by piece; of a sweep without a job where the logs of its trials are.

    Args:
        directory: of the run or sweep.
        follow: until the job has ended.
        command: such as `evaluate`: the job that runs this one about it. If None the job that trains; of a run without one, the
            newest of the others.

    Raises:
        UserError: no such run or sweep, or no log of it.
    """
    job = _find_job(directory, command)
    if job is not None:
        yield from jobs.follow_log(job, follow=follow)
        return
    if not is_sweep(directory):
        files, _ = jobs.open_run(directory)
        raise UserError(
            f"The run {files.path} was started by `distbranch train`, which wrote to its own terminal."
        )
    found = False
    for trial in read_sweep(directory.absolute()).trials:
        log = trial.directory / "log.txt"
        if trial.job is not None:
            found = True
            yield f"{trial.name}: {trial.job.log}\n"
        elif log.exists():
            found = True
            yield f"{trial.name}: {log}\n"
    if not found:
        raise UserError(
            f"The sweep {directory} has no job, and no trial of it has warned of anything. "
            "`distbranch status` shows what has ended and why."
        )


def _find_job(directory: Path, command: str | None) -> Job | None:
    """The job whose log is meant; None if there is none."""
    job = read_job(directory)
    found = {} if job is None else {job.command: job}
    for file in directory.glob(f"{FOLDER}/*/job.json"):
        about = read_job(file.parent)
        if about is not None:
            found.setdefault(about.command, about)
    if command is None:
        newest = max(found.values(), key=lambda one: one.submitted, default=None)
        return job if job is not None or is_sweep(directory) else newest
    if command not in found:
        raise UserError(
            f"{directory} has no job of `{command}`; those on record are of {', '.join(sorted(found)) or 'nothing'}."
        )
    return found[command]


def cancel(directories: Sequence[Path], *, patience_s: float, say: Say) -> None:
    """End runs and sweeps with everything saved; those that cannot be cancelled do not keep the others.

    Args:
        directories: of runs and sweeps.
        patience_s: how long each has to save itself, in seconds.
        say: receives one line for every thing done.

    Raises:
        UserError: what could not be cancelled, and why.
    """
    problems = []
    for directory in directories:
        told = say
        if len(directories) > 1:
            told = _make_prefix(str(directory), say)
        try:
            if is_sweep(directory):
                cancel_sweep(directory, patience_s=patience_s, say=told)
            else:
                jobs.cancel_run(directory, patience_s=patience_s, say=told)
        except UserError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError("What was asked", problems=list(map(str, problems)))


def cancel_sweep(directory: Path, *, patience_s: float, say: Say) -> None:
    """End a sweep with every running trial saved: by its stop word, its array of Slurm, and if that takes too long its job.

    Raises:
        UserError: nothing trains it, nobody knows whether its job does, or it is not ours to stop.
    """
    directory = directory.absolute()
    files = RunDirectory(directory)
    job, sweep, states = _read_with_jobs(directory)
    # Whole, for trials that wait would begin else as others end.
    arrays = _list_arrays(sweep, states)
    for array in arrays:
        call_slurm("scancel", array)
        say(f"The array {array} of Slurm is ended; trials that ran save a checkpoint.")
    state = "none" if job is None else states[job]
    if job is not None and state.startswith("waiting"):
        stop_job(job)
        return say(f"The job {job.id} had not begun; it is taken out of the queue.")
    is_worked_on = is_held(files.lock) or is_alive_elsewhere(files) or state.startswith("running")
    if not is_worked_on:
        if arrays:
            return None
        whose = "" if job is None else f", whose job {job.id} is {state}"
        raise UserError(
            f"Nothing is there to cancel, as far as this machine sees: no process trains the sweep {directory}{whose}. "
            f"`distbranch status {directory}` shows how its trials stand."
        )

    jobs.ask_to_stop(files)
    say("Asked the sweep to save its running trials and stop.")
    was_held = False
    for _ in look_until(patience_s, SECONDS_BETWEEN_LOOKS):
        if is_held(files.lock):
            was_held = True
            jobs.ask_to_stop(files)  # again: a driver that begins takes the word away
            continue
        # Whoever drives the sweep takes the word away at its end, also one whose lock is not seen from here.
        has_ended = was_held or not files.stop_word.exists()
        if has_ended and (job is None or describe_job_state(job).startswith("ended")):
            files.stop_word.unlink(missing_ok=True)
            return say(
                "The sweep has stopped; the same command, or `distbranch resume`, continues it."
            )
    late = f"The sweep has not stopped within {patience_s:g} s"
    if job is None:
        raise UserError(
            f"{late}; it will when its running trials have saved a checkpoint, or kill its process."
        )
    stop_job(job)
    return say(f"{late}: its job {job.id} is ended; the last checkpoints are kept.")


def check_resumable(directory: Path) -> None:
    """Nobody works on the run or the sweep, and its job has ended.

    Raises:
        UserError: no such directory, or somebody does.
    """
    files = RunDirectory(directory)
    if not is_sweep(directory) and not files.config.exists():
        raise UserError(
            f"{directory} is neither a run nor a sweep: it should hold config.yaml or sweep.yaml. Runs are in runs/ by default."
        )
    began_as = get_section(read_settings(files.config), "run").get("name") or directory.name
    if began_as != directory.name:
        raise UserError(
            f"The run {directory} was begun as {began_as}, which is its name on record: give its folder that name again."
        )
    job = read_job(directory)
    state = "" if job is None else describe_job_state(job)
    if job is not None and is_under_way(state):
        raise UserError(
            f"{directory} has a job already, {jobs.KEEPERS[job.kind]} {job.id}, which is {state}. Wait for it, or cancel it first "
            f"(`distbranch cancel {directory}`)."
        )
    # Trials that wait in an array would be begun by both.
    if is_sweep(directory) and (arrays := _list_arrays(*_read_with_jobs(directory)[1:])):
        raise UserError(
            f"The trials of {directory} are jobs of Slurm already, of the array {', '.join(arrays)}. Wait for them, or cancel them "
            f"first (`distbranch cancel {directory}`)."
        )
    if is_held(files.lock):
        raise UserError(
            f"{directory} is being trained by another process. Wait for it, or stop it (`distbranch cancel {directory}`)."
        )


def _read_with_jobs(directory: Path) -> tuple[Job | None, Sweep, dict[Job, str]]:
    """The job of a sweep, the sweep, and what all its jobs do."""
    job = read_job(directory)
    found = list_jobs(read_sweep(directory).trials)
    states = read_job_states([*found, job] if job is not None else found)
    return job, read_sweep(directory, states), states


def _list_arrays(sweep: Sweep, states: dict[Job, str]) -> list[str]:
    """The arrays of Slurm of which jobs wait or run."""
    jobs = [job for job in list_jobs(sweep.trials) if job.kind == "slurm"]
    return sorted({job.id.partition("_")[0] for job in jobs if is_under_way(states[job])})


def _list_names(trials: Sequence[Trial], status: str) -> str:
    found = [trial for trial in trials if trial.status == status]
    names = [
        f"{one.name} ({one.reason})" if one.reason else one.name for one in found[:NAMES_SHOWN]
    ]
    if len(found) > NAMES_SHOWN:
        names.append(f"and {len(found) - NAMES_SHOWN} more")
    return "; ".join(names) if any(one.reason for one in found) else ", ".join(names)


def _make_prefix(name: str, say: Say) -> Say:
    return lambda text: say(f"{name}: {text}")
