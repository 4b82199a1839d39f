"""How a run ends: with a result, or early with a checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distbranch.branching.tree import Tree
from distbranch.config import Config
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import StoppedEarly, UserError, reason_of
from distbranch.models.cost import multiply_adds, num_parameters, num_weights
from distbranch.models.residual import AnyArchitecture
from distbranch.permissions import denied

__all__ = ["RunResult", "StoppedEarly", "read_result", "summarise"]


@dataclass(frozen=True)
class RunResult:
    """What a run gives: the metrics of its splits, the tree, the run directory, and `summary`, the content of result.json."""

    metrics: dict[str, Any]
    tree: Tree
    directory: Path
    summary: dict[str, Any]


def summarise(config: Config, architecture: AnyArchitecture, metrics: dict[str, Any]) -> dict[str, Any]:
    """The content of result.json, but for what only the trainer knows; metrics are in 0..1 per split."""
    tree = architecture.tree
    return {
        "name": config.run.name,
        "method": config.method.name,
        "backbone": config.model.backbone,
        "width": config.model.width,
        "width_fraction": config.model.width_fraction,
        "seed": config.seed,
        "tasks": [task.name for task in architecture.tasks],
        "metrics": metrics,
        "weights": num_weights(architecture),
        "parameters": num_parameters(architecture),
        "multiply_adds": multiply_adds(architecture),
        "num_groups_top": tree.num_branches(tree.num_layers),
        "iterations": config.train.iterations,
    }


def read_result(directory: Path) -> RunResult | None:
    """The result of a finished run, or None if it has not ended.

    Raises:
        UserError: its files are damaged.
    """
    files = RunDirectory(directory)
    if not files.result.exists():
        return None
    try:
        summary = json.loads(files.result.read_text())
        tree = Tree.from_json(json.loads(files.tree.read_text())["tree"])
        return RunResult(summary["metrics"], tree, directory, summary)
    except PermissionError as error:
        raise denied(error) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        of_file = f"{Path(error.filename).name}: " if isinstance(error, OSError) else ""
        raise UserError(
            f"The result of {directory} is damaged ({of_file}{reason_of(error)}). Remove result.json there and run the same command again."
        ) from None
