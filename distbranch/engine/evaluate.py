"""Evaluation of one split, divided over the ranks so that every sample counts exactly once.

Average precision, rank correlation, top-k and sets of exclusive tasks compare samples or tasks with each other, so logits and
labels go to rank 0, as rows of float32, and are scored there in the order of the data set: any number of ranks gives the same
bits. A kind whose metrics are sums (`Kind.sum_batch`, `DenseKind.sum_maps`) is added up on the device of every rank, and only its
sums travel, those of all tasks in one message. Maps are taken sample by sample: their sums are then those of any batch size, and
maps as large as the images exist for one sample at a time.

Of several data sets each is scored alone, on its own tasks, and the scores are then put together. A number is scored by the mean
and deviation that the network was trained with, whatever those of the data are.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from distbranch.config import DataConfig
from distbranch.data.loader import Batch
from distbranch.data.mixture import member_names
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks
from distbranch.engine.loaders import describe_too_many_bad, open_evaluation
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.kinds.dense import DenseKind
from distbranch.maps import AnyOutputs, Labels, Outputs, resize_maps
from distbranch.metrics import merge_metrics, task_metrics
from distbranch.models.network import Network
from distbranch.tasks import Task, TaskSet, locate_outputs

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
    byte_angles: bool = False,
) -> Scores:
    """Loss and metrics (in 0..1) of a network on one split; the same on every rank.

    Args:
        network: is scored on those tasks of the data that it has.
        info: a data set, or several as one.
        split: of the data; those of several data sets that lack it are left out.
        ranks: this process among the others.
        data: how samples are read.
        batch_size: images per rank.
        bf16: whether the forward pass is in it, as it was in training.
        byte_angles: see `metrics.byte_angles`.

    Returns:
        {"loss", "num_samples", "bad_samples", "mean": {...}, "tasks": {name: {...}}}, see `metrics.task_metrics`; of several
        data sets `metrics.merge_metrics`, and "datasets": {name: the same of each, on the tasks that it labels}.

    Raises:
        UserError: no such split.
        SharedError: a bad sample under `on_bad_sample: fail`; more of them than may be left out, or no other ones; outputs
            that are not finite.
    """
    splits = find_scored(info, network.tasks.names)
    if split not in splits:
        raise UserError(
            f"{info.path} has no split '{split}' with tasks of the network; it has {', '.join(sorted(splits))}."
        )
    having = splits[split]
    training = network.training
    network.eval()
    found: dict[str, Scores] = {}
    for name, member in having.items():
        batches = compute_outputs(
            network, member, split, ranks, data, batch_size=batch_size, bf16=bf16
        )
        names = [task.name for task in member.tasks]
        share = _Share(network.tasks, names, byte_angles=byte_angles)
        share.collect(batches, ranks)
        columns = [ranks.gather_rows(column) for column in share.columns]
        sums = share.add_over_ranks(ranks)
        num_bad: Counter[str] = sum(ranks.gather(share.num_bad), Counter())
        score = partial(_score_samples, share, member, split, data, columns, sums, num_bad)
        found[name] = ranks.run_on_rank_zero(score)  # which alone has the samples of all
    network.train(training)
    return _merge_scores(found) if len(info.members) > 1 else next(iter(found.values()))


def find_scored(info: DatasetInfo, tasks: Collection[str]) -> dict[str, dict[str, DatasetInfo]]:
    """The splits in which there is any of these tasks, and the data sets of each that have one, by name."""
    found: dict[str, dict[str, DatasetInfo]] = {}
    for name, member in zip(member_names(info), info.members, strict=True):
        if any(task.name in tasks for task in member.tasks):
            for split in member.splits:
                found.setdefault(split, {})[name] = member
    return found


def compute_outputs(
    network: Network,
    info: DatasetInfo,
    split: str,
    ranks: Ranks,
    data: DataConfig,
    *,
    batch_size: int,
    bf16: bool = False,
) -> Iterator[tuple[Batch, AnyOutputs]]:
    """Batch by batch this rank's share of a split, with the outputs [b, O] of the network on the CPU; maps stay on the device.

    Raises:
        UserError: a bad sample that may not be left out, or a loader that failed.
    """
    size = network.architecture.image_size
    for batch in open_evaluation(info, split, data, ranks, image_size=size, batch_size=batch_size):
        if batch.error:
            raise UserError(batch.error)
        outputs: AnyOutputs = torch.zeros(0, network.tasks.num_outputs)
        if len(batch.images):
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=bf16):
                outputs = network(batch.images.to(ranks.device, non_blocking=True), flat=True)
        if isinstance(outputs, Outputs):
            yield batch, Outputs(outputs.logits.float().cpu(), outputs.maps)
        else:
            yield batch, outputs.float().cpu()


class _Share:
    """What this rank has seen of a split: rows of most tasks, sums of the tasks whose kind adds up.

    columns: indices [n], logits [n, O] and labels [n, R] of the tasks in `by_rows`.
    sums: of every other task its loss, its number of labels, and what its kind adds [2 + k], in float64.
    """

    def __init__(
        self, network_tasks: TaskSet, names: Sequence[str], *, byte_angles: bool = False
    ) -> None:
        self.network_tasks = network_tasks
        known = dict(zip(network_tasks.names, network_tasks.tasks, strict=True))
        self.tasks = [known[name] for name in names if name in known]
        self.column_of = {name: column for column, name in enumerate(names)}  # of the labels
        self.kinds = {task.name: KINDS[task.kind] for task in self.tasks}
        for name, kind in self.kinds.items():
            if byte_angles and isinstance(kind, DenseKind):
                self.kinds[name] = kind.with_byte_angles()
        num_sums = {task.name: self.kinds[task.name].count_sums(task) for task in self.tasks}
        self.by_rows = [task for task in self.tasks if not num_sums[task.name]]
        self.sums = {
            name: torch.zeros(2 + count, dtype=torch.float64)
            for name, count in num_sums.items()
            if count
        }
        # Once, for what a set of tasks brings to the device stays there with it.
        self.alone = {
            task.name: network_tasks.select([task]) for task in self.tasks if task.name in self.sums
        }
        self.num_bad: Counter[str] = Counter()
        self.columns: list[Tensor] = []

    def collect(self, batches: Iterator[tuple[Batch, AnyOutputs]], ranks: Ranks) -> None:
        """Read all batches of this rank. Raises SharedError, on every rank, for what one of them could not read."""
        places = [self.column_of[task.name] for task in self.by_rows]
        outputs_of_tasks = [
            range(self.network_tasks.num_outputs)[self.network_tasks.columns[task.name]]
            for task in self.by_rows
        ]
        own_outputs = list(chain.from_iterable(outputs_of_tasks))

        # torch.cat takes no empty list, and a rank may have no samples.
        parts = [
            (
                torch.zeros(0, dtype=torch.int64),
                torch.zeros(0, len(own_outputs)),
                torch.zeros(0, len(places)),
            )
        ]
        problem = None
        try:
            for batch, outputs in batches:
                self.num_bad.update(batch.num_bad)
                logits = outputs.logits if isinstance(outputs, Outputs) else outputs
                parts.append((batch.indices, logits[:, own_outputs], batch.labels[:, places]))
                for task in self.tasks:
                    if task.name not in self.sums or not len(batch.labels):
                        continue
                    place = self.column_of[task.name]
                    if isinstance(outputs, Outputs) and task.name in outputs.maps:
                        codes = {task.name: batch.maps[task.name]}
                        labels = Labels(batch.labels[:, [place]], codes)
                        self._add_sums_of_maps(task, outputs.maps[task.name], labels)
                    else:
                        own = logits[:, self.network_tasks.columns[task.name]]
                        self._add_sums(task, own, batch.labels[:, place])
        except UserError as error:
            problem = str(error)
        ranks.raise_on_all_ranks(problem)
        self.columns = [torch.cat(column) for column in zip(*parts, strict=True)]

    def _add_sums(self, task: Task, logits: Tensor, labels: Tensor) -> None:
        known = ~labels.isnan()
        loss = self.alone[task.name].compute_losses(logits, labels[:, None]).double().sum()
        own = self.kinds[task.name].sum_batch(task, logits[known], labels[known])
        self.sums[task.name] += torch.cat([torch.stack([loss, known.sum().double()]), own])

    def _add_sums_of_maps(self, task: Task, maps: Tensor, labels: Labels) -> None:
        kind = self.kinds[task.name]
        assert isinstance(kind, DenseKind)
        is_labelled = (~labels.isnan()).sum(dim=1).tolist()
        labels = labels.to(maps.device, non_blocking=True)
        total = self.sums[task.name].to(maps.device)
        for number, is_known in enumerate(is_labelled):
            if is_known:
                own_labels = labels[number : number + 1]
                codes = own_labels.maps[task.name]
                own_maps = maps[number : number + 1].float()
                outputs = Outputs(own_maps[:, :0, 0, 0], {task.name: own_maps})
                loss = self.alone[task.name].compute_losses(outputs, own_labels).double().sum()
                own = kind.sum_maps(task, resize_maps(own_maps, codes.shape[-2:]), codes)
                total = total + torch.cat([torch.stack([loss, torch.ones_like(loss)]), own])
        self.sums[task.name] = total

    def add_over_ranks(self, ranks: Ranks) -> dict[str, Tensor]:
        """On rank 0 the sums of every task over all ranks, by one message; nothing on the others."""
        if not self.sums:
            return {}
        own = torch.cat([one.cpu() for one in self.sums.values()])
        # Added in the order of ranks, so that the same ranks give the same bits.
        gathered = ranks.gather_rows(own[None])
        if not gathered:
            return {}
        total = torch.cat(gathered).sum(dim=0)
        parts = torch.split(total, [len(one) for one in self.sums.values()])
        return dict(zip(self.sums, parts, strict=True))

    def compute_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The sum of the losses of all samples and of the tasks in rows, in float64."""
        if not self.by_rows:
            return torch.zeros((), dtype=torch.float64)
        tasks = self.network_tasks.select(self.by_rows)
        return tasks.compute_losses(outputs, labels).double().sum()


def _score_samples(
    share: _Share,
    info: DatasetInfo,
    split: str,
    data: DataConfig,
    gathered: Sequence[Sequence[Tensor]],
    sums: Mapping[str, Tensor],
    num_bad: Counter[str],
) -> Scores:
    """`gathered`: the columns of a share of every rank; `sums` [2 + k] of all of them."""
    problem = describe_too_many_bad(num_bad, data, info, split)
    if problem is not None:
        raise UserError(problem)
    indices, outputs, labels = (torch.cat(list(column)) for column in gathered)
    if not len(indices):
        raise UserError(
            f"No sample of '{split}' could be read, so nothing is left to evaluate on. Repair {info.path}, or pack it again."
        )
    rows = locate_outputs(share.by_rows)
    finite = {name: outputs[:, columns].isfinite().all() for name, columns in rows.items()}
    finite |= {name: own.isfinite().all() for name, own in sums.items()}
    for name, is_finite in finite.items():  # finite weights may give them too
        if not is_finite:
            raise UserError(
                f"The outputs of the network on '{split}' are not finite (first those of task '{name}'), so they have no score. "
                "Train it anew with a lower optim.lr or train.clip_norm, or with train.precision=fp32."
            )
    # In the order of the data set, so that sums are the same for any number of ranks.
    order = indices.argsort(stable=True)
    outputs = outputs[order]
    labels = labels[order]
    loss = share.compute_loss(outputs, labels)
    scored = {}
    for task in share.tasks:
        if task.name in sums:
            own_loss, num_labelled, *_ = sums[task.name].tolist()
            loss += own_loss
            own = share.kinds[task.name].score_sums(task, sums[task.name][2:].numpy())
            scored[task.name] = own | {"num_labelled": int(num_labelled)}
    return {
        "loss": float(loss / len(outputs)),
        "num_samples": len(outputs),
        "bad_samples": dict(num_bad),
        **task_metrics(share.tasks, outputs.numpy(), labels.numpy(), scored=scored),
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
