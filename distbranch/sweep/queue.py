"""The queue from which Ray Tune takes its work, and which grows while it runs.

Its unit is a family: trials that one process trains, because they begin alike. Families come from roots: trials that were one
family at the beginning. When a family forks, more families of its root become ready. Tune knows each as one trial of its own.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune import Callback
from ray.tune.search import Searcher

from distbranch.config import Config
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_log import Report
from distbranch.errors import UserError
from distbranch.launch.ray_folder import explain_full_folder
from distbranch.sweep.plan import Trials
from distbranch.sweep.trial_status import FAILED, STOPPED_EARLY, UNFINISHED, SweepDirectory

SECONDS_BETWEEN_COUNTS = 2.0  # of nodes: a millisecond of the cluster's head each time
Family = Trials  # its leader first
Judge = Callable[[Config, int, float], bool]


@dataclass(eq=False)
class FamilyQueue(Searcher):  # type: ignore[misc]
    """Hands out families, judges their trials, records what ends them.

    Args:
        roots: trials still to be trained, those that begin alike together.
        ready: the families of a root that can be trained now or are being trained, read from their run directories.
        directory: of the sweep.
        concurrency: families at the same time.
        report: told when a trial begins and how it ends.
        judge: whether a trial trains on after so many steps with such a value (early stopping).
        propose: asked for more roots when there is room for them; none when there will be no more.
        count_room: asked for another concurrency every few seconds, for nodes come and go; it stays as it was if None.
    """

    roots: list[Family]
    ready: Callable[[Family], Sequence[Family]] = field(kw_only=True)
    directory: SweepDirectory = field(kw_only=True)
    concurrency: int = field(kw_only=True)
    report: Report = field(kw_only=True)
    judge: Judge = lambda *_: True
    propose: Callable[[], Sequence[Family]] = lambda: ()
    count_room: Callable[[], int] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.roots = list(self.roots)
        self.waiting: list[tuple[Family, Family]] = []  # (family, root)
        self.running: dict[str, tuple[Family, Family]] = {}
        self.closed = False
        self.abandoned = False  # closed, and what runs or waits for room is not waited for
        self._counted_at = time.monotonic()
        self._ended = set[
            str
        ]()  # in this session: a failed one is tried again by the next command, not by this one

    # ---- what Tune calls

    def suggest(self, trial_id: str) -> Any:
        """The next family as Tune's configuration; None for `ask again`."""
        self._follow_cluster()
        if len(self.running) >= self.concurrency:
            return None
        while not self.waiting and not self.closed:
            if not self.roots:
                self.roots.extend(self.propose())
            if not self.roots:
                break
            root = self.roots.pop(0)
            self._queue_families(root, self._read_families(root))
        if self.closed or not self.waiting:
            return None if self.running else Searcher.FINISHED
        family, root = self.waiting.pop(0)
        self.running[trial_id] = family, root
        self.report(
            {
                "kind": "begun",
                "trial": family[0].run.name,
                "family": [config.run.name for config in family],
            }
        )
        # As text, for Tune copies and flattens what it gets.
        return {"leader": family[0].model_dump_json()}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An evaluation is judged; after a decision more families may be ready."""
        if trial_id not in self.running:
            return
        family, root = self.running[trial_id]
        if result.get("kind") == "decision" and len(root) > 1:
            self._queue_families(root, self._read_families(root))
        elif result.get("kind") == "evaluation":
            self._judge(family, result["iteration"], result["value"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A family has ended. Lost ones (`error`) are explained by `LossCallback`, which is asked next."""
        if not error:
            self.settle_family(trial_id, (result or {}).get("reason"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: what is left is read from the run directories by whoever resumes."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    # ---- what follows from it

    def _follow_cluster(self) -> None:
        """Count again what fits: a node that joined is used at once, and nothing waits for one that was lost."""
        if self.count_room is None or time.monotonic() - self._counted_at < SECONDS_BETWEEN_COUNTS:
            return
        self.concurrency = self.count_room()
        self._counted_at = time.monotonic()

    def settle_family(self, trial_id: str, failure: str | None) -> None:
        """Tell how the trials ended that were still together, then look for what else has become ready."""
        family, root = self.running.pop(trial_id)
        # Who has left meanwhile is led by another one, and trains on.
        found = self._read_families(root)
        ended = [config for config in family if RunDirectory(config.run_directory).result.exists()]
        for config in found.get(str(family[0].run.name), []):
            if config not in ended:
                ended.append(config)
        self._end(ended, failure)
        self._queue_families(root, found)

    def _read_families(self, root: Family) -> dict[str, Family]:
        """The families of a root that are ready, by their leader; none of a damaged one, which has failed."""
        try:
            return {str(family[0].run.name): family for family in self.ready(root)}
        except UserError as error:
            self._end(root, str(error))
            return {}

    def _queue_families(self, root: Family, found: Mapping[str, Family]) -> None:
        """Let those families wait that are not known yet; those that run lose who has left them."""
        known = {
            str(family[0].run.name) for family, _ in (*self.waiting, *self.running.values())
        } | self._ended
        for name, trial_status in self.directory.read_statuses(root).items():
            if trial_status.status == STOPPED_EARLY:
                known.add(name)
        for trial_id, (family, its_root) in self.running.items():
            self.running[trial_id] = found.get(str(family[0].run.name), family), its_root
        # Before what waits already: a root that was begun is brought to its end first.
        new = [(family, root) for name, family in found.items() if name not in known]
        self.waiting[:0] = new

    def _judge(self, family: Family, iteration: int, value: float) -> None:
        """A trial that does not pass is asked to stop by the stop word of its run, never from outside.

        What a family reaches together counts for each of its trials, but stops none: they will differ.
        """
        # All are asked, for a judge remembers what each trial has reached.
        passes = [self.judge(config, iteration, value) for config in family]
        leader = family[0]
        if passes[0] or len(family) > 1 or iteration >= leader.train.iterations:
            return
        name = str(leader.run.name)
        reason = f"{value:.4f} on val after {iteration} steps is not among the best of its size"
        self.directory.record_end(name, STOPPED_EARLY, reason, iteration)
        RunDirectory(leader.run_directory).stop_word.touch()

    def _end(self, family: Family, failure: str | None) -> None:
        """Trials that neither finished nor were stopped early have failed, or wait for the same command."""
        new = [config for config in family if config.run.name not in self._ended]
        for name, trial_status in self.directory.read_statuses(new).items():
            self._ended.add(name)
            status, reason = trial_status.status, trial_status.reason
            if not trial_status.is_settled:
                status = UNFINISHED
                if failure:
                    status, reason = FAILED, failure
                    self.directory.record_end(name, FAILED, failure)
            self.report({"kind": "ended", "trial": name, "status": status, "reason": reason})


class LossCallback(Callback):  # type: ignore[misc]
    """Tells the queue why a process was lost; Tune tells a searcher only that it was."""

    def __init__(self, queue: FamilyQueue) -> None:
        self.queue = queue

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The last line of what Tune wrote about the error."""
        del iteration, trials
        # A full disk is told in its own words: what Ray makes of it names no folder.
        lines = str(trial.get_error() or "").split("\n")
        told = [line.strip() for line in lines if line.strip()]
        reason = explain_full_folder() or (told or ["its process was lost"])[-1][:300]
        self.queue.settle_family(trial.trial_id, reason)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SizeClassHalving:
    """Remembers what every trial had reached at each rung.

    Args:
        grace: optimiser steps to the first rung; the next ones are `reduction` times as far each.
        reduction: one of so many trials of a class passes a rung.
    """

    def __init__(self, grace: int, reduction: float) -> None:
        self.grace, self.reduction = grace, reduction
        self._seen: defaultdict[tuple[Hashable, int], dict[str, tuple[int, float]]] = defaultdict(
            dict
        )

    def passes_rung(self, trial: str, size_class: Hashable, iteration: int, value: float) -> bool:
        """Whether a trial that has reached `value` (larger is better) after `iteration` steps should train on.

        A trial is judged once per rung, at its first evaluation there, and never by what others reached with more steps. The
        first ones of a class always pass: with fewer than `reduction` of them nothing is known yet.
        """
        rung = self.find_rung(iteration)
        if rung is None:
            return True
        seen = self._seen[size_class, rung]
        if trial in seen:
            return True
        seen[trial] = iteration, value
        values = [reached for steps, reached in seen.values() if steps <= iteration]
        if len(values) < self.reduction:
            return True
        return value >= float(np.quantile(values, 1 - 1 / self.reduction))

    def find_rung(self, iteration: int) -> int | None:
        """The number of the last rung at or before `iteration`, None before the first."""
        if iteration < self.grace:
            return None
        # A millionth of a millionth more, for log(8) / log(2) may come out below 3.
        return math.floor(math.log(iteration / self.grace, self.reduction) + 1e-9)
