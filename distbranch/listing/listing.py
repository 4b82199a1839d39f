"""Find runs, sweeps and experiments below a folder, and make a row of each; those that were active last come first."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.launch.job_states import read_job_states
from distbranch.launch.jobs import Job
from distbranch.listing.rows import UNREADABLE, Row, States, find_last_activity
from distbranch.listing.run_row import is_run, make_run_row, read_run_job
from distbranch.listing.sweep_row import is_sweep, make_sweep_row

DEPTH = 4  # of folders below the one that is asked about: people sort runs, but not without end
FILE_OF_DATA = "dataset.json"  # a packed data set may have thousands of folders


def list_rows(directory: Path) -> list[Row]:
    """A row of everything in `directory`: of the sweep itself and its trials where it is one, of the run where it is one.

    Example: `list_rows(Path("runs"))[0].state` is what was active last does.

    Raises:
        UserError: no such folder.
    """
    if not directory.is_dir():
        raise UserError(
            f"The folder {directory} does not exist. Give the one that holds runs (`run.directory`), or begin a run."
        )
    if is_run(directory):
        found = [directory]
    elif is_sweep(directory):
        found = [directory, *sorted(find_directories(directory))]
    else:
        found = sorted(find_directories(directory))
    jobs = {path: read_run_job(path) for path in found}
    # Trials of a sweep may each be a job, of which the row of the sweep tells.
    all_jobs = [job for job in jobs.values() if job is not None]
    for path in found:
        if path != directory and is_sweep(path):
            trials = (read_run_job(file.parent) for file in path.glob("*/job.json"))
            all_jobs += [job for job in trials if job is not None]
    states = read_job_states(all_jobs)

    rows = []
    for path in found:
        name = str(path.relative_to(directory)) if path != directory else path.absolute().name
        rows.append(_make_row(path, name, states, jobs[path]))
    return sort_rows(rows)


def _make_row(path: Path, name: str, states: States, job: Job | None) -> Row:
    """The row of a run or a sweep; one that says so where its files may not be read, for the others are shown all the same."""
    kind: Literal["run", "sweep"] = "sweep" if is_sweep(path) else "run"
    make_row = make_sweep_row if kind == "sweep" else make_run_row
    try:
        return make_row(path, name, states, job)
    except PermissionError as error:
        return Row(
            directory=path,
            name=name,
            kind=kind,
            method="",
            done=0,
            total=None,
            state=UNREADABLE,
            detail=f"no permission to read {Path(error.filename).name}",
            active_at=find_last_activity(RunDirectory(path)),
        )


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Those that were active last first."""
    return sorted(rows, key=lambda row: (-row.active_at, row.name))


def find_directories(directory: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The runs and sweeps below a folder; not what they hold themselves, such as the trials of a sweep."""
    try:
        entries = list(os.scandir(directory))
    except OSError:  # somebody else's, or gone meanwhile
        return
    for entry in entries:
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        path = directory / entry.name
        if not os.access(path, os.X_OK):  # somebody else's too
            continue
        if is_sweep(path) or is_run(path):
            yield path
        elif depth > 1 and not (path / FILE_OF_DATA).exists():
            yield from find_directories(path, depth - 1)
