"""The training function that every launcher runs, on every rank: steps, decisions, widening, checkpoints, evaluation.

Ranks agree on everything one step late and for free: each step begins a small sum over all ranks (margins, losses, and who
wants to stop or has met a bad sample), which is awaited at the beginning of the next one, behind the backward pass.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from distbranch.branching.affinity import AffinityStats
from distbranch.config import Config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.batches import BatchFeed, describe_too_many_bad, open_training
from distbranch.engine.distributed import Ranks
from distbranch.engine.evaluate import evaluate
from distbranch.engine.forks import Family
from distbranch.engine.results import RunResult, StoppedEarly, summarise
from distbranch.engine.round_decision import RoundDecision, may_still_grow
from distbranch.engine.run_log import DrawDecision, Profiler, Report, RunLog
from distbranch.engine.training_state import TrainingState, tensors_of_ranks
from distbranch.engine.training_step import TrainingStep
from distbranch.errors import SharedError
from distbranch.models.backbones import Architecture


class Trainer:
    """One rank's training: the state it advances step by step, and what it tells on the way.

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
        self.config, self.ranks, self.info = config, ranks, info
        self.family = Family(config)
        self.should_stop = should_stop
        self.state = TrainingState(config, ranks, info)
        self.progress, self.net, self.stats = self.state.progress, self.state.net, self.state.stats
        self.log = self._open_log(report, draw) if ranks.is_first else None
        self._resumed_at = self.progress.iteration if self.state.was_resumed else None
        self._saved_at = self.progress.iteration if self.state.was_resumed else -1
        self.step = TrainingStep(self.state)
        self._window = self.state.window
        profile = config.train.profile and ranks.is_first
        self._profiler = Profiler(self.state.directory.profile if profile else None)

    def _open_log(self, report: Report, draw: DrawDecision | None) -> RunLog:
        state, last = self.state, self.config.train.iterations
        return RunLog(state.directory, after=state.progress.iteration, iterations=last, report=report, draw=draw)

    # ---- the loop

    def run(self) -> RunResult:
        """Train to the last step and evaluate.

        Raises:
            StoppedEarly: asked to stop; everything is saved.
            UserError: bad samples, a loss that is not finite, ranks that differ, storage that fails.
        """
        train, progress = self.config.train, self.progress
        start = progress.iteration * train.batch_size
        size = self.state.preprocessing.image_size
        turns = self.state.search.turns if self.state.search else None
        batches = open_training(self.info, self.config, self.ranks, image_size=size, start=start, turns=turns)
        self._feed = BatchFeed(batches, self.ranks, self.should_stop)
        if self.state.decision_is_due or self.state.evaluation_is_due:  # after a fork, or an evaluation that failed
            self._after_step()
        while not self.state.is_done:
            self._step()
            self._after_step()
        self._tell_resumed()
        self._feed.agree_on_next_batch()  # on a batch that no step will use
        return self._finish()

    def _after_step(self) -> None:
        train, iteration = self.config.train, self.progress.iteration
        decides = self.state.decision_is_due
        if decides:
            self._grow()
        if self.state.search is not None and self.state.search.ends_cycle(iteration):
            self._record_policy()
        if self.state.evaluation_is_due:
            try:
                self._evaluate("val")
            except SharedError:
                self._save()  # the steps are good, and so is the decision; the evaluation is due again
                raise
            self.progress.last_evaluation = iteration
        if decides or iteration % train.checkpoint_every == 0:
            self._save()

    def _step(self) -> None:
        self.step.settle()
        self._act_on_agreement()
        config, progress = self.config, self.progress
        batch, waited = self._feed.next_batch()
        images = batch.images.to(self.ranks.device, non_blocking=True)
        labels = batch.labels.to(self.ranks.device, non_blocking=True)
        rate, norm = self.step.train(images, labels, batch.indices)
        progress.iteration += 1
        self._window.add(num_samples=config.train.batch_size, waited=waited, rate=rate, norm=norm)
        self._profiler.record_step()
        self._tell_resumed()
        if progress.iteration % config.train.log_every == 0:
            self.step.settle()
            self._log_step()
        elif self.log and self.log.is_silent and self._window.num_steps > 1:
            self.log.tell({**self.state.standing(may_wait=False), **self._window.pace()})

    def _act_on_agreement(self) -> None:
        """Act on what the ranks told each other: at the beginning of a step only, when all that was due before is done."""
        agreed = self._feed.agree_on_next_batch()
        if agreed.failed:
            self._save()
            self.ranks.raise_together(self._feed.problem)
        if agreed.stop:
            self._save()
            raise StoppedEarly(
                f"Stopped after step {self.progress.iteration} of {self.config.train.iterations}; everything is saved. "
                "The same command continues."
            )
        self._count_bad(agreed.num_bad)

    # ---- growth

    def _grow(self) -> None:
        """End a round: sum the pair statistics, decide on rank 0, widen on all, verify, record."""
        self.step.settle()
        began = time.perf_counter()
        progress, architecture = self.progress, self.net.tree_architecture
        stats = self.stats.with_pair_sums(self.ranks.sum_on_first(self.stats.pair_sums()))
        ruling, parts = self.ranks.on_first(lambda: self._decide(stats, architecture))
        if parts:
            self._fork()
        if ruling.split is not None:
            self.net.widen(ruling.split)
            if self.config.optim.when_widened == "restart":
                progress.schedule_start = progress.iteration
        progress.num_rounds += 1
        progress.last_decision = progress.iteration
        progress.growing = may_still_grow(self.net.tree_architecture.tree, ruling, self.config.method)
        if not progress.growing:
            self.net.is_final = True
            self.net.wrap()
        proof = self.state.verify(f"decision {progress.num_rounds}")
        seconds = time.perf_counter() - began
        self.ranks.on_first(lambda: self._record(ruling, proof, seconds=seconds))
        self._restart_clock()

    def _decide(self, stats: AffinityStats, architecture: Architecture) -> tuple[RoundDecision, bool]:
        """Rank 0's ruling, whose matrices only it needs, and whether some relatives decide otherwise."""
        ruling, parts = self.family.decide(stats, architecture)
        self._matrices = ruling.matrices
        return replace(ruling, matrices={}), parts

    def _fork(self) -> None:
        """Give those runs of the family that decide otherwise the state as it is before the decision."""
        self.step.check_losses()
        affinity = tensors_of_ranks(self.stats, self.ranks)
        self.progress.seconds += self._window.take_seconds()
        left = self.ranks.on_first(lambda: self.family.part(self.state.checkpoint(affinity)))
        if self.log:
            self.log.note("forked", iteration=self.progress.iteration, runs=left)

    def _record(self, ruling: RoundDecision, proof: str, *, seconds: float) -> None:
        if self.log is None:
            return
        progress = self.progress
        file = self.state.directory.affinity / f"round-{progress.num_rounds:02d}.npz"
        file.parent.mkdir(exist_ok=True)
        np.savez(file, allow_pickle=False, **self._matrices)
        self.state.write_sharing()
        line = {
            "round": progress.num_rounds,
            "iteration": progress.iteration,
            "epoch": self.state.epoch,
            **ruling.record,
            "affinity_file": str(file.relative_to(self.state.directory.path)),
            "tree_hash": proof,
            "seconds_in_all": seconds,
        }
        self.family.record(line)
        self.log.decision(line)

    def _record_policy(self) -> None:
        """The policy at the end of a cycle, the same on all ranks."""
        self.step.settle()
        self.state.verify(f"the policy after step {self.progress.iteration}")
        self.ranks.on_first(self.state.write_sharing)
        if self.log:
            self.log.policy({**self.state.standing(), **self.state.policy()})
        self._restart_clock()

    def _count_bad(self, found: Counter[str]) -> None:
        """Count what was left out of the batch that is about to be used, over all ranks."""
        if not found.total():
            return
        total = Counter(self.progress.num_bad) + found
        problem = describe_too_many_bad(total, self.config.data, self.info, "train")
        if problem is not None:
            self._save()  # without this batch, which the run will meet again
            raise SharedError(problem)
        self.progress.num_bad = dict(total)
        if self.log:
            self.log.note("bad_samples", iteration=self.progress.iteration + 1, counts=dict(total))

    # ---- what is kept and shown

    def _save(self) -> None:
        """One checkpoint; all ranks learn whether it could be written."""
        progress = self.progress
        if self._saved_at == progress.iteration:
            return
        self.step.settle()
        self.step.check_losses()
        affinity = tensors_of_ranks(self.stats, self.ranks) if progress.growing else {}
        progress.seconds += self._window.take_seconds()
        self.ranks.on_first(lambda: self._write_checkpoint(affinity))
        self._saved_at = progress.iteration
        if self.ranks.world_size > 2 and self.ranks.device.type == "cpu":
            # DDP orders its buckets anew after the first step of a wrapper, and a sum of three or more depends on the order:
            # with a fresh wrapper the run that goes on and the one that is resumed from here take the same path.
            self.net.wrap()

    def _write_checkpoint(self, affinity: dict[str, Tensor]) -> None:
        self.state.write_checkpoint(affinity)
        if self.log:
            self.log.flush()
        self.state.mirror.send()

    def _log_step(self) -> None:
        measured = self._window.take(self.net.network.tasks.names)
        if self.log:
            self.log.train({**self.state.standing(), **measured})

    def _tell_resumed(self) -> None:
        """After the first new step."""
        if self.log and self._resumed_at is not None:
            self.log.resumed(self._resumed_at, self.ranks.world_size, self.state.rounding[-1])
        self._resumed_at = None

    def _evaluate(self, split: str) -> dict[str, Any] | None:
        if split not in self.info.splits:
            return None
        self.step.settle()
        self.ranks.on_first(self.state.check_finite)
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
            self.log.evaluation(split, self.progress.iteration, scores)
        self._restart_clock()
        return scores

    def _finish(self) -> RunResult:
        self._save()
        scores = {split: self._evaluate(split) for split in ("val", "test")}
        metrics = {split: score for split, score in scores.items() if score is not None}
        architecture = self.state.architecture
        summary = summarise(self.config, architecture, metrics) | {
            "seconds": self.progress.seconds,
            "world_size": self.ranks.world_size,
            "bad_samples": self.progress.num_bad,
        }
        self.ranks.on_first(lambda: self._write_end(summary))
        return RunResult(metrics, architecture.tree, self.state.directory.path, summary)

    def _write_end(self, summary: dict[str, Any]) -> None:
        self.state.write_end(summary)
        self._profiler.close()
        if self.log:
            self.log.close()
        self.state.mirror.send()

    def _restart_clock(self) -> None:
        self.progress.seconds += self._window.take_seconds()
        self._window.restart_clock()
