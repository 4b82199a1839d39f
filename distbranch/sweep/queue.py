"""The queue from which Ray Tune takes its work, and which grows while it runs.

Its unit is a family: trials that one process trains, because they begin alike. Families come from roots: trials that were one
family at the beginning. When a family forks, more families of its root become ready. Tune knows each as one trial of its own.
"""

import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from ray.tune import Callback
from ray.tune.search import Searcher

from distbranch.config import Config
from distbranch.engine.run_log import Report
from distbranch.errors import UserError
from distbranch.launch.ray_folder import explain_full_folder
from distbranch.sweep.trial_status import FAILED, STOPPED_EARLY, UNFINISHED, SweepDirectory

Family = Sequence[Config]  # its leader first
Judge = Callable[[Config, int, float], bool]


class FamilyQueue(Searcher):  # type: ignore[misc]
    """Hands out families, judges their trials, records what ends them.

    Args:
        roots: trials still to be trained, those that begin alike together.
        ready: the families of a root that can be trained now or are being trained, read from their run directories.
        directory: of the sweep.
        concurrency: families at the same time.
        judge: whether a trial goes on after so many steps with such a value (early stopping).
        propose: asked for more roots when there is room for them; none when there will be no more.
        report: told when a trial begins and how it ends.
    """

    def __init__(
        self,
        roots: Iterable[Family],
        *,
        ready: Callable[[Family], Sequence[Family]],
        directory: SweepDirectory,
        concurrency: int,
        report: Report,
        judge: Judge = lambda *_: True,
        propose: Callable[[], Iterable[Family]] = lambda: (),
    ) -> None:
        super().__init__()
        self.roots, self.ready = deque(roots), ready
        self.directory, self.concurrency, self.report = directory, concurrency, report
        self.judge, self.propose = judge, propose
        self.waiting = deque[tuple[Family, Family]]()  # (family, root)
        self.running: dict[str, tuple[Family, Family]] = {}
        self.closed = False
        self._ended = set[str]()  # in this session: a failed one is tried again by the next command, not by this one
        self._lost: dict[str, tuple[Family, Family]] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next family as Tune's configuration; None for `ask again`."""
        if len(self.running) >= self.concurrency:
            return None
        if not self.closed:
            self._fill()
        if self.closed or not self.waiting:
            return None if self.running else Searcher.FINISHED
        family, root = self.waiting.popleft()
        self.running[trial_id] = family, root
        self.report({"kind": "begun", "trial": family[0].run.name, "family": [config.run.name for config in family]})
        return {
            "leader": json.dumps(family[0].model_dump(mode="json"))
        }  # as text: Tune copies and flattens what it gets

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An evaluation is judged; after a decision more families may be ready."""
        if trial_id not in self.running:
            return
        family, root = self.running[trial_id]
        if result.get("kind") == "decision" and len(root) > 1:
            self._look_at(root)
        elif result.get("kind") == "evaluation":
            self._judge(family, result["iteration"], result["value"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A family has ended. Lost ones (`error`) are explained by `Losses`, which is asked next."""
        family, root = self.running.pop(trial_id)
        if error or result is None:
            self._lost[trial_id] = family, root
        else:
            self._settle(family, root, result.get("reason"))

    def on_lost(self, trial_id: str, reason: str) -> None:
        """The process of a family was lost for good."""
        if trial_id in self._lost:
            self._settle(*self._lost.pop(trial_id), reason)

    def _fill(self) -> None:
        while not self.waiting:
            if not self.roots:
                self.roots.extend(self.propose())
            if not self.roots:
                return
            self._look_at(self.roots.popleft())

    def _look_at(self, root: Family) -> None:
        """Let those families of a root wait that are ready and not known yet; those that run lose who has left them."""
        known = {family[0].run.name for family, _ in (*self.waiting, *self.running.values())} | self._ended
        statuses = self.directory.read_statuses([str(config.run.name) for config in root])
        known |= {name for name, standing in statuses.items() if standing.status == STOPPED_EARLY}
        try:
            found = self.ready(root)
        except UserError as error:
            return self._end(root, str(error))
        by_leader = {family[0].run.name: family for family in found}
        for trial_id, (family, its_root) in self.running.items():
            self.running[trial_id] = by_leader.get(family[0].run.name, family), its_root
        self.waiting.extendleft((family, root) for family in reversed(found) if family[0].run.name not in known)
        return None

    def _judge(self, family: Family, iteration: int, value: float) -> None:
        """A trial that does not pass is asked to stop by the stop word of its run, never from outside.

        What a family reaches together counts for each of its trials, but stops none: they will differ.
        """
        passes, *_ = [self.judge(config, iteration, value) for config in family]
        leader, *others = family
        if passes or others or iteration >= leader.train.iterations:
            return
        name = str(leader.run.name)
        reason = f"{value:.4f} on val after {iteration} steps is not among the best of its size"
        self.directory.end(name, STOPPED_EARLY, reason, iteration)
        self.directory.run(name).stop_word.touch()

    def _settle(self, family: Family, root: Family, failure: str | None) -> None:
        """Tell how the trials ended that were still together, then look for what else has become ready."""
        try:
            still = next((list(other) for other in self.ready(root) if other[0].run.name == family[0].run.name), [])
        except UserError as error:
            still, failure = list(family), failure or str(error)
        finished = [config for config in family if self.directory.run(str(config.run.name)).result.exists()]
        self._end([*finished, *(config for config in still if config not in finished)], failure)
        self._look_at(root)

    def _end(self, family: Family, failure: str | None) -> None:
        """Trials that neither finished nor were stopped early have failed, or wait for the same command."""
        names = [str(config.run.name) for config in family if config.run.name not in self._ended]
        self._ended.update(names)
        for name, standing in self.directory.read_statuses(names).items():
            status, reason = standing.status if standing.is_settled else UNFINISHED, standing.reason
            if failure and not standing.is_settled:
                status, reason = FAILED, failure
                self.directory.end(name, FAILED, failure)
            self.report({"kind": "ended", "trial": name, "status": status, "reason": reason})

    def __getstate__(self) -> dict[str, Any]:
        """What Tune writes beside its own state, for people: a sweep goes on from its run directories and never reads it."""
        return {"waiting": [family[0].run.name for family, _ in self.waiting]}

    def save(self, checkpoint_path: str) -> None:
        """Write the names of what waits."""
        with open(checkpoint_path, "w") as file:
            json.dump(self.__getstate__(), file)

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the roots were read from the run directories when this queue was made."""


class Losses(Callback):  # type: ignore[misc]
    """Tells the queue why a process was lost; Tune tells a searcher only that it was."""

    def __init__(self, queue: FamilyQueue) -> None:
        self.queue = queue

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The last line of what Tune wrote about the error."""
        del iteration, trials
        lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
        reason = explain_full_folder() or (lines[-1] if lines else "its process was lost")[:300]
        self.queue.on_lost(trial.trial_id, reason)

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
        self._seen: defaultdict[tuple[Hashable, int], dict[str, tuple[int, float]]] = defaultdict(dict)

    def passes(self, trial: str, size_class: Hashable, iteration: int, value: float) -> bool:
        """Whether a trial that has reached `value` (larger is better) after `iteration` steps should go on.

        A trial is judged once per rung, at its first evaluation there, and never by what others reached with more steps. The
        first ones of a class always pass: with fewer than `reduction` of them nothing is known yet.
        """
        rung = self.rung(iteration)
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

    def rung(self, iteration: int) -> int | None:
        """The number of the last rung at or before `iteration`, None before the first."""
        if iteration < self.grace:
            return None
        return math.floor(math.log(iteration / self.grace, self.reduction) + 1e-9)
