"""The training loop that every launcher runs, on every rank: read `run`, `_train_step` and `_act_after_step` in this order.

Ranks agree on everything one step late and for free: each step begins a small sum over all ranks (margins, losses, and who
wants to stop or has met a bad sample), which is awaited at the beginning of the next one, behind the backward pass.
Where batches come from, what is written and how a round is decided is handed in by `session`: nothing of it is needed to read the loop.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from distbranch.engine.batches import BatchFeed
from distbranch.engine.growth import Growth
from distbranch.engine.run_log import RunLog
from distbranch.engine.shared_checkpoints import RunStore, SharedCheckpoints
from distbranch.engine.training_state import TrainingState
from distbranch.engine.training_step import TrainingStep
from distbranch.errors import SharedError, StoppedEarly
from distbranch.maps import join_labels


class Trainer:
    """One rank's training: the state it advances step by step, and what it reports on the way.

    Args:
        state: the same on all ranks.
        step: trains its network on a batch.
        checkpoints: of all ranks.
        growth: changes the network between steps.
        store: the files of the run.
        log: of rank 0; None on the others, which write nothing.
        open_feed: begins to load this rank's batches, from the first sample that the run has not seen.
        score_split: the metrics of the network on a split; None if the data lack it.
        limit_bad: a sentence if so many bad samples are too many.
    """

    def __init__(
        self,
        state: TrainingState,
        step: TrainingStep,
        checkpoints: SharedCheckpoints,
        growth: Growth,
        *,
        store: RunStore,
        log: RunLog | None,
        open_feed: Callable[[], BatchFeed],
        score_split: Callable[[str], dict[str, Any] | None],
        limit_bad: Callable[[Counter[str]], str | None],
    ) -> None:
        self.state = state
        self.config = state.config
        self.ranks = state.ranks
        self.progress = state.progress
        self.net = state.net
        self.step = step
        self.checkpoints = checkpoints
        self.growth = growth
        self.store = store
        self.log = log
        self.open_feed = open_feed
        self.score_split = score_split
        self.limit_bad = limit_bad
        self._window = state.window
        self._resumed_at = self.progress.iteration if state.was_resumed else None
        self._last_scores: dict[str, Any] | None = None  # of val, while the run trains

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
            self.growth.end_round()

        # Or take the tree that was given for this step.
        widens = self.state.widening_is_due
        if widens:
            self.growth.take_given_tree()

        # 6. At the end of a cycle of AdaShare's search: write its policy down.
        if self.state.search is not None and self.state.search.ends_cycle(iteration):
            self._record_policy()

        # 7. Evaluate. If that fails, the steps and the decision are good and kept, and the evaluation is due again.
        if self.state.evaluation_is_due:
            try:
                self._last_scores = self._score_val()
            except SharedError:
                self.checkpoints.save()
                raise
            self.progress.last_evaluation = iteration

        # 8. Save. A decision is never taken twice, so it is saved with the network that it made before any step on that.
        if decides or widens:
            self.checkpoints.save()
        elif iteration % self.config.train.checkpoint_every == 0:
            self.checkpoints.begin()

    def _act_on_agreement(self) -> None:
        """Act on what the ranks said: at the beginning of a step only, when all that was due before is done."""
        agreed = self._feed.agree_on_next_batch()
        if agreed.failed:
            self.checkpoints.save()
            self.ranks.raise_on_all_ranks(self._feed.problem)
        if agreed.stop:
            self.checkpoints.save()
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
            self.checkpoints.save()  # without this batch, which the run will meet again
            raise SharedError(problem)
        self.progress.num_bad = dict(total)
        if self.log:
            self.log.write_note(
                "bad_samples", iteration=self.progress.iteration + 1, counts=dict(total)
            )

    def _record_policy(self) -> None:
        """Write down the policy at the end of a cycle, the same on all ranks."""
        self.step.wait_for_step_sums()
        self.checkpoints.finish()
        self.state.verify(f"the policy after step {self.progress.iteration}")
        self.ranks.run_on_rank_zero(lambda: self.store.write_sharing(self.state))
        if self.log:
            self.log.write_policy({**self.state.progress_fields(), **self.state.describe_policy()})
        self.state.restart_clock()

    # ---- what is kept and shown

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
        self.state.restart_clock()
        return scores

    def _score_val(self) -> dict[str, Any] | None:
        """The scores on val, which are compared with the best so far."""
        scores = self._evaluate_split("val")
        weights = self.net.served_weights()
        is_final = self.state.is_final
        self.state.best.compare(scores, self.progress.iteration, weights, counts=is_final)
        return scores

    def _finish_run(self) -> dict[str, Any]:
        """Save, evaluate, and write the result, which says that the run has ended."""
        self.checkpoints.begin()
        # An evaluation that ended the run was made after the last step, unless it is gone with an earlier process.
        is_scored = self.state.best.ends_training and self._last_scores is not None
        scores = {"val": self._last_scores if is_scored else self._score_val()}

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
