"""Evaluation of one split, divided over the ranks so that every sample counts exactly once."""

from collections import Counter
from typing import Any

import numpy as np
import torch

from distbranch.config import DataConfig
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks
from distbranch.engine.loading import open_evaluation
from distbranch.models.networks import Network
from distbranch.tasks import task_metrics


@torch.no_grad()
def evaluate(
    network: Network, info: DatasetInfo, split: str, ranks: Ranks, data: DataConfig, *, batch_size: int
) -> dict[str, Any]:
    """Loss and metrics (in 0..1) of a network on one split; the same on every rank.

    Returns:
        {"loss", "num_samples", "bad_samples", "mean": {...}, "tasks": {name: {...}}}; see `tasks.task_metrics`.

    Raises:
        UserError: a bad sample under `on_bad_sample: fail`, on all ranks.
    """
    training = network.training
    network.eval()
    parts: list[tuple[Any, Any, Any]] = []
    num_bad: Counter[str] = Counter()
    error = None
    size = network.architecture.image_size
    for batch in open_evaluation(info, split, data, ranks, image_size=size, batch_size=batch_size):
        num_bad.update(batch.num_bad)
        error = error or batch.error
        if error:
            break
        if len(batch.images):
            outputs = network(batch.images.to(ranks.device, non_blocking=True), flat=True)
            parts.append((batch.indices.numpy(), outputs.float().cpu().numpy(), batch.labels.numpy()))
    network.train(training)
    ranks.raise_together(error)
    num_outputs, num_tasks = network.tasks.num_outputs, network.tasks.num_tasks
    empty = (np.zeros(0, int), np.zeros((0, num_outputs), np.float32), np.zeros((0, num_tasks), np.float32))
    own = tuple(np.concatenate(column) for column in zip(empty, *parts, strict=True))
    every = ranks.gather((own, num_bad))
    scores = _score(network, every) if ranks.is_first else None
    result: dict[str, Any] = ranks.broadcast(scores)
    return result


def _score(network: Network, every: list[tuple[Any, Counter[str]]]) -> dict[str, Any]:
    indices, outputs, labels = (np.concatenate(column) for column in zip(*(own for own, _ in every), strict=True))
    order = np.argsort(indices, kind="stable")
    outputs, labels = outputs[order], labels[order]
    losses = network.tasks.losses(torch.from_numpy(outputs), torch.from_numpy(labels)).double()
    num_bad = sum((bad for _, bad in every), Counter())
    return {
        "loss": float(losses.sum() / max(1, len(outputs))),
        "num_samples": len(outputs),
        "bad_samples": dict(num_bad),
        **task_metrics(network.tasks.tasks, outputs, labels),
    }
