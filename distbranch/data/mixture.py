"""Several packed data sets read as one, for joint training: the union of their tasks, each unlabelled where it is unknown.

A mixture of one is that data set. The samples are mixed by `plan.MixedPlan`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from distbranch.config import DataConfig
from distbranch.data.shards import DatasetInfo, SplitInfo, read_dataset
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.tasks import Task


def read_data(data: DataConfig) -> DatasetInfo:
    """The packed data sets of a configuration. Raises UserError for what `read_dataset` or `merge_datasets` refuses."""
    return merge_datasets([read_dataset(path) for path in data.paths], data.proportions)


def merge_datasets(infos: Sequence[DatasetInfo], proportions: Sequence[int] = ()) -> DatasetInfo:
    """The data sets as one, images in the size of the first.

    Raises UserError for a data set given twice, and for a task that is not the same in two of them.
    """
    if len(infos) == 1:
        return infos[0]
    # The same data set twice would have every sample twice in an epoch, under different numbers.
    paths = Counter(info.path.rstrip("/") for info in infos)
    path, times = paths.most_common(1)[0]
    if times > 1:
        raise UserError(
            f"data.path names {path} twice. Give every data set once; data.proportions says how often it comes."
        )
    tasks = _merge_tasks(infos)
    groups: dict[str, tuple[str, ...]] = {}
    for info in infos:
        for name, members in info.groups.items():
            # Groups of one name are one group: the tasks of the first data set, then those only a later one has.
            groups[name] = tuple(dict.fromkeys(groups.get(name, ()) + members))
    splits = dict.fromkeys(name for info in infos for name in info.splits)
    return DatasetInfo(
        path=" ".join(info.path for info in infos),
        tasks=tasks,
        groups=groups,
        splits={name: _merge_split(infos, name, tasks) for name in splits},
        image_size=infos[0].image_size,
        source={},  # each of the parts has its own
        parts=tuple(infos),
        proportions=tuple(proportions),
    )


def add_tasks(info: DatasetInfo, tasks: Sequence[Task]) -> DatasetInfo:
    """The data with these tasks in this order: all that they have, and others, which are unlabelled."""
    if [task.name for task in tasks] == [task.name for task in info.tasks]:
        return info
    splits = {name: _merge_split(info.members, name, tasks) for name in info.splits}
    return replace(info, tasks=tuple(tasks), splits=splits, parts=info.members)


def member_names(info: DatasetInfo) -> tuple[str, ...]:
    """A name for each of the data sets: its folder, with as many folders above it as tell them apart."""
    paths = [member.path.rstrip("/").split("/") for member in info.members]
    for depth in count(1):
        names = tuple("/".join(path[-depth:]) for path in paths)
        if len(set(names)) == len(names):
            return names
    raise AssertionError


def _merge_tasks(infos: Sequence[DatasetInfo]) -> tuple[Task, ...]:
    """The tasks of all, in the order in which they first appear; a number has the mean and deviation of that data set."""
    union: dict[str, tuple[Task, str]] = {}
    for info in infos:
        for task in info.tasks:
            known, where = union.setdefault(task.name, (task, info.path))
            if not known.is_same_task(task):
                raise UserError(
                    f"The task '{task.name}' is {_describe_task(known)} in {where} and {_describe_task(task)} in {info.path}. "
                    "Data sets that are trained together need the same task under one name; pack one of them with other names."
                )
    return tuple(task for task, _ in union.values())


def _describe_task(task: Task) -> str:
    details = [task.kind, *task.classes, task.exclusive, task.unit]
    if "scale" in KINDS[task.kind].fields:
        details += [task.quantity, f"scale {task.scale:g}"]
    return ", ".join(filter(None, details))


def _merge_split(infos: Sequence[DatasetInfo], name: str, tasks: Sequence[Task]) -> SplitInfo:
    """The split of all data sets that have it; where one lacks a task, all of its samples are unlabelled."""
    having = [info.splits[name] for info in infos if name in info.splits]
    labels = {}
    for task in tasks:
        parts = [split.labels.get(task.name, {"unlabelled": split.num_samples}) for split in having]
        labels[task.name] = KINDS[task.kind].merge_counts(parts)
    return SplitInfo(
        num_samples=sum(split.num_samples for split in having),
        labels=labels,
        shards=tuple(shard for split in having for shard in split.shards),
    )
