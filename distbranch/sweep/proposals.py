"""Optuna as the chooser of settings, asked when there is room for a trial.

Each proposal is a line of `proposals.jsonl` before it is trained, and what it reached stands in run directories. For every new one
a study is made of what the disk says, so it does not matter which process asks. (Optuna's own JournalStorage would be a second
record of the same, which a driver that is killed between a result and `tell` leaves behind.)
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from distbranch.config import Config
from distbranch.config.sweep import Range, SweepConfig
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import append_line, read_lines
from distbranch.errors import UsageError, UserError
from distbranch.metrics import list_metrics
from distbranch.sweep.plan import make_trials, round_to_range
from distbranch.sweep.trial_status import FAILED, STOPPED_EARLY, UNFINISHED, SweepDirectory

TRIES = 100  # proposals in a row that were all made before
logger = logging.getLogger("distbranch")


class OptunaSearch:
    """The settings that were proposed so far (`proposals`, with their `trials`), and the next ones.

    Args:
        sweep: with `search: optuna`.
        directory: of the sweep; what was proposed before is read from it.

    Raises:
        UsageError: Optuna is not installed.
    """

    def __init__(self, sweep: SweepConfig, directory: SweepDirectory) -> None:
        try:
            import optuna
        except ImportError:
            raise UsageError(
                "search: optuna needs Optuna, which is not installed: pip install 'distbranch[optuna]', or use search: random."
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna: Any = optuna
        self.sweep = sweep
        self.directory = directory
        self.num_wanted = sweep.num_trials or 0
        self.space = {
            key: _make_distribution(span, optuna.distributions) for key, span in sweep.space.items()
        }
        self.proposals: list[
            tuple[dict[str, Any], list[Config]]
        ] = []  # the line of each, and its trials
        self.trials: list[Config] = []
        for line in read_lines(directory.proposals):
            self._add_proposal(line)

    def propose_trials(self) -> list[Config]:
        """The trials of the next setting, one per seed; none when all have been proposed, or Optuna proposes nothing new."""
        number = len(self.proposals)
        if number >= self.num_wanted:
            return []
        study = self.make_study()
        known = [line["values"] for line, _ in self.proposals]
        for _ in range(TRIES):
            asked = study.ask(self.space)
            values = {
                key: _read_value(span, asked.params[key]) for key, span in self.sweep.space.items()
            }
            if values not in known:
                line = {"number": number, "drawn": asked.params, "values": values}
                append_line(self.directory.proposals, line)
                return self._add_proposal(line)
            study.tell(
                asked, state=self.optuna.trial.TrialState.FAIL
            )  # training it again would tell nothing
        logger.warning(
            "The search ends after %d settings instead of num_trials=%d: Optuna proposes none that is new.",
            number,
            self.num_wanted,
        )
        self.num_wanted = number  # not asked again at every look for room
        return []

    def make_study(self) -> Any:
        """A study of all proposals and of what the disk says of them."""
        # A seed of its own for every proposal: with one for all, each study would draw the same first setting again.
        seed = np.random.SeedSequence((self.sweep.search_seed, len(self.proposals))).generate_state(
            1
        )
        # Trials that run count as bad ones (constant liar), else those proposed together would be alike.
        sampler = self.optuna.samplers.TPESampler(seed=int(seed[0]), constant_liar=True)
        is_error = list_metrics()[self.sweep.metric].lower_is_better
        direction = "minimize" if is_error else "maximize"
        study = self.optuna.create_study(direction=direction, sampler=sampler)
        statuses = self.directory.read_statuses(self.trials)
        for line, trials in self.proposals:
            state, value = self._read_state(
                {statuses[str(config.run.name)].status for config in trials}, trials
            )
            trial = self.optuna.trial.create_trial(
                state=state, value=value, params=line["drawn"], distributions=self.space
            )
            study.add_trial(trial)
        return study

    def _add_proposal(self, line: dict[str, Any]) -> list[Config]:
        trials = make_trials(self.sweep, [line["values"]], first=len(self.proposals))
        self.proposals.append((line, trials))
        self.trials += trials
        return trials

    def _read_state(self, statuses: set[str], trials: Sequence[Config]) -> tuple[Any, float | None]:
        """That a setting runs, failed or was stopped early, or the mean over its seeds."""
        states = self.optuna.trial.TrialState
        if UNFINISHED in statuses:
            return states.RUNNING, None
        if FAILED in statuses:
            return states.FAIL, None
        if STOPPED_EARLY in statuses:
            return states.PRUNED, None
        return states.COMPLETE, float(np.mean([self._read_value(config) for config in trials]))

    def _read_value(self, config: Config) -> float:
        result = read_result(config.run_directory)
        assert result is not None
        value = result.metrics["val"]["mean"].get(self.sweep.metric)
        if value is None:
            raise UserError(
                f"The tasks of {config.run.name} have no {self.sweep.metric} on val, which guides the search. Give another metric."
            )
        return float(value)


def _make_distribution(span: Range, kinds: Any) -> Any:
    if span.choices is not None:
        # By number, for a choice may be a list, which Optuna refuses.
        return kinds.CategoricalDistribution(list(range(len(span.choices))))
    low, high = span.bounds
    if span.whole:
        return kinds.IntDistribution(
            round_to_range(span, low), round_to_range(span, high), log=span.log
        )
    return kinds.FloatDistribution(low, high, log=span.log)


def _read_value(span: Range, drawn: Any) -> Any:
    if span.choices is None:
        return round_to_range(span, drawn)
    # As JSON has it, for settings are compared with those of proposals.jsonl.
    return json.loads(json.dumps(span.choices[drawn]))
