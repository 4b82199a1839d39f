"""The row of a sweep or an experiment, and how its trials stand, from the files of the sweep and of its trials.

`results.csv` has what the trials had reached when it was last written; what has ended since is seen in the run directories.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UserError
from distbranch.launch.jobs import Job, is_under_way, read_summary
from distbranch.listing.rows import (
    FAILED,
    FINISHED,
    RUNNING,
    SILENT,
    STOPPED,
    WAITING,
    Row,
    States,
    find_last_activity,
    read_settings,
)
from distbranch.listing.run_row import (
    find_state,
    is_alive_elsewhere,
    read_run_job,
)
from distbranch.listing.scores import Score, find_best
from distbranch.locks import is_held
from distbranch.sweep.trial_status import STOPPED_EARLY, UNFINISHED, SweepDirectory

EXPERIMENT = "experiment.json"
ENDED = (FINISHED, FAILED, STOPPED_EARLY)


@dataclass(frozen=True)
class Trial:
    """How a trial stands: `status` of trial_status.py, or running or waiting; `value` of the sweep's metric on val."""

    name: str
    directory: Path
    status: str
    reason: str = ""
    value: float | None = None
    seconds: float | None = None
    job: Job | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep as its directory tells it."""

    directory: Path
    settings: Mapping[str, Any]
    trials: Sequence[Trial]

    @property
    def metric(self) -> str:
        """What is compared."""
        return str(self.settings.get("metric", ""))

    @cached_property
    def counts(self) -> Counter[str]:
        """Trials by status."""
        return Counter(trial.status for trial in self.trials)

    @property
    def num_ended(self) -> int:
        """Trials that finished, failed or were stopped early."""
        return sum(self.counts[status] for status in ENDED)

    @property
    def total(self) -> int | None:
        """Trials in all, also those that a search has still to propose; None where the settings are damaged."""
        return max(count_trials(self.settings) or 0, len(self.trials)) or None

    @property
    def best(self) -> tuple[Score, str] | None:
        """The best value of a finished trial, and its name."""
        values = {
            trial.name: Score(self.metric, trial.value, "val")
            for trial in self.trials
            if trial.status == FINISHED and trial.value is not None
        }
        best = find_best(values.values())
        if best is None:
            return None
        return best, next(name for name, score in values.items() if score is best)

    @property
    def minutes_left(self) -> float | None:
        """Roughly: as if all trials took as long as those that finished, and those that run were half done."""
        seconds = [trial.seconds for trial in self.trials if trial.seconds]
        running = self.counts[RUNNING]
        if not seconds or not running or self.total is None:
            return None
        left = self.total - self.num_ended - running / 2
        return max(0.0, left) * fmean(seconds) / running / 60

    @property
    def trials_per_hour(self) -> float | None:
        """At the pace of the trials that finished."""
        seconds = [trial.seconds for trial in self.trials if trial.seconds]
        if not seconds or not self.counts[RUNNING]:
            return None
        return self.counts[RUNNING] * 3600 / fmean(seconds)


def is_sweep(directory: Path) -> bool:
    """Whether this is the directory of a sweep."""
    return SweepDirectory(directory).config.is_file()


def count_trials(settings: Mapping[str, Any]) -> int | None:
    """How many trials a sweep file asks for."""
    with suppress(TypeError, ValueError):
        seeds = len(settings.get("seeds") or (0,))
        if settings.get("search", "grid") != "grid":
            return int(settings["num_trials"]) * seeds
        grid = settings.get("grid") or {}
        variants = max(1, len(settings.get("variants") or ()))
        return variants * seeds * math.prod(len(values) for values in grid.values())
    return None


def read_sweep(directory: Path, states: States | None = None) -> Sweep:
    """The sweep in `directory` with its trials.

    Args:
        directory: of the sweep.
        states: what jobs do; those of trials, of a sweep that is an array of Slurm.
    """
    files = SweepDirectory(directory)
    settings = read_settings(files.config)
    rows = _read_table(files.results)
    found = {row["trial"]: Path(row["directory"]) for row in rows.values()}
    # The table comes late, or never where every trial is a job; those in a shared folder are known by it alone.
    for file in sorted(directory.glob("*/config.yaml")):
        found.setdefault(file.parent.name, file.parent)
    ended = {line["trial"]: line for line in read_lines(files.ended)}
    trials = [
        _read_trial(
            name,
            # The sweep may have been moved with its trials.
            directory / name if (directory / name).is_dir() else path,
            rows.get(name, {}),
            ended.get(name, {}),
            str(settings.get("metric")),
            states or {},
        )
        for name, path in found.items()
    ]
    return Sweep(directory, settings, trials)


def make_sweep_row(directory: Path, name: str, states: States, job: Job | None) -> Row:
    """The row of the sweep in `directory`; arguments as those of `make_run_row`."""
    sweep = read_sweep(directory, states)
    active_at = max(
        [find_last_activity(RunDirectory(directory))]
        + [
            find_last_activity(RunDirectory(trial.directory))
            for trial in sweep.trials
            if trial.status in (RUNNING, WAITING)
        ]
    )
    with suppress(OSError):
        active_at = max(active_at, SweepDirectory(directory).results.stat().st_mtime)
    state, detail = find_sweep_state(sweep, states, job, active_at)
    is_running = state == RUNNING
    return Row(
        directory=directory,
        name=name,
        kind="experiment" if (directory / EXPERIMENT).exists() else "sweep",
        method=str(sweep.settings.get("search", "grid")),
        done=sweep.num_ended,
        total=sweep.total,
        failed=sweep.counts[FAILED],
        rate=sweep.trials_per_hour if is_running else None,
        minutes_left=sweep.minutes_left if is_running else None,
        score=sweep.best[0] if sweep.best else None,
        state=state,
        detail=detail,
        active_at=active_at,
    )


def find_sweep_state(
    sweep: Sweep, states: States, job: Job | None, active_at: float
) -> tuple[str, str]:
    """What a sweep does, and where or why."""
    files, counts = RunDirectory(sweep.directory), sweep.counts
    jobs = {trial.job for trial in sweep.trials if trial.job is not None}
    under_way = [one for one in jobs if is_under_way(states.get(one, ""))]
    has_lock = is_held(files.lock)
    if not has_lock and under_way:
        arrays = ", ".join(sorted({one.id.partition("_")[0] for one in under_way}))
        word = RUNNING if counts[RUNNING] else WAITING
        return word, f"{counts[RUNNING]} run, {counts[WAITING]} wait in Slurm's array {arrays}"
    is_over = sweep.total is not None and sweep.num_ended >= sweep.total
    if not has_lock and is_over and not counts[FAILED]:
        return FINISHED, ""
    state, detail = find_state(files, states, job, active_at, has_lock=has_lock)
    if state == STOPPED and job is None:
        detail = "" if sweep.trials else "before its first trial"
    if state in (RUNNING, SILENT):
        return state, f"{detail}, {counts[RUNNING]} trial(s)" if counts[RUNNING] else detail
    if state == STOPPED and counts[FAILED]:
        reasons = [trial.reason for trial in sweep.trials if trial.status == FAILED]
        return FAILED, f"{counts[FAILED]} trial(s): {next(filter(None, reasons), 'see its table')}"
    return state, detail


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of results.csv by trial; none where there is none yet."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return {}
    return {row["trial"]: row for row in rows if row.get("trial") and row.get("directory")}


def _read_trial(
    name: str,
    directory: Path,
    row: Mapping[str, str],
    ended: Mapping[str, Any],
    metric: str,
    states: States,
) -> Trial:
    files = RunDirectory(directory)
    if files.result.exists():
        value, seconds = _to_number(row.get(f"val_{metric}")), _to_number(row.get("seconds"))
        if row.get("status") != FINISHED:  # since the table was written, or there is none
            try:
                summary = read_summary(files) or {}
            except UserError as error:
                return Trial(name, directory, FAILED, str(error))
            value = summary.get("metrics", {}).get("val", {}).get("mean", {}).get(metric)
            seconds = summary.get("seconds")
        return Trial(name, directory, FINISHED, value=value, seconds=seconds)
    status, reason = ended.get("status", UNFINISHED), ended.get("reason", "")
    if status in ENDED:
        return Trial(name, directory, status, reason)
    job = read_run_job(directory)
    told = states.get(job, "") if job is not None else ""
    if is_held(files.lock) or told.startswith("running"):
        return Trial(name, directory, RUNNING, job=job)
    if told == "" and is_alive_elsewhere(files):
        return Trial(name, directory, RUNNING, job=job)
    if told.startswith("waiting"):
        return Trial(name, directory, WAITING, told, job=job)
    return Trial(name, directory, UNFINISHED, reason, job=job)


def _to_number(text: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        return float(text or "")
    return None


def list_jobs(trials: Iterable[Trial]) -> list[Job]:
    """The jobs of trials that have one."""
    return [trial.job for trial in trials if trial.job is not None]


def list_sweep_overrides(directory: Path) -> list[str]:
    """What a sweep is resumed with beside its own sweep.yaml: where it lies now, and the base that it was begun with.

    The file that was its base may be gone, or name data relative to the folder in which the sweep was begun.
    """
    files = SweepDirectory(directory)
    settings = read_settings(files.config)
    values = {"directory": str(directory.parent), "name": directory.name}
    if settings.get("base") and not settings.get("variants") and files.base.exists():
        values["base"] = str(files.base)
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
