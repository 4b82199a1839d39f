"""The one function that every launcher calls on every rank, and the result of a run that has ended."""

import json
from collections.abc import Callable
from pathlib import Path

from distbranch.branching.tree import Tree
from distbranch.config import Config
from distbranch.data.shards import read_dataset
from distbranch.engine.distributed import join_ranks
from distbranch.engine.metrics import DrawDecision, Report
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.trainer import RunResult, Trainer
from distbranch.errors import UserError


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
        UserError: see `Trainer.run`; the same on every rank.
        StoppedEarly: asked to stop; everything is saved.
    """
    assert config.data.path is not None
    with join_ranks(config.launch) as ranks:
        trainer = Trainer(
            config, ranks, read_dataset(config.data.path), report=report, draw=draw, should_stop=should_stop
        )
        return trainer.run()


def read_result(directory: Path) -> RunResult | None:
    """The result of a finished run, or None if it has not ended.

    Raises:
        UserError: its files are damaged.
    """
    files = RunDirectory(directory)
    if not files.result.exists():
        return None
    try:
        summary = json.loads(files.result.read_text())
        tree = Tree.from_json(json.loads(files.tree.read_text())["tree"])
        return RunResult(summary["metrics"], tree, directory, summary)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The result of {directory} is damaged ({error}). Remove result.json there and run the same command again."
        ) from None
