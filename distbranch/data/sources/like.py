"""`--like`: a table is read as that of another data set was, and its labels are the tasks and classes of that one.

A binary task per class or tag does not say from which column it came, so `dataset.json` tells it: `class_tasks` of its source.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from distbranch.data.number_tasks import with_known_means
from distbranch.data.pack import CLASS_TASKS
from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.data.sources.columns import ALL, KIND_OPTIONS, KnownClasses
from distbranch.data.sources.label_options import TableOptions
from distbranch.data.sources.tables import Problems
from distbranch.errors import UserError
from distbranch.tasks import Task, list_scalar_tasks

logger = logging.getLogger("distbranch")

AS_READ = "as_read"  # in the source of dataset.json: options of columns, given or taken from another data set
BY_COLUMN = (*KIND_OPTIONS, "as_written", "minus_one", "blank")
FOR_ALL = ("missing", "separator", "class_prefix")
# The option of a column whose task is of another kind than one of your own.
OPTION_OF_KIND = {"categorical": "categorical", "ordinal": "ordinal", "number": "number"}


@dataclass(frozen=True)
class LikeDataset:
    """Another data set, whose tasks the columns of a table become.

    `options`: those that were given for the table, and for what was not given those of the data set; `known`: the classes of
    each column, with the task of each.
    """

    info: DatasetInfo
    options: TableOptions
    known: Mapping[str, KnownClasses]

    def describe(self) -> dict[str, Any]:
        """For `dataset.json`: which data set it was, and how columns were read, so that a third table can be read like the second."""
        options = self.options.model_dump(mode="json", include={"unit", *BY_COLUMN, *FOR_ALL})
        return {"like_fingerprint": self.info.fingerprint, AS_READ: options}

    def check_tasks(self, tasks: Sequence[Task], problems: Problems) -> None:
        """Tasks that are not the same as in the data set are `problems`."""
        of_name = {task.name: task for task in self.info.tasks}
        for task in tasks:
            same = of_name.get(task.name)
            if same is None or not task.is_same_task(same):
                problems.add(
                    f"'{task.name}' would be {_describe(task)}, and is {_describe(same)} in {self.info.path}",
                    "Leave out what you say of this column, or pack without --like.",
                )

    def sort_tasks(self, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """The tasks in the order of the data set, numbers with its mean and deviation."""
        names = [task.name for task in self.info.tasks]
        absent = sorted(set(names) - {task.name for task in tasks}, key=names.index)
        if absent:
            logger.warning(
                "%d task(s) of %s have no column here and are left out: %s.",
                len(absent),
                self.info.path,
                list_names(absent),
            )
        tasks = sorted(tasks, key=lambda task: names.index(task.name))
        return with_known_means(tasks, self.info.tasks)


def read_like(
    options: TableOptions, names: Sequence[str], special: Collection[str | None]
) -> LikeDataset:
    """The data set of `options.like`, for a table with columns of these names, of which the special ones are no tasks.

    Raises UserError for one that cannot be read, has no task in the table, or does not say from which column its tasks came.
    """
    assert options.like is not None
    info = read_dataset(options.like)
    source = {**info.source, **info.source.get(AS_READ, {})}
    class_tasks = source.get(CLASS_TASKS, {})
    scalar = {task.name: task for task in list_scalar_tasks(info.tasks)}
    _check_class_tasks(info, source)
    usable = [name for name in names if name and name not in (*special, *options.ignore)]
    columns = [name for name in usable if name in scalar or name in class_tasks]
    if not columns:
        raise UserError(
            f"No column of the table ({', '.join(names)}) is a task of {info.path} ({list_names(list(scalar))}). Rename the columns, or "
            "give another --like."
        )
    others = [name for name in usable if name not in columns]
    if others and options.tasks is None:
        logger.warning(
            "%d column(s) are no task of %s and are left out: %s.",
            len(others),
            info.path,
            list_names(others),
        )
    given = options.model_dump(include=options.model_fields_set)
    said = {name for option in KIND_OPTIONS for name in given.get(option, ())}
    merged = {
        "tasks": columns,
        "unit": {},
        **_inherit(options, source, columns, said),
        **given,
    }
    of_columns = [scalar[name] for name in columns if name not in class_tasks]
    _add_kinds(merged, of_columns)
    known = {name: class_tasks[name] for name in columns if name in class_tasks}
    for task in of_columns:
        if task.classes:
            known[task.name] = dict.fromkeys(task.classes, task.name)
    return LikeDataset(info, type(options).model_validate(merged), known)


def _check_class_tasks(info: DatasetInfo, source: Mapping[str, Any]) -> None:
    columns = [*source.get("one_task_per_class", ()), *source.get("tags", ())]
    unknown = [name for name in columns if name not in source.get(CLASS_TASKS, {})]
    if unknown:
        raise UserError(
            f"{info.path} was packed before it was noted which tasks are the classes of {list_names(unknown)}. Pack it again into a "
            "new folder, and give that with --like."
        )


def _inherit(
    options: TableOptions,
    source: Mapping[str, Any],
    columns: Collection[str],
    said_kinds: Collection[str],
) -> dict[str, Any]:
    """The options about columns: what the data set says about these, and where it says nothing what they are by default.

    Of what kind columns are whose kind was given it says nothing.
    """
    inherited = {option: source[option] for option in FOR_ALL if option in source}
    for option in BY_COLUMN:
        said = source.get(option) or type(options).model_fields[option].default
        about = [name for name in said if name in columns or name == ALL]
        if option in KIND_OPTIONS:
            about = [name for name in about if name not in said_kinds]
        if isinstance(said, dict):
            inherited[option] = {name: said[name] for name in about}
        else:
            inherited[option] = about
    return inherited


def _add_kinds(merged: dict[str, Any], tasks: Sequence[Task]) -> None:
    """The kind and the unit of each task, where no option says what its column is."""
    listed = set(chain.from_iterable(merged[option] for option in KIND_OPTIONS))
    more: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for task in tasks:
        if task.kind != "binary" and task.name not in listed:
            said = task.classes if task.kind == "ordinal" else task.kind
            more[OPTION_OF_KIND.get(task.kind, "kind")][task.name] = said
        if task.unit and task.name in (*merged["number"], *more["number"]):
            more["unit"][task.name] = task.unit
    for option, names in more.items():
        if isinstance(merged[option], Mapping):
            merged[option] = {**names, **merged[option]}
        else:
            merged[option] = [*merged[option], *names]


def list_names(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    shown = ", ".join(map(str, names[:10]))
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10:,} more"


def _describe(task: Task | None) -> str:
    if task is None:
        return "no task"
    return " ".join(filter(None, [task.kind, task.unit, list_names(task.classes)]))
