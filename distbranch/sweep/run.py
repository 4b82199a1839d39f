"""Running a sweep: what is not settled yet goes through Ray Tune, then everything becomes one table.

Each start makes a new Tuner over the trials that the disk does not know as settled (trial_status.py), so nothing depends on how the
driver before ended.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distbranch.config import Config, differences, load_config, to_yaml
from distbranch.config.reading import read_yaml
from distbranch.config.sections import RunConfig
from distbranch.config.sweep import SweepConfig, sweep_to_yaml
from distbranch.data.shards import DatasetInfo
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.run_directory import RunDirectory, without_moved_data, write_atomically
from distbranch.engine.run_log import Report
from distbranch.errors import UserError, reason_of
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.on_ray.cluster import check_resources, check_storage, open_cluster
from distbranch.launch.prepare import (
    check_data,
    ensure_packed,
    is_to_be_packed,
    list_run_paths,
    read_packed_data,
    refuse_uploaded_paths,
    warn_ignored_settings,
)
from distbranch.launch.stopping import StopRequest
from distbranch.locks import LockHeldError, hold_lock
from distbranch.metrics import is_defined
from distbranch.models.architecture import multiply_adds, num_parameters
from distbranch.sweep.plan import group_trials_by_variant, list_trials, load_base_config, order_in_turns
from distbranch.sweep.proposals import Proposals
from distbranch.sweep.results import Row, make_rows, write_results
from distbranch.sweep.shared_prefix import group_by_prefix, measure_saving
from distbranch.sweep.trial_status import FAILED, SweepDirectory

# Our run directories are the truth, so Tune need not write down what it knows before its end.
SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
    "RAY_AIR_NEW_OUTPUT": "0",
}
# What to do about a run of another configuration that lies in the sweep's own folder, or in one that it shares.
OF_ITSELF = "Give another name (--name of an experiment), or undo the change."
SHARED = "Give another trial_directory (run.directory of an experiment), or undo the change."
logger = logging.getLogger("distbranch")
FIXED_ONCE_BEGUN = ("search", "space", "search_seed")
NUM_NAMES_SHOWN = 25  # at either end of a long list


@dataclass(frozen=True)
class SweepResult:
    """What a sweep gives: one row per trial, and its directory."""

    rows: list[Row]
    directory: Path

    @property
    def failed(self) -> list[Row]:
        """The trials that failed, each with its reason."""
        return [row for row in self.rows if row["status"] == FAILED]


def run_sweep(sweep: SweepConfig, report: Report) -> SweepResult:
    """Train every trial that is not settled yet, and write the tables.

    Args:
        sweep: see `load_sweep`.
        report: told what happens: `begun`, `ended` (with a status), and what packing says.

    Raises:
        UsageError: the sweep asks for something that does not exist, or differs from what was begun under its name.
        UserError: data, storage or machines are not as they should be. Failed trials are in the result, not raised.
        StoppedEarly: a signal asked to stop; every running trial has saved a checkpoint.
    """
    directory = SweepDirectory(sweep.path, sweep.trial_path)
    known = [] if sweep.search == "optuna" else list_trials(sweep)
    _refuse_what_vanishes(sweep, known or [load_base_config(sweep)])
    check_begun(sweep, directory, known)
    warn_ignored_settings(known or [load_base_config(sweep)])
    for info in _prepare_data(order_in_turns(known)[0] if known else [load_base_config(sweep)], report):
        _check_metric(sweep, info)
    with _open_directory(sweep, directory):
        proposals = Proposals(sweep, directory) if sweep.search == "optuna" else None
        groups = [known] if proposals is None else proposals.trials
        if proposals is not None:
            check_begun(sweep, directory, [trial for group in groups for trial in group])
        try:
            _train_open(sweep, groups, directory, report, proposals)
        finally:
            trials = [config for group in groups for config in group]
            rows = make_rows(trials, sweep.varied, directory, variants=_get_variants(sweep))
            write_results(rows, directory)
        shared = measure_saving(trials)
        if shared.steps < shared.steps_alone:
            report({"kind": "saving", "text": f"Shared beginnings of {shared}"})
    return SweepResult(rows, directory.path)


def _refuse_what_vanishes(sweep: SweepConfig, trials: Sequence[Config]) -> None:
    """In a job of Ray: the folders of the sweep, which are the `run.directory` of its trials, and what these read."""
    places = [("directory", str(sweep.path))]
    if sweep.trial_directory is not None:
        places.append(("trial_directory", str(sweep.trial_path)))
    of_trials = [place for trial in trials for place in list_run_paths(trial) if place[0] != "run.directory"]
    refuse_uploaded_paths([*places, *dict.fromkeys(of_trials)])


def _train_open(
    sweep: SweepConfig,
    groups: Sequence[Sequence[Config]],
    directory: SweepDirectory,
    report: Report,
    proposals: Proposals | None,
) -> None:
    """Train what is not settled, and what is proposed; what failed before is tried again."""
    trials = [config for group in groups for config in group]
    statuses = directory.read_statuses([str(config.run.name) for config in trials])
    total = len(statuses) if proposals is None else (sweep.num_trials or 0) * len(sweep.seeds or (0,))
    num_open = total - sum(trial_status.is_settled for trial_status in statuses.values())
    report({"kind": "sweep", "trials": total, "open": num_open, "directory": str(directory.path)})
    if not num_open:
        return
    directory.retry_failed([name for name, trial_status in statuses.items() if trial_status.status == FAILED])

    def unsettled(groups: Sequence[Sequence[Config]]) -> list[list[Config]]:
        roots = [root for group in groups for root in group_by_prefix(group)]
        return [root for root in roots if not all(statuses[str(config.run.name)].is_settled for config in root)]

    with open_sweep_cluster(sweep, report):
        from distbranch.sweep.tuning import train_roots

        if proposals is not None:
            train_roots(sweep, unsettled(groups), trials, directory, report, lambda: group_by_prefix(proposals.next()))
            return
        for number, turn in enumerate(order_in_turns(trials)):
            able = (
                _select_startable(turn, directory, report) if number else turn
            )  # the first ones were looked at before
            if roots := unsettled([able]):
                train_roots(sweep, roots, trials, directory, report, lambda: [])


def _select_startable(turn: Sequence[Config], directory: SweepDirectory, report: Report) -> list[Config]:
    """Those that can begin now that the runs have ended that they begin from; the others fail, and it is told why."""
    able = []
    for config in turn:
        name = str(config.run.name)
        try:
            _prepare_data([config], report)
        except UserError as error:
            directory.end(name, FAILED, str(error))
            report({"kind": "ended", "trial": name, "status": FAILED, "reason": str(error)})
        else:
            able.append(config)
    return able


def _get_variants(sweep: SweepConfig) -> dict[str, str]:
    """The variant of every trial, by name; empty in a sweep without."""
    return {
        str(trial.run.name): variant for variant, trials in group_trials_by_variant(sweep).items() for trial in trials
    }


@contextmanager
def _open_directory(sweep: SweepConfig, directory: SweepDirectory) -> Iterator[None]:
    """The sweep's directory, of this sweep and locked against a second driver."""
    held = ExitStack()
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(hold_lock(directory.lock, patience_s=5))
    except LockHeldError as error:
        raise UserError(
            f"The sweep {directory.path} is being run by another process. Wait for it, stop it, or give another name.{error.advice}"
        ) from None
    except OSError as error:
        raise UserError(
            f"The sweep directory {directory.path} cannot be written ({reason_of(error)}). Give another directory."
        ) from None
    with held:
        check_begun(sweep, directory, [])  # again: another driver may have begun it since
        write_atomically(directory.config, sweep_to_yaml(sweep))
        write_atomically(directory.base, to_yaml(load_base_config(sweep)))
        yield


def check_begun(sweep: SweepConfig, directory: SweepDirectory, known: Sequence[Config]) -> None:
    """Nothing is there, or what this sweep has begun; one of which no trial was begun may become another one.

    Args:
        sweep: that is to be begun, or to go on.
        directory: of it.
        known: trials whose runs must be theirs if there are some: a result is never taken over by its name alone.

    Raises:
        UserError: another sweep, or runs of other configurations, with the differences.
    """
    has_one_base = not (sweep.variants or sweep.trial_directory)  # else they may change while others are added
    if has_one_base and directory.has_begun:
        _refuse_another(sweep, directory)
    for trial in known:
        files = RunDirectory(trial.run_directory)
        if not files.begins_anew(trial):
            files.check(trial, advice=OF_ITSELF if sweep.trial_directory is None else SHARED)


def _refuse_another(sweep: SweepConfig, directory: SweepDirectory) -> None:
    base = load_base_config(sweep)
    begun_with = {files.data for files in directory.runs()}
    different = without_moved_data(differences(load_config(directory.base), base), base, *begun_with)
    begun, now = read_yaml(directory.config), sweep.model_dump(mode="json", by_alias=True)
    different += [
        f"{key}: {begun.get(key)!r} -> {now[key]!r}" for key in FIXED_ONCE_BEGUN if begun.get(key) != now[key]
    ]
    if different:
        raise UserError(
            f"The sweep {directory.path} was begun with another configuration ({'; '.join(different)}). "
            "Give another name, or undo the change; more values, seeds or trials may be added."
        )


def _check_metric(sweep: SweepConfig, info: DatasetInfo) -> None:
    """A search or early stopping that is guided by what is undefined for all tasks would be guided by nothing."""
    guides = {"metric": sweep.metric} if sweep.search == "optuna" else {}
    if sweep.early_stopping is not None:
        guides["early_stopping.metric"] = sweep.early_stopping.metric or sweep.metric
    val = info.splits.get("val")
    for key, metric in guides.items():
        if val is None or not is_defined(metric, info.tasks, val.labels):
            lacks = "no split 'val'" if val is None else f"no task with a defined {metric} on val"
            raise UserError(
                f"{key}={metric} should guide the sweep, but {info.path} has {lacks}. Give another metric, or other data."
            )
    if val is not None and not is_defined(sweep.metric, info.tasks, val.labels):
        logger.warning(
            "No task of %s has a defined %s on val, so no trial counts as best. Give another `metric`.",
            info.path,
            sweep.metric,
        )


def _prepare_data(trials: Sequence[Config], report: Report) -> list[DatasetInfo]:
    """Pack and check what the trials will read, once, before anything starts."""
    infos: dict[tuple[Any, ...], DatasetInfo] = {}
    kinds = {
        (
            c.data.path,
            str(c.data.pack),
            c.data.image_size,
            c.model,
            c.method.name,
            c.method.init,
            c.method.pretrained,
            str(c.method.groups),
            c.adashare,
        ): c
        for c in trials
    }
    for config in kinds.values():
        made = (config.data.paths, str(config.data.pack))
        if made not in infos:
            infos[made] = ensure_packed(config, report)
        check_data(config, infos[made])
    return list(infos.values())


def count_workers_asked_for(sweep: SweepConfig) -> tuple[int, int]:
    """Workers for one trial, which there must be, and for as many at the same time as were asked for, which nodes are awaited for."""
    return sweep.workers_per_trial, sweep.workers_per_trial * (sweep.concurrency or 1)


@contextmanager
def open_sweep_cluster(sweep: SweepConfig, report: Report) -> Iterator[None]:
    """Join the cluster of the sweep's base, or start one that holds all trials at once; before anything else loads ray.

    Raises:
        UserError: nobody answers there, or a single trial does not fit, or a node does not see the sweep's directory.
    """
    base = load_base_config(sweep)
    here = cluster_address(base.launch) is None
    _, wanted = count_workers_asked_for(sweep)
    launch = base.launch.model_copy(update={"workers": wanted}) if here else base.launch
    with open_cluster(launch, SETTINGS):
        with StopRequest().receive_and_raise(
            "Stopped before any trial had begun. The same command continues."
        ) as request:
            launch = base.launch if here else base.launch.model_copy(update={"workers": count_workers_asked_for(sweep)})
            check_resources(launch, report, request)
            if not here:
                run = RunConfig(name=sweep.name, directory=sweep.directory)
                check_storage(base.model_copy(update={"run": run}), request)
        yield


# ---- without starting anything


def describe_plan(sweep: SweepConfig) -> list[tuple[str, str]]:
    """Check data and configurations, and say what the sweep would train: lines of what is asked about and the answer.

    Raises:
        UserError: what is not as it should be.
    """
    base = load_base_config(sweep)
    trials = [] if sweep.search == "optuna" else list_trials(sweep)
    check_begun(sweep, SweepDirectory(sweep.path, sweep.trial_path), trials)
    lines = [("sweep directory", str(sweep.path)), ("data", " ".join(base.data.paths))]
    if sweep.search == "optuna":
        warn_ignored_settings([base])
        num_trials = (sweep.num_trials or 0) * len(sweep.seeds or (0,))
        lines += [("trials", f"{num_trials}, chosen by Optuna as results come"), *_describe_networks([base])]
    else:
        warn_ignored_settings(trials)
        lines += [("trials", _list_names(trials, sweep)), *_describe_networks(trials)]
    workers = sweep.workers_per_trial
    where = "in the trial's own process" if workers == 1 else "by an inner Ray trainer"
    cpus, gpus = sweep.cpus_per_trial or workers, sweep.gpus_per_trial
    return [
        *lines,
        ("steps of a trial", f"{base.train.iterations:,} of {base.train.batch_size} images"),
        ("a trial takes", f"{workers} worker(s) {where}, {cpus:g} CPU(s), {gpus:g} GPU(s)"),
        ("at the same time", f"at most {sweep.concurrency}" if sweep.concurrency else "as many as fit"),
        ("on", cluster_address(base.launch) or "this machine"),
    ]


def _list_names(trials: list[Config], sweep: SweepConfig) -> str:
    names = [str(config.run.name) for config in trials]
    shown = names
    if len(names) > 2 * NUM_NAMES_SHOWN:
        shown = [*names[:NUM_NAMES_SHOWN], "...", *names[-NUM_NAMES_SHOWN:]]
    statuses = SweepDirectory(sweep.path, sweep.trial_path).read_statuses(names).values()
    counts = Counter(trial_status.status for trial_status in statuses)
    by_status = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{len(names)} ({by_status}): {', '.join(shown)}"


def _describe_networks(trials: list[Config]) -> list[tuple[str, str]]:
    """One line per kind of network that trials begin with."""
    lines = {}
    at_once = order_in_turns(trials)[0]
    for config in trials:
        if is_to_be_packed(config):
            return [("networks", "known once the data set is packed, which would be done first")]
        info = read_packed_data(config)
        if config in at_once:  # others begin from runs that are still to be trained
            check_data(config, info)
        elif config.method.groups is not None or config.adashare.policy is not None:
            continue
        first = first_architecture(config, info)
        stage = "before any widening" if config.method.name == "branching" else config.method.name
        name = f"{config.model.backbone}, {config.model.width_text}, {stage}"
        lines[name] = f"{num_parameters(first):,} parameters, {multiply_adds(first):,} multiply-adds per image"
    return list(lines.items())
