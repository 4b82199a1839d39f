"""Evaluation of one split, divided over the ranks so that every sample counts exactly once.

Of several data sets each is scored alone, on its own tasks, and the scores are then put together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from distbranch.config import DataConfig
from distbranch.data.mixture import member_names
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks
from distbranch.engine.loading import open_evaluation, too_many_bad
from distbranch.errors import SharedError, UserError
from distbranch.models.networks import Network
from distbranch.tasks import TaskSet, merge_metrics, task_metrics

Scores = dict[str, Any]


@torch.no_grad()
def evaluate(
    network: Network, info: DatasetInfo, split: str, ranks: Ranks, data: DataConfig, *, batch_size: int
) -> Scores:
    """Loss and metrics (in 0..1) of a network on one split; the same on every rank.

    Args:
        network: has all tasks of the data, and perhaps others.
        info: a data set, or several as one.
        split: of the data; those of several data sets that lack it are left out.
        ranks: this process among the others.
        data: how samples are read.
        batch_size: images per rank.

    Returns:
        {"loss", "num_samples", "bad_samples", "mean": {...}, "tasks": {name: {...}}}, see `tasks.task_metrics`; of several
        data sets `tasks.merge_metrics`, and "datasets": {name: the same of each, on the tasks that it labels}.

    Raises:
        UserError: no such split.
        SharedError: a bad sample under `on_bad_sample: fail`; more of them than may be left out, or no other ones; outputs
            that are not finite.
    """
    members = dict(zip(member_names(info), info.members, strict=True))
    having = {name: member for name, member in members.items() if split in member.splits}
    if not having:
        raise UserError(f"{info.path} has no split '{split}'; it has {', '.join(sorted(info.splits))}.")
    training = network.training
    network.eval()
    scores = {name: _evaluate(network, one, split, ranks, data, batch_size) for name, one in having.items()}
    network.train(training)
    return _together(scores) if info.parts else scores.popitem()[1]


def _evaluate(
    network: Network, info: DatasetInfo, split: str, ranks: Ranks, data: DataConfig, batch_size: int
) -> Scores:
    parts: list[tuple[Any, Any, Any]] = []
    num_bad: Counter[str] = Counter()
    error = None
    size = network.architecture.image_size
    tasks = TaskSet(info.tasks)
    columns = np.concatenate(
        [np.arange(network.tasks.num_outputs)[network.tasks.columns[name]] for name in tasks.names]
    )
    try:
        for batch in open_evaluation(info, split, data, ranks, image_size=size, batch_size=batch_size):
            num_bad.update(batch.num_bad)
            error = batch.error
            if error:
                break
            if len(batch.images):
                outputs = network(batch.images.to(ranks.device, non_blocking=True), flat=True)
                parts.append((batch.indices.numpy(), outputs.float().cpu().numpy()[:, columns], batch.labels.numpy()))
    except UserError as failure:  # the loader itself: a process of it died
        error = str(failure)
    ranks.raise_together(error)
    empty = (np.zeros(0, int), np.zeros((0, tasks.num_outputs), np.float32), np.zeros((0, tasks.num_tasks), np.float32))
    own = tuple(np.concatenate(column) for column in zip(empty, *parts, strict=True))
    shares, bad = zip(*ranks.gather((own, num_bad)), strict=True)
    num_bad = sum(bad, Counter())
    problem = too_many_bad(num_bad, data, info, split)
    if problem is None and not any(len(indices) for indices, *_ in shares):
        problem = f"No sample of '{split}' could be read, so nothing is left to evaluate on. Repair {info.path}, or pack it again."
    problem = problem or _not_finite(tasks, shares, split)
    if problem is not None:
        raise SharedError(problem)
    scores = _score(tasks, shares, num_bad) if ranks.is_first else None
    result: Scores = ranks.broadcast(scores)
    return result


def _not_finite(tasks: TaskSet, shares: Sequence[Any], split: str) -> str | None:
    """What to say of logits that no metric takes; finite weights may give them too."""
    good = np.logical_and.reduce([np.isfinite(outputs).all(axis=0) for _, outputs, _ in shares])
    bad = next((name for name, columns in tasks.columns.items() if not good[columns].all()), None)
    if bad is None:
        return None
    return (
        f"The outputs of the network on '{split}' are not finite (first those of task '{bad}'), so they have no score. "
        "Train it anew with a lower optim.lr or train.clip_norm, or with train.precision=fp32."
    )


def _score(tasks: TaskSet, shares: Sequence[Any], num_bad: Counter[str]) -> Scores:
    indices, outputs, labels = (np.concatenate(column) for column in zip(*shares, strict=True))
    order = np.argsort(indices, kind="stable")
    outputs, labels = outputs[order], labels[order]
    losses = tasks.losses(torch.from_numpy(outputs), torch.from_numpy(labels)).double()
    return {
        "loss": float(losses.sum() / len(outputs)),
        "num_samples": len(outputs),
        "bad_samples": dict(num_bad),
        **task_metrics(tasks.tasks, outputs, labels),
    }


def _together(datasets: Mapping[str, Scores]) -> Scores:
    """The scores of several data sets as one, with each of them."""
    every = list(datasets.values())
    num_samples = sum(one["num_samples"] for one in every)
    return {
        "loss": sum(one["loss"] * one["num_samples"] for one in every) / max(1, num_samples),
        "num_samples": num_samples,
        "bad_samples": dict(sum((Counter(one["bad_samples"]) for one in every), Counter())),
        **merge_metrics(every),
        "datasets": {name: one | {"tasks": _labelled(one["tasks"])} for name, one in datasets.items()},
    }


def _labelled(rows: Mapping[str, Scores]) -> dict[str, Scores]:
    return {name: row for name, row in rows.items() if row["num_labelled"]}
