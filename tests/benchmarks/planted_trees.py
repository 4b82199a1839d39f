"""Statistics with planted groups of tasks, and the trees that thin networks grow into by them: networks to measure untrained."""

from __future__ import annotations

from pathlib import Path

import torch

from distbranch.bench.candidates import numbered_tasks, read_tree
from distbranch.branching.affinity import AffinityStats
from distbranch.config import MethodConfig
from distbranch.engine.round_decision import decide_round
from distbranch.models.architecture import Architecture


def planted_statistics(
    num_tasks: int, num_groups: int = 8, num_samples: int = 1000
) -> AffinityStats:
    """Statistics of tasks of which every group shares a part of its margins."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(num_samples, num_groups, generator=generator)[
        :, torch.arange(num_tasks) % num_groups
    ]
    stats = AffinityStats(num_tasks)
    margins = (shared + torch.randn(num_samples, num_tasks, generator=generator)).sigmoid()
    for start in range(0, num_samples, 50):
        stats.update(margins[start : start + 50])
    return stats


def grow_on_planted_statistics(thin: Architecture, method: MethodConfig) -> Architecture:
    """The tree into which a thin network grows by this program's own decisions on planted statistics."""
    stats = planted_statistics(len(thin.tasks))
    architecture = thin
    growing = True
    while growing:
        (ruling,) = decide_round(stats, architecture, [method], seed=0)
        if ruling.split is not None:
            architecture = architecture.with_tree(architecture.tree.split(ruling.split))
        growing = ruling.grows
    return architecture


def build_thin_and_tree(
    width: int, image_size: tuple[int, int], file: Path | None
) -> dict[str, Architecture]:
    """A thin VGG-16 of 40 binary tasks, and the tree of a file or the one that it grows into (alpha 2, phi)."""
    if file is None:
        thin = Architecture.thin("vgg16", width, image_size, numbered_tasks(40))
        grown = grow_on_planted_statistics(thin, MethodConfig(alpha=2.0, affinity="phi"))
    else:
        tree = read_tree(file)
        thin = Architecture.thin("vgg16", width, image_size, numbered_tasks(tree.num_tasks))
        grown = thin.with_tree(tree)
    return {f"thin-{width}": thin, f"tree-{width}": grown}
