"""The row of one run, from its directory: how far it is, how fast, how good, and what it does."""

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbranch.config.paths import copy_of
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UserError
from distbranch.launch.jobs import Job, is_under_way, read_job, read_summary
from distbranch.listing.rows import (
    FAILED,
    FINISHED,
    RUNNING,
    SILENT,
    STOPPED,
    WAITING,
    Row,
    States,
    describe_keeper,
    describe_silence,
    find_last_activity,
    get_section,
    is_alive,
    read_settings,
)
from distbranch.listing.scores import Score, choose_metric, find_best, read_test_score
from distbranch.locks import is_held

BYTES_OF_LAST_LINES = 64 * 1024  # of a log: its last sentence is among them
Lines = list[dict[str, Any]]


def is_run(directory: Path) -> bool:
    """Whether this is a run directory: another program's folder may hold a config.yaml too."""
    file = directory / "config.yaml"
    return file.is_file() and isinstance(read_settings(file).get("run"), dict)


def make_run_row(directory: Path, name: str, states: States, job: Job | None) -> Row:
    """The row of the run in `directory`.

    Args:
        directory: of the run.
        name: shown for it.
        states: what jobs do; of this one, if it has one.
        job: of the run.
    """
    files = RunDirectory(directory)
    settings = read_settings(files.config)
    train = get_section(settings, "train")
    wanted = train.get("metric")
    active_at = find_last_activity(files)
    total = train.get("iterations")
    fields: dict[str, Any] = {
        "directory": directory,
        "name": name,
        "kind": "run",
        "method": str(get_section(settings, "method").get("name", "")),
        "total": total,
        "active_at": active_at,
    }
    if files.result.exists():
        summary = read_summary_of(files)
        steps = int(summary.get("iterations", 0))
        score = read_test_score(summary, wanted)
        return Row(**fields, done=steps, score=score, state=FINISHED, detail="")

    lines = read_lines(files.metrics)
    steps_logged = [line for line in lines if line.get("kind") == "train"]
    done = int(steps_logged[-1]["iteration"]) if steps_logged else 0
    state, detail = _find_state(files, settings, states, job, active_at)
    rate = minutes_left = None
    # How fast a run once was says nothing of one that stands still.
    if state == RUNNING and steps_logged:
        rate = steps_logged[-1].get("samples_per_second")
        if rate and total:
            minutes_left = max(0, total - done) * train.get("batch_size", 0) / rate / 60
    return Row(
        **fields,
        done=done,
        score=_find_best_on_val(lines, wanted),
        state=state,
        detail=detail,
        rate=rate,
        minutes_left=minutes_left,
    )


def read_run_job(directory: Path) -> Job | None:
    """The job of a run or a sweep; None where there is none, or its record is damaged (`status` says so)."""
    with suppress(UserError):
        return read_job(directory)
    return None


def read_summary_of(files: RunDirectory) -> dict[str, Any]:
    """The content of result.json; nothing of a damaged one, of which `status` says the rest."""
    with suppress(UserError):
        return read_summary(files) or {}
    return {}


def _find_best_on_val(lines: Lines, wanted: str | None) -> Score | None:
    on_val = [line for line in lines if line.get("kind") == "evaluation" and line["split"] == "val"]
    if not on_val:
        return None
    metric = choose_metric(on_val[-1]["mean"], wanted)
    if metric is None:
        return None
    values = [(line["mean"].get(metric), line["iteration"]) for line in on_val]
    return find_best(
        Score(metric, value, "val", step) for value, step in values if value is not None
    )


def _find_state(
    files: RunDirectory,
    settings: Mapping[str, Any],
    states: States,
    job: Job | None,
    active_at: float,
) -> tuple[str, str]:
    """What a run that has not finished does, and where, since when or why."""
    url = str(get_section(settings, "run").get("directory", ""))
    training = files
    if "://" in url:  # it is trained in another copy
        training = RunDirectory(copy_of(f"{url.rstrip('/')}/{files.path.name}", "runs"))
    has_lock = is_held(training.lock)
    return find_state(files, states, job, active_at, has_lock=has_lock)


def find_state(
    files: RunDirectory, states: States, job: Job | None, active_at: float, *, has_lock: bool
) -> tuple[str, str]:
    """What a run or a sweep that has not finished does, and where, since when or why.

    Args:
        files: of the run, or of the sweep.
        states: what jobs do.
        job: of it.
        active_at: when it last did anything.
        has_lock: whether a process works on it, as far as this machine sees.
    """
    told = states.get(job, "") if job is not None else ""
    if job is not None and told.startswith("waiting"):
        return WAITING, f"{describe_keeper(job)}, {told.removeprefix('waiting').strip(' ()')}"
    # A job that has begun has nothing written yet: its own record is as young as that.
    if has_lock or (job is not None and is_under_way(told)):
        where = "on this machine" if job is None else describe_running_job(job, told)
        if files.sign_of_life.exists() and not is_alive(files):
            return SILENT, f"{where}, {describe_silence(active_at)}"
        return RUNNING, where
    if (job is None or told.startswith("unknown")) and is_alive_elsewhere(files):
        return RUNNING, f"on {_read_host(files)}"
    if job is not None and told.startswith("unknown"):
        return SILENT, f"{describe_keeper(job)} is {told}"
    reason = read_failure(job)
    if reason:
        return FAILED, reason
    if job is not None:
        return STOPPED, f"{describe_keeper(job)} {told}"
    return STOPPED, "" if files.holds_training else "before its first step"


def describe_running_job(job: Job, told: str) -> str:
    """Where a job runs: `Slurm 12 on node1`."""
    place = told.removeprefix("running").strip().partition(" for ")[0]
    return describe_keeper(job) if job.kind == "local" else f"{describe_keeper(job)} {place}"


def read_failure(job: Job | None) -> str:
    """The error with which a job has ended, as the last line of its log has it; empty if there is none."""
    if job is None or not job.log:
        return ""
    with suppress(OSError), open(job.log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - BYTES_OF_LAST_LINES))
        lines = file.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        errors = [line for line in said[-3:] if line.startswith("Error: ")]
        if errors:
            return errors[-1].removeprefix("Error: ")
    return ""


def is_alive_elsewhere(files: RunDirectory) -> bool:
    """Whether another machine works on a run or a sweep, whose lock may not be seen from here."""
    if files.stop_word.exists() or not is_alive(files):
        return False
    return _read_host(files) not in ("", platform.node())


def _read_host(files: RunDirectory) -> str:
    """The host on which a run was last started, or that of the driver of a sweep; empty if none is on record."""
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads(files.environment.read_text()).get("host", ""))
    with suppress(OSError):
        return files.sign_of_life.read_text(encoding="utf-8").strip()
    return ""
