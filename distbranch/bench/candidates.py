"""The networks that `bench latency` measures: of runs, or trees of random weights, and the networks that stand beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor, nn

from distbranch.branching.tree import Split, Tree
from distbranch.engine.artifact import load_model
from distbranch.errors import UserError, reason_of
from distbranch.models.backbones import Architecture, LayerShape
from distbranch.models.cost import num_weights
from distbranch.models.networks import Network, network_of
from distbranch.models.residual import AnyArchitecture, shared_policy
from distbranch.models.tree_net import TreeNet
from distbranch.tasks import Task


@dataclass(frozen=True)
class Candidate:
    """A network to measure.

    `copies`: networks that run one after another; one is measured, the time counts so often. `is_baseline`: it stands beside those
    that are asked about; the first baseline is the thin network, which all are relative to.
    """

    name: str
    network: Network
    copies: int = 1
    is_baseline: bool = False


def list_runs(runs: Sequence[Path]) -> list[Candidate]:
    """The runs' networks.

    Raises:
        UserError: no run there, or the runs are of different image sizes or tasks.
    """
    networks = [load_model(run)[0] for run in runs]
    kinds = {(network.architecture.image_size, network.architecture.tasks) for network in networks}
    if len(kinds) > 1:
        raise UserError(
            "Latencies are compared between runs of the same image size and tasks, but these differ. Measure them one by one."
        )
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # `a/mine b/mine`: only the whole path tells them apart
        names = list(map(str, runs))
    return list(map(Candidate, names, networks))


def list_baselines(architecture: AnyArchitecture, against: Sequence[str]) -> list[Candidate]:
    """Thin (of a residual network: shared), independent and full networks for the same tasks and images."""
    thin = _share_everything(architecture, architecture.tasks)
    alone = _share_everything(architecture, architecture.tasks[:1])
    num_tasks = len(thin.tasks)
    name = f"thin-{thin.width or thin.width_fraction or thin.backbone}"
    # Random weights, for an answer takes as long with any.
    baselines = [
        Candidate(name, _build_random(thin), is_baseline=True),
        Candidate(f"independent ({num_tasks} x {name})", _build_random(alone), num_tasks, is_baseline=True),
    ]
    for backbone in against:
        full = Architecture.thin(backbone, None, thin.image_size, thin.tasks)
        baselines.append(Candidate(backbone, _build_random(full), is_baseline=True))
    return baselines


def _share_everything(architecture: AnyArchitecture, tasks: tuple[Task, ...]) -> AnyArchitecture:
    """The network of these tasks in which all of them share everything."""
    if isinstance(architecture, Architecture):
        return architecture.thin_of(tasks)
    return replace(architecture, tasks=tasks, policy=shared_policy(len(tasks), architecture.num_blocks))


def _build_random(architecture: AnyArchitecture) -> Network:
    return network_of(architecture).eval()


# ---- trees without a run


def numbered_tasks(count: int) -> tuple[Task, ...]:
    """So many binary tasks."""
    return tuple(Task(f"task {number}") for number in range(count))


def branch_counts(tree: Tree) -> str:
    """The number of branches of every layer, from the input up: `1-1-2-4`."""
    counts = [tree.num_branches(layer) for layer in range(1, tree.num_layers + 1)]
    return "-".join(map(str, counts))


def read_tree(file: Path) -> Tree:
    """The tree of a run's tree.json.

    Raises:
        UserError: the file holds no tree.
    """
    try:
        content = json.loads(file.read_text())
        # A run writes its tree beside the names of the tasks.
        return Tree.from_json(content.get("tree", content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} holds no tree ({reason_of(error)}). Give the tree.json of a run.") from None


def list_trees(
    backbone: str,
    width: int,
    image_size: tuple[int, int],
    num_tasks: int,
    *,
    weights: Sequence[float],
    file: Path | None,
) -> list[Candidate]:
    """The tree of a file, or else one of at least so many weights for each of `weights`, all with random weights."""
    if file is not None:
        tree = read_tree(file)
        trees = [Architecture(backbone, width, image_size, numbered_tasks(tree.num_tasks), tree)]
    else:
        thin = Architecture.thin(backbone, width, image_size, numbered_tasks(num_tasks))
        # Two numbers of weights may ask for the same tree, which is measured once.
        trees = list(dict.fromkeys(grow_to_weights(thin, least) for least in weights))
    return [Candidate(f"tree of {num_weights(tree):,} weights", _build_random(tree)) for tree in trees]


def grow_to_weights(thin: Architecture, least_weights: float) -> Architecture:
    """The tree of at least so many weights with the fewest branches, every layer having half as many as the one above.

    Raises:
        UserError: even one branch per task in the top layer gives fewer.
    """
    num_tasks = len(thin.tasks)
    for widest in range(1, num_tasks + 1):
        grown = thin
        count = widest
        while count > 1 and grown.tree.active_layer:
            tree = grown.tree
            above = np.arange(tree.num_branches(tree.active_layer + 1))
            parts = np.array_split(above, count)
            groups = tuple(tuple(part.tolist()) for part in parts)
            grown = grown.with_tree(tree.split(Split(tree.active_layer, groups)))
            count = (count + 1) // 2  # rounded up, or three branches would become one
        if num_weights(grown) >= least_weights:
            return grown
    raise UserError(
        f"A halved tree of {num_tasks} tasks of width {thin.width} has at most {num_weights(grown):,} weights, fewer than "
        f"{least_weights:,.0f}. Ask for fewer, or for more tasks."
    )


# ---- a tree as one would write it first


class NaiveNet(nn.Module):
    """The network of a tree as modules within modules, with a head of its own for every task."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: TreeNet) -> None:
        super().__init__()
        architecture = network.architecture
        tree = architecture.tree
        self.tasks = architecture.tasks
        self.parents = [tree.parents(layer) for layer in range(1, tree.num_layers + 2)]
        self.layers = nn.ModuleList()
        for shape, branches in zip(architecture.shapes, network.layers.values(), strict=True):
            copies = [_make_naive_branch(shape, branch) for branch in cast(nn.ModuleList, branches)]
            self.layers.append(nn.ModuleList(copies))
        # Ours are one matrix; every task gets its rows.
        heads = network.heads.state_dict()
        width = architecture.shapes[-1].width
        self.heads = nn.ModuleList()
        for columns in network.tasks.columns.values():
            head = nn.Linear(width, columns.stop - columns.start)
            head.load_state_dict({key: value[columns] for key, value in heads.items()})
            self.heads.append(head)
        self.register_buffer("mean", network.mean.clone())
        self.register_buffer("std", network.std.clone())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, K] of every task."""
        features = [(images.float() / 255 - self.mean) / self.std]
        *layers, top = self.parents
        for parents, branches in zip(layers, self.layers, strict=True):
            branches = cast(nn.ModuleList, branches)
            features = [branch(features[parent]) for parent, branch in zip(parents, branches, strict=True)]
        answers = {}
        for parent, task, head in zip(top, self.tasks, self.heads, strict=True):
            answers[task.name] = head(features[parent])
        return answers


def _make_naive_branch(shape: LayerShape, branch: nn.Module) -> nn.Sequential:
    parts: list[nn.Module]
    if shape.layer.kind == "conv":
        parts = [
            nn.Conv2d(shape.num_inputs, shape.width, 3, padding=1, bias=False),
            nn.BatchNorm2d(shape.width),
            nn.ReLU(inplace=True),
        ]
        if shape.layer.pool_after:
            parts.append(nn.MaxPool2d(2))
    else:
        parts = [
            nn.Flatten(),
            nn.Linear(shape.num_inputs, shape.width, bias=False),
            nn.BatchNorm1d(shape.width),
            nn.ReLU(inplace=True),
        ]
    naive = nn.Sequential(*parts)
    # The same tensors in the same order under other names.
    values = branch.state_dict().values()
    naive.load_state_dict(dict(zip(naive.state_dict(), values, strict=True)))
    return naive
