"""Evaluation of one split, divided over the ranks so that every sample counts exactly once.

Of several data sets each is scored alone, on its own tasks, and the scores are then put together.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distbranch.config import DataConfig
from distbranch.data.loader import Batch
from distbranch.data.mixture import member_names
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks
from distbranch.engine.loaders import describe_too_many_bad, open_evaluation
from distbranch.errors import UserError
from distbranch.kinds import Loss
from distbranch.metrics import merge_metrics, task_metrics
from distbranch.models.network import Network
from distbranch.tasks import TaskSet

Scores = dict[str, Any]


@torch.no_grad()
def evaluate_split(
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
    having = {name: member for name, member in members if split in member.splits}
    if not having:
        raise UserError(
            f"{info.path} has no split '{split}'; it has {', '.join(sorted(info.splits))}."
        )
    training = network.training
    network.eval()
    found: dict[str, Scores] = {}
    for name, member in having.items():
        batches = compute_outputs(
            network, member, split, ranks, data, batch_size=batch_size, bf16=bf16
        )
        share, num_bad = _collect_share(batches, network.tasks, TaskSet(member.tasks), ranks)
        columns = [ranks.gather_rows(column) for column in share]
        num_bad = sum(ranks.gather(num_bad), Counter())
        score = partial(_score_samples, member, split, data, columns, num_bad, network.tasks.losses)
        found[name] = ranks.run_on_rank_zero(score)  # which alone has the samples of all
    network.train(training)
    return _merge_scores(found) if info.parts else next(iter(found.values()))


def compute_outputs(
    network: Network,
    info: DatasetInfo,
    split: str,
    ranks: Ranks,
    data: DataConfig,
    *,
    batch_size: int,
    bf16: bool = False,
) -> Iterator[tuple[Batch, Tensor]]:
    """Batch by batch this rank's share of a split, with the outputs [b, O] of the network on the CPU.

    Raises:
        UserError: a bad sample that may not be left out, or a loader that failed.
    """
    size = network.architecture.image_size
    for batch in open_evaluation(info, split, data, ranks, image_size=size, batch_size=batch_size):
        if batch.error:
            raise UserError(batch.error)
        outputs = torch.zeros(0, network.tasks.num_outputs)
        if len(batch.images):
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
                outputs = network(batch.images.to(ranks.device, non_blocking=True), flat=True)
        yield batch, outputs.float().cpu()


def _collect_share(
    batches: Iterator[tuple[Batch, Tensor]], network_tasks: TaskSet, tasks: TaskSet, ranks: Ranks
) -> tuple[list[Tensor], Counter[str]]:
    """This rank's samples as indices [n], logits [n, O] of `tasks` and labels [n, T], and how many were left out, by kind."""
    outputs_of_tasks = [
        range(network_tasks.num_outputs)[network_tasks.columns[name]] for name in tasks.names
    ]
    columns = np.concatenate(outputs_of_tasks)

    # torch.cat takes no empty list, and a rank may have no samples.
    parts = [
        (
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, tasks.num_outputs),
            torch.zeros(0, tasks.num_tasks),
        )
    ]
    num_bad: Counter[str] = Counter()
    problem = None
    try:
        for batch, outputs in batches:
            num_bad.update(batch.num_bad)
            parts.append((batch.indices, outputs[:, columns], batch.labels))
    except UserError as error:
        problem = str(error)
    ranks.raise_on_all_ranks(problem)
    return [torch.cat(column) for column in zip(*parts, strict=True)], num_bad


def _score_samples(
    info: DatasetInfo,
    split: str,
    data: DataConfig,
    gathered: Sequence[Sequence[Tensor]],
    num_bad: Counter[str],
    losses_of_kinds: Mapping[str, Loss],
) -> Scores:
    """`gathered`: indices [n], logits [n, O] and labels [n, T], each of every rank."""
    problem = describe_too_many_bad(num_bad, data, info, split)
    if problem is not None:
        raise UserError(problem)
    indices, outputs, labels = (torch.cat(list(column)) for column in gathered)
    if not len(indices):
        raise UserError(
            f"No sample of '{split}' could be read, so nothing is left to evaluate on. Repair {info.path}, or pack it again."
        )
    tasks = TaskSet(info.tasks, losses_of_kinds)
    for name, columns in tasks.columns.items():  # finite weights may give them too
        if not outputs[:, columns].isfinite().all():
            raise UserError(
                f"The outputs of the network on '{split}' are not finite (first those of task '{name}'), so they have no score. "
                "Train it anew with a lower optim.lr or train.clip_norm, or with train.precision=fp32."
            )
    # In the order of the data set, so that sums are the same for any number of ranks.
    order = indices.argsort(stable=True)
    outputs = outputs[order]
    labels = labels[order]
    losses = tasks.compute_losses(outputs, labels).double()
    return {
        "loss": float(losses.sum() / len(outputs)),
        "num_samples": len(outputs),
        "bad_samples": dict(num_bad),
        **task_metrics(tasks.tasks, outputs.numpy(), labels.numpy()),
    }


def _merge_scores(datasets: Mapping[str, Scores]) -> Scores:
    """The scores of several data sets as one, with each of them."""
    num_samples = sum(scores["num_samples"] for scores in datasets.values())
    loss = sum(scores["loss"] * scores["num_samples"] for scores in datasets.values())
    num_bad: Counter[str] = Counter()
    of_each = {}
    for name, scores in datasets.items():
        num_bad.update(scores["bad_samples"])
        labelled = {task: row for task, row in scores["tasks"].items() if row["num_labelled"]}
        of_each[name] = scores | {"tasks": labelled}
    return {
        "loss": loss / num_samples,
        "num_samples": num_samples,
        "bad_samples": dict(num_bad),
        **merge_metrics(list(datasets.values())),
        "datasets": of_each,
    }
