"""The one function that every launcher calls on every rank, and the result of a run that has ended."""

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from distbranch.config import Config, differences, load_config
from distbranch.data.mixture import add_tasks, read_data
from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.engine.affinities import MeasuredAffinity
from distbranch.engine.affinities.measure import measure_affinity
from distbranch.engine.artifact import load_model
from distbranch.engine.batches import BatchFeed
from distbranch.engine.checkpoint import share_checkpoint
from distbranch.engine.distributed import Ranks, describe_storage_failure
from distbranch.engine.evaluate import evaluate_split
from distbranch.engine.forks import Family
from distbranch.engine.from_run import add_earlier_tasks, read_new_tasks
from distbranch.engine.growth import Growth
from distbranch.engine.initialisation import (
    begin_network,
    first_architecture,
    read_given_tree,
)
from distbranch.engine.loaders import describe_too_many_bad, open_training
from distbranch.engine.lost_ranks import describe_rank_failure, publish_rank_name
from distbranch.engine.policy_search import PolicySearch
from distbranch.engine.process_group import choose_rounding, join_ranks
from distbranch.engine.results import RunFiles, RunResult, make_result, read_result
from distbranch.engine.run_directory import SCOUT, RunDirectory
from distbranch.engine.run_log import Report, RunLog
from distbranch.engine.run_start import without_moved_data
from distbranch.engine.scout import decide_on_tree, report_as_scout
from distbranch.engine.shared_checkpoints import SharedCheckpoints
from distbranch.engine.tensorboard_log import DrawDecision
from distbranch.engine.trainer import Trainer
from distbranch.engine.training_state import AFFINITY, TrainingState
from distbranch.engine.training_step import TrainingStep
from distbranch.errors import UserError
from distbranch.losses import build_task_set
from distbranch.models.network import Network
from distbranch.plugins import describe_plugin_failure, hash_plugins

STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)


def train_rank(
    config: Config,
    *,
    report: Report,
    draw: DrawDecision | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train as one of the ranks, from the newest checkpoint of the run directory if there is one.

    Args:
        config: resolved: absolute paths, a packed data set, a run directory that was begun.
        report: called on rank 0 with what happens.
        draw: called on rank 0 with every decision, to draw it into TensorBoard.
        should_stop: asked at every step on every rank.

    Raises:
        UserError: see `Trainer.run`; the same on every rank, but for what befell one rank alone.
        LostRankError: another rank is gone; with all ranks started anew the run is resumed.
        StoppedEarly: asked to stop; everything is saved.
    """
    with join_ranks(config.launch, should_stop) as ranks:
        publish_rank_name(ranks)
        try:
            info = _read_data_everywhere(config, ranks)
            build = partial(
                build_trainer, ranks=ranks, info=info, draw=draw, should_stop=should_stop
            )
            if config.method.has_scout:

                def train_scout(scout: Config, files: RunFiles) -> None:
                    build(scout, report=partial(report_as_scout, report), files=files).run()

                decide_on_tree(config, ranks, info, report=report, train_scout=train_scout)
            trainer = build(config, report=report)
            summary = trainer.run()
            return make_result(trainer.state.architecture.tree, config.run_directory, summary)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # of any kind: among several ranks somebody has to say whose it is
            if (
                isinstance(error, OSError) and error.errno in STORAGE_ERRORS
            ):  # of rank 0's log, which it writes alone
                raise UserError(ranks.with_place(describe_storage_failure(error))) from None
            if (failure := describe_plugin_failure(error)) is not None:
                raise UserError(ranks.with_place(failure)) from error
            if ranks.world_size == 1:
                raise
            timeout_min, notes = config.launch.timeout_min, config.run_directory
            raise describe_rank_failure(
                error, ranks, timeout_min=timeout_min, notes=notes
            ) from error


def build_trainer(
    config: Config,
    ranks: Ranks,
    info: DatasetInfo,
    *,
    report: Report,
    draw: DrawDecision | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    files: RunFiles | None = None,
) -> Trainer:
    """All that a training run is made of, in the order in which it depends on each other; arguments as for `train_rank`."""
    # The state first: all else begins where a checkpoint left off.
    files = files or RunFiles(config)
    state = _build_state(config, ranks, info, files)
    iteration = state.progress.iteration

    log = None
    if ranks.is_first:
        last, profile = config.train.iterations, config.train.profile
        log = RunLog(
            files.directory,
            after=iteration,
            iterations=last,
            report=report,
            draw=draw,
            profile=profile,
            track=config.track,
        )

    # Opened only when the loop runs: it starts the processes that load, and a message between the ranks.
    def open_feed() -> BatchFeed:
        turns = state.search.turns if state.search else None
        batches = open_training(
            info,
            config,
            ranks,
            image_size=state.preprocessing.image_size,
            start=state.progress.iteration * config.train.batch_size,
            turns=turns,
        )
        return BatchFeed(batches, ranks, should_stop, lambda: files.checkpoint_has_failed)

    def score_split(split: str) -> dict[str, Any] | None:
        if split not in info.splits:
            return None
        network, size = state.net.network, config.train.eval_batch_size
        return evaluate_split(
            network,
            info,
            split,
            ranks,
            config.data,
            batch_size=size,
            bf16=state.bf16,
            byte_angles=config.metrics.byte_angles,
        )

    def measure_kind(kind: str, layer: int) -> MeasuredAffinity:
        return measure_affinity(kind, state.net.network, layer, info, config, ranks)

    step = TrainingStep(state)
    checkpoints = SharedCheckpoints(state, step, files, log)
    growth = Growth(
        state,
        step,
        checkpoints,
        store=files,
        decider=Family(config),
        log=log,
        measure_affinity=measure_kind,
        read_given_tree=lambda: read_given_tree(config, state.net.network.architecture),
    )
    return Trainer(
        state,
        step,
        checkpoints,
        growth,
        store=files,
        log=log,
        open_feed=open_feed,
        score_split=score_split,
        limit_bad=partial(describe_too_many_bad, data=config.data, info=info, split="train"),
    )


def _build_state(config: Config, ranks: Ranks, info: DatasetInfo, files: RunFiles) -> TrainingState:
    """The state that a run begins with or is resumed from: the same on all ranks, which is proven."""
    checkpoint = share_checkpoint(
        ranks.run_only_on_rank_zero(files.load_newest), ranks, but_for=AFFINITY
    )
    before = checkpoint.state.get("rounding", ()) if checkpoint is not None else ()
    search = None
    if config.searches:
        search = PolicySearch(config, info, first_architecture(config, info).num_blocks)
    rounding = choose_rounding(config.train.precision, ranks, before)
    state = TrainingState(config, ranks, info, rounding, search)
    if checkpoint is None:
        begin_network(state.net, config, info)
    else:
        if config.train.only == "new":
            state.net.new_tasks = ranks.run_on_rank_zero(lambda: read_new_tasks(config))
        state.restore(checkpoint)
    ranks.run_on_rank_zero(lambda: files.write_beginning(state))
    state.verify("the start")
    return state


def _read_data_everywhere(config: Config, ranks: Ranks) -> DatasetInfo:
    """The packed data as this rank sees them; one rank that does not see them, or sees others, stops all of them.

    So does one whose plug-ins are others.
    """
    info, problem = None, None
    try:
        info = read_data(config.data)
    except UserError as error:
        problem = str(error)
    fingerprint = info.fingerprint if info is not None else None
    plugins = hash_plugins(config.plugins)
    first, first_plugins = ranks.broadcast((fingerprint, plugins))
    if list(plugins.values()) != list(first_plugins.values()):
        problem = (
            f"The plug-ins ({', '.join(plugins) or 'none'}) should be the same files for every rank, found others than for rank 0. "
            "Copy those of rank 0 to all nodes, or name some that all of them see."
        )
    # Folders of one name on disks of their own.
    elif info is not None and first not in (None, fingerprint):
        problem = (
            f"{info.path} should hold the same data set for every rank, found another one than for rank 0. "
            "Copy that of rank 0 to all nodes, or give a data.path that all of them see."
        )
    ranks.raise_on_all_ranks(problem)
    assert info is not None
    own = info
    return add_tasks(own, ranks.run_on_rank_zero(lambda: add_earlier_tasks(config, own).tasks))


def evaluate_run(directory: Path, split: str, data: str | None = None) -> dict[str, Any]:
    """Metrics of a run's network on one split of its data, or of another data set with tasks of the run, in this process.

    Raises:
        UserError: no such run, split or data set, or other tasks.
    """
    network, config, info = load_evaluation(directory, data)
    ranks = Ranks.alone()
    network.to(ranks.device)
    size, bf16 = config.train.eval_batch_size, RunDirectory(directory).precision == "bf16"
    return evaluate_split(
        network,
        info,
        split,
        ranks,
        config.data,
        batch_size=size,
        bf16=bf16,
        byte_angles=config.metrics.byte_angles,
    )


def load_evaluation(directory: Path, data: str | None) -> tuple[Network, Config, DatasetInfo]:
    """The network and the configuration of a run, and its data, or another data set with tasks of the run.

    Raises:
        UserError: no such run or data set, or other tasks.
    """
    network, _ = load_model(directory)
    config = load_config(RunDirectory(directory).config)
    loss = config.loss.model_copy(update=RunDirectory(directory).label_weights)
    network.tasks = build_task_set(network.tasks.tasks, loss)
    info = read_dataset(data) if data else read_data(config.data)
    known = {task.name: task for task in network.tasks.tasks}
    other = [
        task.name
        for task in info.tasks
        if task.name not in known or not known[task.name].is_same_task(task)
    ]
    # Of the very data that it was trained on a run may have fewer tasks: one whose other tasks were removed.
    is_its_own = data is None and RunDirectory(directory).data == info.fingerprint
    if other and not is_its_own:
        raise UserError(
            f"The data set {info.path} has other tasks than the run {directory} ({', '.join(other[:5])}). "
            "Give one whose tasks are among those of the run."
        )
    return network, config, info


def find_thin_baselines(result: RunResult) -> list[dict[str, Any]]:
    """Results of finished runs beside this one that never branched and are alike in all else: its thin beginnings."""
    own = load_config(RunDirectory(result.directory).config)
    if own.method.keeps_thin:
        return []
    baselines = []
    # First the scout that the run trained, which is thin too; its length may be another one.
    scout = read_result(RunDirectory(result.directory).scout)
    if scout is not None:
        baselines.append(scout.summary | {"name": f"{result.directory.name}/{SCOUT}"})
    for file in sorted(result.directory.parent.glob("*/result.json")):
        try:
            other, finished = load_config(file.parent / "config.yaml"), read_result(file.parent)
        except UserError:
            continue
        different = without_moved_data(differences(other, own), own, RunDirectory(file.parent).data)
        unlike = [line for line in different if not line.startswith(("run.", "method."))]
        if finished is None or unlike or not other.method.keeps_thin or finished.tree.splits:
            continue
        # A run may have some of the tasks alone (`restrict`).
        if finished.tree.num_tasks == result.tree.num_tasks:
            baselines.append(finished.summary)
    return baselines
