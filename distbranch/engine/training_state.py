"""What a checkpoint holds, alive: the trained network, the affinity sums, the losses not logged yet, and where the run stands.

It begins from nothing, or from the newest checkpoint of the run directory, and can be written down as one at any step.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from distbranch.branching.affinity import AffinityStats
from distbranch.config import Config, to_yaml
from distbranch.data.shards import DatasetInfo
from distbranch.engine.artifact import Preprocessing, save_model
from distbranch.engine.checkpoint import (
    Checkpoint,
    load_newest,
    save_checkpoint,
    set_damaged_aside,
    share_checkpoint,
)
from distbranch.engine.distributed import Ranks, verify_equal
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.policy_search import PolicySearch, policy_record
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.rounding import choose_rounding
from distbranch.engine.run_directory import RunDirectory, write_atomically, write_json
from distbranch.engine.statistics import AFFINITY, own_statistics
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.engine.window import StepWindow
from distbranch.errors import SharedError, UserError
from distbranch.models.adashare_net import AdaShareNet
from distbranch.models.networks import served
from distbranch.models.residual import AnyArchitecture, architecture_from_json


@dataclass
class Progress:
    """Where a run stands, in plain numbers."""

    iteration: int = 0  # optimiser steps done
    num_rounds: int = 0  # decisions taken
    growing: bool = True
    last_decision: int = 0  # iteration
    last_evaluation: int = 0  # iteration
    schedule_start: int = 0  # iteration at which the course of the learning rate began
    seconds: float = 0.0  # of training, over all sessions
    num_bad: dict[str, int] = field(default_factory=dict)


class TrainingState:
    """One rank's share; all ranks make it, verify it and save it together.

    `was_resumed` says whether there was a checkpoint to go on from, `bf16` whether the forward pass is in it; `search` is the
    course of AdaShare's search, if the run is one.

    Args:
        config: resolved, with absolute paths.
        ranks: this process among the others.
        info: the packed data set.

    Raises:
        SharedError: the data are others than those of the checkpoint, ranks differ, or what the run begins from does not fit.
    """

    def __init__(self, config: Config, ranks: Ranks, info: DatasetInfo) -> None:
        self.config, self.ranks, self.info = config, ranks, info
        self.directory, self.remote_run = RunDirectory(config.run_directory), RemoteRun.from_config(config)
        self.preprocessing = Preprocessing(
            config.data.decoder, config.data.image_size or info.image_size, config.data.mean, config.data.std, info.bits
        )
        self.search = PolicySearch(config, info) if config.searches else None
        self.progress = Progress(growing=config.method.name == "branching")
        self.stats = AffinityStats(len(info.tasks), config.method.decay, ranks.device)
        self.window = StepWindow(len(info.tasks), ranks.device)
        is_final = not self.progress.growing and self.search is None
        self.net = TrainedNetwork(config, ranks, self.preprocessing, is_final=is_final)
        checkpoint = share_checkpoint(ranks.only_on_first(self._newest_checkpoint), ranks, but_for=AFFINITY)
        self.was_resumed = checkpoint is not None
        before = checkpoint.state.get("rounding", ()) if checkpoint is not None else ()
        self.rounding = choose_rounding(config.train.precision, ranks, before)
        self.bf16 = self.rounding[-1]["precision"] == "bf16"
        if checkpoint is None:
            self.net.begin(ranks.on_first(lambda: first_architecture(config, info)), config.seed)
        else:
            self._restore(checkpoint)
        self._tree = self.architecture.tree
        ranks.on_first(self._write_beginning)
        self.verify("the start")

    def _newest_checkpoint(self) -> Checkpoint | None:
        self.remote_run.download()
        if self.directory.config.exists():  # at a URL another run may have begun since the driver looked
            self.directory.check(self.config)
        self.remote_run.publish_owner()
        return load_newest(self.directory.checkpoints)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.progress = Progress(**checkpoint.state["progress"])
        self.net.is_final = not self.progress.growing and self.search is None
        self.net.alternates = self.search is not None and self.progress.iteration > self.search.curriculum.warmup
        architecture = architecture_from_json(checkpoint.state["architecture"])
        if checkpoint.state["data"] != self.info.fingerprint:
            raise SharedError(
                f"The run {self.directory.path} was begun with other data than {self.info.path} holds now, so it cannot go on "
                "sample by sample. Give another run.name, or the data set it was begun with."
            )
        self.net.build(architecture, checkpoint.tensors["model"], checkpoint.tensors.get("optimizer", {}))
        self.stats = own_statistics(self.stats, checkpoint, self.ranks)
        if "window" in checkpoint.state:  # not in those of earlier versions
            self.window.load(checkpoint.state["window"])

    def _write_beginning(self) -> None:
        write_atomically(self.directory.config, to_yaml(self.config))  # with what a continued run may change
        set_damaged_aside(self.directory.checkpoints, newest_good=self.progress.iteration)
        progress = self.progress
        self.directory.cut_back(progress.iteration, progress.num_rounds, evaluation_is_due=self.evaluation_is_due)
        self.directory.write_environment(self.ranks, self.rounding[-1], data=self.info.fingerprint)
        self.write_sharing()
        self.remote_run.upload()

    @property
    def epoch(self) -> float:
        """How often the training samples were seen."""
        return round(self.progress.iteration * self.config.train.batch_size / self.info.splits["train"].num_samples, 3)

    @property
    def is_done(self) -> bool:
        """Whether the last step was made."""
        return self.progress.iteration >= self.config.train.iterations

    @property
    def decision_is_due(self) -> bool:
        """Whether a round has just ended."""
        progress, method = self.progress, self.config.method
        if not progress.growing or self.is_done:
            return False
        steps = method.round_iterations if progress.num_rounds else method.steps_to_first
        return progress.iteration - progress.last_decision == steps

    @property
    def evaluation_is_due(self) -> bool:
        """Whether `val` is to be evaluated at this step, and was not yet."""
        iteration, every = self.progress.iteration, self.config.train.evaluate_every
        return bool(every) and iteration % every == 0 and iteration > self.progress.last_evaluation and not self.is_done

    @property
    def architecture(self) -> AnyArchitecture:
        """Of the network as it answers: of a search that of its most probable decisions."""
        network = self.net.network
        return network.ruling if isinstance(network, AdaShareNet) else network.architecture

    def standing(self, *, may_wait: bool = True) -> dict[str, Any]:
        """Where the run stands, as it is logged and shown.

        Args:
            may_wait: for a GPU that says what a search has found so far; else its tree is as it was when last asked for.
        """
        if may_wait or self.search is None:
            self._tree = self.architecture.tree
        progress, tree = self.progress, self._tree
        searching = {} if self.search is None else self.search.standing(progress.iteration)
        return {
            **searching,
            "iteration": progress.iteration,
            "epoch": self.epoch,
            "round": progress.num_rounds + 1 if progress.growing else progress.num_rounds,
            "active_layer": tree.layers[tree.active_layer - 1] if progress.growing else None,
            "branches": {layer: tree.num_branches(number) for number, layer in enumerate(tree.layers, start=1)},
        }

    def verify(self, what: str) -> str:
        """Prove that all ranks hold the same state; the hash of it.

        Raises:
            SharedError: some differ.
        """
        return verify_equal(self.ranks, what, self.net.fingerprint())

    def checkpoint(self, affinity: dict[str, Tensor]) -> Checkpoint:
        """The state as it is; `affinity` holds the sums of all ranks (`statistics.tensors_of_ranks`).

        Raises:
            UserError: a weight is not finite.
        """
        self.check_finite()
        progress = self.progress
        state = {
            "progress": asdict(progress),
            "architecture": self.net.network.architecture.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "data": self.info.fingerprint,
            "world_size": self.ranks.world_size,
            "rounding": self.rounding,
            "samples": progress.iteration * self.config.train.batch_size,
            "epoch": self.epoch,
            "window": self.window.to_json(),
        }
        tensors = {"model": self.net.network.state_dict(), "optimizer": self.net.slots(), "affinity": affinity}
        return Checkpoint(state, tensors)

    def write_checkpoint(self, affinity: dict[str, Tensor]) -> None:
        """Write the state down and drop the oldest checkpoints; rank 0 does it."""
        keep = self.config.train.keep_checkpoints
        save_checkpoint(self.directory.checkpoints, self.progress.iteration, self.checkpoint(affinity), keep=keep)

    def write_sharing(self) -> None:
        """Write who shares what, tree.json and, of AdaShare, policy.json; rank 0 does it."""
        network = self.net.network
        tree, names = self.architecture.tree, network.tasks.names
        if isinstance(network, AdaShareNet):
            write_json(self.directory.policy, self.policy())
        layers = [
            {"name": layer, "branches": [[names[task] for task in tasks] for tasks in tree.branches(number)]}
            for number, layer in enumerate(tree.layers, start=1)
        ]
        write_json(self.directory.tree, {"tree": tree.to_json(), "layers": layers, "tasks": list(names)})

    def policy(self) -> dict[str, Any]:
        """Who executes what, of AdaShare: the content of policy.json."""
        return policy_record(self.net.network, self.search, self.progress.iteration)

    def write_end(self, summary: dict[str, Any]) -> None:
        """Write the artifact and the result, which says that the run has ended; rank 0 does it."""
        self.write_sharing()
        save_model(self.directory.model, served(self.net.network), self.preprocessing)
        write_json(self.directory.result, summary)

    def check_finite(self) -> None:
        """Refuse weights that are not finite; they are the same on every rank.

        Raises:
            UserError: one is not.
        """
        bad = self.net.first_not_finite()
        if bad is not None:
            raise UserError(
                f"The weights are not finite after step {self.progress.iteration} (first in {bad}). {self.advice()}"
            )

    def advice(self) -> str:
        """What to do about numbers that are not finite."""
        good = sorted(self.directory.checkpoints.glob("step-*"))
        last = f"The last good checkpoint is {good[-1]}." if good else "There is no checkpoint yet."
        return f"{last} Lower optim.lr or train.clip_norm, or use train.precision=fp32."
