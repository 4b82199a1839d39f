"""Optuna as the chooser of settings, asked when there is room for a trial.

Each proposal is a line of `proposals.jsonl` before it is trained, and what it reached stands in run directories. For every new one
a study is made of what the disk says, so it does not matter which process asks. (Optuna's own JournalStorage would be a second
record of the same, which a driver that is killed between a result and `tell` leaves behind; journal.py writes one for people.)

With `cost` a setting has two values, what it is worth and what it costs, and the search follows their Pareto front.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from distbranch.config import Config
from distbranch.config.sweep import Range, SweepConfig
from distbranch.engine.run_directory import RunDirectory, append_line, read_lines
from distbranch.errors import UsageError
from distbranch.launch.jobs import read_summary
from distbranch.metrics import list_metrics
from distbranch.sweep.journal import StudyJournal
from distbranch.sweep.latencies import measure_new_latencies
from distbranch.sweep.plan import make_trials, round_to_range
from distbranch.sweep.trial_status import FAILED, STOPPED_EARLY, UNFINISHED, SweepDirectory

TRIES = 100  # proposals in a row that were all made before
LATENCY = "latency_ms"
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
        is_error = list_metrics()[sweep.metric].lower_is_better
        self.objectives = {sweep.metric: "minimize" if is_error else "maximize"}
        if sweep.cost is not None:
            self.objectives[sweep.cost] = "minimize"
        self.proposals: list[
            tuple[dict[str, Any], list[Config]]
        ] = []  # the line of each, and its trials
        self.trials: list[Config] = []
        self._complete: dict[int, list[float]] = {}  # the values of proposals, which stay
        self._journal: StudyJournal | None = None
        for line in read_lines(directory.proposals):
            self._add_proposal(line)

    def propose_trials(self) -> list[Config]:
        """The trials of the next setting, one per seed; none when all have been proposed, or Optuna proposes nothing new."""
        number = len(self.proposals)
        if number >= self.num_wanted:
            return []
        states = self._read_states()
        self._write_journal(states)
        study = self._make_study(states)
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
        return self._make_study(self._read_states())

    def write_journal(self) -> None:
        """Bring the file for optuna-dashboard into step with the disk."""
        self._write_journal(self._read_states())

    def _make_study(self, states: Sequence[tuple[Any, list[float] | None]]) -> Any:
        # A seed of its own for every proposal: with one for all, each study would draw the same first setting again.
        seed = np.random.SeedSequence((self.sweep.search_seed, len(self.proposals))).generate_state(
            1
        )
        # Trials that run count as bad ones (constant liar), else those proposed together would be alike. Of two objectives too it
        # is TPE: NSGA-II learns nothing before its first generation of 50 has ended, which is a whole sweep.
        sampler = self.optuna.samplers.TPESampler(seed=int(seed[0]), constant_liar=True)
        directions = list(self.objectives.values())
        study = self.optuna.create_study(directions=directions, sampler=sampler)
        for (line, _), (state, values) in zip(self.proposals, states, strict=True):
            trial = self.optuna.trial.create_trial(
                state=state, values=values, params=line["drawn"], distributions=self.space
            )
            study.add_trial(trial)
        return study

    def _write_journal(self, states: Sequence[tuple[Any, list[float] | None]]) -> None:
        if self._journal is None:
            name = str(self.sweep.name)
            self._journal = StudyJournal(self.directory.journal, name, self.objectives)
        trials = []
        for (line, configs), (state, values) in zip(self.proposals, states, strict=True):
            trial = self.optuna.trial.create_trial(
                state=state,
                values=values,
                params=self._name_choices(line),
                distributions=self._named_space,
                user_attrs={"runs": [str(config.run.name) for config in configs]},
            )
            trials.append(trial)
        self._journal.update(trials)

    @cached_property
    def _named_space(self) -> dict[str, Any]:
        """The space as people read it: choices by their text, where `space` has their numbers."""
        space = {}
        for key, span in self.sweep.space.items():
            space[key] = self.space[key]
            if span.choices is not None:
                texts = list(map(json.dumps, span.choices))
                space[key] = self.optuna.distributions.CategoricalDistribution(texts)
        return space

    def _name_choices(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """What a proposal was trained with, as a point of `_named_space`."""
        values = dict(line["values"])
        for key, span in self.sweep.space.items():
            if span.choices is not None:
                values[key] = json.dumps(span.choices[line["drawn"][key]])
        return values

    def _add_proposal(self, line: dict[str, Any]) -> list[Config]:
        trials = make_trials(self.sweep, [line["values"]], first=len(self.proposals))
        self.proposals.append((line, trials))
        self.trials += trials
        return trials

    def _read_states(self) -> list[tuple[Any, list[float] | None]]:
        """Of every proposal that it runs, failed or was stopped early, or its values: means over its seeds."""
        states = self.optuna.trial.TrialState
        # What is complete stays so, and need not be read again for every proposal.
        numbers = [n for n in range(len(self.proposals)) if n not in self._complete]
        unknown = {number: self.proposals[number][1] for number in numbers}
        trials = [config for configs in unknown.values() for config in configs]
        statuses = self.directory.read_statuses(trials)
        others: dict[int, Any] = {}
        for number, configs in unknown.items():
            found = {statuses[str(config.run.name)].status for config in configs}
            for status, state in (
                (UNFINISHED, states.RUNNING),
                (FAILED, states.FAIL),
                (STOPPED_EARLY, states.PRUNED),
            ):
                if status in found:
                    others.setdefault(number, state)
        self._complete |= self._read_values(
            {number: configs for number, configs in unknown.items() if number not in others}
        )
        found_states: list[tuple[Any, list[float] | None]] = []
        for number in range(len(self.proposals)):
            values = self._complete.get(number)
            if values is None:
                found_states.append((others[number], None))
            elif np.isnan(values).any():  # which Optuna calls failed
                found_states.append((states.FAIL, None))
            else:
                found_states.append((states.COMPLETE, values))
        return found_states

    def _read_values(self, finished: Mapping[int, Sequence[Config]]) -> dict[int, list[float]]:
        """The objectives of proposals whose trials have all finished; NaN where the metric is undefined for one of them."""
        latencies = {}
        if finished and self.sweep.cost == LATENCY:
            # All that are known come along, for one of them is what the new ones are measured beside.
            numbers = [*self._complete, *finished]
            runs = [config.run_directory for n in numbers for config in self.proposals[n][1]]
            latencies = measure_new_latencies(runs, self.directory.searched_latency)
        values = {}
        for number, trials in finished.items():
            rows = []
            for config in trials:
                row = [self._read_worth(config)]
                if self.sweep.cost == LATENCY:
                    row.append(latencies[config.run_directory])
                elif self.sweep.cost is not None:
                    row.append(_read_cost(config, self.sweep.cost))
                rows.append(row)
            values[number] = [float(value) for value in np.mean(rows, axis=0)]
        return values

    def _read_worth(self, config: Config) -> float:
        value = _read_finished(config)["metrics"]["val"]["mean"].get(self.sweep.metric)
        if value is None:  # of predictions that are all equal, for instance
            logger.warning(
                "The tasks of %s have no %s on val, so its setting tells the search nothing.",
                config.run.name,
                self.sweep.metric,
            )
            return math.nan
        return float(value)


def _read_cost(config: Config, cost: str) -> float:
    summary = _read_finished(config)
    # Only branches that store differences have a number of their own once these are folded in.
    return float(summary.get(cost, summary["weights"]))


def _read_finished(config: Config) -> dict[str, Any]:
    summary = read_summary(RunDirectory(config.run_directory))
    assert summary is not None
    return summary


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
