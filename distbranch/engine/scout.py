"""A tree that is decided before the first step (`method.begin: anew`): a scout is trained to its end, and says who shares what.

The scout is an ordinary thin run in a run directory of its own, `scout/` within that of the run. The decision is decisions.jsonl,
written in one step: a line for a block of layers, or one for each layer. While it is not there it is taken, and once it is there
it is read and never taken again. So whoever resumes the run finds in its files how far it has come, and all that follows is the
training of a tree that is given.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import Config, load_config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.affinities import MEASURED, MeasuredAffinity
from distbranch.engine.affinities.measure import measure_affinity
from distbranch.engine.artifact import load_model
from distbranch.engine.block_decision import decide_block, decide_layers, is_within_budget
from distbranch.engine.distributed import Ranks
from distbranch.engine.initialisation import (
    find_lowest_layer,
    first_architecture,
)
from distbranch.engine.results import RunFiles, read_result
from distbranch.engine.run_directory import (
    SCOUT,
    RunDirectory,
    get_finished_run,
    read_first_decision,
    write_atomically,
)
from distbranch.engine.run_log import Event, Report
from distbranch.engine.run_start import begins_anew, write_config
from distbranch.errors import UserError
from distbranch.label_weights import with_counted_weights
from distbranch.losses import build_task_set
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.tasks import Task


def make_scout_config(config: Config) -> Config:
    """The run of the scout that is trained: thin, all else as the run itself, on a schedule of its own in proportion.

    Its first weights come from where those of the run come from.
    """
    steps = config.method.scout_iterations or config.train.iterations
    share = steps / config.train.iterations
    changes = {
        # Beside the files of the run, on this machine: they travel to a URL with those.
        "run": {"name": SCOUT, "directory": str(config.run_directory)},
        "method": config.method.without_branches.model_dump(),
        "train.iterations": steps,
        "optim.warmup": round(config.optim.warmup * share),
        "optim.decay_every": max(1, round(config.optim.decay_every * share)),
    }
    return load_config(config, changes)


def find_scout(config: Config) -> Path:
    """The run directory of the scout: the one that is given, else that of the one that is trained."""
    if config.method.scout is not None:
        return Path(config.method.scout)
    return RunDirectory(config.run_directory).scout


def decide_on_tree(
    config: Config,
    ranks: Ranks,
    info: DatasetInfo,
    *,
    report: Report,
    train_scout: Callable[[Config, RunFiles], None],
) -> None:
    """Have decisions.jsonl hold the decision: at once if it was taken before, else when a scout is trained. All ranks must call it.

    Args:
        config: of a run with a scout.
        ranks: this process among the others.
        info: the packed data.
        report: called on rank 0 with the decision.
        train_scout: trains the run of a configuration with these files to its end.

    Raises:
        SharedError: the scout that is given does not fit, or a file cannot be read or written.
    """
    files = RunFiles(config)

    def look() -> tuple[bool, bool]:
        files.take_over()
        write_config(files.directory, config)
        files.remote_run.upload()  # by its config.yaml a URL is known to hold a run
        is_decided = read_first_decision(files.directory) is not None
        return is_decided, RunDirectory(find_scout(config)).result.exists()

    is_decided, is_trained = ranks.run_on_rank_zero(look)
    if is_decided:
        return
    if config.method.scout is None and not is_trained:
        own_config = make_scout_config(config)
        train_scout(own_config, RunFiles(own_config, files.remote_run))

    began = time.perf_counter()
    scout = _share_scout(config, info, ranks)
    layers = ranks.run_on_rank_zero(lambda: list_lowest_layers(config, scout.architecture))
    measured = measure_affinities(scout, layers, info, config, ranks)

    def decide_and_record() -> list[dict[str, Any]]:
        thin = first_architecture(config, info)
        matrices = {layer: found.matrix for layer, found in measured.items()}
        if config.method.group_layers == "one-by-one":
            decisions = decide_layers(matrices, thin, config)
            names = [f"round-00-{decision['layer_name']}" for decision in decisions]
        else:
            decisions = [decide_block(matrices, thin, config)]
            names = ["round-00"]
        kind, records = config.method.affinity, []
        for name, decision in zip(names, decisions, strict=True):
            # Before the first step, in no round: the rounds of a tree that grows begin with 1.
            record = {"round": 0, "iteration": 0, "epoch": 0.0} | decision
            record["affinity_kind"] = kind
            record[kind] = measured[record["layer"]].describe()
            record["scout"] = describe_scout(config)
            record["affinity_file"] = f"affinity/{name}.npz"
            record["seconds_in_all"] = time.perf_counter() - began
            records.append(record)
        _write_decisions(files, records, measured, kind)
        return records

    for record in ranks.run_on_rank_zero(decide_and_record):
        if ranks.is_first:
            report({"kind": "decision", **record})


def check_scout(config: Config, info: DatasetInfo) -> None:
    """What can be said about scout and tree before anything starts.

    Raises:
        UserError: there is no such unit to split from; the network costs more than its budget even without branches; or the scout
            that is given has not finished or does not fit.
    """
    network = first_architecture(config, info)
    list_lowest_layers(config, network)
    if not is_within_budget(network.tree, network, config.method):
        cost = network.cost()
        raise UserError(
            f"method.budget should have room for the network without branches, found that this takes {cost.weights:,} weights and "
            f"{cost.multiply_adds:,} multiply-adds. Give more, or a thinner network."
        )
    # A run whose tree is decided needs the scout no more, wherever that is now.
    decision = read_first_decision(RunDirectory(config.run_directory))
    if config.method.scout is not None and (decision is None or begins_anew(config)):
        _load_scout(config, info)


def list_lowest_layers(config: Config, architecture: Architecture) -> list[int]:
    """The layers (from 1) whose affinities are asked for.

    Of a block the lowest: the one that is given, else all from the second or `method.lowest` on. Where layers are grouped one by
    one, all from the one that is given, else from the first or `method.lowest`, to the top.

    Raises:
        UserError: there is no unit of that name.
    """
    names = architecture.backbone.names
    lowest = config.method.split_from
    is_one_by_one = config.method.group_layers == "one-by-one"
    if lowest is None:
        first = 1 if is_one_by_one else 2
        least = max(first, find_lowest_layer(config.method, architecture))
        return list(range(least, len(names) + 1))
    if lowest not in names:
        raise UserError(
            f"method.split_from should be a unit of model.backbone={config.model.backbone}, found {lowest}. Its units are "
            f"{', '.join(names)}."
        )
    number = names.index(lowest) + 1
    return list(range(number, len(names) + 1)) if is_one_by_one else [number]


# ---- the scout


def _load_scout(config: Config, info: DatasetInfo) -> Network:
    """The network of the finished scout, if it fits the run.

    Raises:
        UserError: it has not finished, or is of other units, tasks or colours, or has branches.
    """
    place = find_scout(config)
    key = "method.scout"
    get_finished_run(place, key)
    network, preprocessing = load_model(place)
    found, thin = network.architecture, first_architecture(config, info)
    if found.backbone.names != thin.backbone.names:
        raise UserError(
            f"{key}={place} should have the units of model.backbone={config.model.backbone}, found those of {found.backbone.source}. "
            "Give a thin run of the same backbone."
        )
    if found.tree.splits or found.backbone.low_rank or found.baseline is not None:
        raise UserError(
            f"{key}={place} should be a thin network, in which all tasks share every layer (method.name=fixed), found another one."
        )
    names, own_names = ([task.name for task in tasks] for tasks in (found.tasks, thin.tasks))
    if names != own_names or not all(map(Task.is_same_task, found.tasks, thin.tasks)):
        raise UserError(
            f"{key}={place} should be of the {len(own_names)} tasks of the data ({', '.join(own_names[:3])}, ...), in their order and of "
            f"the same kinds and classes, found {len(names)} ({', '.join(names[:3])}, ...). Give a thin run of the same data."
        )
    if (preprocessing.mean, preprocessing.std) != (config.data.mean, config.data.std):
        raise UserError(
            f"{key}={place} was trained with another data.mean or data.std, and channels that matter are those of its own. Give the same."
        )
    return network


def _share_scout(config: Config, info: DatasetInfo, ranks: Ranks) -> Network:
    """The scout's network on every rank; its files need to be seen by rank 0 alone."""
    loaded = ranks.run_only_on_rank_zero(lambda: _load_scout(config, info))
    architecture = ranks.broadcast(loaded.architecture if loaded is not None else None)
    network = loaded or Network(architecture, config.data.mean, config.data.std)
    network.to(ranks.device)
    ranks.broadcast_tensors(list(network.state_dict().values()))
    loss = with_counted_weights(config.loss, info.tasks, info.splits["train"].labels)
    network.tasks = build_task_set(architecture.tasks, loss)
    return network


def report_as_scout(report: Report, event: Event) -> None:
    """Report what happens to the scout as such, so that nobody takes its steps and its scores for those of the run."""
    report({"kind": SCOUT, "event": event})


def describe_scout(config: Config) -> dict[str, Any]:
    """What the finished scout is and cost: steps of so many images, weights, multiply-adds of an image, seconds of training."""
    place = find_scout(config)
    result = read_result(place)
    assert result is not None
    summary = result.summary
    return {
        "directory": config.method.scout or SCOUT,
        "steps": summary["iterations"],
        "batch_size": load_config(RunDirectory(place).config).train.batch_size,
        "weights": summary["weights"],
        "multiply_adds": summary["multiply_adds"],
        "seconds": summary["seconds"],
    }


# ---- what it says


def measure_affinities(
    network: Network, layers: Sequence[int], info: DatasetInfo, config: Config, ranks: Ranks
) -> dict[int, MeasuredAffinity]:
    """The affinity of tasks for a split from each of `layers` (from 1) up to the top. All ranks must call it."""
    kind = config.method.affinity
    if kind not in MEASURED:  # sums of pairs, whichever layer is split
        return dict.fromkeys(
            layers, measure_affinity(kind, network, layers[0], info, config, ranks)
        )
    return {layer: measure_affinity(kind, network, layer, info, config, ranks) for layer in layers}


def _write_decisions(
    files: RunFiles,
    records: Sequence[Mapping[str, Any]],
    measured: Mapping[int, MeasuredAffinity],
    kind: str,
) -> None:
    """Write the matrices, then in one step the lines that say that it is decided."""
    directory = files.directory
    directory.affinity.mkdir(parents=True, exist_ok=True)
    for record in records:
        found = measured[record["layer"]]
        matrices = {f"{kind}_of_{name}": one for name, one in found.sums.items()}
        file = directory.path / record["affinity_file"]
        np.savez(file, allow_pickle=False, **{kind: found.matrix, **matrices})
    write_atomically(directory.decisions, "".join(json.dumps(one) + "\n" for one in records))
    files.remote_run.upload()
