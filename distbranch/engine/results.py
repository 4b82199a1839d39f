"""The files of a run: what rank 0 writes at its start, with every checkpoint and at its end, and its result read back.

What a checkpoint holds is `training_state.TrainingState`; the log is `run_log.RunLog`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distbranch.branching.tree import Tree
from distbranch.config import Config
from distbranch.config.network import BASELINES
from distbranch.config.paths import is_remote
from distbranch.engine.artifact import DESCRIPTION, save_model
from distbranch.engine.checkpoint import Checkpoint, load_newest, save_checkpoint, set_damaged_aside
from distbranch.engine.checkpoint_writer import CheckpointWriter, copy_to_host
from distbranch.engine.initialisation import read_given_tree
from distbranch.engine.remote_run import RemoteRun, download_run
from distbranch.engine.run_directory import RunDirectory, read_first_decision, write_json
from distbranch.engine.run_start import (
    check_run,
    hash_pretrained,
    write_config,
    write_environment,
)
from distbranch.engine.sample_maps import write_sample_maps
from distbranch.engine.training_state import TrainingState
from distbranch.errors import StoppedEarly
from distbranch.models.architecture import Architecture
from distbranch.permissions import explain_damage

__all__ = [
    "Run",
    "RunFiles",
    "RunResult",
    "StoppedEarly",
    "find_run_folder",
    "make_result",
    "read_result",
]


@dataclass(frozen=True)
class RunResult:
    """What a run gives: the metrics of its splits, the tree, the run directory, and `summary`, the content of result.json."""

    metrics: dict[str, Any] = field(repr=False)  # thousands of numbers
    tree: Tree
    directory: Path
    summary: dict[str, Any] = field(repr=False)


Run = RunResult | Path | str  # as a caller names it: its result, its folder or its URL


class RunFiles:
    """The run directory as a run fills it, and the copy of it at a URL, if there is one. Only rank 0 calls the methods.

    Args:
        config: of the run.
        remote_run: that of the run in whose directory this one's is, as that of a scout is; else its own.
    """

    def __init__(self, config: Config, remote_run: RemoteRun | None = None) -> None:
        self.config = config
        self.directory = RunDirectory(config.run_directory)
        self.remote_run = remote_run or RemoteRun.from_config(config)
        self._writer = CheckpointWriter()

    def load_newest(self) -> Checkpoint | None:
        """The checkpoint that the run resumes from; None at its beginning.

        Raises:
            UserError: all checkpoints are damaged, or the directory is that of another run.
        """
        self.take_over()
        return load_newest(self.directory.checkpoints)

    def take_over(self) -> None:
        """Make the directory what is at the URL, and this process the one that trains the run.

        Raises:
            UserError: the directory is that of another run.
        """
        self.remote_run.download()
        self.directory.path.mkdir(parents=True, exist_ok=True)
        if (
            self.directory.config.exists()
        ):  # at a URL another run may have begun since the driver looked
            check_run(self.config)
        self.remote_run.publish_owner()  # after the check: a mistaken start takes nothing from whoever trains

    def write_beginning(self, state: TrainingState) -> None:
        """Make the directory that of the state: what a killed run wrote after its last checkpoint is cut off."""
        progress = state.progress
        write_config(self.directory, self.config)  # with what a resumed run may change
        set_damaged_aside(self.directory.checkpoints, newest_good=progress.iteration)
        evaluation_is_due = state.evaluation_is_due or state.is_done
        self.directory.cut_back(
            progress.iteration, progress.num_rounds, evaluation_is_due=evaluation_is_due
        )
        is_beginning = progress.iteration == 0
        write_environment(
            self.directory,
            state.ranks,
            state.rounding[-1],
            info=state.info,
            iteration=progress.iteration,
            plugins=self.config.plugins,
            pretrained=hash_pretrained(self.config, self.directory, is_beginning=is_beginning),
            label_weights=state.label_weights,
        )
        if self.config.method.widen_at is not None:  # what it is read from may be gone by then
            given = read_given_tree(self.config, state.net.network.architecture)
            write_json(self.directory.given_tree, {"tree": given.to_json()})
        self.write_sharing(state)
        self.remote_run.upload()

    def begin_checkpoint(self, state: TrainingState, affinity: Mapping[str, Tensor]) -> None:
        """Copy the state, with the sums of all ranks (`gather_affinity`), and begin to write it and to drop the oldest checkpoints.

        Waits for the one before. Until it is finished nothing but lines of the log may be written in the run directory.

        Raises:
            UserError: a weight is not finite, or the one before could not be written.
        """
        iteration, keep = state.progress.iteration, self.config.train.keep_checkpoints
        self.finish_checkpoint()  # before the copy, for two of them would need twice the memory
        checkpoint = copy_to_host(state.make_checkpoint(affinity))

        def write() -> None:
            save_checkpoint(self.directory.checkpoints, iteration, checkpoint, keep=keep)
            self.remote_run.upload()

        self._writer.begin(write)

    def finish_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, if there is one.

        Raises:
            UserError: it could not be written.
        """
        self._writer.finish()

    def leave_checkpoint_whole(self) -> None:
        """Wait for the checkpoint that is being written where an error ends the run; one that fails too is a warning."""
        self._writer.finish_and_warn()

    @property
    def checkpoint_has_failed(self) -> bool:
        """Whether the checkpoint that was being written could not be; does not wait."""
        return self._writer.has_failed

    def write_sharing(self, state: TrainingState) -> None:
        """Write who shares what: tree.json and, of AdaShare, policy.json."""
        network = state.net.network
        if network.architecture.has_policy:
            write_json(self.directory.policy, state.describe_policy())
        if network.baseline is None:  # whose tasks share by no tree
            write_tree(self.directory, state.architecture)

    def write_end(self, state: TrainingState, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write the network and then result.json, which says that the run has ended; returns its content."""
        config, architecture = self.config, state.architecture
        summary: dict[str, Any] = {
            "name": config.run.name,
            "method": config.method.name,
            "backbone": config.model.backbone,
            "width": config.model.width,
            "width_fraction": config.model.width_fraction,
            "seed": config.seed,
            "metrics": metrics,
            **describe_network(architecture),
            "iterations": state.progress.iteration,
            "seconds": state.progress.seconds,
            "world_size": state.ranks.world_size,
            "bad_samples": state.progress.num_bad,
        }
        if architecture.delta_rank is not None:
            summary["folded_weights"] = architecture.folded.cost().weights
        if config.model.widths is not None:  # a key that only such runs have
            summary["widths"] = config.model.widths
        if state.best.metric is not None:
            summary["best"] = state.best.describe()
        if state.progress.iteration < config.train.iterations:
            summary["ended_by"] = "patience"
        if state.label_weights:
            summary["label_weights"] = state.label_weights
        decision = read_first_decision(self.directory)
        if config.method.has_scout and decision is not None:
            scout = decision["scout"]
            own_cost = state.progress.iteration * config.train.batch_size * summary["multiply_adds"]
            its_cost = scout["steps"] * scout["batch_size"] * scout["multiply_adds"]
            # Of training both, as a multiple of training the tree alone.
            summary["scout"] = scout | {"cost_in_all": (own_cost + its_cost) / own_cost}
        # The result comes last, for with it the run counts as finished.
        self.write_sharing(state)
        served = state.net.network.as_served()
        save_model(self.directory.model, served, state.preprocessing)
        if served.tasks.dense:
            write_sample_maps(
                self.directory.sample_maps, served, state.info, config.data, state.ranks
            )
        write_json(self.directory.result, summary)
        self.remote_run.upload()
        return summary


def write_tree(directory: RunDirectory, architecture: Architecture) -> None:
    """Write tree.json."""
    tree, names = architecture.tree, [task.name for task in architecture.tasks]
    layers = tree.describe_layers(names)
    write_json(directory.tree, {"tree": tree.to_json(), "layers": layers, "tasks": names})


def describe_network(architecture: Architecture) -> dict[str, Any]:
    """The tasks of a network, and what it takes."""
    cost = architecture.cost()
    described: dict[str, Any] = {
        "tasks": [task.name for task in architecture.tasks],
        "weights": cost.weights,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "num_groups_top": architecture.tree.num_branches(architecture.tree.num_layers),
    }
    if architecture.dense_tasks:  # whose heads may outweigh all they stand on
        heads = architecture.measure_heads()
        described["head_weights"] = heads.weights
        described["head_multiply_adds"] = heads.multiply_adds
    return described


def read_result(directory: Path) -> RunResult | None:
    """The result of a finished run, or None if it has not ended.

    Raises:
        UserError: its files are damaged.
    """
    files = RunDirectory(directory)
    if not files.result.exists():
        return None
    advice = "Remove result.json there and run the same command again."
    with explain_damage(f"The result of {directory} is damaged", advice):
        summary = json.loads(files.result.read_text())
        tree = _read_tree(files, summary.get("method"))
        return make_result(tree, directory, summary)


def find_run_folder(run: Run) -> Path:
    """The folder of a run; of one at a URL the copy that is made here."""
    if isinstance(run, RunResult):
        return run.directory
    return download_run(str(run)) if is_remote(str(run)) else Path(run)


def make_result(tree: Tree, directory: Path, summary: dict[str, Any]) -> RunResult:
    """The result with a tree that knows the names of its tasks."""
    named = replace(tree, task_names=tuple(summary.get("tasks", ())))
    return RunResult(summary["metrics"], named, directory, summary)


def _read_tree(files: RunDirectory, method: str | None) -> Tree:
    if method in BASELINES:  # which share by no tree, so that no file has one
        design = json.loads((files.model / DESCRIPTION).read_text())["architecture"]
        return Architecture.from_json(design).tree
    return Tree.from_json(json.loads(files.tree.read_text())["tree"])
