"""What every experiment is made of: a sweep over variants, run or gone on with, and the finished runs of every variant."""

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from distbranch.config import Config, load_config
from distbranch.config.reading import parse_override
from distbranch.config.sweep import SweepConfig, sweep_of
from distbranch.engine.metrics import Report
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines, write_aside
from distbranch.errors import UsageError, UserError
from distbranch.launch.prepare import is_to_be_packed, read_packed_data
from distbranch.launch.sweep.plan import planned_trials, trials_by_variant
from distbranch.launch.sweep.run import run_sweep
from distbranch.launch.sweep.standing import FINISHED
from distbranch.tasks import CHOICES

logger = logging.getLogger("distbranch")

# Keys of a run that a sweep calls otherwise: where an experiment goes, and what each of its runs has.
KEYS_OF_THE_EXPERIMENT = {
    "run.directory": "directory",
    "launch.workers": "workers_per_trial",
    "launch.gpus_per_worker": "gpus_per_trial",
}


@dataclass(frozen=True)
class Run:
    """A finished run of an experiment. `summary`: the content of result.json, and `latency_ms`."""

    config: Config
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Its seed; runs of different variants with the same seed are compared with each other."""
        return self.config.seed

    def mean(self, metric: str, split: str) -> float | None:
        """The mean over tasks of a metric, in 0..1; None if it was not evaluated."""
        value = self.summary["metrics"].get(split, {}).get("mean", {}).get(metric)
        return None if value is None else float(value)

    def tasks(self, metric: str, split: str) -> dict[str, float]:
        """A metric of every task that has it, in 0..1."""
        rows = self.summary["metrics"].get(split, {}).get("tasks", {})
        return {task: float(row[metric]) for task, row in rows.items() if row.get(metric) is not None}

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind."""
        return [line for line in read_lines(RunDirectory(self.config.run_directory).metrics) if line["kind"] == kind]


Runs = Mapping[str, Sequence[Run]]  # by variant


def experiment_sweep(
    name: str,
    variants: Mapping[str, Mapping[str, Any]],
    overrides: Sequence[str],
    *,
    seeds: Sequence[int] | None,
    jobs: int | None,
    among_runs: bool = False,
    derived: Collection[str] = (),
) -> SweepConfig:
    """The sweep of an experiment.

    Args:
        name: of the experiment's directory.
        variants: as in a sweep file.
        overrides: `key=value`, for all runs; `run.directory` is where the experiment's directory goes.
        seeds: every variant is trained with each; None: with the one of its configuration.
        jobs: runs at the same time; None: as many as fit.
        among_runs: the runs are those that `distbranch train` would make in `run.directory`, under the names
            `<variant>-seed<seed>`, so that experiments share them; else they lie in the experiment's own directory.
        derived: keys whose values in the variants were made from the overrides; no other key may be said by both.

    Raises:
        UsageError: an unknown key, a value that no sweep takes, or an override that some variants would not follow.
    """
    values: dict[str, Any] = {"name": name, "variants": {key: dict(part) for key, part in variants.items()}}
    values |= {"seeds": list(seeds)} if seeds is not None else {}
    values |= {"concurrency": jobs} if jobs else {}
    others = []
    for text in overrides:
        key, value = parse_override(text)
        if key in KEYS_OF_THE_EXPERIMENT:
            values[KEYS_OF_THE_EXPERIMENT[key]] = value
        else:
            others.append(text)
    if among_runs:
        values["trial_directory"] = values.get("directory", SweepConfig.model_fields["directory"].default)
    return sweep_of(values, others, folder=Path.cwd(), what=f"The experiment {name}", derived=derived)


def config_of(file: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a run of the experiment, with those overrides that are keys of a run."""
    of_sweeps = set(SweepConfig.model_fields)
    return load_config(file, [text for text in overrides if parse_override(text)[0].partition(".")[0] not in of_sweeps])


def check_grows(file: Path, config: Config) -> None:
    """An experiment about decisions is of runs that take one.

    Raises:
        UsageError: the method takes none, or the run ends before.
    """
    method = config.method
    if method.name != "branching":
        raise UsageError(f"{file} should be of a network that grows, method.name=branching, found {method.name}.")
    if not config.decides:
        raise UsageError(
            f"{file} trains for {config.train.iterations} steps, and its first decision would come after "
            f"{method.steps_to_first}: lower method.first_decision or method.round_iterations."
        )


def run_experiment(sweep: SweepConfig, report: Report, *, splits: Collection[str] = ()) -> dict[str, list[Run]]:
    """Train what is not finished yet; then the finished runs of every variant, by seed.

    Args:
        sweep: of the experiment.
        report: told what happens.
        splits: on which the runs will be compared.

    Raises:
        UserError: data without one of them, runs that failed (the others were finished first), or that early stopping ended.
        StoppedEarly: a signal asked to stop.
    """
    if splits:
        _check_splits(sweep, splits)
    result = run_sweep(sweep, report)
    unfinished = [
        f"{row['trial']} ({row['status']}) {row['reason']}" for row in result.rows if row["status"] != FINISHED
    ]
    if unfinished:
        raise UserError(
            f"{len(unfinished)} of {len(result.rows)} runs did not finish: {'; '.join(unfinished)}. "
            "The same command trains them and nothing else."
        )
    return on_common_tasks(finished_runs(sweep, {row["trial"]: row["latency_ms"] for row in result.rows}))


def _check_splits(sweep: SweepConfig, splits: Collection[str]) -> None:
    """Of data that are still to be packed nothing is known yet."""
    for trial in {trial.data.path: trial for trial in planned_trials(sweep) if not is_to_be_packed(trial)}.values():
        info = read_packed_data(trial)
        absent = next((split for split in splits if split not in info.splits), None)
        if absent is not None:
            raise UserError(
                f"The data set {info.path} should have the split '{absent}', on which the runs are compared, but it has "
                f"{', '.join(sorted(info.splits))}. Give data that have it, or another --split if the experiment takes one."
            )


def finished_runs(sweep: SweepConfig, latencies: Mapping[str, float | None]) -> dict[str, list[Run]]:
    """The runs of every variant, by seed, as they stand on the disk; all should have finished.

    Args:
        sweep: of the experiment.
        latencies: milliseconds by the name of a run.
    """
    found: dict[str, list[Run]] = {}
    for variant, trials in trials_by_variant(sweep).items():
        for trial in trials:
            result = read_result(trial.run_directory)
            assert result is not None
            summary = {**result.summary, "latency_ms": latencies.get(str(trial.run.name))}
            found.setdefault(variant, []).append(Run(trial, summary))
    return found


def on_common_tasks(runs: Runs) -> dict[str, list[Run]]:
    """The runs with means over the same tasks, so that they can be compared.

    Which tasks have a metric depends on the labels, so runs of the same tasks and data have it for the same ones; but not those
    of an earlier release, of other draws of the data, or of which other samples were left out. Then a mean is over the tasks
    that have the metric in every run of the same tasks, and it is said so.
    """
    every = [run for members in runs.values() for run in members]
    alike: dict[tuple[str, ...], list[Run]] = {}
    for run in every:
        alike.setdefault(tuple(run.summary["tasks"]), []).append(run)
    common = {id(run): one for same in alike.values() for run, one in zip(same, _with_common_means(same), strict=True)}
    return {variant: [common[id(run)] for run in members] for variant, members in runs.items()}


def _with_common_means(runs: Sequence[Run]) -> list[Run]:
    splits = sorted(set.intersection(*(set(run.summary["metrics"]) for run in runs)))
    found = [copy.deepcopy(dict(run.summary)) for run in runs]
    for split in splits:
        for metric in runs[0].summary["metrics"][split]["mean"]:
            values = [_defined(run, metric, split) for run in runs]
            shared = set.intersection(*map(set, values))
            if all(value.keys() == shared for value in values):
                continue
            logger.warning(
                "The mean %s on %s is over the %d tasks that have it in all runs; %s have it in some only.",
                metric,
                split,
                len(shared),
                ", ".join(sorted(set.union(*map(set, values)) - shared)),
            )
            for summary, value in zip(found, values, strict=True):
                known = [value[task] for task in sorted(shared)]
                summary["metrics"][split]["mean"][metric] = float(np.mean(known)) if known else None
    return [Run(run.config, summary) for run, summary in zip(runs, found, strict=True)]


def _defined(run: Run, metric: str, split: str) -> dict[str, float]:
    """What the mean of a metric is over: every task that has it, and the exclusive sets for what only they have."""
    sets = run.summary["metrics"][split].get("exclusive", {}) if metric in CHOICES else {}
    of_sets = {f"{name} (arg-max)": row[metric] for name, row in sets.items() if row[metric] is not None}
    return run.tasks(metric, split) | of_sets


def check_defined(runs: Runs, metric: str, splits: Collection[str]) -> None:
    """What is undefined for all tasks compares nothing.

    Raises:
        UserError: no run has the mean on one of the splits.
    """
    every = [run for members in runs.values() for run in members]
    absent = next((split for split in splits if all(run.mean(metric, split) is None for run in every)), None)
    if absent is not None:
        raise UserError(
            f"The {len(every)} runs are finished, but no task has {metric} on {absent} in all of them, so they cannot be compared "
            f"by it: results.csv beside {every[0].config.run_directory} has what there is. Give data in which a task has labels of "
            "more than one class there."
        )


def paired(one: Sequence[Run], other: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of two variants with the same seed."""
    by_seed = {run.seed: run for run in other}
    return [(run, by_seed[run.seed]) for run in one if run.seed in by_seed]


def write_text(folder: Path, name: str, text: str) -> None:
    """Write a file of the experiment in one step."""
    write_aside(folder / name, text)


def write_csv(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys."""
    write_aside(folder / name, pandas.DataFrame(list(rows)).to_csv(index=False))
