"""Running a sweep: what is not settled yet goes through Ray Tune, then everything becomes one table.

Each start makes a new Tuner over the trials that the disk does not know as settled (trial_status.py), so nothing depends on how the
driver before ended.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distbranch.config import Config, differences, load_config, to_yaml
from distbranch.config.reading import read_yaml
from distbranch.config.sections import RunConfig
from distbranch.config.sweep import SweepConfig
from distbranch.config.unread import KEYS_OF_DECISIONS, KEYS_OF_ROUNDS
from distbranch.data.shards import DatasetInfo
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.run_directory import RunDirectory, write_atomically
from distbranch.engine.run_log import Report
from distbranch.engine.run_start import (
    begins_anew,
    check_run,
    warn_written_secrets,
    without_moved_data,
)
from distbranch.errors import UsageError, UserError
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.on_ray.cluster import check_resources, check_storage, open_cluster
from distbranch.launch.prepare import (
    check_data,
    check_marker,
    ensure_packed,
    is_to_be_packed,
    list_run_paths,
    read_packed_data,
    refuse_uploaded_paths,
    warn_ignored_settings,
)
from distbranch.launch.stopping import StopRequest
from distbranch.metrics import is_defined, list_means
from distbranch.models.architecture import multiply_adds, num_parameters
from distbranch.sweep.live_results import LiveResults
from distbranch.sweep.plan import Trials, list_trials, load_base_config, order_in_turns
from distbranch.sweep.proposals import OptunaSearch
from distbranch.sweep.results import Row, write_results
from distbranch.sweep.shared_prefix import describe_saving, group_by_prefix
from distbranch.sweep.trial_status import FAILED, FINISHED, UNFINISHED, SweepDirectory

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
# Other values of these would give other trials the names of those that were begun.
FIXED_ONCE_BEGUN = ("search", "space", "search_seed")
NUM_NAMES_SHOWN = 50  # of a long list: more do not fit on a screen


def run_sweep(sweep: SweepConfig, report: Report) -> list[Row]:
    """Train every trial that is not settled yet, and write the tables.

    Args:
        sweep: see `load_sweep`.
        report: told what happens: `begun`, `ended` (with a status), and what packing says.

    Returns:
        One row per trial; failed ones say why.

    Raises:
        UsageError: the sweep asks for something that does not exist, or differs from what was begun under its name.
        UserError: data, storage or machines are not as they should be.
        StoppedEarly: a signal asked to stop; every running trial has saved a checkpoint.
    """
    directory = SweepDirectory(sweep.path, sweep.trial_path)
    turns = _check_plan(sweep, directory)
    for info in _prepare_data(turns[0], report):
        _check_metric(sweep, info)
    # Locked against a second driver as a run is.
    own = RunDirectory(directory.path)
    with own.locked(of_sweep=True), _remove_signs(own):
        check_begun(sweep, directory, [])  # again: another driver may have begun it since
        directory.record_sweep(sweep)
        write_atomically(directory.base, to_yaml(load_base_config(sweep)))
        proposals = None
        if sweep.search == "optuna":
            proposals = OptunaSearch(sweep, directory)
            trials = proposals.trials
            turns = [list(trials)]
            check_begun(sweep, directory, trials)
        else:
            trials = list_trials(sweep)
        live = LiveResults(sweep, trials, directory, report)
        has_ended = False
        try:
            with live.rewritten():
                _train_open(sweep, trials, turns, directory, live, proposals)
            has_ended = True
        finally:
            # Also where the sweep is stopped or fails: a table of what there is says how far it came.
            rows = live.make_rows()
            in_tensorboard = any("tensorboard" in trial.track for trial in trials)
            write_results(rows, directory, has_ended=has_ended, in_tensorboard=in_tensorboard)
            if proposals is not None:
                proposals.write_journal()
        finished = {row["trial"] for row in rows if row["status"] == FINISHED}
        saving = describe_saving([trial for trial in trials if trial.run.name in finished])
        if saving:
            report({"kind": "saving", "text": saving})
    return rows


@contextmanager
def _remove_signs(files: RunDirectory) -> Iterator[None]:
    """No stop word of an earlier driver is there at the beginning, and at the end nothing by which a driver seems to work."""
    files.stop_word.unlink(missing_ok=True)
    try:
        yield
    finally:
        for file in (files.stop_word, files.sign_of_life):
            file.unlink(missing_ok=True)


def _check_plan(sweep: SweepConfig, directory: SweepDirectory) -> list[list[Config]]:
    """The trials in their turns; of Optuna, which makes them as results come, their base."""
    trials: list[Config] = []
    turns = [[load_base_config(sweep)]]
    _check_metric_names(sweep)
    if sweep.search != "optuna":
        trials = list_trials(sweep)
        turns = order_in_turns(trials)

    # In a job of Ray: the folders of the sweep, which are the `run.directory` of its trials, and what these read.
    places = {("directory", str(sweep.path)): None}
    if sweep.trial_directory is not None:
        places["trial_directory", str(sweep.trial_path)] = None
    for trial in itertools.chain(*turns):
        places |= dict.fromkeys(
            place for place in list_run_paths(trial) if place[0] != "run.directory"
        )
    refuse_uploaded_paths(places)
    check_marker()
    check_begun(sweep, directory, trials)
    warn_ignored_settings(trials or turns[0])
    warn_written_secrets(trials or turns[0])
    return turns


def _check_metric_names(sweep: SweepConfig) -> None:
    """Asked when the base is loaded, for its plug-ins may bring metrics."""
    names = {"metric": sweep.metric}
    if sweep.early_stopping is not None:
        names["early_stopping.metric"] = sweep.early_stopping.metric or sweep.metric
    for key, name in names.items():
        if name not in list_means():
            raise UsageError(
                f"{key} should be one of the means over tasks {', '.join(list_means())}, found '{name}'."
            )


def _train_open(
    sweep: SweepConfig,
    trials: Trials,
    turns: Sequence[Trials],
    directory: SweepDirectory,
    report: Report,
    proposals: OptunaSearch | None,
) -> None:
    """Train what is not settled, and what is proposed; what failed before is tried again."""
    statuses = directory.read_statuses(trials)
    num_trials = len(statuses)
    if proposals is not None:
        num_trials = count_searched_trials(sweep)
    num_open = num_trials - sum(trial_status.is_settled for trial_status in statuses.values())
    report(
        {"kind": "sweep", "trials": num_trials, "open": num_open, "directory": str(directory.path)}
    )
    if not num_open:
        return
    # Told first, for a driver that is killed now should not leave trials that count as failed.
    for name, trial_status in statuses.items():
        if trial_status.status == FAILED:
            directory.record_end(name, UNFINISHED)

    def is_open(root: Trials) -> bool:
        return not all(statuses[str(config.run.name)].is_settled for config in root)

    with open_sweep_cluster(sweep, report):
        # Here and not above: ray reads its token when it is loaded, and the cluster says which one.
        from distbranch.sweep.tuning import train_roots

        for number, turn in enumerate(turns):
            if number:  # the first ones were looked at before
                turn = _select_startable(turn, directory, report)
            # A root with one open trial comes whole, for the settled ones say where its families have forked.
            roots = [root for root in group_by_prefix(turn) if is_open(root)]
            if roots or proposals is not None:
                train_roots(sweep, roots, trials, directory, report, proposals)


def _select_startable(turn: Trials, directory: SweepDirectory, report: Report) -> list[Config]:
    """Those that can begin now that the runs have ended that they begin from; the others fail, and it is told why."""
    able = []
    for config in turn:
        name = str(config.run.name)
        try:
            _prepare_data([config], report)
        except UserError as error:
            directory.record_end(name, FAILED, str(error))
            report({"kind": "ended", "trial": name, "status": FAILED, "reason": str(error)})
        else:
            able.append(config)
    return able


def count_searched_trials(sweep: SweepConfig) -> int:
    """All trials of a random or Optuna search."""
    return (sweep.num_trials or 0) * len(sweep.seeds or (0,))


def check_begun(sweep: SweepConfig, directory: SweepDirectory, known: Trials) -> None:
    """Nothing is there, or what this sweep has begun; one of which no trial was begun may become another one.

    Args:
        sweep: that is to be begun, or resumed.
        directory: of it.
        known: trials whose runs must be theirs if there are some: a result is never taken over by its name alone.

    Raises:
        UserError: another sweep, or runs of other configurations, with the differences.
    """
    has_one_base = not (
        sweep.variants or sweep.trial_directory
    )  # else they may change while others are added
    if has_one_base and directory.has_begun:
        _refuse_another(sweep, directory)
    for trial in known:
        if not begins_anew(trial):
            check_run(trial, advice=OF_ITSELF if sweep.trial_directory is None else SHARED)


def _refuse_another(sweep: SweepConfig, directory: SweepDirectory) -> None:
    # The data may lie in another folder by now, if every run was begun with the same ones.
    base = load_base_config(sweep)
    begun_with = {RunDirectory(file.parent).data for file in directory.trials.glob("*/config.yaml")}
    different = without_moved_data(
        differences(load_config(directory.base), base), base, *begun_with
    )
    begun, now = read_yaml(directory.config), sweep.model_dump(mode="json", by_alias=True)
    different += [
        f"{key}: {begun.get(key)!r} -> {now[key]!r}"
        for key in FIXED_ONCE_BEGUN
        if begun.get(key) != now[key]
    ]
    if different:
        raise UserError(
            f"The sweep {directory.path} was begun with another configuration ({'; '.join(different)}). "
            "Give another name, or undo the change; more values, seeds or trials may be added."
        )


def _check_metric(sweep: SweepConfig, info: DatasetInfo) -> None:
    """A search or early stopping that is guided by what is undefined for all tasks would be guided by nothing."""
    val = info.splits.get("val")

    def lacks(metric: str) -> bool:
        return val is None or not is_defined(metric, info.tasks, val.labels)

    guides = {}
    if sweep.search == "optuna":
        guides["metric"] = sweep.metric
    if sweep.early_stopping is not None:
        guides["early_stopping.metric"] = sweep.early_stopping.metric or sweep.metric
    for key, metric in guides.items():
        if lacks(metric):
            raise UserError(
                f"{key}={metric} should guide the sweep, but {info.path} has no task with a defined {metric} on val. "
                "Give another metric, or other data."
            )
    if val is not None and lacks(sweep.metric):
        logger.warning(
            "No task of %s has a defined %s on val, so no trial counts as best. Give another `metric`.",
            info.path,
            sweep.metric,
        )


def _prepare_data(trials: Trials, report: Report) -> list[DatasetInfo]:
    """Pack and check what the trials will read, once, before anything starts."""
    infos: dict[str, DatasetInfo] = {}
    for config in _pick_kinds(trials):
        packed = repr((config.data.path, config.data.pack))
        if packed not in infos:
            infos[packed] = ensure_packed(config, report)
        check_data(config, infos[packed])
    return list(infos.values())


def _pick_kinds(trials: Trials) -> list[Config]:
    """One trial of every data set and network to begin with: hundreds may differ in nothing but their seeds and rates."""
    kinds = {}
    for config in trials:
        data = (config.data.path, config.data.pack, config.data.image_size)
        method = config.method.model_dump(
            exclude={*KEYS_OF_DECISIONS, *KEYS_OF_ROUNDS, "permutation"}
        )
        network = (config.model, method, config.begins_from, config.adashare)
        kinds[repr((data, network))] = config
    return list(kinds.values())


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
            "Stopped before any trial had begun. The same command resumes."
        ) as request:
            launch = (
                base.launch
                if here
                else base.launch.model_copy(update={"workers": count_workers_asked_for(sweep)})
            )
            word = RunDirectory(sweep.path).stop_word
            check_resources(launch, report, lambda: request() or word.exists())
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
    directory = SweepDirectory(sweep.path, sweep.trial_path)
    turns = _check_plan(sweep, directory)
    trials = f"{count_searched_trials(sweep)}, chosen by Optuna as results come"
    if sweep.cost is not None:
        trials += f", by {sweep.metric} and {sweep.cost}"
    if sweep.search != "optuna":
        statuses = directory.read_statuses(list_trials(sweep))
        counts = Counter(trial_status.status for trial_status in statuses.values())
        names = list(statuses)
        if len(names) > NUM_NAMES_SHOWN:
            names[NUM_NAMES_SHOWN:] = ["..."]
        trials = f"{len(statuses)} ({', '.join(f'{n} {status}' for status, n in counts.items())}): {', '.join(names)}"
    base = load_base_config(sweep)
    workers = sweep.workers_per_trial
    where = "by an inner Ray trainer" if workers > 1 else "in the trial's own process"
    return [
        ("sweep directory", str(sweep.path)),
        ("data", " ".join(base.data.paths)),
        ("trials", trials),
        *_describe_networks(turns),
        ("steps of a trial", f"{base.train.iterations:,} of {base.train.batch_size} images"),
        (
            "a trial takes",
            f"{workers} worker(s) {where}, {sweep.cpus_per_trial or workers:g} CPU(s), {sweep.gpus_per_trial:g} GPU(s)",
        ),
        ("at the same time", f"at most {sweep.concurrency or 'as many as fit'}"),
        ("on", cluster_address(base.launch) or "this machine"),
    ]


def _describe_networks(turns: Sequence[Trials]) -> list[tuple[str, str]]:
    """One line per kind of network that trials begin with; not of trials that wait for others, for these make their networks."""
    lines = {}
    for config in _pick_kinds(turns[0]):
        if is_to_be_packed(config):
            return [("networks", "known once the data set is packed, which would be done first")]
        info = read_packed_data(config)
        check_data(config, info)
        first = first_architecture(config, info)
        name = f"{config.model.backbone}, {config.model.width_text}, {config.method.name}"
        lines[name] = (
            f"{num_parameters(first):,} parameters, {multiply_adds(first):,} multiply-adds per image"
        )
    return list(lines.items())
