"""The runner of all experiments: a sweep over variants, trained or resumed, then an analysis and its files.

The directory of an experiment holds one comparison: another one does not overwrite what it found. The same command, or one that
compares more, resumes there, for all that was found is found again.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
from pandas import DataFrame

from distbranch.config.sweep import Setting, SweepConfig, sweep_of
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import write_atomically, write_json
from distbranch.engine.run_log import Report
from distbranch.errors import UserError
from distbranch.experiments.analyses import format_markdown
from distbranch.experiments.runs import (
    SPLITS,
    Run,
    Runs,
    check_defined,
    restrict_to_common_tasks,
    split_by_data_set,
)
from distbranch.launch.prepare import check_marker, is_to_be_packed, read_packed_data
from distbranch.metrics import is_defined, list_means
from distbranch.report.console import make_result_markdown
from distbranch.report.experiment_figures import save_figure
from distbranch.sweep.plan import list_trials
from distbranch.sweep.run import run_sweep
from distbranch.sweep.trial_status import FINISHED, SweepDirectory

Variants = dict[str, Setting]
ABOUT = "experiment.json"  # what is compared, and how
is_planning = ContextVar("is_planning", default=False)

# Keys of a run that a sweep calls otherwise: where an experiment goes, and what each of its runs has.
KEYS_OF_THE_EXPERIMENT = {
    "run.directory": "directory",
    "launch.workers": "workers_per_trial",
    "launch.gpus_per_worker": "gpus_per_trial",
}


@dataclass(frozen=True)
class Findings:
    """What an analysis found.

    Attributes:
        sentences: what may be said.
        table: shown below them, see `format_table`; None: the means of all networks, which table.md always has, are all.
        csv: tables by the names of their files; shares in 0..1.
        figures: of report/experiment_figures.py, by file name.
        metric: of the differences in the table; a share if None.
    """

    sentences: Sequence[str] = ()
    table: DataFrame | None = None
    csv: Mapping[str, DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None

    @property
    def files(self) -> list[str]:
        """The names of its files in the experiment's directory."""
        return [*self.csv, "table.md", *self.figures]


@dataclass(frozen=True)
class Experiment:
    """Which runs are compared, and how.

    Attributes:
        name: of the experiment's directory.
        about: what tables and figures depend on beside the runs: `experiment` and options such as `split`.
        variants: {variant: {dotted key: value}} with `base`, as in a sweep file.
        analyse: what is read off the finished runs.
        splits: on which the runs are compared, which the data must have.
        metric: a mean over tasks that some run must have; None: the analysis checks by itself.
        overrides: `key=value` that go before those of the user.
        derived: keys whose values in the variants were made from the overrides; no other key may be said by both.
        among_runs: the runs are those that `distbranch train` would make in `run.directory`, under the names
            `<variant>-seed<seed>`, so that experiments share them; else they are in the experiment's own directory.
        trains: False: the analysis needs none of the runs, and none is trained.
    """

    name: str
    about: Mapping[str, Any]
    variants: Variants
    analyse: Callable[[Runs], Findings] = lambda _: Findings()
    splits: Collection[str] = ()
    metric: str | None = None
    overrides: Sequence[str] = ()
    derived: Collection[str] = ()
    among_runs: bool = False
    trains: bool = True


class Planned(Exception):  # noqa: N818  # no error: what would be trained is known
    """In the place of training, where an experiment is only planned."""

    def __init__(self, sweep: SweepConfig) -> None:
        super().__init__(sweep.name)
        self.sweep = sweep


def plan_experiment(run: Callable[[], object]) -> SweepConfig:
    """The sweep that `run` would train first, which comes to `run_experiment` or `train_variants`; nothing is trained.

    Raises:
        UsageError, UserError: as those, before they train.
    """
    token = is_planning.set(True)
    try:
        run()
    except Planned as planned:
        return planned.sweep
    finally:
        is_planning.reset(token)
    raise AssertionError("an experiment trains, or analyses, through this module")


def run_experiment(
    experiment: Experiment,
    overrides: Sequence[str],
    *,
    seeds: Sequence[int] | None,
    jobs: int | None,
    report: Report,
    name: str | None = None,
) -> tuple[Findings, list[Run], Path]:
    """Train what is not finished yet, analyse all, and write the files.

    Args:
        experiment: made by a `design_*` function.
        overrides: `key=value`, for all runs; `run.directory` is where the experiment's directory goes.
        seeds: every variant is trained with each; None: with the one of its configuration.
        jobs: runs at the same time; None: as many as fit.
        report: called when a run begins and ends.
        name: of the experiment's directory; None: the experiment's own.

    Returns:
        What was found, the runs it was found in, and the directory of its files.

    Raises:
        UsageError: an override that some variants would not follow.
        UserError: data without a split, a directory of another comparison, or runs that failed; the others were finished first.
        StoppedEarly: a signal asked to stop.
    """
    sweep = build_sweep(
        name or experiment.name,
        experiment.variants,
        [*experiment.overrides, *overrides],
        seeds=seeds,
        jobs=jobs,
        among_runs=experiment.among_runs,
        derived=experiment.derived,
    )
    check_same_comparison(sweep, experiment.about)
    if is_planning.get():
        raise Planned(sweep)
    check_marker()
    runs = []
    if experiment.trains:
        splits, metric = experiment.splits, experiment.metric
        runs = train_variants(sweep, report, splits=splits, metric=metric)

    # Recorded before the analysis: the runs are there now, whatever an analysis makes of them.
    sweep.path.mkdir(parents=True, exist_ok=True)
    write_json(sweep.path / ABOUT, dict(experiment.about))
    if experiment.metric is not None:
        check_defined(runs, experiment.metric, experiment.splits)
    findings = experiment.analyse(runs)

    for file, table in findings.csv.items():
        write_atomically(sweep.path / file, table.to_csv(index=False))
    write_atomically(sweep.path / "table.md", make_markdown(sweep, findings, runs))
    for file, figure in findings.figures.items():
        save_figure(figure, sweep.path / file)
    return findings, runs, sweep.path


def build_sweep(
    name: str,
    variants: Variants,
    overrides: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    among_runs: bool = False,
    derived: Collection[str] = (),
) -> SweepConfig:
    """The sweep of an experiment; arguments as those of `Experiment` and `run_experiment`.

    Raises:
        UsageError: an unknown key, a value that no sweep takes, or an override that some variants would not follow.
    """
    values = {"name": name, "variants": variants, "seeds": seeds, "concurrency": jobs}
    own = []
    for text in overrides:
        key, sign, value = text.partition("=")
        own.append(KEYS_OF_THE_EXPERIMENT.get(key, key) + sign + value)
    sweep = sweep_of(values, own, folder=Path.cwd(), what=f"The experiment {name}", derived=derived)
    # The table is in a folder of its own then, and the runs are beside it.
    if among_runs and sweep.trial_directory is None:
        sweep = sweep.model_copy(update={"trial_directory": sweep.directory})
    return sweep


def train_variants(
    sweep: SweepConfig,
    report: Report,
    *,
    splits: Collection[str] = (),
    metric: str | None = None,
) -> list[Run]:
    """Train what is not finished yet; then the finished runs of every variant, by seed.

    Raises:
        UserError: data without one of the splits, or without a task that has the metric there.
        UserError: runs that failed (the others were finished first), or that early stopping ended.
        StoppedEarly: a signal asked to stop.
    """
    _check_splits(sweep, splits, metric)
    if is_planning.get():
        raise Planned(sweep)
    rows = run_sweep(sweep, report)
    unfinished = [row for row in rows if row["status"] != FINISHED]
    if unfinished:
        reasons = [f"{row['trial']} ({row['status']}) {row['reason']}" for row in unfinished]
        raise UserError(
            f"{len(unfinished)} of {len(rows)} runs did not finish: {'; '.join(reasons)}. "
            "The same command trains them and nothing else."
        )
    found = []
    for trial, row in zip(list_trials(sweep), rows, strict=True):
        result = read_result(trial.run_directory)
        assert result is not None
        # Measured by the sweep, all in one process.
        found.append(
            Run(row["variant"], trial, {**result.summary, "latency_ms": row["latency_ms"]})
        )
    return restrict_to_common_tasks(found)


def _check_splits(sweep: SweepConfig, splits: Collection[str], metric: str | None) -> None:
    """Of data that are still to be packed nothing is known yet."""
    # One trial of each data set, as reading hundreds of times the same file takes minutes.
    trial_of_data = {trial.data.path: trial for trial in list_trials(sweep)}
    for trial in trial_of_data.values():
        if not splits or is_to_be_packed(trial):
            continue
        info = read_packed_data(trial)
        for split in splits:
            if split not in info.splits:
                raise UserError(
                    f"The data set {info.path} should have the split '{split}', on which the runs are compared, but it has "
                    f"{', '.join(sorted(info.splits))}. Give data that have it, or another --split if the experiment takes one."
                )
            labels = info.splits[split].labels
            if metric is not None and not is_defined(metric, info.tasks, labels):
                known = [name for name in list_means() if is_defined(name, info.tasks, labels)]
                raise UserError(
                    f"No task of {info.path} has {metric} on {split}, so that the runs could not be compared by it. It has "
                    f"{', '.join(known) or 'no metric there'}: give one of them as --metric where the experiment takes it, or other data."
                )


def make_markdown(sweep: SweepConfig, findings: Findings, runs: Runs) -> str:
    """table.md: what was found; then the means of all networks on both splits, and of every data set of joint runs by itself."""
    parts = [f"# {sweep.name}"]
    if findings.sentences:
        parts.append("\n".join(f"- {sentence}" for sentence in findings.sentences))
    if findings.table is not None and not findings.table.empty:
        parts.append(format_markdown(findings.table, findings.metric))

    if not runs:
        return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
    told = "Means over tasks; mean ± standard deviation over seeds."
    latency = SweepDirectory(sweep.path).latency
    if latency.exists():  # it is missing where a network could not be read
        about = json.loads(latency.read_text())
        told += (
            f" Latency: {about['runtime']}, batch norm folded, batch 1, {about['threads']} thread, median of {about['turns']} turns in "
            f"one process on {about['host']}."
        )
    parts.append(told)
    for split in SPLITS:
        for title, results in split_by_data_set(runs, split).items():
            heading = f"## {split}"
            if title:
                heading = f"### {split}, the tasks of {title}"
            parts += [heading, make_result_markdown(results, split=split)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def check_same_comparison(sweep: SweepConfig, about: Mapping[str, Any]) -> None:
    """The experiment's directory is empty, or holds what this experiment would find again.

    Raises:
        UserError: the tables there are of another experiment, or of runs that this one lacks.
    """
    results = SweepDirectory(sweep.path).results
    before = {}
    finished: set[str] = set()
    try:
        if (sweep.path / ABOUT).exists():
            before = json.loads((sweep.path / ABOUT).read_text(encoding="utf-8"))
        if results.exists():
            finished = set(
                pandas.read_csv(results, dtype=str).query("status == @FINISHED")["trial"]
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The files in {sweep.path} cannot be read ({error}). Give another --name."
        ) from None
    # More runs than before are welcome; fewer would take what was found out of the table.
    different = [f"{key}={value}" for key, value in before.items() if about.get(key) != value]
    lost = sorted(finished - {str(trial.run.name) for trial in list_trials(sweep)})
    if not different and not lost:
        return
    found = f"with {', '.join(different)}"
    if not different:
        found = f"of {', '.join(lost[:3])}, which this one leaves out"
    raise UserError(
        f"{sweep.path} holds the results of another comparison, {found}; they would be overwritten. Give another --name, or compare "
        "the same and more."
    )
