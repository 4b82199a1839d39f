"""What a report needs of a run directory, read once into one value; what is missing or damaged is said in one sentence.

Only `config.yaml` must exist: an unfinished run, or one that never decides anything, has a report too.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from distbranch.errors import UserError
from distbranch.permissions import denied
from distbranch.report.layers import LayerBranches, layers_from_tree

Json = dict[str, Any]
logger = logging.getLogger("distbranch")


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

    @property
    def name(self) -> str:
        """The name of the run."""
        configured = self.config.get("run", {}).get("name")
        return str((self.result or {}).get("name") or configured or self.directory.name)

    @property
    def method(self) -> str:
        """The sharing method."""
        configured = self.config.get("method", {}).get("name")
        return str((self.result or {}).get("method") or configured or "unknown method")

    def logged(self, kind: str) -> list[Json]:
        """The lines of metrics.jsonl of one kind, by iteration."""
        return [line for line in self.metrics if line["kind"] == kind]

    def scores(self) -> Json:
        """The metrics by split: those of the result, or of the last evaluation of every split so far."""
        if self.result is not None and self.result.get("metrics"):
            return dict(self.result["metrics"])
        return {line["split"]: line for line in self.logged("evaluation")}

    def affinity(self, decision: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The affinity matrices [T, T] of a decision by kind; UserError if the file is absent or damaged."""
        path = self.directory / decision["affinity_file"]
        try:
            # no pickles: they could run code of whoever sent the directory
            with np.load(path, allow_pickle=False) as arrays:
                return {kind: arrays[kind] for kind in ("agreement", "phi") if kind in arrays}
        except FileNotFoundError:
            raise UserError(
                f"{path} should hold the affinity of round {decision['round']}, but it does not exist."
            ) from None
        except PermissionError as error:
            raise denied(error) from None
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(f"{path} should be an .npz file of affinities, but it cannot be read ({error}).") from error


def read_run(run_directory: Path | str) -> RunFiles:
    """Everything a report shows; UserError if this is no run directory or one of its files is damaged."""
    directory = Path(run_directory)
    if not directory.is_dir():
        raise UserError(
            f"{directory} should be a run directory, but it does not exist. Give the folder that `train` wrote."
        )
    config = _read_config(directory / "config.yaml")
    tree = _read_json(directory / "tree.json")
    return RunFiles(
        directory=directory,
        config=config,
        environment=_read_json(directory / "environment.json") or {},
        layers=_read_layers(directory / "tree.json", tree, config) if tree else (),
        decisions=_select_latest(_read_lines(directory / "decisions.jsonl"), ("round",), "round"),
        metrics=_select_latest(_read_lines(directory / "metrics.jsonl"), ("iteration", "kind", "split"), "iteration"),
        result=_read_json(directory / "result.json"),
        policy=_read_json(directory / "policy.json"),
        policies=_select_latest(_read_lines(directory / "policies.jsonl"), ("iteration",), "iteration"),
    )


def task_order(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tasks in the order of the rows of the affinities: the first decision groups the heads by that number."""
    first = decisions[0]
    # the tasks of a group stand in the order of their numbers
    numbered: list[tuple[int, str]] = []
    for group, names in zip(first["groups"], first["tasks"], strict=True):
        numbered += zip(sorted(group), names, strict=True)
    return [task for _, task in sorted(numbered)]


def _read_config(path: Path) -> Json:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a run directory: it has no config.yaml. Give the folder that `train` wrote."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} should be YAML, but it cannot be read ({str(error).splitlines()[0]}).") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} should hold the configuration of a run, but it holds {type(config).__name__}.")
    return config


def _read_json(path: Path) -> Json | None:
    """The object in a JSON file; None if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} should be JSON, but it is damaged ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should be a JSON object, but it holds {type(value).__name__}.")
    return value


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
            if number == len(lines):
                logger.warning("%s ends in an incomplete line, which is left out", path)
                return
            raise UserError(f"{path} is damaged: line {number} should be JSON, but it is not ({error}).") from error
        if not isinstance(value, dict):
            raise UserError(f"{path} is damaged: line {number} should be a JSON object.")
        yield value


def _select_latest(lines: Iterator[Json], keys: tuple[str, ...], order: str) -> tuple[Json, ...]:
    """One line per key, the last one, in order: a continued run logs again what it had done after its checkpoint."""
    latest = {}
    for line in lines:
        if order in line:
            latest[tuple(map(line.get, keys))] = line
    return tuple(sorted(latest.values(), key=lambda line: float(line[order])))


def _read_layers(path: Path, tree: Json, config: Json) -> tuple[LayerBranches, ...]:
    try:
        return layers_from_tree(tree, layer_widths(config))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} should list the layers with their branches, but {error} is missing or wrong."
        ) from error


def layer_widths(config: Json) -> dict[str, int]:
    """Channels of one branch by layer name, from the backbone and the width in the configuration; empty if unknown."""
    from distbranch.models.backbone import (
        SMALLEST_IMAGE,
        VGG_LAYERS,
        Backbone,
    )  # loads torch, which only a report of a tree needs

    model = config.get("model", {})
    # a backbone of a later version has no widths here, but a report
    if model.get("backbone") not in VGG_LAYERS:
        return {}
    backbone = Backbone(
        model["backbone"], (SMALLEST_IMAGE, SMALLEST_IMAGE), model.get("width"), model.get("width_fraction")
    )
    return {plan.name: plan.width for plan in backbone.plans}
