"""The directory of an experiment holds one comparison: another one does not overwrite what it found.

The same command, or one that compares more, goes on there, for all that was found is found again.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distbranch.config.sweep import SweepConfig
from distbranch.engine.run_directory import write_json
from distbranch.errors import UserError
from distbranch.sweep.plan import planned_trials
from distbranch.sweep.trial_status import FINISHED, SweepDirectory

ABOUT = "experiment.json"  # what is compared, and how


def check_place(sweep: SweepConfig, about: Mapping[str, Any]) -> None:
    """Nothing is there, or what this experiment would find again.

    Args:
        sweep: of the experiment.
        about: what its tables and pictures depend on beside its runs: `experiment` and options such as `split`.

    Raises:
        UserError: the tables there are of another experiment, or of runs that this one lacks.
    """
    directory = SweepDirectory(sweep.path, sweep.trial_path)
    before = _read_about(sweep.path)
    different = [f"{key}={value}" for key, value in before.items() if about.get(key) != value]
    lost = _finished_trials(directory.results) - {str(trial.run.name) for trial in planned_trials(sweep)}
    if not different and not lost:
        return
    found = f"with {', '.join(different)}" if different else f"of {_some(sorted(lost))}, which this one leaves out"
    raise UserError(
        f"{sweep.path} holds the results of another comparison, {found}; they would be overwritten. Give another --name, or compare "
        "the same and more."
    )


def record_place(sweep: SweepConfig, about: Mapping[str, Any]) -> None:
    """Write down what the tables in the experiment's directory are about."""
    write_json(sweep.path / ABOUT, dict(about))


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the latter is told when the sweep is begun
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ABOUT} cannot be read ({error}). Give another --name, or remove it.") from None
    return about


def _finished_trials(results: Path) -> set[str]:
    if not results.exists():
        return set()
    with results.open(newline="", encoding="utf-8") as file:
        return {row["trial"] for row in csv.DictReader(file) if row.get("status") == FINISHED}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
