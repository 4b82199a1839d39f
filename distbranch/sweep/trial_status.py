"""How far each trial of a sweep is, read from the disk alone, so that the same command resumes after anything.

A trial has finished if its run directory holds result.json, which a run writes last and in one step. What else can end a trial
is a line of `ended.jsonl` in the sweep's directory, written before it is acted upon. Everything else is still to be trained, from
the newest checkpoint of its run directory. So nothing that Ray remembers is needed to resume, and nothing of it can be stale:
no finished trial is ever handed out again, and every other one is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distbranch.config import Config
from distbranch.config.paths import hide_secrets
from distbranch.config.sweep import SweepConfig, sweep_to_yaml
from distbranch.engine.run_directory import (
    RunDirectory,
    append_line,
    read_lines,
    write_atomically,
)
from distbranch.errors import UserError
from distbranch.launch.jobs import read_summary

FINISHED, FAILED, STOPPED_EARLY, UNFINISHED = "finished", "failed", "stopped early", "unfinished"


@dataclass(frozen=True)
class TrialStatus:
    """How a trial stands; `reason` says why it failed or was stopped."""

    status: str
    reason: str = ""

    @property
    def is_settled(self) -> bool:
        """Whether the same command leaves the trial alone; a failed one is tried again."""
        return self.status in (FINISHED, STOPPED_EARLY)


class SweepDirectory:
    """The files of one sweep, by name; every trial is a run directory beside them, or in the folder `trials`."""

    def __init__(self, path: Path, trials: Path | None = None) -> None:
        self.path = path
        self.trials = trials or path
        self.config = path / "sweep.yaml"
        self.base = (
            path / "base.yaml"
        )  # the run configuration of all trials, but for what is varied
        self.ended = path / "ended.jsonl"
        self.proposals = path / "proposals.jsonl"
        self.results = path / "results.csv"
        self.table = path / "results.parquet"
        self.latency = path / "latency.json"
        self.searched_latency = path / "latency-of-search.json"  # what guides `cost: latency_ms`
        self.journal = path / "optuna-journal.log"  # for optuna-dashboard
        self.importances = path / "importances.json"
        self.tensorboard = path / "tensorboard"
        self.tune = path / ".tune"
        self._sound = set[Path]()  # runs whose result was read, and need not be again

    @property
    def has_begun(self) -> bool:
        """Whether any trial was begun or proposed; a sweep that was refused leaves a directory without."""
        return self.base.exists() and (
            self.proposals.exists() or any(self.trials.glob("*/config.yaml"))
        )

    def record_sweep(self, sweep: SweepConfig) -> None:
        """Write what the sweep is, with absolute folders: whoever reads it later may be in another one."""
        folders = {"directory": str(sweep.path.parent)}
        if sweep.trial_directory is not None:
            folders["trial_directory"] = str(sweep.trial_path)
        write_atomically(self.config, sweep_to_yaml(sweep.model_copy(update=folders)))

    def record_end(
        self, trial: str, status: str, reason: str = "", iteration: int | None = None
    ) -> None:
        """Record that a trial failed or was stopped early, or is to be trained again (`UNFINISHED`)."""
        told = {"status": status, "reason": hide_secrets(reason), "iteration": iteration}
        append_line(self.ended, {"trial": trial, **told})

    def read_statuses(self, trials: Iterable[Config]) -> dict[str, TrialStatus]:
        """How every trial stands, by name."""
        ended: dict[str, dict[str, Any]] = {line["trial"]: line for line in read_lines(self.ended)}
        statuses = {}
        for config in trials:
            name = str(config.run.name)
            line = ended.get(name, {})
            statuses[name] = TrialStatus(line.get("status", UNFINISHED), line.get("reason", ""))
            # Whatever is on record, a result is the last word.
            files = RunDirectory(config.run_directory)
            if files.result.exists():
                statuses[name] = self._read_end(files)
        return statuses

    def _read_end(self, files: RunDirectory) -> TrialStatus:
        """That of a trial that has a result: one that is damaged ends this trial alone, and says what to do."""
        if files.path not in self._sound:
            try:
                read_summary(files)
            except UserError as error:
                return TrialStatus(FAILED, str(error))
            self._sound.add(files.path)
        return TrialStatus(FINISHED)
