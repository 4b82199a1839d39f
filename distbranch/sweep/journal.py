"""A search as a file of Optuna's JournalStorage, for optuna-dashboard and `optuna.load_study`.

It is a copy for people: no proposal is ever made from it. What the disk says of the trials is the truth (proposals.py), and the
copy is brought into step with that whenever a setting is proposed and when the sweep ends. So a driver that was killed in the
middle of a line costs nothing: the next one cuts that line off and adds what is missing.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Of a lock that a killed driver has left; each append takes a thousandth of that.
SECONDS_UNTIL_A_LOCK_IS_BROKEN = 5


class StudyJournal:
    """The study of one search in a file.

    Args:
        file: of the journal, which need not exist.
        name: of the study.
        objectives: {name of a value: `maximize` or `minimize`}, in the order of the values of every trial.
    """

    def __init__(self, file: Path, name: str, objectives: dict[str, str]) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

        self.optuna: Any = optuna
        self.name = name
        self.objectives = objectives
        _cut_torn_line(file)
        lock = JournalFileSymlinkLock(str(file), SECONDS_UNTIL_A_LOCK_IS_BROKEN)
        self.storage = optuna.storages.JournalStorage(JournalFileBackend(str(file), lock))
        self.study = self._open_study()

    def update(self, trials: Sequence[Any]) -> None:
        """Write what is new in the search's trials (all of them, `optuna.trial.FrozenTrial`, in the order of their numbers).

        What has ended can only be added to, so where the disk says otherwise than the journal (a failed trial was tried again, a
        run directory was removed) the study is written anew.
        """
        written = self.study.get_trials(deepcopy=False)
        directions = [direction.name.lower() for direction in self.study.directions]
        agrees = len(written) <= len(trials) and directions == list(self.objectives.values())
        if not agrees or not all(map(_may_become, written, trials)):
            self.optuna.delete_study(study_name=self.name, storage=self.storage)
            self.study = self._open_study()
            written = []
        for before, now in zip(written, trials, strict=False):
            if now.state.is_finished() and not before.state.is_finished():
                self.storage.set_trial_state_values(before._trial_id, now.state, now.values)
        for now in trials[len(written) :]:
            self.study.add_trial(now)

    def _open_study(self) -> Any:
        names = [study.study_name for study in self.optuna.get_all_study_summaries(self.storage)]
        if self.name in names:
            return self.optuna.load_study(study_name=self.name, storage=self.storage)
        study = self.optuna.create_study(
            study_name=self.name,
            storage=self.storage,
            directions=list(self.objectives.values()),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(self.objectives))
        return study


def _may_become(before: Any, now: Any) -> bool:
    """Whether a trial of the journal is, or may still become, what the disk says of it."""
    same = (before.params, before.distributions, before.user_attrs) == (
        now.params,
        now.distributions,
        now.user_attrs,
    )
    if before.state.is_finished():
        return same and (before.state, before.values) == (now.state, now.values)
    return same


def _cut_torn_line(file: Path) -> None:
    """Drop the last line if its writer was killed in it: Optuna would write on in that line, and read none of them again."""
    if not file.exists():
        return
    content = file.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
