"""Evaluation of one split, divided over the ranks so that every sample counts exactly once.

Of several data sets each is scored alone, on its own tasks, and the scores are then put together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distbranch.config import DataConfig
from distbranch.data.mixture import member_names
from distbranch.data.shards import DatasetInfo
from distbranch.engine.batches import describe_too_many_bad, open_evaluation
from distbranch.engine.distributed import Ranks
from distbranch.errors import SharedError, UserError
from distbranch.metrics import merge_metrics, task_metrics
from distbranch.models.networks import Network
from distbranch.tasks import TaskSet

Scores = dict[str, Any]
Share = tuple[Tensor, Tensor, Tensor]  # indices [n], logits [n, O] and labels [n, T], on the CPU


@torch.no_grad()
def evaluate(
    network: Network,
    info: DatasetInfo,
    split: str,
    ranks: Ranks,
    data: DataConfig,
    *,
    batch_size: int,
    bf16: bool = False,
) -> Scores:
    """Loss and metrics (in 0..1) of a network on one split; the same on every rank.

    Args:
        network: has all tasks of the data, and perhaps others.
        info: a data set, or several as one.
        split: of the data; those of several data sets that lack it are left out.
        ranks: this process among the others.
        data: how samples are read.
        batch_size: images per rank.
        bf16: whether the forward pass is in it, as it was in training.

    Returns:
        {"loss", "num_samples", "bad_samples", "mean": {...}, "tasks": {name: {...}}}, see `metrics.task_metrics`; of several
        data sets `metrics.merge_metrics`, and "datasets": {name: the same of each, on the tasks that it labels}.

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
    scores = {}
    for name, member in having.items():
        own, num_bad = _own_share(network, member, split, ranks, data, batch_size=batch_size, bf16=bf16)
        scores[name] = _score_together(own, num_bad, member, split, ranks, data)
    network.train(training)
    return _together(scores) if info.parts else scores.popitem()[1]


def _own_share(
    network: Network, info: DatasetInfo, split: str, ranks: Ranks, data: DataConfig, *, batch_size: int, bf16: bool
) -> tuple[Share, Counter[str]]:
    """This rank's samples, and how many were left out, by kind."""
    parts: list[Share] = []
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
                with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
                    outputs = network(batch.images.to(ranks.device, non_blocking=True), flat=True)
                parts.append((batch.indices, outputs.float().cpu()[:, columns], batch.labels))
    except UserError as failure:  # the loader itself: a process of it died
        error = str(failure)
    ranks.raise_on_all_ranks(error)
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, tasks.num_outputs), torch.zeros(0, tasks.num_tasks)
    indices, outputs, labels = (torch.cat(column) for column in zip(nothing, *parts, strict=True))
    return (indices, outputs, labels), num_bad


def _score_together(
    own: Share, num_bad: Counter[str], info: DatasetInfo, split: str, ranks: Ranks, data: DataConfig
) -> Scores:
    """The scores of all ranks' shares, found by rank 0, which alone receives them."""
    tasks = TaskSet(info.tasks)
    counts, kinds, not_finite = zip(*ranks.gather((len(own[0]), num_bad, _not_finite(tasks, own[1]))), strict=True)
    num_bad = sum(kinds, Counter())
    problem = describe_too_many_bad(num_bad, data, info, split)
    if problem is None and not any(counts):
        problem = f"No sample of '{split}' could be read, so nothing is left to evaluate on. Repair {info.path}, or pack it again."
    bad = min((task for task in not_finite if task is not None), default=None)
    if problem is None and bad is not None:
        problem = (
            f"The outputs of the network on '{split}' are not finite (first those of task '{tasks.names[bad]}'), so they have no "
            "score. Train it anew with a lower optim.lr or train.clip_norm, or with train.precision=fp32."
        )
    if problem is not None:
        raise SharedError(problem)
    every = [ranks.gather_rows(column) for column in own]
    scores: Scores = ranks.broadcast(_score(tasks, every, num_bad) if ranks.is_first else None)
    return scores


def _not_finite(tasks: TaskSet, outputs: Tensor) -> int | None:
    """The first task with logits [n, O] that no metric takes; finite weights may give them too."""
    good = outputs.isfinite().all(dim=0)
    bad = (number for number, columns in enumerate(tasks.columns.values()) if not good[columns].all())
    return next(bad, None)


def _score(tasks: TaskSet, every: Sequence[Sequence[Tensor]], num_bad: Counter[str]) -> Scores:
    """`every`: indices [n], logits [n, O] and labels [n, T], each of every rank."""
    indices, outputs, labels = (torch.cat(list(column)).numpy() for column in every)
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
