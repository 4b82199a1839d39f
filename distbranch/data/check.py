"""Checks a packed data set to the last byte, and that any reader of tars finds in it what the indexes promise."""

import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distbranch.config.paths import is_remote
from distbranch.data.cache import open_files
from distbranch.data.class_checks import describe_rare_classes
from distbranch.data.label_maps import check_codes
from distbranch.data.number_checks import FarNumbers, compare_splits
from distbranch.data.pack import Copy, find_copies
from distbranch.data.reader import OpenShard
from distbranch.data.shard_writer import index_shard
from distbranch.data.shards import (
    BadSample,
    DatasetInfo,
    Shard,
    SplitInfo,
    list_dense_tasks,
    read_dataset,
)
from distbranch.errors import UserError, reason_of
from distbranch.kinds import KINDS
from distbranch.kinds.label_counts import LabelCounts

MAX_PROBLEMS = 1000  # nobody reads more, and a data set of millions of samples may have as many
Counts = dict[str, LabelCounts]


@dataclass
class CheckReport:
    """What was read and what was found; every problem is one sentence that names shard and sample. `measured`: bytes and sha256 of tars.

    `remarks`: what is sound and looks odd. `copies`: the samples with equal images, together (`pack.find_copies`). Both are of a
    data set without problems.
    """

    info: DatasetInfo
    num_shards: int = 0
    num_samples: int = 0
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    remarks: list[str] = field(default_factory=list)
    copies: list[list[Copy]] = field(default_factory=list)
    measured: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.num_problems == 0

    def add_problem(self, problem: str) -> None:
        """Notes a problem; only the first MAX_PROBLEMS are kept, all are counted."""
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def read_local_dataset(path: str | Path) -> DatasetInfo:
    """The data set in the folder `path`. Raises UserError when there is none, and for a URL, which is not fetched to be checked."""
    if is_remote(str(path)):
        raise UserError(
            f"{path} is not on this machine. Check a data set where it lies, in a folder."
        )
    return read_dataset(path)


def check_dataset(path: str | Path, progress: Callable[[int], None] | None = None) -> CheckReport:
    """Reads every file of the data set in the folder `path`; `progress` is told the samples read so far.

    Raises UserError only when there is no readable `dataset.json`; everything else is in the report.
    """
    info = read_local_dataset(path)
    report = CheckReport(info)
    keys: set[int] = set()  # hashes of them, as in `pack`
    far = FarNumbers(info.tasks)
    for name, split in info.splits.items():
        problems_before = report.num_problems
        counts: Counts = {task.name: KINDS[task.kind].make_counts(task) for task in info.tasks}
        for shard in split.shards:
            _check_shard(Path(info.path), shard, name, counts, keys, far, report)
            report.num_shards += 1
            report.num_samples += shard.num_samples
            if progress is not None:
                progress(report.num_samples)
        if (
            report.num_problems == problems_before
        ):  # else the counts differ for a reason already told
            _check_counts(name, split, counts, report)
    if report.ok:
        of_numbers = [*far.describe(), *compare_splits(info.tasks, info.splits)]
        report.remarks = [*of_numbers, *describe_rare_classes(info)]
        report.copies = find_copies(Path(info.path), info.splits)
    return report


def _check_shard(
    folder: Path,
    shard: Shard,
    split: str,
    counts: Counts,
    keys: set[int],
    far: FarNumbers,
    report: CheckReport,
) -> None:
    """Compares the shard and its index with `dataset.json`, every sample and header with the index."""
    where = f"Shard {shard.file}"
    dense = list_dense_tasks(report.info.tasks)
    try:
        opened = OpenShard(open_files(str(folder)), shard, shard.file, dense)
        # Several splits may read one tar.
        if shard.file not in report.measured:
            report.measured[shard.file] = opened.measure_tar()
        num_bytes, sha256 = report.measured[shard.file]
    except BadSample as error:
        report.add_problem(str(error))
        return
    except OSError as error:  # of the disk, or a folder in place of the file
        report.add_problem(f"{where}: it cannot be read ({reason_of(error)}).")
        return
    # The sums of the samples are compared all the same: they say which of them are damaged.
    if num_bytes != shard.num_bytes:
        report.add_problem(f"{where}: it should have {shard.num_bytes} bytes, found {num_bytes}.")
    elif sha256 != shard.sha256:
        report.add_problem(
            f"{where}: its bytes were changed (the sha256 differs from dataset.json)."
        )
    row_length = 3 * (2 + len(dense))
    if opened.index.shape != (shard.num_samples, row_length):
        found = opened.index.shape
        report.add_problem(
            f"{where}: its index should have {shard.num_samples} rows of {row_length}, found {found}."
        )
        return

    for number in range(shard.num_samples):
        # The sample by itself: one that is damaged hides nothing of the others.
        try:
            labels = _check_sample(opened, number, counts, report.info)
        except BadSample as error:
            report.add_problem(str(error))
            continue

        # The sample among the others.
        key = opened.read_key(number)
        if isinstance(key, int):  # its header cannot be read, which is told below
            continue
        far.add_sample(labels, f"'{key}' ({split})")
        if hash(key) in keys:
            report.add_problem(f"{where}, sample {number}: its key '{key}' occurs a second time.")
        keys.add(hash(key))

    if (
        shard.labels
    ):  # the index was read from those headers, and the sum says that they are the same
        return
    # The index leads past the headers of the tar, and only who reads them as any WebDataset program does finds out that
    # they are damaged.
    try:
        is_same = np.array_equal(index_shard(folder / shard.file, dense), opened.index)
    except (tarfile.TarError, ValueError):
        is_same = False
    if not is_same:
        report.add_problem(
            f"{where}: its headers do not lead to the samples of the index, so other programs read it otherwise."
        )


def _check_sample(
    opened: OpenShard, number: int, counts: Counts, info: DatasetInfo
) -> NDArray[np.float32]:
    """Reads the sample as a loader does, counts its labels and returns them [T]. Raises BadSample."""
    _, numbers = opened.read_pixels(number, info.tasks, info.image_size)
    # As they stand there: in float32 a soft label close to 1 is 1, and was counted as another when it was packed.
    image, content = opened.read_files(number)
    labels = json.loads(content)["labels"] | opened.read_codes(number)
    for task in info.tasks:
        if task.name not in labels:
            continue
        if task.is_dense:
            try:
                check_codes(task, labels[task.name], image)
            except UserError as error:
                raise opened.bad_sample(number, "bad-label", str(error)) from None
        counts[task.name].add(labels[task.name])
    return numbers


def _check_counts(
    name: str,
    split: SplitInfo,
    counts: Counts,
    report: CheckReport,
) -> None:
    num_samples = sum(shard.num_samples for shard in split.shards)
    if split.num_samples != num_samples:
        report.add_problem(
            f"Split {name}: dataset.json says {split.num_samples} samples, its shards have {num_samples}."
        )
    for task, of_task in counts.items():
        packed = split.labels.get(task, {})
        found = of_task.to_json() | {"unlabelled": num_samples - of_task.num_labelled}
        if Counter(found) != Counter(packed):
            report.add_problem(
                f"Split {name}, task '{task}': dataset.json counts {packed}, the shards hold {found}."
            )
