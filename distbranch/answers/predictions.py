"""Every sample's key, labels, scores and margins as a table, written batch by batch and read back task by task.

So memory holds a batch while it is written, and a few columns while it is read, however many images and tasks there are. The
table is Parquet; a CSV is made of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from distbranch.config import Config
from distbranch.data.loader import Batch
from distbranch.data.mixture import member_names
from distbranch.data.plan import Plan
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks
from distbranch.engine.evaluate import compute_outputs
from distbranch.engine.loaders import describe_too_many_bad, open_cache
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.kinds.kind import Array
from distbranch.maps import Outputs
from distbranch.models.network import Network
from distbranch.tasks import Task, TaskSet, list_scalar_tasks, locate_outputs, unused_name

# Which image a row is about; `position` counts the samples of a split of a data set.
PLACE = {
    "key": pyarrow.string(),
    "split": pyarrow.string(),
    "dataset": pyarrow.string(),
    "position": pyarrow.int64(),
}


@dataclass(frozen=True)
class TaskColumns:
    """The columns of one task: of its label, of its margin, and its scores as `distbranch predict` names them."""

    label: str
    margin: str
    scores: tuple[str, ...]


@dataclass(frozen=True)
class TaskAnswers:
    """What the rows with a label say about a task.

    rows: their numbers in the table [n]; labels: numbers [n], of a task with classes that of the class; scores: [n, K];
    margins: [n] in 0..1.
    """

    rows: Array
    labels: Array
    scores: Array
    margins: Array


@dataclass(frozen=True)
class Predictions:
    """A table that `write_predictions` wrote, and the tasks in it."""

    file: Path
    tasks: tuple[Task, ...]

    def read_places(self) -> pandas.DataFrame:
        """Key, split, data set and position of every row."""
        return pandas.read_parquet(self.file, columns=list(PLACE))

    def read_task(self, task: Task) -> TaskAnswers:
        """The rows with a label of a task."""
        columns = name_columns(self.tasks)[task.name]
        names = [columns.label, columns.margin, *columns.scores]
        known = pandas.read_parquet(self.file, columns=names).dropna(subset=[columns.label])
        labels = known[columns.label]
        if task.classes:
            labels = pandas.Categorical(labels, categories=task.classes).codes
        return TaskAnswers(
            rows=known.index.to_numpy(),
            labels=np.asarray(labels, dtype=np.float64),
            scores=known[list(columns.scores)].to_numpy(),
            margins=known[columns.margin].to_numpy(),
        )


def name_columns(tasks: Sequence[Task]) -> dict[str, TaskColumns]:
    """The columns of every task: `label:Category`, `margin:Category`, `Category:Dress`, ...; one that is taken gets a number."""
    taken = set(PLACE)

    def find_name(wanted: str) -> str:
        name = unused_name(wanted, taken)
        taken.add(name)
        return name

    columns = {}
    for task in tasks:
        label, margin = find_name(f"label:{task.name}"), find_name(f"margin:{task.name}")
        scores = [f"{task.name}:{name}" for name in task.classes] or [task.name]
        columns[task.name] = TaskColumns(label, margin, tuple(map(find_name, scores)))
    return columns


def write_predictions(
    file: Path,
    network: Network,
    config: Config,
    info: DatasetInfo,
    splits: Sequence[str],
    **options: Any,
) -> Predictions:
    """Write the table of these splits; those of several data sets that lack one are left out.

    options: of `compute_outputs`.

    Raises:
        UserError: no scalar task, none of the splits, or samples that cannot be read.
    """
    tasks = tuple(list_scalar_tasks(network.tasks.tasks))
    if not tasks:
        raise UserError(
            f"Predictions have a row per image, found no task with one label per image, but {', '.join(network.tasks.names[:5])}. "
            "Use `distbranch predict`, which writes pictures."
        )
    if not set(splits) & set(info.splits):
        raise UserError(
            f"{info.path} has none of the splits {', '.join(splits)}; it has {', '.join(info.splits)}."
        )
    task_set = network.tasks.select(tasks)
    schema = _make_schema(tasks)
    with parquet.ParquetWriter(file, schema) as writer:
        for name, member in zip(member_names(info), info.members, strict=True):
            for split in filter(member.splits.__contains__, splits):
                batches = compute_outputs(
                    network, member, split, Ranks.alone(), config.data, **options
                )
                for part in _tabulate_batches(batches, task_set, member, split, config):
                    columns = {"split": split, "dataset": name} | part
                    writer.write_table(
                        pyarrow.Table.from_pandas(
                            pandas.DataFrame(columns), schema, preserve_index=False
                        )
                    )
    return Predictions(file, tasks)


def _make_schema(tasks: Sequence[Task]) -> pyarrow.Schema:
    fields = dict(PLACE)
    known = {task.name: task for task in tasks}
    for name, columns in name_columns(tasks).items():
        fields[columns.label] = pyarrow.string() if known[name].classes else pyarrow.float64()
        fields |= dict.fromkeys((*columns.scores, columns.margin), pyarrow.float64())
    return pyarrow.schema(list(fields.items()))


@torch.no_grad()
def _tabulate_batches(
    batches: Iterable[tuple[Batch, Any]],
    tasks: TaskSet,
    info: DatasetInfo,
    split: str,
    config: Config,
) -> Iterator[dict[str, Any]]:
    """The columns of every batch, by name, without split and data set."""
    plan = Plan([shard.num_samples for shard in info.splits[split].shards], seed=None, window=1)
    cache = open_cache(info, config.data)
    num_bad: Counter[str] = Counter()
    with closing(ShardReader([ShardSource.from_split(info, split)], cache, max_open=2)) as reader:
        for batch, outputs in batches:
            num_bad.update(batch.num_bad)
            logits = outputs.logits if isinstance(outputs, Outputs) else outputs
            if not logits.isfinite().all():
                raise UserError(
                    f"The outputs of the network on '{split}' are not finite, so they answer nothing. Train it anew."
                )
            positions = batch.indices.tolist()
            keys = [_read_key(reader, plan, position) for position in positions]
            labels = _order_labels(batch.labels, info.tasks, tasks.tasks)
            yield {"key": keys, "position": positions} | _tabulate_answers(tasks, logits, labels)
    problem = describe_too_many_bad(num_bad, config.data, info, split)
    if problem is not None:
        raise UserError(problem)


def _read_key(reader: ShardReader, plan: Plan, position: int) -> str:
    ((shard, sample, *_),) = plan.list_places(position, position + 1)
    return str(reader.open_shard(shard).read_key(sample))


def _order_labels(labels: Tensor, given: Sequence[Task], wanted: Sequence[Task]) -> Tensor:
    """Labels [B, T] of a data set as those of the network's tasks; NaN of what it does not label."""
    names = [task.name for task in given]
    ordered = torch.full((len(labels), len(wanted)), torch.nan)
    for number, task in enumerate(wanted):
        if task.name in names:
            ordered[:, number] = labels[:, names.index(task.name)]
    return ordered


def _tabulate_answers(tasks: TaskSet, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Labels, margins and scores by column. logits: [B, O]; labels: [B, T]."""
    margins = tasks.compute_margins(logits, labels).masked_fill(labels.isnan(), torch.nan)
    places = locate_outputs(tasks.tasks)
    cells: dict[str, Any] = {}
    for number, (task, names) in enumerate(
        zip(tasks.tasks, name_columns(tasks.tasks).values(), strict=True)
    ):
        kind = KINDS[task.kind]
        cells[names.label] = labels[:, number].numpy()
        if task.classes:
            cells[names.label] = [
                None if value != value else kind.write_label(task, value)
                for value in labels[:, number].tolist()
            ]
        cells[names.margin] = margins[:, number].numpy()
        # In float64, in which no two scores become one near 1.
        answers = kind.predict(task, logits[:, places[task.name]].double())
        rows = [
            list(answer.values()) if isinstance(answer, dict) else [answer] for answer in answers
        ]
        cells |= dict(zip(names.scores, np.array(rows).reshape(len(logits), -1).T, strict=True))
    return cells
