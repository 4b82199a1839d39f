"""Who trains a run: a job of Slurm or Ray, or a process of this machine, as `job.json` in the run directory says."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distbranch.engine.run_directory import RunDirectory, write_json
from distbranch.errors import UserError, reason_of
from distbranch.permissions import denied


@dataclass(frozen=True)
class Job:
    """Who trains a run.

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
