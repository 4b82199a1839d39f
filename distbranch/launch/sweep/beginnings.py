"""Shared beginnings: trials that are the same run until they first decide differently are trained as one until then.

The work of a sweep is thereby not its list of trials but the runs that can be trained now (`ready`). Each is an ordinary run
in an ordinary directory, trained by whoever trains runs; when it forks (engine/forks.py), more become ready. All that is to be
done is read from the directories, so after any interruption the same call says what is left.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distbranch.config import Config, to_yaml
from distbranch.engine.forks import KEYS_OF_DECISIONS, Origin, copy_as, member, read_family, write_family
from distbranch.engine.metrics import DrawDecision, write_tensorboard
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, made_aside, write_aside, write_json


def families(trials: Sequence[Config]) -> list[list[Config]]:
    """Trials that begin as the same run, together, in the order of their first members.

    They may differ in `run.name` and in what acts only at decisions: `method.alpha`, `unit_cost`, `max_branches`, `affinity`
    and `when_no_split`. A trial that takes no decision has none but itself.
    """
    found: dict[str, list[Config]] = {}
    for trial in trials:
        found.setdefault(_beginning(trial), []).append(trial)
    return list(found.values())


def _beginning(trial: Config) -> str:
    values = trial.model_dump(mode="json")
    if trial.method.name == "branching":
        del values["run"]["name"]
        for key in KEYS_OF_DECISIONS:
            del values["method"][key]
    return json.dumps(values, sort_keys=True)


def ready(trials: Sequence[Config]) -> list[Config]:
    """The runs that can be trained now or are being trained, those with most relatives first.

    Trials that have no directory and no leader yet are begun: one of each family becomes its leader. A trial that is led by
    another one is not listed; it gets its directory when it leaves its leader (and is listed then) or from `share_result`.
    One process of a sweep calls this, as often as it has room for a run.

    Args:
        trials: resolved configurations (absolute paths) with names of their own and the same `run.directory`.

    Raises:
        UserError: a directory belongs to another configuration, or holds other files.
    """
    begun, led = [], set()
    for trial in trials:
        files = RunDirectory(trial.run_directory)
        files.check(trial)
        if files.config.exists():
            begun.append(trial)
            led |= set(read_family(files)[0])
    names = {trial.run.name for trial in begun} | led
    for family in families([trial for trial in trials if trial.run.name not in names]):
        _begin(family)
        begun.append(family[0])
    left = [(len(without_result(trial)), trial) for trial in begun]
    return [trial for number, trial in sorted(left, key=lambda pair: -pair[0]) if number]


def _begin(family: Sequence[Config]) -> None:
    leader, *others = family
    with made_aside(leader.run_directory) as files:
        write_aside(files.config, to_yaml(leader))
        write_family(files, {str(other.run.name): other.method for other in others}, None)


def without_result(trial: Config) -> list[str]:
    """The names of those whose result depends on this run now: the run itself and its relatives; empty when all is done."""
    files = RunDirectory(trial.run_directory)
    own = [] if files.result.exists() else [str(trial.run.name)]
    relatives = read_family(files)[0]
    return own + [name for name in relatives if not RunDirectory(trial.run_directory.with_name(name)).config.exists()]


def share_result(leader: Config, draw: DrawDecision | None = None) -> list[str]:
    """Give the relatives that never decided otherwise than this finished run its result in directories of their own.

    Large files are linked, not copied, where the file system can. Returns the names of those that had none yet.

    Args:
        leader: of the finished run; one that is unfinished or alone is left as it is.
        draw: draws a decision into TensorBoard, as for `train_rank`.
    """
    files = RunDirectory(leader.run_directory)
    result = read_result(files.path)
    if result is None:
        return []
    relatives, names = read_family(files)[0], without_result(leader)
    origin = Origin(str(leader.run.name), leader.train.iterations, result.summary["seconds"])
    for name in names:
        config = member(leader, name, relatives[name])
        with made_aside(config.run_directory) as own:
            copy_as(config, files, own)
            for folder, copy in ((files.checkpoints, own.checkpoints), (files.model, own.model)):
                shutil.copytree(folder, copy, copy_function=_link_or_copy)
            write_family(own, {}, origin)
            write_tensorboard(own, draw)
            write_json(own.result, result.summary | {"name": name})
    return names


def _link_or_copy(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, copy)


def train_families(trials: Sequence[Config], train: Callable[[Config], Any], draw: DrawDecision | None = None) -> None:
    """Train all trials one after another with shared beginnings; `train` trains one run to its end, or goes on with it."""
    while runs := ready(trials):
        if read_result(runs[0].run_directory) is None:
            train(runs[0])
        share_result(runs[0], draw)


@dataclass(frozen=True)
class Saving:
    """What the finished trials of a sweep took, and what they would have taken each by itself."""

    num_trials: int
    steps: int
    steps_alone: int
    seconds: float
    seconds_alone: float

    def __str__(self) -> str:
        """One sentence for people."""
        share = 1 - self.steps / self.steps_alone if self.steps_alone else 0.0
        return (
            f"{self.num_trials} trials: {self.steps:,} steps trained instead of {self.steps_alone:,}: {share:.0%} saved "
            f"({self.seconds:,.0f} s of training instead of {self.seconds_alone:,.0f} s)"
        )


def saving(trials: Sequence[Config]) -> Saving:
    """Steps and seconds of the finished ones among `trials`, with every common beginning counted once.

    Seconds are those of training as in result.json, summed over trials, however many ran at a time. Steps that were
    repeated after an interruption are not counted.
    """
    num_trials = steps = steps_alone = 0
    seconds = seconds_alone = 0.0
    for trial in trials:
        result = read_result(trial.run_directory)
        if result is None:
            continue
        origin = read_family(RunDirectory(trial.run_directory))[1] or Origin("", 0, 0.0)
        num_trials += 1
        steps_alone += trial.train.iterations
        steps += trial.train.iterations - origin.iteration
        seconds_alone += result.summary["seconds"]
        seconds += result.summary["seconds"] - origin.seconds
    return Saving(num_trials, steps, steps_alone, seconds, seconds_alone)
