"""The training function that every launcher runs, on every rank: read `run`, `_train_step` and `_act_after_step` in this order.

Ranks agree on everything one step late and for free: each step begins a small sum over all ranks (margins, losses, and who
wants to stop or has met a bad sample), which is awaited at the beginning of the next one, behind the backward pass.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from distbranch.branching.affinity import AffinityStats
from distbranch.config import Config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.batches import BatchFeed, describe_too_many_bad, open_training
from distbranch.engine.checkpoint import share_checkpoint
from distbranch.engine.distributed import Ranks
from distbranch.engine.evaluate import evaluate
from distbranch.engine.forks import Family
from distbranch.engine.results import RunFiles, RunResult, StoppedEarly, summarise_run
from distbranch.engine.round_decision import RoundDecision, may_still_grow
from distbranch.engine.run_log import DrawDecision, Profiler, Report, RunLog
from distbranch.engine.training_state import AFFINITY, TrainingState, gather_affinity
from distbranch.engine.training_step import TrainingStep
from distbranch.errors import SharedError
from distbranch.models.architecture import Architecture


class Trainer:
    """One rank's training: the state it advances step by step, and what it reports on the way.

    Args:
        config: resolved, with absolute paths.
        ranks: this process among the others.
        info: the packed data set.
        report: called on rank 0 with what happens.
        draw: called on rank 0 with every decision, to draw it into TensorBoard.
        should_stop: asked at every step on every rank; True ends the run with a checkpoint.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        info: DatasetInfo,
        *,
        report: Report,
        draw: DrawDecision | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.ranks = ranks
        self.info = info
        self.should_stop = should_stop
        self.files = RunFiles(config)
        self.family = Family(config)

        # The state is the same on all ranks, which is proven before the first step.
        checkpoint = share_checkpoint(ranks.run_only_on_rank_zero(self.files.load_newest), ranks, but_for=AFFINITY)
        self.state = TrainingState(config, ranks, info, checkpoint)
        self.progress = self.state.progress
        self.net = self.state.net
        self.stats = self.state.stats
        self._window = self.state.window
        ranks.run_on_rank_zero(lambda: self.files.write_beginning(self.state))
        self.state.verify("the start")
        self.step = TrainingStep(self.state)

        self._resumed_at: int | None = None
        self._saved_at = -1
        if self.state.was_resumed:
            self._resumed_at = self._saved_at = self.progress.iteration
        self.log: RunLog | None = None  # of rank 0, which alone writes
        self._profiler = Profiler(None)
        if ranks.is_first:
            directory, done, last = self.files.directory, self.progress.iteration, config.train.iterations
            self.log = RunLog(directory, after=done, iterations=last, report=report, draw=draw)
            if config.train.profile:
                self._profiler = Profiler(directory.profile)

    # ---- the loop

    def run(self) -> RunResult:
        """Train to the last step and evaluate.

        Raises:
            StoppedEarly: asked to stop; everything is saved.
            UserError: bad samples, a loss that is not finite, ranks that differ, storage that fails.
        """
        self._open_feed()
        # A fork is saved before its decision, and a failed evaluation before it is repeated: both are due at once.
        if self.state.decision_is_due or self.state.evaluation_is_due:
            self._act_after_step()

        while not self.state.is_done:
            self._train_step()
            self._act_after_step()

        self._report_resumed()  # where no step was left
        self._feed.agree_on_next_batch()  # on one that no step will use, so that no rank leaves a sum behind
        return self._finish()

    def _open_feed(self) -> None:
        """Begin to load this rank's batches, from the first sample that the run has not seen."""
        turns = self.state.search.turns if self.state.search else None
        batches = open_training(
            self.info,
            self.config,
            self.ranks,
            image_size=self.state.preprocessing.image_size,
            start=self.progress.iteration * self.config.train.batch_size,
            turns=turns,
        )
        self._feed = BatchFeed(batches, self.ranks, self.should_stop)

    def _train_step(self) -> None:
        """One optimiser step over all ranks."""
        train, progress = self.config.train, self.progress

        # 1. Take in what all ranks measured in the step before, and what they said about the next batch.
        self.step.wait_for_step_sums()
        self._act_on_agreement()

        # 2. Take this rank's share of the batch; the next one is fetched at the same time.
        batch, waited = self._feed.next_batch()
        images = batch.images.to(self.ranks.device, non_blocking=True)
        labels = batch.labels.to(self.ranks.device, non_blocking=True)

        # 3. Forward, backward, optimiser: the sums over all ranks begin behind the backward pass.
        rate, norm = self.step.train(images, labels, batch.indices)
        progress.iteration += 1

        # 4. Measure, and log or show where the run stands.
        self._window.add_step(num_samples=train.batch_size, waited=waited, rate=rate, norm=norm)
        self._profiler.record_step()
        self._report_resumed()
        if progress.iteration % train.log_every == 0:
            self.step.wait_for_step_sums()
            measured = self._window.measure_and_reset(self.net.network.tasks.names)
            if self.log:
                self.log.write_step({**self.state.progress_fields(), **measured})
        elif self.log and self.log.is_silent and self._window.num_steps > 1:
            # The loss on the screen is the last logged one: a new one would have to be awaited.
            self.log.report_progress({**self.state.progress_fields(may_wait=False), **self._window.measure_pace()})

    def _act_after_step(self) -> None:
        """All that may follow a step: a decision, a policy, an evaluation, a checkpoint."""
        iteration = self.progress.iteration

        # 5. At the end of a round: decide, and widen the network.
        decides = self.state.decision_is_due
        if decides:
            self._end_round()

        # 6. At the end of a cycle of AdaShare's search: write its policy down.
        if self.state.search is not None and self.state.search.ends_cycle(iteration):
            self._record_policy()

        # 7. Evaluate. If that fails, the steps and the decision are good and kept, and the evaluation is due again.
        if self.state.evaluation_is_due:
            try:
                self._evaluate("val")
            except SharedError:
                self._save_checkpoint()
                raise
            self.progress.last_evaluation = iteration

        # 8. Save. A decision is never taken twice, so it is saved with the network that it made.
        if decides or iteration % self.config.train.checkpoint_every == 0:
            self._save_checkpoint()

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
        problem = describe_too_many_bad(total, self.config.data, self.info, "train")
        if problem is not None:
            self._save_checkpoint()  # without this batch, which the run will meet again
            raise SharedError(problem)
        self.progress.num_bad = dict(total)
        if self.log:
            self.log.write_note("bad_samples", iteration=self.progress.iteration + 1, counts=dict(total))

    # ---- growth

    def _end_round(self) -> None:
        """Sum the pair statistics, decide on rank 0, widen on all, verify, record."""
        self.step.wait_for_step_sums()
        began = time.perf_counter()
        progress, architecture = self.progress, self.net.network.architecture

        # Rank 0 decides for all, so that a tie cannot fall differently on another processor.
        stats = self.stats.with_pair_sums(self.ranks.sum_on_rank_zero(self.stats.pair_sums()))
        decision, some_leave = self.ranks.run_on_rank_zero(lambda: self._decide(stats, architecture))
        if some_leave:
            self._fork_relatives()

        if decision.split is not None:
            self.net.widen(decision.split)
            if self.config.optim.when_widened == "restart":
                progress.schedule_start = progress.iteration
        progress.num_rounds += 1
        progress.last_decision = progress.iteration
        progress.growing = may_still_grow(self.net.network.architecture.tree, decision, self.config.method)
        if not progress.growing:
            self.net.is_final = True
            self.net.wrap()  # compiling pays from now on

        tree_hash = self.state.verify(f"decision {progress.num_rounds}")
        seconds = time.perf_counter() - began
        self.ranks.run_on_rank_zero(lambda: self._record_decision(decision, tree_hash, seconds=seconds))
        self._restart_clock()

    def _decide(self, stats: AffinityStats, architecture: Architecture) -> tuple[RoundDecision, bool]:
        """Rank 0's decision, whose matrices only it needs, and whether some relatives decide otherwise."""
        decision, some_leave = self.family.decide(stats, architecture)
        self._matrices = decision.matrices
        return replace(decision, matrices={}), some_leave

    def _fork_relatives(self) -> None:
        """Give those runs of the family that decide otherwise the state as it is before the decision."""
        self.step.check_losses()
        affinity = gather_affinity(self.stats, self.ranks)
        self.progress.seconds += self._window.measure_seconds()
        runs = self.ranks.run_on_rank_zero(lambda: self.family.send_off_leavers(self.state.make_checkpoint(affinity)))
        if self.log:
            self.log.write_note("forked", iteration=self.progress.iteration, runs=runs)

    def _record_decision(self, decision: RoundDecision, tree_hash: str, *, seconds: float) -> None:
        assert self.log is not None
        progress, directory = self.progress, self.files.directory
        file = directory.affinity / f"round-{progress.num_rounds:02d}.npz"
        file.parent.mkdir(exist_ok=True)
        np.savez(file, allow_pickle=False, **self._matrices)
        self.files.write_sharing(self.state)
        line = {
            "round": progress.num_rounds,
            "iteration": progress.iteration,
            "epoch": self.state.epoch,
            **decision.record,
            "affinity_file": str(file.relative_to(directory.path)),
            "tree_hash": tree_hash,
            "seconds_in_all": seconds,
        }
        self.family.record_decision(line)
        self.log.write_decision(line)

    def _record_policy(self) -> None:
        """Write down the policy at the end of a cycle, the same on all ranks."""
        self.step.wait_for_step_sums()
        self.state.verify(f"the policy after step {self.progress.iteration}")
        self.ranks.run_on_rank_zero(lambda: self.files.write_sharing(self.state))
        if self.log:
            self.log.write_policy({**self.state.progress_fields(), **self.state.describe_policy()})
        self._restart_clock()

    # ---- what is kept and shown

    def _save_checkpoint(self) -> None:
        """One checkpoint; all ranks learn whether it could be written."""
        progress = self.progress
        if self._saved_at == progress.iteration:
            return
        self.step.wait_for_step_sums()
        self.step.check_losses()
        affinity = gather_affinity(self.stats, self.ranks) if progress.growing else {}
        progress.seconds += self._window.measure_seconds()
        self.ranks.run_on_rank_zero(lambda: self.files.write_checkpoint(self.state, affinity, self.log))
        self._saved_at = progress.iteration
        if self.ranks.world_size > 2 and self.ranks.device.type == "cpu":
            # DDP orders its buckets anew after the first step of a wrapper, and a sum of three or more depends on the order:
            # with a fresh wrapper the run that continues and the one that is resumed from here take the same path.
            self.net.wrap()

    def _report_resumed(self) -> None:
        """Once, after the first new step of a resumed run."""
        if self.log and self._resumed_at is not None:
            self.log.report_resumed(self._resumed_at, self.ranks.world_size, self.state.rounding[-1])
        self._resumed_at = None

    def _evaluate(self, split: str) -> dict[str, Any] | None:
        if split not in self.info.splits:
            return None
        self.step.wait_for_step_sums()
        self.ranks.run_on_rank_zero(self.state.check_finite)
        scores = evaluate(
            self.net.network,
            self.info,
            split,
            self.ranks,
            self.config.data,
            batch_size=self.config.train.eval_batch_size,
            bf16=self.state.bf16,
        )
        if self.log:
            self.log.write_evaluation(split, self.progress.iteration, scores)
        self._restart_clock()
        return scores

    def _finish(self) -> RunResult:
        """Save, evaluate, and write the result, which says that the run has ended."""
        self._save_checkpoint()
        metrics = {}
        for split in ("val", "test"):
            scores = self._evaluate(split)
            if scores is not None:
                metrics[split] = scores
        architecture = self.state.architecture
        summary = summarise_run(self.config, architecture, metrics) | {
            "seconds": self.progress.seconds,
            "world_size": self.ranks.world_size,
            "bad_samples": self.progress.num_bad,
        }
        self.ranks.run_on_rank_zero(lambda: self._write_end(summary))
        return RunResult(metrics, architecture.tree, self.files.directory.path, summary)

    def _write_end(self, summary: dict[str, Any]) -> None:
        self.files.write_end(self.state, summary)
        self._profiler.close()
        if self.log:
            self.log.close()
        self.files.remote_run.upload()  # with the log

    def _restart_clock(self) -> None:
        """Leave what was no training out of the pace that is logged next."""
        self.progress.seconds += self._window.measure_seconds()
        self._window.restart_clock()
