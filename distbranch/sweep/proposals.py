"""Optuna as the chooser of settings: asked when there is room for a trial, told what every setting reached.

Each proposal is a line of `proposals.jsonl` before it is trained, and what it reached stands in run directories, so a new
process learns everything again from the disk.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from distbranch.config import Config
from distbranch.config.sweep import Range, SweepConfig
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import append_line, read_lines
from distbranch.errors import UsageError, UserError
from distbranch.sweep.plan import make_trials, round_to_range
from distbranch.sweep.trial_status import FAILED, FINISHED, STOPPED_EARLY, SweepDirectory

TRIES = 100  # proposals in a row that were all made before
logger = logging.getLogger("distbranch")


class Proposals:
    """The settings that Optuna has proposed so far, and the next ones.

    Args:
        sweep: with `search: optuna`.
        directory: of the sweep; what was proposed before is read from it.

    Raises:
        UsageError: Optuna is not installed.
    """

    def __init__(self, sweep: SweepConfig, directory: SweepDirectory) -> None:
        optuna = _optuna()
        self.sweep, self.directory = sweep, directory
        self.study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=sweep.search_seed, constant_liar=True)
        )
        self.states = optuna.trial.TrialState
        self.space = {key: _distribution(span, optuna.distributions) for key, span in sweep.space.items()}
        self.asked: list[Any] = []  # Optuna's trials, by the number of the proposal
        self.trials: list[list[Config]] = []  # ours of each: one per seed
        self._open: set[int] = set()
        self._known: set[str] = set()  # the values of every setting
        self._exhausted = False
        for line in read_lines(directory.proposals):
            self.study.enqueue_trial(line["drawn"])
            self._add(self.study.ask(self.space), line["values"])

    def next(self) -> list[Config]:
        """The trials of the next setting, one per seed; none when all have been proposed, or Optuna proposes nothing new."""
        self._tell()
        num_trials = self.sweep.num_trials or 0
        if self._exhausted or len(self.trials) >= num_trials:
            return []
        for _ in range(TRIES):
            asked = self.study.ask(self.space)
            values = {key: _value(span, asked.params[key]) for key, span in self.sweep.space.items()}
            if _text(values) not in self._known:
                line = {"number": len(self.trials), "drawn": asked.params, "values": values}
                append_line(self.directory.proposals, line)
                return self._add(asked, values)
            self.study.tell(asked, state=self.states.FAIL)  # its value is known: training it again tells nothing
        self._exhausted = True
        logger.warning(
            "The search ends after %d settings instead of num_trials=%d: Optuna proposes none that is new.",
            len(self.trials),
            num_trials,
        )
        return []

    def _add(self, asked: Any, values: Mapping[str, Any]) -> list[Config]:
        number = len(self.trials)
        trials = make_trials(self.sweep, [values], first=number)
        self.asked.append(asked)
        self.trials.append(trials)
        self._open.add(number)
        self._known.add(_text(values))
        return trials

    def _tell(self) -> None:
        """What has ended since: the mean over seeds, or that a setting was stopped early or failed."""
        for number in sorted(self._open):
            names = [str(config.run.name) for config in self.trials[number]]
            statuses = {found.status for found in self.directory.read_statuses(names).values()}
            if not statuses <= {FINISHED, FAILED, STOPPED_EARLY}:
                continue
            self._open.remove(number)
            if statuses == {FINISHED}:
                self.study.tell(self.asked[number], self._mean(number))
            else:
                state = self.states.FAIL if FAILED in statuses else self.states.PRUNED
                self.study.tell(self.asked[number], state=state)

    def _mean(self, number: int) -> float:
        values = []
        for config in self.trials[number]:
            result = read_result(config.run_directory)
            assert result is not None
            value = result.metrics["val"]["mean"].get(self.sweep.metric)
            if value is None:
                raise UserError(
                    f"The tasks of {config.run.name} have no {self.sweep.metric} on val, which guides the search. Give another metric."
                )
            values.append(float(value))
        return sum(values) / len(values)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError(
            "search: optuna needs Optuna, which is not installed: pip install 'distbranch[optuna]', or use search: random."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(span: Range, kinds: Any) -> Any:
    if span.choices is not None:
        return kinds.CategoricalDistribution(
            list(range(len(span.choices)))
        )  # a choice may be a list, which Optuna refuses
    if span.whole:
        return kinds.IntDistribution(
            round_to_range(span, span.low or 0), round_to_range(span, span.high or 0), log=span.log
        )
    return kinds.FloatDistribution(span.low, span.high, log=span.log)


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _value(span: Range, drawn: Any) -> Any:
    return span.choices[drawn] if span.choices is not None else round_to_range(span, drawn)
