"""Shared beginnings: trials that are the same run until they first decide differently are trained as one until then.

The work of a sweep is thereby not its list of trials but the runs that can be trained now (`ready`). Each is an ordinary run
in an ordinary directory, trained by whoever trains runs; when it forks (engine/forks.py), more become ready. All that is to be
done is read from the directories, so after any interruption the same call says what is left.
"""

import os
import shutil

from distbranch.config import Config
from distbranch.config.unread import KEYS_OF_DECISIONS
from distbranch.engine.forks import Origin, copy_as, make_member_config, read_family, write_family
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import (
    RunDirectory,
    created_atomically,
    write_json,
)
from distbranch.engine.run_start import check_run, write_config
from distbranch.engine.tensorboard_log import DrawDecision, write_tensorboard
from distbranch.launch.jobs import read_summary
from distbranch.sweep.plan import Trials
from distbranch.track import show_finished_run

NO_ORIGIN = Origin("", 0, 0.0)  # of a run that began by itself


def group_by_prefix(trials: Trials) -> list[list[Config]]:
    """Trials that begin as the same run, together, in the order of their first members.

    They may differ in `run.name` and in what acts only at decisions: `method.alpha`, `price`, `unit_cost`, `max_branches`,
    `affinity`, `decision` and `when_no_split`. A trial that takes no decision has none but itself.
    """
    found: dict[str, list[Config]] = {}
    for trial in trials:
        beginning = trial.model_dump_json()
        if trial.method.grows:
            beginning = trial.model_dump_json(
                exclude={"run": {"name"}, "method": set(KEYS_OF_DECISIONS)}
            )
        found.setdefault(beginning, []).append(trial)
    return list(found.values())


def trainable_groups(trials: Trials) -> list[list[Config]]:
    """The families that can be trained now or are being trained, each with its leader first; the largest families first.

    A trial is led by another one until it decides otherwise: then it gets a directory of its own and is in a family of its
    own here; one that never does gets its directory from `copy_result_to_siblings`. Trials without directory or leader are begun: one
    of each family becomes its leader. One process of a sweep calls this, as often as it has room for a run.

    Args:
        trials: resolved configurations (absolute paths) with names of their own and the same `run.directory`; finished ones too.

    Raises:
        UserError: the directory of a trial that was never begun holds other files.
    """
    by_name = {str(trial.run.name): trial for trial in trials}
    families = _read_families(trials)
    leader_of: dict[str, str] = {}
    # A leader that was killed while some were leaving still lists those whom another one leads from that step on.
    for name, (siblings, _) in sorted(families.items(), key=lambda item: item[1][1].iteration):
        leader_of |= {sibling: name for sibling in siblings if sibling not in families}

    # One of those whom nobody leads begins for all that begin as it does.
    alone = [by_name[name] for name in by_name if name not in families and name not in leader_of]
    for together in group_by_prefix(alone):
        leader = _begin(together)
        families[leader] = [], NO_ORIGIN
        leader_of |= {str(other.run.name): leader for other in together[1:]}

    # Leaders that have finished are done, but may have siblings whose directories are still to be made.
    found = {}
    for name in families:
        if not RunDirectory(by_name[name].run_directory).result.exists():
            found[name] = [by_name[name]]
    for name, leader in leader_of.items():
        if name in by_name:
            found.setdefault(leader, [by_name[leader]]).append(by_name[name])
    return sorted(found.values(), key=len, reverse=True)


def _read_families(trials: Trials) -> dict[str, tuple[list[str], Origin]]:
    """What `read_family` says of every trial that has a directory: its siblings and the beginning of its own.

    A leader may be parting from some just now. It gives them a directory before it leaves them out of its own family, so
    who is missing from a family that was read has a directory when one looks again.
    """
    families: dict[str, tuple[list[str], Origin]] = {}
    num_known = -1
    while len(families) > num_known:
        num_known = len(families)
        for trial in trials:
            files = RunDirectory(trial.run_directory)
            if files.path.name not in families and files.config.exists():
                siblings, origin = read_family(files)
                families[files.path.name] = list(siblings), origin or NO_ORIGIN
    return families


def _begin(trials: Trials) -> str:
    for trial in trials:
        check_run(trial)
    leader = trials[0]
    with created_atomically(leader.run_directory) as files:
        write_config(files, leader)
        write_family(files, {str(other.run.name): other.method for other in trials[1:]}, None)
    return str(leader.run.name)


def copy_result_to_siblings(leader: Config, draw: DrawDecision | None = None) -> None:
    """Give the siblings that never decided otherwise than this finished run its result in directories of their own.

    Large files are linked, not copied, where the file system can.

    Args:
        leader: of the finished run; one that is unfinished or alone is left as it is.
        draw: draws a decision into TensorBoard and trackers, as for `train_rank`.
    """
    files = RunDirectory(leader.run_directory)
    result = read_result(files.path)
    if result is None:
        return
    origin = Origin(str(leader.run.name), result.summary["iterations"], result.summary["seconds"])
    for name, method in read_family(files)[0].items():
        config = make_member_config(leader, name, method)
        if RunDirectory(config.run_directory).config.exists():
            continue
        with created_atomically(config.run_directory) as own:
            copy_as(config, files, own)
            # Hundreds of trials may end with one network: their checkpoints take its room once.
            shutil.copytree(files.checkpoints, own.checkpoints, copy_function=_link_or_copy)
            shutil.copytree(files.model, own.model, copy_function=_link_or_copy)
            write_family(own, {}, origin)
            if "tensorboard" in config.track:
                write_tensorboard(own, draw)
            write_json(own.result, result.summary | {"name": name})
        if draw is not None:
            show_finished_run(config, draw)


def _link_or_copy(source: str, copy: str) -> None:
    try:
        os.link(source, copy)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, copy)


def measure_saving(trials: Trials) -> dict[str, float]:
    """Steps and seconds of the finished ones among `trials`, with every common beginning counted once, and as if alone.

    Seconds are those of training as in result.json, summed over trials, however many ran at a time. Steps that were
    repeated after an interruption are not counted.
    """
    found: dict[str, float] = dict.fromkeys(
        ("trials", "steps", "steps_alone", "seconds", "seconds_alone"), 0
    )
    for trial in trials:
        files = RunDirectory(trial.run_directory)
        summary = read_summary(files)
        if summary is None:
            continue
        _, origin = read_family(files)
        origin = origin or NO_ORIGIN
        found["trials"] += 1
        num_steps = summary["iterations"]
        found["steps_alone"] += num_steps
        found["steps"] += num_steps - origin.iteration
        found["seconds_alone"] += summary["seconds"]
        found["seconds"] += summary["seconds"] - origin.seconds
    return found


def describe_saving(trials: Trials) -> str:
    """One sentence for people; nothing where nothing was shared."""
    found = measure_saving(trials)
    if found["steps"] == found["steps_alone"]:
        return ""
    return (
        "Shared beginnings of {trials} trials: {steps:,} steps trained instead of {steps_alone:,}: {share:.0%} saved "
        "({seconds:,.0f} s of training instead of {seconds_alone:,.0f} s)"
    ).format(**found, share=1 - found["steps"] / found["steps_alone"])
