"""What a checkpoint holds, alive: the trained network, the affinity sums, the losses not logged yet, and where the run stands.

It begins from nothing or from a checkpoint, and can be made into one at any step. `results.RunFiles` writes it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.tree import Tree
from distbranch.config import Config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.best_weights import BestWeights
from distbranch.engine.checkpoint import AVERAGE, Checkpoint, list_checkpoints
from distbranch.engine.distributed import Ranks, verify_equal
from distbranch.engine.policy_search import PolicySearch, make_policy_record
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.step_window import StepWindow
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import SharedError, UserError
from distbranch.label_weights import with_counted_weights
from distbranch.models.architecture import Architecture
from distbranch.models.earlier_runs import is_earlier, rename_earlier

# Files of a checkpoint.
AFFINITY = "affinity"
LOSS = "loss"  # absent where losses and gradients are plainly added
BEST = "best"  # the weights that are kept, if the run keeps the best


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

    `was_resumed` says whether it is from a checkpoint, `bf16` whether the forward pass is in it. After the constructor either `net.begin`
    or `restore` gives it its network.

    Args:
        config: resolved, with absolute paths.
        ranks: this process among the others.
        info: the packed data set.
        rounding: of all starts of the run (`process_group.choose_rounding`); the last one is that of this start.
        search: the course of AdaShare's search, if the run is one.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        info: DatasetInfo,
        rounding: Sequence[Mapping[str, Any]],
        search: PolicySearch | None = None,
    ) -> None:
        self.config = config
        self.ranks = ranks
        self.info = info
        size = config.data.image_size or info.image_size
        self.preprocessing = Preprocessing(
            config.data.decoder, size, config.data.mean, config.data.std, info.bits
        )
        self.search = search
        self.best = BestWeights(config.train, info)
        self.progress = Progress(growing=config.method.grows)
        self.stats = AffinityStats(len(info.tasks), config.method.decay, ranks.device)
        self.window = StepWindow(len(info.tasks), ranks.device)
        loss = with_counted_weights(config.loss, info.tasks, info.splits["train"].labels)
        self.net = TrainedNetwork(
            config, ranks, self.preprocessing, is_final=self.is_final, loss=loss
        )
        self.rounding = rounding
        self.bf16 = rounding[-1]["precision"] == "bf16"
        self.was_resumed = False
        self.leave_checkpoint_whole: Callable[[], None] = lambda: None  # of the run's files
        self._tree: Tree | None = None  # as last asked for

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint that all ranks share (`share_checkpoint`).

        Raises:
            SharedError: the run was begun with other data.
        """
        self.was_resumed = True
        self.progress = Progress(**checkpoint.state["progress"])
        self.net.is_final = self.is_final
        self.net.alternates = (
            self.search is not None and self.progress.iteration > self.search.curriculum.warmup
        )
        if checkpoint.state["data"] != self.info.fingerprint:
            raise SharedError(
                f"The run {self.config.run_directory} was begun with other data than {self.info.path} holds now, so it cannot be resumed "
                "sample by sample. Give another run.name, or the data set it was begun with."
            )
        design, model = checkpoint.state["architecture"], checkpoint.tensors["model"]
        slots = checkpoint.tensors.get("optimizer", {})
        if is_earlier(design):
            _, slots = rename_earlier(design, slots)
            design, model = rename_earlier(design, model)
        average = checkpoint.tensors.get(AVERAGE)
        self.net.build(Architecture.from_json(design), model, slots, average)
        if BEST in checkpoint.state:
            kept = checkpoint.tensors.get(BEST, {})
            self.best.load(checkpoint.state[BEST], kept)
        self.net.load_loss_tensors(checkpoint.tensors.get(LOSS, {}))
        restore_affinity(self.stats, checkpoint, self.ranks)
        if "window" in checkpoint.state:  # not in those of earlier versions
            self.window.load_json(checkpoint.state["window"])

    @property
    def epoch(self) -> float:
        """How often the training samples were seen."""
        return round(
            self.progress.iteration
            * self.config.train.batch_size
            / self.info.splits["train"].num_samples,
            3,
        )

    @property
    def is_done(self) -> bool:
        """Whether the last step was made, or patience is exhausted."""
        return self.best.ends_training or self.progress.iteration >= self.config.train.iterations

    @property
    def is_final(self) -> bool:
        """Whether the network keeps the units that it has."""
        waits = self.progress.iteration < (self.config.method.widen_at or 0)
        return not self.progress.growing and self.search is None and not waits

    @property
    def widening_is_due(self) -> bool:
        """Whether the tree that was given is to be taken now, and was not yet."""
        is_thin = not self.net.network.architecture.splits
        return (
            self.progress.iteration == self.config.method.widen_at and is_thin and not self.is_done
        )

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
        return (
            bool(every)
            and iteration % every == 0
            and iteration > self.progress.last_evaluation
            and not self.is_done
        )

    @property
    def architecture(self) -> Architecture:
        """Of the network as it answers: of a search that of its most probable decisions."""
        return self.net.network.served_architecture

    @property
    def label_weights(self) -> dict[str, Any]:
        """The weights of labels in numbers, by key of `loss` and task; nothing where none were given."""
        given = {
            "class_weights": self.net.loss.class_weights,
            "positive_weights": self.net.loss.positive_weights,
        }
        return {key: weights for key, weights in given.items() if weights}

    def progress_fields(self, *, may_wait: bool = True) -> dict[str, Any]:
        """Where the run stands, as it is logged and shown.

        Args:
            may_wait: for a GPU that says what a search has found so far; else its tree is as it was when last asked for.
        """
        if may_wait or self.search is None or self._tree is None:
            self._tree = self.architecture.tree
        progress, tree = self.progress, self._tree
        fields: dict[str, Any] = {
            "iteration": progress.iteration,
            "epoch": self.epoch,
            "round": progress.num_rounds,
            "active_layer": None,
            "branches": {
                layer: tree.num_branches(number)
                for number, layer in enumerate(tree.layers, start=1)
            },
        }
        if progress.growing:
            fields["round"] = progress.num_rounds + 1
            fields["active_layer"] = tree.layers[tree.active_layer - 1]
        if progress.iteration < (self.config.method.widen_at or 0):
            fields["widen_at"] = self.config.method.widen_at
        if self.search is not None:
            fields |= self.search.progress_fields(progress.iteration)
        return fields

    def verify(self, what: str) -> str:
        """Prove that all ranks hold the same state; the hash of it.

        Raises:
            SharedError: some differ.
        """
        return verify_equal(self.ranks, what, self.net.fingerprint())

    def make_checkpoint(self, affinity: Mapping[str, Tensor]) -> Checkpoint:
        """The state as it is; `affinity` holds the sums of all ranks (`gather_affinity`).

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
        tensors = {
            "model": self.net.network.state_dict(),
            "optimizer": self.net.slots(),
            AFFINITY: affinity,
        }
        remembered = self.net.loss_tensors()
        # What few runs have, only those have files for.
        if remembered:
            tensors[LOSS] = remembered
        if self.net.average:
            tensors[AVERAGE] = self.net.average
        if self.best.metric is not None:
            state[BEST] = self.best.to_json()
        if self.best.weights:
            tensors[BEST] = self.best.weights
        return Checkpoint(state, tensors)

    def restart_clock(self) -> None:
        """Leave what was no training out of the pace that is logged next."""
        self.progress.seconds += self.window.measure_seconds()
        self.window.restart_clock()

    def describe_policy(self) -> dict[str, Any]:
        """Who executes what, of AdaShare: the content of policy.json."""
        return make_policy_record(self.net.network, self.search, self.progress.iteration)

    def check_finite(self) -> None:
        """Refuse weights that are not finite; they are the same on every rank.

        Raises:
            UserError: one is not.
        """
        bad = self.net.first_not_finite()
        if bad is not None:
            raise UserError(
                f"The weights are not finite after step {self.progress.iteration} (first in {bad}). {self.describe_remedy()}"
            )

    def describe_remedy(self) -> str:
        """What to do about numbers that are not finite; rank 0 is asked, for the others may not see its checkpoints."""
        self.leave_checkpoint_whole()  # one that fails must not hide what is wrong
        good = list_checkpoints(RunDirectory(self.config.run_directory).checkpoints)
        last = f"The last good checkpoint is {good[-1]}." if good else "There is no checkpoint yet."
        return f"{last} Lower optim.lr or train.clip_norm, or use train.precision=fp32."


def gather_affinity(stats: AffinityStats, ranks: Ranks) -> dict[str, Tensor]:
    """On rank 0 the sums of every rank as `rank-0/agree`, ...; all must call it. Pair sums differ, margins do not."""
    tensors: dict[str, Tensor] = {}
    for name, value in stats.state_dict().items():
        # They travel to rank 0 alone: the sums of 1,000 tasks are too many to send to all.
        rows = ranks.gather_rows(value.cpu().unsqueeze(0))
        for rank, row in enumerate(rows):
            tensors[f"rank-{rank}/{name}"] = row[0]
    return tensors


def restore_affinity(stats: AffinityStats, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Give `stats` this rank's sums, as they were on the same number of ranks; else all pair sums go to rank 0, none to the others.

    Without effect if the checkpoint has none, which is that of a run that takes no further decision. All ranks must call it; only
    rank 0's checkpoint has the sums.
    """
    saved = checkpoint.tensors.get(AFFINITY, {})
    if not ranks.broadcast(bool(saved)):
        return
    every: list[AffinityStats] = []
    if ranks.is_first:
        for rank in range(int(checkpoint.state["world_size"])):
            one = AffinityStats(stats.num_tasks, stats.decay)
            one.load_state_dict({name: saved[f"rank-{rank}/{name}"] for name in one.state_dict()})
            every.append(one)
        if len(every) != ranks.world_size:
            # Decisions are taken from the total alone, so it does not matter which rank holds which part of it.
            total = sum(one.pair_sums() for one in every)
            assert isinstance(total, Tensor)
            nothing = every[0].with_pair_sums(torch.zeros_like(total))
            every = [every[0].with_pair_sums(total), *[nothing] * (ranks.world_size - 1)]
    own: dict[str, Tensor] = {}
    for name, value in stats.state_dict().items():
        parts = [one.state_dict()[name] for one in every]
        own[name] = ranks.scatter(parts, torch.empty_like(value, device="cpu"))
    stats.load_state_dict(own)
