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
from distbranch.models.network import Network
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
    members = zip(member_names(info), info.members, strict=True)
    having = [(name, member) for name, member in members if split in member.splits]
    if not having:
        raise UserError(f"{info.path} has no split '{split}'; it has {', '.join(sorted(info.splits))}.")
    training = network.training
    network.eval()
    scores: dict[str, Scores] = {}
    for name, member in having:
        share, num_bad = _evaluate_share(network, member, split, ranks, data, batch_size=batch_size, bf16=bf16)
        scores[name] = _score_all_shares(share, num_bad, member, split, ranks, data)
    network.train(training)
    return _merge_scores(scores) if info.parts else scores[having[0][0]]


def _evaluate_share(
    network: Network, info: DatasetInfo, split: str, ranks: Ranks, data: DataConfig, *, batch_size: int, bf16: bool
) -> tuple[Share, Counter[str]]:
    """This rank's samples, and how many were left out, by kind."""
    tasks = TaskSet(info.tasks)
    outputs_of_tasks = [range(network.tasks.num_outputs)[network.tasks.columns[name]] for name in tasks.names]
    columns = np.concatenate(outputs_of_tasks)

    # torch.cat takes no empty list, and a rank may have no samples.
    parts: list[Share] = [
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, tasks.num_outputs), torch.zeros(0, tasks.num_tasks))
    ]
    num_bad: Counter[str] = Counter()
    error = None
    size = network.architecture.image_size
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
    indices, outputs, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return (indices, outputs, labels), num_bad


def _score_all_shares(
    share: Share, num_bad: Counter[str], info: DatasetInfo, split: str, ranks: Ranks, data: DataConfig
) -> Scores:
    """The scores of all ranks' shares, computed by rank 0, which alone receives them."""
    tasks = TaskSet(info.tasks)
    found = ranks.gather((len(share[0]), num_bad, _find_not_finite(tasks, share[1])))
    num_samples = sum(count for count, _, _ in found)
    num_bad = sum((bad for _, bad, _ in found), Counter())
    not_finite = [task for _, _, task in found if task is not None]

    problem = describe_too_many_bad(num_bad, data, info, split)
    if problem is None and not num_samples:
        problem = f"No sample of '{split}' could be read, so nothing is left to evaluate on. Repair {info.path}, or pack it again."
    if problem is None and not_finite:
        problem = (
            f"The outputs of the network on '{split}' are not finite (first those of task '{tasks.names[min(not_finite)]}'), so they "
            "have no score. Train it anew with a lower optim.lr or train.clip_norm, or with train.precision=fp32."
        )
    if problem is not None:
        raise SharedError(problem)

    gathered = [ranks.gather_rows(column) for column in share]
    scores = _score_samples(tasks, gathered, num_bad) if ranks.is_first else None
    shared: Scores = ranks.broadcast(scores)
    return shared


def _find_not_finite(tasks: TaskSet, outputs: Tensor) -> int | None:
    """The first task with logits [n, O] that no metric takes; finite weights may give them too."""
    good = outputs.isfinite().all(dim=0)
    for number, columns in enumerate(tasks.columns.values()):
        if not good[columns].all():
            return number
    return None


def _score_samples(tasks: TaskSet, gathered: Sequence[Sequence[Tensor]], num_bad: Counter[str]) -> Scores:
    """`gathered`: indices [n], logits [n, O] and labels [n, T], each of every rank."""
    indices, outputs, labels = (torch.cat(list(column)) for column in gathered)
    # In the order of the data set, so that sums are the same for any number of ranks.
    order = indices.argsort(stable=True)
    outputs = outputs[order]
    labels = labels[order]
    losses = tasks.losses(outputs, labels).double()
    return {
        "loss": float(losses.sum() / len(outputs)),
        "num_samples": len(outputs),
        "bad_samples": dict(num_bad),
        **task_metrics(tasks.tasks, outputs.numpy(), labels.numpy()),
    }


def _merge_scores(datasets: Mapping[str, Scores]) -> Scores:
    """The scores of several data sets as one, with each of them."""
    num_samples = 0
    loss = 0.0
    num_bad: Counter[str] = Counter()
    of_each = {}
    for name, scores in datasets.items():
        num_samples += scores["num_samples"]
        loss += scores["loss"] * scores["num_samples"]
        num_bad += Counter(scores["bad_samples"])
        labelled = {task: row for task, row in scores["tasks"].items() if row["num_labelled"]}
        of_each[name] = scores | {"tasks": labelled}
    return {
        "loss": loss / max(1, num_samples),
        "num_samples": num_samples,
        "bad_samples": dict(num_bad),
        **merge_metrics(list(datasets.values())),
        "datasets": of_each,
    }
