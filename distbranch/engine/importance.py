"""Measures how much every channel matters to every task (branching/importance.py), over a fixed sample of the training split.

It is needed at decisions only: no step computes anything for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor

from distbranch.branching.importance import Importance
from distbranch.config import Config
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks
from distbranch.engine.loaders import open_sample
from distbranch.models.network import Network

NUM_SAMPLES = 1024
# Samples are taken in by chunks that are the same for any number of ranks: another chunk would round otherwise.
CHUNK = 32


def measure_importance(
    network: Network, layers: Sequence[int], info: DatasetInfo, config: Config, ranks: Ranks
) -> Importance:
    """Of every layer [T, C] the sum over the sample of (f dL/df)^2 per task and channel, f after pooling and ReLU.

    Of a task whose way leads through a branch of the layer, f is what that branch gives. All ranks must call it, and rank 0 has
    the sums of all of them. The network computes in eval mode and float32.

    Args:
        network: as it stands.
        layers: units of it (0..L-1), input first (`importance.choose_layers`).
        info: whose training split is read, without augmentation.
        config: its `seed` chooses the sample.
        ranks: this process among the others, each of which takes every W-th chunk.
    """
    began = time.perf_counter()
    training = network.training
    network.eval()
    widths = [network.architecture.specs[layer].width for layer in layers]
    num_tasks = network.tasks.num_tasks
    sums = [
        torch.zeros(num_tasks, width, dtype=torch.float64, device=ranks.device) for width in widths
    ]
    size = network.architecture.image_size
    num_samples = min(NUM_SAMPLES, count_samples(info))
    batches = open_sample(
        info, config, ranks, image_size=size, num_samples=num_samples, chunk=CHUNK
    )
    problem = None
    with closing(batches):
        for batch in batches:
            problem = batch.error
            if problem is not None:
                break
            images = batch.images.to(ranks.device)
            labels = batch.labels.to(ranks.device)
            for total, part in zip(
                sums, _square_sums(network, layers, images, labels), strict=True
            ):
                total += part
    network.train(training)
    ranks.raise_on_all_ranks(problem)

    flat = ranks.sum_on_rank_zero(torch.cat([total.flatten() for total in sums]))
    parts = torch.split(flat.cpu(), [total.numel() for total in sums])
    pairs = zip(parts, widths, strict=True)
    return Importance(
        tuple(part.view(num_tasks, width).numpy() for part, width in pairs),
        tuple(network.architecture.backbone.names[layer] for layer in layers),
        num_samples,
        time.perf_counter() - began,
    )


def count_samples(info: DatasetInfo) -> int:
    """Samples of the training split, of all data sets together."""
    return sum(member.splits["train"].num_samples for member in info.members)


def _square_sums(
    network: Network, layers: Sequence[int], images: Tensor, labels: Tensor
) -> list[Tensor]:
    """Of every layer [T, C]: one backward pass per task, from its loss down to the lowest layer."""
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        outputs, features = network.run_with_features(images, layers)
        losses = network.tasks.compute_losses(outputs, labels).sum(dim=0)
        nodes = [node for layer in features for node in layer]
        rows: list[list[Tensor]] = []
        for task, loss in enumerate(losses):
            is_last = task == len(losses) - 1
            gradients = torch.autograd.grad(
                loss, nodes, retain_graph=not is_last, allow_unused=True
            )
            rows.append(_sum_squares(features, gradients))
    return [torch.stack(layer) for layer in zip(*rows, strict=True)]


def _sum_squares(
    features: Sequence[Sequence[Tensor]], gradients: Sequence[Tensor | None]
) -> list[Tensor]:
    """Of every layer [C] in float64, for one task, whose way leads through one branch of each."""
    waiting = iter(gradients)
    found = []
    for layer in features:
        pairs = zip(layer, islice(waiting, len(layer)), strict=True)
        own = [node.detach() * gradient for node, gradient in pairs if gradient is not None]
        effects = _sum_positions(sum(own, start=torch.zeros_like(layer[0])))
        found.append(effects.double().square().sum(dim=0))
    return found


def _sum_positions(values: Tensor) -> Tensor:
    """[B, C] of [B, C, h, w], of tokens [B, N, C], or of what has no positions."""
    if values.ndim == 4:
        return values.sum(dim=(2, 3))
    return values.sum(dim=1) if values.ndim == 3 else values
