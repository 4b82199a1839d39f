"""A row of `distbranch ls`: what a run or a sweep is, how far it is, and what it does at the moment."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from distbranch.engine.run_directory import RunDirectory
from distbranch.launch.jobs import KEEPERS, Job
from distbranch.listing.scores import Score

RUNNING, WAITING, FINISHED, STOPPED, FAILED = "running", "waiting", "finished", "stopped", "failed"
UNREADABLE = "unreadable"  # somebody else's, who does not show all of it
SILENT = "silent"  # somebody should work on it, and it shows no sign of life
# A large evaluation touches no sign of life for minutes.
SECONDS_OF_SILENCE = 600.0
# The C parser reads a configuration in a tenth of the time, which counts where there are hundreds.
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
States = Mapping[Job, str]  # what each job does, see `launch.job_states`


@dataclass(frozen=True)
class Row:
    """One run, sweep or experiment.

    directory: as it was found; name: the last part of it, or more.
    method: of the run; of a sweep how it searches.
    done, total: steps of a run, trials of a sweep that have ended; total None where it is unknown.
    failed: trials of a sweep.
    rate: images per second of a run, trials per hour of a sweep.
    minutes_left: as at that rate.
    score: best so far on val, of a finished run on test; of a sweep its best trial.
    state: running, waiting, finished, stopped, failed, silent or unreadable; detail: where, since when or why.
    active_at: when anything was last written, in seconds since 1970.
    """

    directory: Path
    name: str
    kind: Literal["run", "sweep", "experiment"]
    method: str
    done: int
    total: int | None
    state: str
    detail: str
    active_at: float
    failed: int = 0
    rate: float | None = None
    minutes_left: float | None = None
    score: Score | None = None

    def to_json(self) -> dict[str, Any]:
        """The row for a program: plain values, the age in seconds beside the time."""
        values = asdict(self) | {"directory": str(self.directory.absolute())}
        values["age_s"] = round(max(0.0, time.time() - self.active_at), 1)
        return values


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file as it stands; nothing if there is none or it is damaged."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        values = yaml.load(path.read_text(encoding="utf-8"), YAML_LOADER)
        if isinstance(values, dict):
            return values
    return {}


def get_section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a configuration; an empty one where there is none."""
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def find_last_activity(files: RunDirectory) -> float:
    """When a run or a sweep last did anything, in seconds since 1970."""
    times = [0.0]
    for path in (files.sign_of_life, files.metrics, files.result, files.job, files.config):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def is_alive(files: RunDirectory) -> bool:
    """Whether there was a sign of life within the last minutes, by the clock of this machine."""
    with suppress(OSError):
        return time.time() - files.sign_of_life.stat().st_mtime < SECONDS_OF_SILENCE
    return False


def describe_silence(active_at: float) -> str:
    """`no sign of life for 14 min`."""
    return f"no sign of life for {format_age(time.time() - active_at)}"


def describe_keeper(job: Job) -> str:
    """`Slurm 12_3`, or `process 4711` of this machine."""
    return f"process {job.id}" if job.kind == "local" else f"{KEEPERS[job.kind]} {job.id}"


def format_age(seconds: float) -> str:
    """Roughly: 12 s, 5 min, 3.2 h, 12 d."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 10 * 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"
