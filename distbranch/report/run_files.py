"""What a report needs of a run directory, read once into one value; what is missing or damaged is said in one sentence.

Only `config.yaml` must exist: an unfinished run, or one that never decides anything, has a report too.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from distbranch.engine.provenance import list_starts
from distbranch.errors import UserError
from distbranch.report.layers import LayerBranches, list_layers
from distbranch.tasks import Task

Json = dict[str, Any]
logger = logging.getLogger("distbranch")


@dataclass(frozen=True)
class SampleMaps:
    """A few images of a split and codes of dense tasks: `images` [n, H, W, 3], `truth/TASK` and `found/TASK` [n, H, W, ...]."""

    tasks: Sequence[Task]
    split: str
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RunFiles:
    """One run: its configuration, its tree, its decisions, what was logged, and the result if it has ended."""

    directory: Path
    config: Json
    environment: Json
    layers: tuple[LayerBranches, ...]  # input first; empty if the method grows no tree
    decisions: tuple[Json, ...]
    metrics: tuple[Json, ...]
    result: Json | None
    policy: Json | None = None  # of AdaShare
    policies: tuple[Json, ...] = ()  # of its search, by cycle
    tasks: tuple[
        str, ...
    ] = ()  # in the order of the rows of the affinities; empty if the method grows no tree

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.config.get("run", {}).get("name") or self.directory.name)

    @property
    def began(self) -> datetime | None:
        """When training began; None where neither environment.json nor the names of TensorBoard's files tell it."""
        first = next(iter(list_starts(self.environment)), {})
        if "at" in first:
            return datetime.fromisoformat(first["at"])
        # one of zero seconds stands for the shared beginning of a sweep's trials, or for a scout
        files = self.directory.glob("tensorboard/events.out.tfevents.[1-9]*")
        seconds = min((int(file.name.split(".")[3]) for file in files), default=None)
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

    def select_lines(self, kind: str) -> list[Json]:
        """The lines of metrics.jsonl of one kind, by iteration."""
        return [line for line in self.metrics if line["kind"] == kind]

    def get_scores(self) -> Json:
        """The metrics by split: those of the result, or of the last evaluation of every split so far."""
        if self.result is not None and self.result.get("metrics"):
            return dict(self.result["metrics"])
        return {line["split"]: line for line in self.select_lines("evaluation")}

    def get_rows(self, split: str) -> Json:
        """The metrics of every task on a split; none if it was not evaluated."""
        return dict(self.get_scores().get(split, {}).get("tasks", {}))

    def read_sample_maps(self) -> SampleMaps | None:
        """A few images with the maps of dense tasks; None without one. UserError if the file is damaged."""
        path = self.directory / "sample_maps.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
            tasks = [Task.from_json(task) for task in json.loads(str(found["tasks"]))]
            return SampleMaps(tasks, str(found["split"]), found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(
                f"{path}, the pictures of the run, cannot be read ({error})."
            ) from error

    def read_affinity(self, decision: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The affinity matrices [T, T] of a decision by kind; UserError if the file is absent or damaged."""
        path = self.directory / decision["affinity_file"]
        try:
            # no pickles: they could run code of whoever sent the directory
            with np.load(path, allow_pickle=False) as arrays:
                # what a measured kind was computed from stands beside the affinities of tasks
                others = ("branch_affinity", f"{decision['affinity_kind']}_of_")
                kinds = [name for name in arrays if not name.startswith(others)]
                return {kind: arrays[kind] for kind in kinds}
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(
                f"{path}, the affinity of round {decision['round']}, cannot be read ({error})."
            ) from error


def read_run(run_directory: Path | str) -> RunFiles:
    """Everything a report shows; UserError if this is no run directory or one of its files is damaged."""
    directory = Path(run_directory)
    if not directory.is_dir():
        raise UserError(
            f"{directory} should be a run directory, but it does not exist. Give the folder that `train` wrote."
        )
    config = _read_object(directory / "config.yaml", yaml.safe_load, "YAML")
    if config is None:
        raise UserError(
            f"{directory} is not a run directory: it has no config.yaml. Give the folder that `train` wrote."
        )
    tree = _read_json(directory / "tree.json")
    try:
        layers = list_layers(tree["layers"] if tree else [])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{directory / 'tree.json'} should list the layers with their branches, but {error} is missing or wrong."
        ) from error
    decisions = _read_log(directory / "decisions.jsonl", "round", "layer_name")
    return RunFiles(
        directory=directory,
        config=config,
        environment=_read_json(directory / "environment.json") or {},
        layers=layers,
        decisions=decisions,
        metrics=_read_log(directory / "metrics.jsonl", "iteration", "kind", "split"),
        result=_read_json(directory / "result.json"),
        policy=_read_json(directory / "policy.json"),
        policies=_read_log(directory / "policies.jsonl", "iteration"),
        tasks=_order_tasks(tree or {}, decisions),
    )


def read_thin(run: RunFiles, against: Path | str | None) -> RunFiles | None:
    """The run that this one is compared with task by task: the one that was given, else its scout; None without one.

    Raises:
        UserError: the given one was not evaluated on the same split and tasks, or is no run directory.
    """
    if against is not None:
        thin = read_run(against)
        split = choose_shown_split(run)
        if not thin.get_rows(split).keys() & run.get_rows(split).keys():
            raise UserError(
                f"{against} should be a run that was evaluated on {split or 'a split'} and tasks of {run.directory}, found none of them. "
                "Give another one with --against."
            )
        return thin
    scout = run.config.get("method", {}).get("scout") or run.directory / "scout"
    if not (Path(scout) / "result.json").is_file():
        return None
    return read_run(scout)


def choose_shown_split(run: RunFiles) -> str:
    """The split whose tasks are shown: test, else val, else any; empty if nothing was evaluated yet."""
    known = sorted(split for split, scores in run.get_scores().items() if scores.get("tasks"))
    for split in ("test", "val", *known):
        if split in known:
            return split
    return ""


def _order_tasks(tree: Json, decisions: Sequence[Json]) -> tuple[str, ...]:
    """The tasks in the order of the rows of the affinities."""
    if "tasks" in tree:
        return tuple(tree["tasks"])
    # Runs of earlier versions all began with one branch, so that their first decision groups tasks by number.
    named: dict[int, str] = {}
    for decision in decisions[:1]:
        for group, names in zip(decision["groups"], decision["tasks"], strict=True):
            named |= zip(sorted(group), names, strict=True)
    return tuple(named[number] for number in sorted(named))


def _read_json(path: Path) -> Json | None:
    return _read_object(path, json.loads, "JSON")


def _read_object(path: Path, parse: Callable[[str], Any], language: str) -> Json | None:
    """The object in a file; None if there is no such file."""
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} should be {language}, but it is damaged ({reason}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold keys and values, but it holds {type(value).__name__}.")
    return value


def _read_log(path: Path, order: str, *also: str) -> tuple[Json, ...]:
    """One line per `order` and the other keys, the last one: a resumed run logs again what it did after its checkpoint."""
    latest = {}
    for line in _read_lines(path):
        if order in line:
            latest[tuple(map(line.get, (order, *also)))] = line
    return tuple(sorted(latest.values(), key=lambda line: float(line[order])))


def _read_lines(path: Path) -> Iterator[Json]:
    """The objects of a JSON-lines file; a last line that is cut short, as a killed run leaves it, is left out."""
    if not path.exists():
        return
    # a letter that was cut in two is part of the line that is left out
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise UserError(
                    f"{path} is damaged: line {number} should be a JSON object ({error})."
                ) from error
            logger.warning("%s ends in an incomplete line, which is left out", path)
            return
        # not by `dict`, which takes an empty list too
        if not isinstance(value, dict):
            raise UserError(
                f"{path} is damaged: line {number} should be a JSON object, but it is {type(value).__name__}."
            )
        yield value
