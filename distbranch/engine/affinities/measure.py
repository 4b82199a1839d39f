"""Measures any kind of affinity on a network as it stands, over a fixed sample of the training split.

A kind of its own sums (`MEASURED`) is needed at decisions only, where no step computes anything for it. Those of pairs (`agreement`,
`phi`, a plug-in's) come from the steps of training there; here they are computed from the margins of the sample, as if none had aged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from distbranch.branching.affinity import AffinityStats, check_affinity
from distbranch.config import Config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.affinities import MEASURED, MeasuredAffinity
from distbranch.engine.affinities.kind import Sums
from distbranch.engine.distributed import Ranks
from distbranch.engine.loaders import open_sample
from distbranch.maps import AnyLabels, join_labels
from distbranch.models.network import Network

NUM_SAMPLES = 1024
# Pairs are counted, and what is difficult is rare: as many as weigh in the sums of training, 64 images in each of 1 / (1 - 0.99) steps.
NUM_SAMPLES_OF_PAIRS = 8192
# Samples are taken in by chunks that are the same for any number of ranks: another chunk would round otherwise.
CHUNK = 32


def measure_affinity(
    kind: str, network: Network, layer: int, info: DatasetInfo, config: Config, ranks: Ranks
) -> MeasuredAffinity:
    """The affinity of every two tasks. All ranks must call it; the matrix is the same on all, the sums are those of all on rank 0.

    The network computes in eval mode and float32, and is left as it was.

    Args:
        kind: one of `MEASURED` or of `branching.affinity.AFFINITIES`.
        network: as it stands.
        layer: the lowest one to be split (1..L, input first). Those up to it have one branch.
        info: whose training split is read, without augmentation.
        config: its `seed` chooses the sample.
        ranks: this process among the others, each of which takes every W-th chunk.

    Raises:
        UserError: no such kind, one that gives no affinities, or data that cannot be read; the same on every rank.

    Example:
        >>> found = measure_affinity("importance", network, 8, info, config, Ranks.alone())
        >>> found.matrix  # [T, T]
    """
    began = time.perf_counter()
    if kind in MEASURED:
        num_samples = min(NUM_SAMPLES, count_samples(info))
        units = MEASURED[kind].choose_units(network.routing.units, layer - 1)
        sums = _add_chunks(kind, network, units, info, config, ranks, num_samples)
        compute = MEASURED[kind].compute_affinity
        num_tasks = network.tasks.num_tasks
        matrix = ranks.run_on_rank_zero(lambda: check_affinity(compute(sums), kind, num_tasks))
    else:
        num_samples = min(NUM_SAMPLES_OF_PAIRS, count_samples(info))
        units = []
        stats = _count_pairs(network, info, config, ranks, num_samples)
        matrix = ranks.run_on_rank_zero(lambda: stats.affinity(kind))
        agree, pairs, signs = stats.gap.cpu().numpy()
        sums = {"agree": agree, "pairs": pairs, "signs": signs}
    layers = tuple(network.routing.units[unit] for unit in units)
    return MeasuredAffinity(matrix, layers, sums, num_samples, time.perf_counter() - began)


def count_samples(info: DatasetInfo) -> int:
    """Samples of the training split, of all data sets together."""
    return sum(member.splits["train"].num_samples for member in info.members)


def _add_chunks(
    kind: str,
    network: Network,
    units: list[int],
    info: DatasetInfo,
    config: Config,
    ranks: Ranks,
    num_samples: int,
) -> Sums:
    """The sums over all chunks, by name: those of all ranks by one message, on rank 0."""
    sums: dict[str, Tensor] = {}

    def add(images: Tensor, labels: AnyLabels) -> None:
        with torch.enable_grad():
            found = MEASURED[kind].sum_chunk(network, units, images, labels)
        for name, part in found.items():
            sums[name] = sums.get(name, 0) + part.detach().double()

    visit_sample(add, network, info, config, ranks, num_samples)
    # A rank may have no chunk of a small sample, but rank 0 has the first one.
    shapes = ranks.broadcast({name: tuple(part.shape) for name, part in sums.items()})
    parts = []
    for name, shape in shapes.items():
        nothing = torch.zeros(shape, dtype=torch.float64, device=ranks.device)
        parts.append(sums.get(name, nothing).flatten())
    flat = ranks.sum_on_rank_zero(torch.cat(parts)).numpy()
    ends = np.cumsum([len(part) for part in parts])
    pieces = zip(shapes.items(), np.split(flat, ends[:-1]), strict=True)
    return {name: piece.reshape(shape) for (name, shape), piece in pieces}


def _count_pairs(
    network: Network, info: DatasetInfo, config: Config, ranks: Ranks, num_samples: int
) -> AffinityStats:
    """The sums of pairs over the sample without decay, of all ranks on rank 0."""
    num_tasks = network.tasks.num_tasks
    margins = [torch.zeros(0, num_tasks, device=ranks.device)]
    observed = [torch.zeros(0, num_tasks, device=ranks.device, dtype=torch.bool)]

    @torch.no_grad()
    def keep(images: Tensor, labels: AnyLabels) -> None:
        outputs = network(images, flat=True)
        margins.append(network.tasks.compute_margins(outputs, labels))
        observed.append(~labels.isnan())

    visit_sample(keep, network, info, config, ranks, num_samples)
    # The mean margins of the whole sample tell what is difficult, so pairs are counted when all are known.
    stats = AffinityStats(num_tasks, decay=1.0, device=ranks.device)
    own = stats.margin_sums(torch.cat(margins), torch.cat(observed))
    stats.add_margins(ranks.sum(own))
    stats.add_pairs(torch.cat(margins), torch.cat(observed))
    return stats.with_pair_sums(ranks.sum_on_rank_zero(stats.pair_sums()))


def visit_sample(
    visit: Callable[[Tensor, AnyLabels], None],
    network: Network,
    info: DatasetInfo,
    config: Config,
    ranks: Ranks,
    num_samples: int,
) -> None:
    """Show this rank's chunks, images and labels, one by one, with the network in eval mode and without autocast."""
    training = network.training
    network.eval()
    size = network.architecture.image_size
    batches = open_sample(
        info, config, ranks, image_size=size, num_samples=num_samples, chunk=CHUNK
    )
    problem = None
    with closing(batches), torch.autocast(ranks.device.type, enabled=False):
        for batch in batches:
            problem = batch.error
            if problem is not None:
                break
            labels = join_labels(batch.labels, batch.maps)
            visit(batch.images.to(ranks.device), labels.to(ranks.device))
    network.train(training)
    ranks.raise_on_all_ranks(problem)
