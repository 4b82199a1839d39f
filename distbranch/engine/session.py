"""The one function that every launcher calls on every rank, and the result of a run that has ended."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distbranch.config import Config, DataConfig, differences, load_config
from distbranch.data.mixture import read_data
from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.engine.artifact import load_model
from distbranch.engine.distributed import Ranks, storage_message
from distbranch.engine.evaluate import evaluate
from distbranch.engine.lost_ranks import describe_rank_failure, publish_rank_name
from distbranch.engine.process_group import join_ranks
from distbranch.engine.results import RunResult, read_result
from distbranch.engine.run_directory import RunDirectory, without_moved_data
from distbranch.engine.run_log import DrawDecision, Report
from distbranch.engine.trainer import Trainer
from distbranch.errors import UserError

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def train_rank(
    config: Config, *, report: Report, draw: DrawDecision | None = None, should_stop: Callable[[], bool] = lambda: False
) -> RunResult:
    """Train as one of the ranks, from the newest checkpoint of the run directory if there is one.

    Args:
        config: resolved: absolute paths, a packed data set, a run directory that was begun.
        report: called on rank 0 with what happens.
        draw: called on rank 0 with every decision, to draw it into TensorBoard.
        should_stop: asked at every step on every rank.

    Raises:
        UserError: see `Trainer.run`; the same on every rank, but for what befell one rank alone.
        LostRankError: another rank is gone; with all ranks started anew the run goes on.
        StoppedEarly: asked to stop; everything is saved.
    """
    with join_ranks(config.launch, should_stop) as ranks:
        publish_rank_name(ranks)
        try:
            info = _data_everywhere(config.data, ranks)
            return Trainer(config, ranks, info, report=report, draw=draw, should_stop=should_stop).run()
        except UserError:
            raise
        except Exception as error:  # of any kind: among several ranks somebody has to say whose it is
            if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:  # of rank 0's log, which it writes alone
                raise UserError(ranks.with_place(storage_message(error))) from None
            if ranks.world_size == 1:
                raise
            notes = RunDirectory(config.run_directory).path
            raise describe_rank_failure(error, ranks, timeout_min=config.launch.timeout_min, notes=notes) from error


def _data_everywhere(data: DataConfig, ranks: Ranks) -> DatasetInfo:
    """The packed data as this rank sees them; one rank that does not see them, or sees others, stops all of them."""
    info, problem = None, None
    try:
        info = read_data(data)
    except UserError as error:
        problem = str(error)
    ranks.raise_on_all_ranks(problem)
    assert info is not None
    if info.fingerprint != ranks.broadcast(info.fingerprint):  # folders of one name on disks of their own
        problem = (
            f"{info.path} should hold the same data set for every rank, found another one than for rank 0. "
            "Copy that of rank 0 to all nodes, or give a data.path that all of them see."
        )
    ranks.raise_on_all_ranks(problem)
    return info


def evaluate_run(directory: Path, split: str, data: str | None = None) -> dict[str, Any]:
    """Metrics of a run's network on one split of its data, or of another data set with tasks of the run, in this process.

    Raises:
        UserError: no such run, split or data set, or other tasks.
    """
    network, _ = load_model(directory)
    config = load_config(RunDirectory(directory).config)
    info = read_dataset(data) if data else read_data(config.data)
    other = [task.name for task in info.tasks if task not in network.tasks.tasks]
    if other:
        raise UserError(
            f"The data set {info.path} has other tasks than the run {directory} ({', '.join(other[:5])}). "
            "Give one whose tasks are among those of the run."
        )
    ranks = Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    network.to(ranks.device)
    size, bf16 = config.train.eval_batch_size, RunDirectory(directory).precision == "bf16"
    return evaluate(network, info, split, ranks, config.data, batch_size=size, bf16=bf16)


def find_thin_baselines(result: RunResult) -> list[dict[str, Any]]:
    """Results of finished runs beside this one that never branched and are alike in all else: its thin beginnings."""
    own = load_config(RunDirectory(result.directory).config)
    if own.method.keeps_thin:
        return []
    company = []
    for file in sorted(result.directory.parent.glob("*/result.json")):
        try:
            other, finished = load_config(file.parent / "config.yaml"), read_result(file.parent)
        except UserError:
            continue
        different = without_moved_data(differences(other, own), own, RunDirectory(file.parent).data)
        unlike = [line for line in different if not line.startswith(("run.", "method."))]
        if finished is not None and other.method.keeps_thin and not unlike:
            company.append(finished.summary)
    return company
