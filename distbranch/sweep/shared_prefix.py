"""Shared beginnings: trials that are the same run until they first decide differently are trained as one until then.

The work of a sweep is thereby not its list of trials but the runs that can be trained now (`ready`). Each is an ordinary run
in an ordinary directory, trained by whoever trains runs; when it forks (engine/forks.py), more become ready. All that is to be
done is read from the directories, so after any interruption the same call says what is left.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distbranch.config import Config, MethodConfig, to_yaml
from distbranch.config.network import KEYS_OF_DECISIONS
from distbranch.engine.forks import Origin, copy_as, make_member_config, read_family, write_family
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, created_atomically, write_atomically, write_json
from distbranch.engine.run_log import DrawDecision, write_tensorboard
from distbranch.engine.run_start import check_run


def group_by_prefix(trials: Sequence[Config]) -> list[list[Config]]:
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


def trainable_groups(trials: Sequence[Config]) -> list[list[Config]]:
    """The families that can be trained now or are being trained, each with its leader first; the largest families first.

    A trial is led by another one until it decides otherwise: then it gets a directory of its own and is in a family of its
    own here; one that never does gets its directory from `copy_result_to_followers`. Trials without directory or leader are begun: one
    of each family becomes its leader. One process of a sweep calls this, as often as it has room for a run.

    Args:
        trials: resolved configurations (absolute paths) with names of their own and the same `run.directory`; finished ones too.

    Raises:
        UserError: the directory of a trial that was never begun holds other files.
    """
    by_name = {str(trial.run.name): trial for trial in trials}
    bonds = _read_groups(by_name)
    leader_of: dict[str, str] = {}
    # A leader that was killed while some were leaving still lists those whom another one leads from that step on.
    for name, (relatives, _) in sorted(bonds.items(), key=lambda item: _begins_at(item[1][1])):
        leader_of |= {relative: name for relative in relatives if relative not in bonds}
    for leader, *others in group_by_prefix([by_name[name] for name in by_name if name not in {*bonds, *leader_of}]):
        _begin(leader, others)
        leader_of |= {str(other.run.name): str(leader.run.name) for other in others}
        bonds[str(leader.run.name)] = {}, None
    found: dict[str, list[Config]] = {
        name: [by_name[name]] for name in bonds if not RunDirectory(by_name[name].run_directory).result.exists()
    }
    for name, leader_name in leader_of.items():
        if name in by_name:
            found.setdefault(leader_name, [by_name[leader_name]]).append(by_name[name])
    return sorted(found.values(), key=len, reverse=True)


def _read_groups(by_name: Mapping[str, Config]) -> dict[str, tuple[dict[str, MethodConfig], Origin | None]]:
    """What `read_family` says of every trial that has a directory.

    A leader may be parting from some just now. It gives them a directory before it leaves them out of its own family, so
    who is missing from a family that was read has a directory when one looks again.
    """
    files = {name: RunDirectory(trial.run_directory) for name, trial in by_name.items()}
    bonds: dict[str, tuple[dict[str, MethodConfig], Origin | None]] = {}
    while new := [name for name in files if name not in bonds and files[name].config.exists()]:
        bonds |= {name: read_family(files[name]) for name in new}
    return bonds


def _begin(leader: Config, others: Sequence[Config]) -> None:
    for trial in (leader, *others):
        check_run(trial)
    with created_atomically(leader.run_directory) as files:
        write_atomically(files.config, to_yaml(leader))
        write_family(files, {str(other.run.name): other.method for other in others}, None)


def _begins_at(origin: Origin | None) -> int:
    return origin.iteration if origin else 0


def copy_result_to_followers(leader: Config, draw: DrawDecision | None = None) -> list[str]:
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
    origin = Origin(str(leader.run.name), leader.train.iterations, result.summary["seconds"])
    configs = [make_member_config(leader, name, method) for name, method in read_family(files)[0].items()]
    without = [config for config in configs if not RunDirectory(config.run_directory).config.exists()]
    for config in without:
        with created_atomically(config.run_directory) as own:
            copy_as(config, files, own)
            for folder, copy in ((files.checkpoints, own.checkpoints), (files.model, own.model)):
                shutil.copytree(folder, copy, copy_function=_link_or_copy)
            write_family(own, {}, origin)
            write_tensorboard(own, draw)
            write_json(own.result, result.summary | {"name": config.run.name})
    return [str(config.run.name) for config in without]


def _link_or_copy(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, copy)


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


def measure_saving(trials: Sequence[Config]) -> Saving:
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
        _, origin = read_family(RunDirectory(trial.run_directory))
        num_trials += 1
        steps_alone += trial.train.iterations
        steps += trial.train.iterations - _begins_at(origin)
        seconds_alone += result.summary["seconds"]
        seconds += result.summary["seconds"] - (origin.seconds if origin else 0.0)
    return Saving(num_trials, steps, steps_alone, seconds, seconds_alone)
