"""The networks that `bench latency` measures: of runs, or trees of random weights, and the networks that stand beside them."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor, nn

from distbranch.branching.tree import Split, Tree
from distbranch.engine.artifact import load_model
from distbranch.errors import UserError, reason_of
from distbranch.maps import resize_maps
from distbranch.models.architecture import Architecture, num_weights
from distbranch.models.backbone import BLOCKS, Backbone
from distbranch.models.network import Network
from distbranch.models.units import Layer, Unit
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
    names = [run.name or str(run) for run in runs]
    if len(set(names)) < len(names):  # `a/mine b/mine`: only the whole path tells them apart
        names = list(map(str, runs))
    return list(map(Candidate, names, networks))


def list_baselines(architecture: Architecture, against: Sequence[str]) -> list[Candidate]:
    """Thin (of a residual network: shared), independent and full networks for the same tasks and images."""
    thin = architecture.shared_by(architecture.tasks)
    alone = architecture.shared_by(architecture.tasks[:1])
    num_tasks = len(thin.tasks)
    size = thin.backbone.width or thin.backbone.width_fraction or thin.backbone.source
    if thin.backbone.widths is not None:
        size = "-".join(str(width) for width, _ in itertools.groupby(thin.backbone.widths))
    name = f"thin-{size}"
    # Random weights, for an answer takes as long with any.
    baselines = [
        Candidate(name, _build_random(thin), is_baseline=True),
        Candidate(
            f"independent ({num_tasks} x {name})", _build_random(alone), num_tasks, is_baseline=True
        ),
    ]
    for backbone in against:
        stride = thin.backbone.output_stride if backbone in BLOCKS else None
        whole = Backbone(backbone, thin.image_size, output_stride=stride)
        full = Architecture(whole, thin.tasks, dense_head=thin.dense_head)
        baselines.append(Candidate(backbone, _build_random(full), is_baseline=True))
    return baselines


def _build_random(architecture: Architecture) -> Network:
    return Network(architecture).eval()


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
        raise UserError(
            f"{file} holds no tree ({reason_of(error)}). Give the tree.json of a run."
        ) from None


def list_trees(
    backbone: str,
    width: int | None,
    image_size: tuple[int, int],
    num_tasks: int,
    *,
    weights: Sequence[float],
    file: Path | None,
) -> list[Candidate]:
    """The tree of a file, or else one of at least so many weights for each of `weights`, all with random weights."""
    if file is not None:
        tree = read_tree(file)
        trees = [
            Architecture.thin(
                backbone, width, image_size, numbered_tasks(tree.num_tasks)
            ).with_tree(tree)
        ]
    else:
        thin = Architecture.thin(backbone, width, image_size, numbered_tasks(num_tasks))
        # Two numbers of weights may ask for the same tree, which is measured once.
        trees = list(dict.fromkeys(grow_to_weights(thin, least) for least in weights))
    return [
        Candidate(f"tree of {num_weights(tree):,} weights", _build_random(tree)) for tree in trees
    ]


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
        f"A halved tree of {num_tasks} tasks of width {thin.backbone.width} has at most {num_weights(grown):,} weights, fewer than "
        f"{least_weights:,.0f}. Ask for fewer, or for more tasks."
    )


# ---- a tree as one would write it first


class NaiveNet(nn.Module):
    """The network of a tree as modules within modules, with a head of its own for every task."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        architecture = network.architecture
        tree = architecture.tree
        self.tasks = architecture.tasks
        self.parents = [tree.parents(layer) for layer in range(1, tree.num_layers + 2)]
        self.layers = nn.ModuleList()
        for name in architecture.backbone.names:
            self.layers.append(
                nn.ModuleList(_make_naive_branch(branch) for branch in network.copies(name))
            )
        self.heads = nn.ModuleList(_take_out_head(network, task) for task in self.tasks)
        # One affine of the colours, also for weights that were trained with other means and deviations.
        mean, std = network.mean.clone(), network.std.clone()
        if network.input_scale is not None and network.input_shift is not None:
            std = std / network.input_scale
            mean = mean - network.input_shift * std
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, K] of every task."""
        features = [(images.float() / 255 - self.mean) / self.std]
        *layers, top = self.parents
        for parents, branches in zip(layers, self.layers, strict=True):
            branches = cast(nn.ModuleList, branches)
            features = [
                branch(features[parent]) for parent, branch in zip(parents, branches, strict=True)
            ]
        answers = {}
        for parent, task, head in zip(top, self.tasks, self.heads, strict=True):
            x = features[parent]
            if task.is_dense:
                answers[task.name] = resize_maps(head(x), images.shape[-2:])
                continue
            answers[task.name] = head(x.mean(dim=(2, 3)) if x.ndim == 4 else x)
        return answers


def _take_out_head(network: Network, task: Task) -> nn.Module:
    """That of a task; our heads of tasks that are not dense are one matrix, of which it gets its rows."""
    if network.heads is None or task.name in network.dense_heads:
        return copy.deepcopy(network.dense_heads[task.name])
    columns = network.tasks.columns[task.name]
    head = nn.Linear(network.heads.in_features, columns.stop - columns.start)
    rows = {key: value[columns] for key, value in network.heads.state_dict().items()}
    head.load_state_dict(rows)
    return head


def _make_naive_branch(unit: Unit) -> nn.Module:
    """A layer in the order of the paper, with torch's own batch norm; a block as it is."""
    if not unit.has_one_norm:
        return copy.deepcopy(unit)
    layer = cast(Layer, unit)
    norm = (
        nn.BatchNorm1d(layer.norm.num_features)
        if layer.is_flat
        else nn.BatchNorm2d(layer.norm.num_features)
    )
    norm.load_state_dict(layer.norm.state_dict())
    parts: list[nn.Module] = [nn.Flatten()] if layer.is_flat else []
    parts += [copy.deepcopy(layer.product), norm, nn.ReLU(inplace=True)]
    if layer.pool is not None:
        parts.append(nn.MaxPool2d(*layer.pool))
    return nn.Sequential(*parts)
