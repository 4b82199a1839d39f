"""What changes the network between two steps: the decision at the end of a round, or a tree that was given for a step."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.tree import Split, Tree
from distbranch.engine.affinities import MeasuredAffinity
from distbranch.engine.checkpoint import Checkpoint
from distbranch.engine.run_log import RunLog
from distbranch.engine.shared_checkpoints import RunStore, SharedCheckpoints
from distbranch.engine.training_state import TrainingState
from distbranch.engine.training_step import TrainingStep
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network


class Decider(Protocol):
    """Rank 0 asks it how the network grows (`forks.Family`)."""

    @property
    def measured_kinds(self) -> list[str]:
        """The kinds of affinity that the decision takes and that are measured for it."""
        ...

    def decide_round(
        self,
        stats: AffinityStats,
        architecture: Architecture,
        network: Network | None = None,
        measured: Mapping[str, MeasuredAffinity] | None = None,
    ) -> tuple[Split | None, bool, bool]:
        """The split to be made, whether another round follows, and whether some relatives of the run decide otherwise."""
        ...

    def send_off_leavers(self, checkpoint: Checkpoint) -> list[list[str]]:
        """Give those relatives the state before the decision, and return their names."""
        ...

    def record_decision(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write the matrices of the decision, and return `line` with all that decided it."""
        ...


class Growth:
    """All ranks call `end_round` and `take_given_tree` together; rank 0 decides.

    Args:
        state: the same on all ranks.
        step: whose sums over all ranks are awaited first.
        checkpoints: the one under way is whole before files of the run are written.
        store: the files of the run.
        decider: decides at the end of a round.
        log: of rank 0; None on the others, which write nothing.
        measure_affinity: of a kind, on the network, for a split of a layer (from 1); all ranks call it.
        read_given_tree: the tree that is taken at a step (`method.widen_at`); rank 0 calls it.
    """

    def __init__(
        self,
        state: TrainingState,
        step: TrainingStep,
        checkpoints: SharedCheckpoints,
        *,
        store: RunStore,
        decider: Decider,
        log: RunLog | None,
        measure_affinity: Callable[[str, int], MeasuredAffinity],
        read_given_tree: Callable[[], Tree],
    ) -> None:
        self.state = state
        self.ranks = state.ranks
        self.progress = state.progress
        self.net = state.net
        self.step = step
        self.checkpoints = checkpoints
        self.store = store
        self.decider = decider
        self.log = log
        self.measure_affinity = measure_affinity
        self.read_given_tree = read_given_tree

    def end_round(self) -> None:
        """Sum the pair statistics, decide on rank 0, widen on all, verify, record."""
        self.step.wait_for_step_sums()
        self.checkpoints.finish()
        began = time.perf_counter()
        progress, architecture = self.progress, self.net.network.architecture

        # Rank 0 decides for all, so that a tie cannot fall differently on another processor.
        stats = self.state.stats.with_pair_sums(
            self.ranks.sum_on_rank_zero(self.state.stats.pair_sums())
        )
        kinds = self.ranks.run_on_rank_zero(lambda: self.decider.measured_kinds)
        layer = architecture.tree.active_layer
        measured = {kind: self.measure_affinity(kind, layer) for kind in kinds}
        split, grows, some_leave = self.ranks.run_on_rank_zero(
            lambda: self.decider.decide_round(stats, architecture, self.net.network, measured)
        )
        if some_leave:
            self._fork_relatives()

        if split is not None:
            self._widen(split)
        progress.num_rounds += 1
        progress.last_decision = progress.iteration
        progress.growing = grows
        if not grows:
            self.net.is_final = True
            self.net.wrap()  # compiling pays from now on

        tree_hash = self.state.verify(f"decision {progress.num_rounds}")
        line = {
            "round": progress.num_rounds,
            "iteration": progress.iteration,
            "epoch": self.state.epoch,
            "tree_hash": tree_hash,
            "seconds_in_all": time.perf_counter() - began,
        }
        self.ranks.run_on_rank_zero(lambda: self._record_decision(line))
        self.state.restart_clock()

    def _widen(self, *splits: Split) -> None:
        self.net.widen(*splits)
        self.state.best.clear()
        if self.state.config.optim.when_widened == "restart":
            self.progress.schedule_start = self.progress.iteration

    def take_given_tree(self) -> None:
        """Widen all layers of the given tree at once, verify, record."""
        self.step.wait_for_step_sums()
        self.checkpoints.finish()
        tree = self.ranks.run_on_rank_zero(self.read_given_tree)
        self.net.is_final = True
        self._widen(*tree.splits)
        tree_hash = self.state.verify("the given tree")
        self.ranks.run_on_rank_zero(lambda: self.store.write_sharing(self.state))
        if self.log:
            iteration = self.progress.iteration
            self.log.write_note("widened", iteration=iteration, tree_hash=tree_hash)
        self.state.restart_clock()

    def _fork_relatives(self) -> None:
        """Give those runs of the family that decide otherwise the state as it is before the decision."""
        affinity = self.checkpoints.gather_affinity()
        runs = self.ranks.run_on_rank_zero(
            lambda: self.decider.send_off_leavers(self.state.make_checkpoint(affinity))
        )
        if self.log:
            self.log.write_note("forked", iteration=self.progress.iteration, runs=runs)

    def _record_decision(self, line: dict[str, Any]) -> None:
        assert self.log is not None
        self.store.write_sharing(self.state)
        self.log.write_decision(self.decider.record_decision(line))
