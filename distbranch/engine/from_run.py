"""A run that begins from an earlier one (`model.from_run`): its tree or policy, and its weights by the names of tasks.

What becomes of tasks and weights is in models/transplant.py. A run that was begun has all that on record, in from_run.json, and
needs the earlier one no more.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from distbranch.config import Config, DataConfig
from distbranch.data.mixture import add_tasks
from distbranch.data.shards import DatasetInfo
from distbranch.engine.artifact import Preprocessing, load_model
from distbranch.engine.run_directory import RunDirectory, get_finished_run, write_json
from distbranch.engine.run_start import begins_anew
from distbranch.engine.task_placement import Placement, place_tasks
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.models.transplant import Beginning, match_tasks, transplant_weights
from distbranch.permissions import explain_damage

logger = logging.getLogger("distbranch")


def read_architecture(config: Config, thin: Architecture) -> Architecture:
    """The network of a run with `model.from_run`, as it was begun; before that with new tasks on any branch.

    Args:
        config: of the run.
        thin: what it describes without an earlier run.

    Raises:
        UserError: the earlier run has not finished, or does not fit.
    """
    if _holds_record(config):
        return Architecture.from_json(_read_record(config)["architecture"])
    earlier, beginning = _read_earlier(config, thin)
    return _make_architecture(earlier.architecture, beginning, config)


def add_earlier_tasks(config: Config, info: DatasetInfo) -> DatasetInfo:
    """The data with the tasks of the earlier run that they lack, unlabelled, where `train.only: new` keeps those.

    Raises:
        UserError: the earlier run has not finished.
    """
    if config.train.only != "new":
        return info
    if _holds_record(config):
        return add_tasks(info, Architecture.from_json(_read_record(config)["architecture"]).tasks)
    files = get_finished_run(Path(str(config.model.from_run)), "model.from_run")
    network, _ = load_model(files.path)
    return add_tasks(info, match_tasks(network.tasks.tasks, info.tasks, keeps=True).tasks)


def read_new_tasks(config: Config) -> tuple[str, ...]:
    """The names of the tasks whose heads began at random, of a run that was begun.

    Raises:
        UserError: the file that says so is damaged.
    """
    return tuple(_read_record(config)["new"])


def begin_from_run(
    net: TrainedNetwork, config: Config, info: DatasetInfo, thin: Architecture
) -> None:
    """Give a run its first network, the same on every rank; all must call it. What was taken is written to from_run.json.

    Raises:
        SharedError: the earlier run has not finished, or does not fit.
    """
    # The files of the earlier run need to be seen by rank 0 alone.
    ranks = net.ranks
    loaded = ranks.run_only_on_rank_zero(lambda: _read_earlier(config, thin))
    found = None if loaded is None else (loaded[0].architecture, loaded[1])
    design, beginning = ranks.broadcast(found)
    earlier = Network(design, config.data.mean, config.data.std) if loaded is None else loaded[0]
    earlier.to(ranks.device)
    ranks.broadcast_tensors(list(earlier.state_dict().values()))

    # Its weights of labels are numbers by now.
    counted = config.model_copy(update={"loss": net.loss})
    placements = place_tasks(earlier, beginning, info, counted, ranks)
    beginning = beginning.placed({name: found.origin for name, found in placements.items()})
    architecture = _make_architecture(design, beginning, config)
    net.new_tasks = beginning.new
    overwrite = partial(
        transplant_weights,
        earlier=earlier.cpu(),
        origins=beginning.origins,
        new=beginning.new,
    )
    net.begin(architecture, config.seed, overwrite=overwrite)
    ranks.run_on_rank_zero(lambda: _record(config, architecture, beginning, placements))


def check_colours(preprocessing: Preprocessing, data: DataConfig, what: str) -> None:
    """Refuse a network whose filters are made for pixels of another scale; `what` it is, for people."""
    for key in ("mean", "std"):
        theirs, own = getattr(preprocessing, key), getattr(data, key)
        if theirs != own:
            raise UserError(
                f"{what} was trained with data.{key}={list(theirs)}, this one with {list(own)}. Give the same."
            )


def _read_earlier(config: Config, thin: Architecture) -> tuple[Network, Beginning]:
    """The network of the earlier run, for images of the size of this one, and what becomes of its tasks."""
    place = f"model.from_run={config.model.from_run}"
    files = get_finished_run(Path(str(config.model.from_run)), "model.from_run")
    network, preprocessing = load_model(files.path)
    check_colours(preprocessing, config.data, f"The run of {place}")
    found = network.architecture
    if found.baseline is not None or found.backbone.low_rank:
        raise UserError(
            f"{place} should be a run with a tree or a policy, found one whose tasks share all layers in another way. Give another run."
        )
    _check_same_network(found, thin, place)
    keeps = config.train.only == "new"
    beginning = match_tasks(found.tasks, thin.tasks, keeps=keeps)
    if keeps and not beginning.new:
        raise UserError(
            f"train.only=new trains tasks that {place} lacks, and the data have none. Leave it out to train all of them further."
        )
    policy = found.policy
    if policy is not None and all(map(all, policy)):
        policy = None  # all tasks share all units, as in a tree without branches
    if policy is not None and (config.method.name == "branching" or config.method.split_from):
        raise UserError(
            f"{place} has a policy by which tasks skip units, and no branches grow beside it. Use method.name=fixed without "
            "method.split_from."
        )
    design = replace(
        found,
        backbone=replace(found.backbone, image_size=thin.image_size),
        policy=policy,
        dense_head=thin.dense_head,
    )
    return network.rebuilt(design), beginning


def _check_same_network(found: Architecture, thin: Architecture, place: str) -> None:
    """Refuse weights that have no place in what the configuration describes."""
    theirs, own = found.backbone.to_json(), thin.backbone.to_json()
    keys = sorted({*theirs, *own} - {"image_size", "input_affine"})
    changed = [key for key in keys if theirs.get(key) != own.get(key)]
    different = [f"{key} {theirs.get(key)} and not {own.get(key)}" for key in changed]
    if found.dense_tasks and found.dense_head != thin.dense_head:
        different.append(f"heads {asdict(found.dense_head)} and not {asdict(thin.dense_head)}")
    for spec, other in zip(found.specs, thin.specs, strict=False):
        if not different and spec.weights != other.weights:
            different.append(f"images of {found.image_size} and not {thin.image_size}")
    if different:
        raise UserError(
            f"{place} should be of the network that the section model describes, found {'; '.join(different)}. Give the settings of "
            "that run."
        )


def _make_architecture(earlier: Architecture, beginning: Beginning, config: Config) -> Architecture:
    names = earlier.backbone.names
    from_unit = config.method.split_from or names[-1]
    if from_unit not in names:
        raise UserError(
            f"method.split_from should be a unit of model.backbone={config.model.backbone}, found {from_unit}. Its units are "
            f"{', '.join(names)}."
        )
    apart = []
    if config.train.only == "new":
        apart = [n for n, task in enumerate(beginning.tasks) if task.name in beginning.new]
    lowest = names.index(from_unit) + 1
    return earlier.retargeted(beginning.tasks, beginning.origins, apart=apart, lowest=lowest)


# ---- what a run has on record of its beginning


def _holds_record(config: Config) -> bool:
    return RunDirectory(config.run_directory).from_run.exists() and not begins_anew(config)


def _read_record(config: Config) -> dict[str, Any]:
    file = RunDirectory(config.run_directory).from_run
    with explain_damage(f"{file} is damaged", "Use --fresh to start over in a new directory."):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def _record(
    config: Config,
    architecture: Architecture,
    beginning: Beginning,
    placements: Mapping[str, Placement],
) -> None:
    """Write what was taken, and tell what was not."""
    run = config.model.from_run
    changed = [name for name in beginning.new if name not in beginning.unplaced]
    if beginning.left_out:
        logger.warning(
            "model.from_run=%s has tasks that the data lack; they are left out: %s.",
            run,
            ", ".join(beginning.left_out),
        )
    if changed:
        logger.warning(
            "model.from_run=%s has these tasks with another kind or other classes, so their heads begin at random: %s.",
            run,
            ", ".join(changed),
        )
    record = {
        "run": run,
        "taken": [task.name for task in architecture.tasks if task.name not in beginning.new],
        "new": beginning.new,
        "changed": changed,
        "left_out": beginning.left_out,
        "placed": {name: asdict(found) for name, found in placements.items()},
        "architecture": architecture.to_json(),
    }
    write_json(RunDirectory(config.run_directory).from_run, record)
