"""What a job runs that is not the training of one run: another command of ours, what it works on and what it needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distbranch.config import LaunchConfig
from distbranch.config.paths import is_remote
from distbranch.launch.jobs import Job, Say, describe_job_state, is_under_way, read_job

FOLDER = "slurm"  # in the directory on which a job works: the batch script, the logs, what tasks tell each other


@dataclass(frozen=True)
class JobCommand:
    """A command as it was typed, and what is known of it before it runs.

    Attributes:
        name: `sweep`, `experiment table`, `evaluate`, ...
        words: after `distbranch`.
        place: the directory of the sweep or experiment, or of the run that is asked about: an absolute path, or a URL.
        launch: what one trial of a sweep or experiment asks for; None: the command trains nothing, runs on one node, and begins
            anew when it is interrupted.
        configs: files that it reads, which lie in the folder that a job of Ray takes with it.
        places: by key, as they were typed, what it reads and writes elsewhere.
    """

    name: str
    words: tuple[str, ...]
    place: str
    launch: LaunchConfig | None = None
    configs: Sequence[Path] = ()
    places: Sequence[tuple[str, str]] = ()

    @property
    def is_remote(self) -> bool:
        """Whether what it works on is at a URL."""
        return is_remote(self.place)

    @property
    def directory(self) -> Path:
        """Where its job is recorded (`job.json`)."""
        if self.launch is not None:
            return Path(self.place)
        # A run may have a job that trains it beside this one.
        return Path(self.place) / FOLDER / self.name

    @property
    def folder(self) -> Path:
        """Where the files of its job of Slurm lie."""
        return self.directory / FOLDER

    def find_job(self, say: Say) -> Job | None:
        """Its job that waits or runs already, which is said; None if there is none."""
        job = read_job(self.directory)
        state = "" if job is None else describe_job_state(job)
        if job is None or not is_under_way(state):
            return None
        say(
            f"{self.place} has the {job.kind} job {job.id} of `{job.command}` already, which is {state}."
        )
        return job
