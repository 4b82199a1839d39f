"""The training loop that every launcher runs, on every rank: read `run`, `_train_step` and `_act_after_step` in this order.

Ranks agree on everything one step late and for free: each step begins a small sum over all ranks (margins, losses, and who
wants to stop or has met a bad sample), which is awaited at the beginning of the next one, behind the backward pass.
Where batches come from, what is written and how a round is decided is handed in by `session`: nothing of it is needed to read the loop.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.tree import Split, Tree
from distbranch.engine.affinities import MeasuredAffinity
from distbranch.engine.batches import BatchFeed
from distbranch.engine.checkpoint import Checkpoint
from distbranch.engine.run_log import RunLog
from distbranch.engine.training_state import TrainingState, gather_affinity
from distbranch.engine.training_step import TrainingStep
from distbranch.errors import SharedError, StoppedEarly
from distbranch.maps import join_labels
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network


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


class Trainer:
    """One rank's training: the state it advances step by step, and what it reports on the way.

    Args:
        state: the same on all ranks.
        store: the files of the run.
        decider: decides at the end of a round.
        log: of rank 0; None on the others, which write nothing.
        open_feed: begins to load this rank's batches, from the first sample that the run has not seen.
        score_split: the metrics of the network on a split; None if the data lack it.
        measure_affinity: of a kind, on the network, for a split of a layer (from 1); all ranks call it.
        read_given_tree: the tree that is taken at a step (`method.widen_at`); rank 0 calls it.
        limit_bad: a sentence if so many bad samples are too many.
    """

    def __init__(
        self,
        state: TrainingState,
        *,
        store: RunStore,
        decider: Decider,
        log: RunLog | None,
        open_feed: Callable[[], BatchFeed],
        score_split: Callable[[str], dict[str, Any] | None],
        measure_affinity: Callable[[str, int], MeasuredAffinity],
        read_given_tree: Callable[[], Tree],
        limit_bad: Callable[[Counter[str]], str | None],
    ) -> None:
        self.state = state
        self.config = state.config
        self.ranks = state.ranks
        self.progress = state.progress
        self.net = state.net
        self.stats = state.stats
        self.store = store
        self.decider = decider
        self.log = log
        self.open_feed = open_feed
        self.score_split = score_split
        self.measure_affinity = measure_affinity
        self.read_given_tree = read_given_tree
        self.limit_bad = limit_bad
        self.step = TrainingStep(state)
        state.leave_checkpoint_whole = store.leave_checkpoint_whole
        self._window = state.window
        self._resumed_at = self.progress.iteration if state.was_resumed else None
        self._saved_at = self._resumed_at

    # ---- the loop

    def run(self) -> dict[str, Any]:
        """Train to the last step, evaluate, and return the content of result.json.

        Raises:
            StoppedEarly: asked to stop; everything is saved.
            UserError: bad samples, a loss that is not finite, ranks that differ, storage that fails.
        """
        try:
            return self._train_to_end()
        # Whatever ended the run: a checkpoint that was begun before is good.
        except BaseException:
            self.store.leave_checkpoint_whole()
            raise

    def _train_to_end(self) -> dict[str, Any]:
        self._feed = self.open_feed()
        # A fork is saved before its decision, and a failed evaluation before it is repeated: both are due at once.
        # What was due when train.iterations ended the run is due if that is raised.
        state = self.state
        if state.decision_is_due or state.evaluation_is_due or state.widening_is_due:
            self._act_after_step()

        while not self.state.is_done:
            self._train_step()
            self._act_after_step()

        self._report_resumed()  # where no step was left
        self._feed.agree_on_next_batch()  # on one that no step will use, so that no rank leaves a sum behind
        return self._finish_run()

    def _train_step(self) -> None:
        """One optimiser step over all ranks."""
        # 1. Take in what all ranks measured in the step before, and what they said about the next batch.
        self.step.wait_for_step_sums()
        self._act_on_agreement()

        # 2. Take this rank's share of the batch; the next one is fetched at the same time.
        self.step.start_clock()
        batch, waited = self._feed.next_batch()
        images = batch.images.to(self.ranks.device, non_blocking=True)
        labels = join_labels(batch.labels, batch.maps, batch.mixed)
        labels = labels.to(self.ranks.device, non_blocking=True)

        # 3. Forward, backward, optimiser: the sums over all ranks begin behind the backward pass.
        rate, norm = self.step.train(images, labels, batch.indices)
        self.progress.iteration += 1

        # 4. Measure, and log or show where the run stands.
        self._window.add_step(
            num_samples=self.config.train.batch_size, waited=waited, rate=rate, norm=norm
        )
        self._report_resumed()
        self._log_step()

    def _log_step(self) -> None:
        """Log every so many steps, and let whoever watches see in between that the run is alive."""
        if self.progress.iteration % self.config.train.log_every == 0:
            self.step.wait_for_step_sums()
            weights = self.net.weighting.get_logged_weights()
            measured = self._window.measure_and_reset(self.net.network.tasks.names, weights)
            measured["seconds_alone"] = self.step.measure_ranks()
            if self.log:
                self.log.write_step({**self.state.progress_fields(), **measured})
        elif self.log and self.log.is_silent and self._window.num_steps > 1:
            # The loss on the screen is the last logged one: a new one would have to be awaited.
            self.log.report_progress(
                {**self.state.progress_fields(may_wait=False), **self._window.measure_pace()}
            )
        if self.log:
            self.log.trace_step()

    def _act_after_step(self) -> None:
        """All that may follow a step: a decision, a policy, an evaluation, a checkpoint."""
        iteration = self.progress.iteration

        # 5. At the end of a round: decide, and widen the network.
        decides = self.state.decision_is_due
        if decides:
            self._end_round()

        # Or take the tree that was given for this step.
        widens = self.state.widening_is_due
        if widens:
            self._take_given_tree()

        # 6. At the end of a cycle of AdaShare's search: write its policy down.
        if self.state.search is not None and self.state.search.ends_cycle(iteration):
            self._record_policy()

        # 7. Evaluate. If that fails, the steps and the decision are good and kept, and the evaluation is due again.
        if self.state.evaluation_is_due:
            try:
                scores = self._evaluate_split("val")
            except SharedError:
                self._save_checkpoint()
                raise
            self.progress.last_evaluation = iteration
            self._compare_with_best(scores)

        # 8. Save. A decision is never taken twice, so it is saved with the network that it made before any step on that.
        if decides or widens:
            self._save_checkpoint()
        elif iteration % self.config.train.checkpoint_every == 0:
            self._begin_checkpoint()

    def _act_on_agreement(self) -> None:
        """Act on what the ranks said: at the beginning of a step only, when all that was due before is done."""
        agreed = self._feed.agree_on_next_batch()
        if agreed.failed:
            self._save_checkpoint()
            self.ranks.raise_on_all_ranks(self._feed.problem)
        if agreed.stop:
            self._save_checkpoint()
            raise StoppedEarly(
                f"Stopped after step {self.progress.iteration} of {self.config.train.iterations}; everything is saved. "
                "The same command continues."
            )
        if agreed.num_bad:
            self._count_bad(agreed.num_bad)

    def _count_bad(self, found: Counter[str]) -> None:
        """Count what was left out of the batch that is about to be used, over all ranks."""
        total = Counter(self.progress.num_bad) + found
        problem = self.limit_bad(total)
        if problem is not None:
            self._save_checkpoint()  # without this batch, which the run will meet again
            raise SharedError(problem)
        self.progress.num_bad = dict(total)
        if self.log:
            self.log.write_note(
                "bad_samples", iteration=self.progress.iteration + 1, counts=dict(total)
            )

    # ---- growth

    def _end_round(self) -> None:
        """Sum the pair statistics, decide on rank 0, widen on all, verify, record."""
        self.step.wait_for_step_sums()
        self._finish_checkpoint()
        began = time.perf_counter()
        progress, architecture = self.progress, self.net.network.architecture

        # Rank 0 decides for all, so that a tie cannot fall differently on another processor.
        stats = self.stats.with_pair_sums(self.ranks.sum_on_rank_zero(self.stats.pair_sums()))
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
        self._restart_clock()

    def _widen(self, *splits: Split) -> None:
        self.net.widen(*splits)
        self.state.best.forget()
        if self.config.optim.when_widened == "restart":
            self.progress.schedule_start = self.progress.iteration

    def _take_given_tree(self) -> None:
        """Widen all layers of the given tree at once, verify, record."""
        self.step.wait_for_step_sums()
        self._finish_checkpoint()
        tree = self.ranks.run_on_rank_zero(self.read_given_tree)
        self.net.is_final = True
        self._widen(*tree.splits)
        tree_hash = self.state.verify("the given tree")
        self.ranks.run_on_rank_zero(lambda: self.store.write_sharing(self.state))
        if self.log:
            iteration = self.progress.iteration
            self.log.write_note("widened", iteration=iteration, tree_hash=tree_hash)
        self._restart_clock()

    def _fork_relatives(self) -> None:
        """Give those runs of the family that decide otherwise the state as it is before the decision."""
        affinity = self._gather_for_checkpoint()
        runs = self.ranks.run_on_rank_zero(
            lambda: self.decider.send_off_leavers(self.state.make_checkpoint(affinity))
        )
        if self.log:
            self.log.write_note("forked", iteration=self.progress.iteration, runs=runs)

    def _record_decision(self, line: dict[str, Any]) -> None:
        assert self.log is not None
        self.store.write_sharing(self.state)
        self.log.write_decision(self.decider.record_decision(line))

    def _record_policy(self) -> None:
        """Write down the policy at the end of a cycle, the same on all ranks."""
        self.step.wait_for_step_sums()
        self._finish_checkpoint()
        self.state.verify(f"the policy after step {self.progress.iteration}")
        self.ranks.run_on_rank_zero(lambda: self.store.write_sharing(self.state))
        if self.log:
            self.log.write_policy({**self.state.progress_fields(), **self.state.describe_policy()})
        self._restart_clock()

    # ---- what is kept and shown

    def _save_checkpoint(self) -> None:
        """One checkpoint, which is whole afterwards; all ranks learn whether it could be written."""
        self._begin_checkpoint()
        self._finish_checkpoint()

    def _finish_checkpoint(self) -> None:
        """Wait for the checkpoint that rank 0 is writing, if there is one."""
        self.ranks.run_on_rank_zero(self.store.finish_checkpoint)

    def _begin_checkpoint(self) -> None:
        """One checkpoint of this step, which rank 0 writes while training continues; all learn whether the one before is whole."""
        progress = self.progress
        if self._saved_at == progress.iteration:
            return
        affinity = self._gather_for_checkpoint()
        self.ranks.run_on_rank_zero(lambda: self._copy_for_checkpoint(affinity))
        self._saved_at = progress.iteration
        if self.ranks.world_size > 2 and self.ranks.device.type == "cpu":
            # DDP orders its buckets anew after the first step of a wrapper, and a sum of three or more depends on the order:
            # with a fresh wrapper the run that continues and the one that is resumed from here take the same path.
            self.net.wrap()

    def _copy_for_checkpoint(self, affinity: dict[str, Tensor]) -> None:
        assert self.log is not None
        self.log.flush()
        self.store.begin_checkpoint(self.state, affinity)

    def _gather_for_checkpoint(self) -> dict[str, Tensor]:
        """Make the state one that can be saved; on rank 0 the affinity sums of all ranks, if they are still needed."""
        self.step.wait_for_step_sums()
        self.step.check_losses()
        self.progress.seconds += self._window.measure_seconds()
        return gather_affinity(self.stats, self.ranks) if self.progress.growing else {}

    def _report_resumed(self) -> None:
        """Once, after the first new step of a resumed run."""
        if self.log and self._resumed_at is not None:
            self.log.report_resumed(
                self._resumed_at, self.ranks.world_size, self.state.rounding[-1]
            )
        self._resumed_at = None

    def _evaluate_split(self, split: str, **about: Any) -> dict[str, Any] | None:
        """The scores of a split, which are logged with what is said `about` them."""
        self.step.wait_for_step_sums()
        self.ranks.run_on_rank_zero(self.state.check_finite)
        with self.net.served():
            scores = self.score_split(split)
        if self.log and scores is not None:
            self.log.write_evaluation(split, self.progress.iteration, scores | about)
        self._restart_clock()
        return scores

    def _compare_with_best(self, scores: dict[str, Any] | None) -> None:
        weights = self.net.served_weights()
        is_final = self.state.is_final
        self.state.best.compare(scores, self.progress.iteration, weights, counts=is_final)

    def _finish_run(self) -> dict[str, Any]:
        """Save, evaluate, and write the result, which says that the run has ended."""
        self._begin_checkpoint()
        scores = {"val": self._evaluate_split("val")}
        self._compare_with_best(scores["val"])

        # Of the last step or of the best evaluation; of no checkpoint, for the run is resumed from what was trained.
        about = {}
        best = self.state.best
        self.net.end_with(best.weights or self.net.served_weights())
        if best.weights and best.iteration != self.progress.iteration:
            about["weights_of"] = best.iteration
            scores["val"] = self._evaluate_split("val", **about)
        scores["test"] = self._evaluate_split("test", **about)
        metrics = {split: found for split, found in scores.items() if found is not None}
        summary: dict[str, Any] = self.ranks.run_on_rank_zero(lambda: self._write_end(metrics))
        return summary

    def _write_end(self, metrics: dict[str, Any]) -> dict[str, Any]:
        assert self.log is not None
        self.store.finish_checkpoint()
        self.log.close()
        return self.store.write_end(self.state, metrics)

    def _restart_clock(self) -> None:
        """Leave what was no training out of the pace that is logged next."""
        self.progress.seconds += self._window.measure_seconds()
        self._window.restart_clock()
