"""The files of a run: what rank 0 writes at its start, with every checkpoint and at its end, and its result read back.

What a checkpoint holds is `training_state.TrainingState`; the log is `run_log.RunLog`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distbranch.branching.tree import Tree
from distbranch.config import Config, to_yaml
from distbranch.engine.artifact import save_model
from distbranch.engine.checkpoint import Checkpoint, load_newest, save_checkpoint, set_damaged_aside
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.run_directory import RunDirectory, write_atomically, write_json
from distbranch.engine.run_log import RunLog
from distbranch.engine.training_state import TrainingState
from distbranch.errors import StoppedEarly, UserError, reason_of
from distbranch.models.architecture import Architecture
from distbranch.permissions import denied

__all__ = ["RunFiles", "RunResult", "StoppedEarly", "read_result", "summarise_run"]


@dataclass(frozen=True)
class RunResult:
    """What a run gives: the metrics of its splits, the tree, the run directory, and `summary`, the content of result.json."""

    metrics: dict[str, Any]
    tree: Tree
    directory: Path
    summary: dict[str, Any]


class RunFiles:
    """The run directory as a run fills it, and the copy of it at a URL, if there is one. Only rank 0 calls the methods."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.directory = RunDirectory(config.run_directory)
        self.remote_run = RemoteRun.from_config(config)

    def load_newest(self) -> Checkpoint | None:
        """The checkpoint that the run resumes from; None at its beginning.

        Raises:
            UserError: all checkpoints are damaged, or the directory is that of another run.
        """
        self.remote_run.download()
        if self.directory.config.exists():  # at a URL another run may have begun since the driver looked
            self.directory.check(self.config)
        self.remote_run.publish_owner()
        return load_newest(self.directory.checkpoints)

    def write_beginning(self, state: TrainingState) -> None:
        """Make the directory that of the state: what a killed run wrote after its last checkpoint is cut off."""
        progress = state.progress
        write_atomically(self.directory.config, to_yaml(self.config))  # with what a resumed run may change
        set_damaged_aside(self.directory.checkpoints, newest_good=progress.iteration)
        self.directory.cut_back(progress.iteration, progress.num_rounds, evaluation_is_due=state.evaluation_is_due)
        self.directory.write_environment(state.ranks, state.rounding[-1], data=state.info.fingerprint)
        self.write_sharing(state)
        self.remote_run.upload()

    def write_checkpoint(self, state: TrainingState, affinity: dict[str, Tensor], log: RunLog | None) -> None:
        """Write the state, drop the oldest checkpoints, and bring the log up to it.

        affinity: the sums of all ranks (`gather_affinity`).
        """
        keep = self.config.train.keep_checkpoints
        iteration = state.progress.iteration
        save_checkpoint(self.directory.checkpoints, iteration, state.make_checkpoint(affinity), keep=keep)
        if log is not None:
            log.flush()
        self.remote_run.upload()

    def write_sharing(self, state: TrainingState) -> None:
        """Write who shares what: tree.json and, of AdaShare, policy.json."""
        network, tree = state.net.network, state.architecture.tree
        names = network.tasks.names
        if network.architecture.has_policy:
            write_json(self.directory.policy, state.describe_policy())
        layers = []
        for number, layer in enumerate(tree.layers, start=1):
            branches = [[names[task] for task in tasks] for tasks in tree.branches(number)]
            layers.append({"name": layer, "branches": branches})
        write_json(self.directory.tree, {"tree": tree.to_json(), "layers": layers, "tasks": list(names)})

    def write_end(self, state: TrainingState, summary: dict[str, Any]) -> None:
        """Write the network and then result.json, which says that the run has ended."""
        self.write_sharing(state)
        save_model(self.directory.model, state.net.network.as_served(), state.preprocessing)
        write_json(self.directory.result, summary)


def summarise_run(config: Config, architecture: Architecture, metrics: dict[str, Any]) -> dict[str, Any]:
    """The content of result.json, but for what only the trainer knows; metrics are in 0..1 per split."""
    tree, cost = architecture.tree, architecture.cost()
    return {
        "name": config.run.name,
        "method": config.method.name,
        "backbone": config.model.backbone,
        "width": config.model.width,
        "width_fraction": config.model.width_fraction,
        "seed": config.seed,
        "tasks": [task.name for task in architecture.tasks],
        "metrics": metrics,
        "weights": cost.weights,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "num_groups_top": tree.num_branches(tree.num_layers),
        "iterations": config.train.iterations,
    }


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
    except PermissionError as error:
        raise denied(error) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        of_file = f"{Path(error.filename).name}: " if isinstance(error, OSError) else ""
        raise UserError(
            f"The result of {directory} is damaged ({of_file}{reason_of(error)}). Remove result.json there and run the same command again."
        ) from None
