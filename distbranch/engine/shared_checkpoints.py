"""Checkpoints of all ranks: together they make the state one that can be saved, and rank 0 writes it behind the training.

`checkpoint_writer` is the thread that writes, `results.RunFiles` what it writes into.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from distbranch.engine.run_log import RunLog
from distbranch.engine.training_state import TrainingState, gather_affinity
from distbranch.engine.training_step import TrainingStep


class RunStore(Protocol):
    """The files of the run, which rank 0 alone writes (`results.RunFiles`)."""

    def begin_checkpoint(self, state: TrainingState, affinity: Mapping[str, Tensor]) -> None:
        """Copy the state, with the affinity sums of all ranks, and begin to write it; the one before is waited for."""

    def finish_checkpoint(self) -> None:
        """Wait until nothing is being written, and raise what the writing met."""

    def leave_checkpoint_whole(self) -> None:
        """Wait likewise, where an error ends the run."""

    def write_sharing(self, state: TrainingState) -> None:
        """Write who shares what."""

    def write_end(self, state: TrainingState, metrics: dict[str, Any]) -> dict[str, Any]:
        """Write the network and the result, and return the latter."""
        ...


class SharedCheckpoints:
    """All ranks call the methods together.

    Args:
        state: the same on all ranks.
        step: whose sums over all ranks are awaited first.
        store: the files of the run.
        log: of rank 0.
    """

    def __init__(
        self, state: TrainingState, step: TrainingStep, store: RunStore, log: RunLog | None
    ) -> None:
        self.state = state
        self.ranks = state.ranks
        self.step = step
        self.store = store
        self.log = log
        state.leave_checkpoint_whole = store.leave_checkpoint_whole
        self._saved_at = state.progress.iteration if state.was_resumed else None

    def save(self) -> None:
        """One checkpoint, which is whole afterwards; all ranks learn whether it could be written."""
        self.begin()
        self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that rank 0 is writing, if there is one."""
        self.ranks.run_on_rank_zero(self.store.finish_checkpoint)

    def begin(self) -> None:
        """One checkpoint of this step, which rank 0 writes while training continues; all learn whether the one before is whole."""
        state, iteration = self.state, self.state.progress.iteration
        if self._saved_at == iteration:
            return
        affinity = self.gather_affinity()
        self.ranks.run_on_rank_zero(lambda: self._copy_and_begin(affinity))
        self._saved_at = iteration
        if self.ranks.world_size > 2 and self.ranks.device.type == "cpu":
            # DDP orders its buckets anew after the first step of a wrapper, and a sum of three or more depends on the order:
            # with a fresh wrapper the run that continues and the one that is resumed from here take the same path.
            state.net.wrap()

    def _copy_and_begin(self, affinity: dict[str, Tensor]) -> None:
        assert self.log is not None
        self.log.flush()
        self.store.begin_checkpoint(self.state, affinity)

    def gather_affinity(self) -> dict[str, Tensor]:
        """Make the state one that can be saved; on rank 0 the affinity sums of all ranks, if they are still needed."""
        self.step.wait_for_step_sums()
        self.step.check_losses()
        progress = self.state.progress
        progress.seconds += self.state.window.measure_seconds()
        return gather_affinity(self.state.stats, self.ranks) if progress.growing else {}
