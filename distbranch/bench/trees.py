"""Trees to measure without training one: described by a number of weights, read from a run, or grown on planted statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distbranch.bench.decide import planted_statistics
from distbranch.branching.tree import Split, Tree
from distbranch.config import MethodConfig
from distbranch.engine.round_decision import decide, may_still_grow
from distbranch.errors import UserError, reason_of
from distbranch.models.backbones import Architecture
from distbranch.models.cost import num_weights
from distbranch.permissions import denied
from distbranch.tasks import Task


def branch_counts(tree: Tree) -> str:
    """The number of branches of every layer, from the input up: `1-1-2-4`."""
    return "-".join(str(tree.num_branches(layer)) for layer in range(1, tree.num_layers + 1))


def read_tree(file: Path) -> Tree:
    """The tree of a run's tree.json.

    Raises:
        UserError: the file holds no tree.
    """
    try:
        content = json.loads(file.read_text())
        return Tree.from_json(content.get("tree", content))
    except PermissionError as error:
        raise denied(error) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} holds no tree ({reason_of(error)}). Give the tree.json of a run.") from None


def thin_and_tree(width: int, image_size: tuple[int, int], file: Path | None) -> dict[str, Architecture]:
    """A thin VGG-16 of 40 binary tasks, and the tree of a file or the one that it grows into (alpha 2, phi)."""
    tree = None if file is None else read_tree(file)
    tasks = _tasks(40 if tree is None else tree.num_tasks)
    thin = Architecture.thin("vgg16", width, image_size, tasks)
    wide = grown(thin, MethodConfig(alpha=2.0, affinity="phi")) if tree is None else thin.with_tree(tree)
    return {f"thin-{width}": thin, f"tree-{width}": wide}


def described_trees(
    backbone: str,
    width: int,
    image_size: tuple[int, int],
    num_tasks: int,
    *,
    weights: Sequence[float],
    file: Path | None,
) -> list[Architecture]:
    """The tree of a file, or else one of at least so many weights for each of `weights`."""
    if file is not None:
        tree = read_tree(file)
        return [Architecture(backbone, width, image_size, _tasks(tree.num_tasks), tree)]
    thin = Architecture.thin(backbone, width, image_size, _tasks(num_tasks))
    return list(dict.fromkeys(halved_to(thin, least) for least in weights))


def _tasks(count: int) -> tuple[Task, ...]:
    return tuple(Task(f"task {number}") for number in range(count))


def grown(thin: Architecture, method: MethodConfig) -> Architecture:
    """The tree into which a thin network grows by this program's own decisions on planted statistics."""
    stats, architecture, growing = planted_statistics(len(thin.tasks)), thin, True
    while growing:
        (ruling,) = decide(stats, architecture, [method], seed=0)
        if ruling.split is not None:
            architecture = architecture.with_tree(architecture.tree.split(ruling.split))
        growing = may_still_grow(architecture.tree, ruling, method)
    return architecture


def halved_to(thin: Architecture, least_weights: float) -> Architecture:
    """The tree of at least so many weights with the fewest branches, every layer having half as many as the one above.

    Raises:
        UserError: even one branch per task in the top layer gives fewer.
    """
    num_tasks = len(thin.tasks)
    for widest in range(1, num_tasks + 1):
        grown, count = thin, widest
        while count > 1 and grown.tree.active_layer:
            tree = grown.tree
            above = np.arange(tree.num_branches(tree.active_layer + 1))
            groups = tuple(tuple(int(branch) for branch in group) for group in np.array_split(above, count))
            grown, count = grown.with_tree(tree.split(Split(tree.active_layer, groups))), (count + 1) // 2
            count = min(count, len(groups) - 1)
        if num_weights(grown) >= least_weights:
            return grown
    raise UserError(
        f"A halved tree of {num_tasks} tasks of width {thin.width} has at most {num_weights(grown):,} weights, fewer than "
        f"{least_weights:,.0f}. Ask for fewer, or for more tasks."
    )
