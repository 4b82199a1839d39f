"""Checks a packed data set to the last byte, and that plain webdataset reads from it what the indexes promise."""

import json
import math
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import webdataset

from distbranch.data.cache import LocalFiles
from distbranch.data.images import decode_to_size
from distbranch.data.pack import Copy, find_copies
from distbranch.data.reader import OpenShard
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import (
    BadSample,
    DatasetInfo,
    Index,
    Shard,
    SplitInfo,
    is_remote,
    label_name,
    read_dataset,
)
from distbranch.errors import UserError

MAX_PROBLEMS = 1000  # nobody reads more, and a data set of millions of samples may have as many
Counts = dict[str, Counter[str]]


@dataclass
class CheckReport:
    """What was read and what was found; every problem is one sentence that names shard and sample.

    `copies`: the samples with equal images, together (`pack.find_copies`), of a data set without problems.
    """

    info: DatasetInfo
    num_shards: int = 0
    num_samples: int = 0
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    copies: list[list[Copy]] = field(default_factory=list)

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
        raise UserError(f"{path} is not on this machine. Check a data set where it lies, in a folder.")
    return read_dataset(path)


def check_dataset(path: str | Path, progress: Callable[[int], None] | None = None) -> CheckReport:
    """Reads every file of the data set in the folder `path`; `progress` is told the samples read so far.

    Raises UserError only when there is no readable `dataset.json`; everything else is in the report.
    """
    info = read_local_dataset(path)
    report = CheckReport(info)
    keys: set[int] = set()  # hashes of them, as in `pack`
    for name, split in info.splits.items():
        problems_before = report.num_problems
        counts: Counts = {task.name: Counter() for task in info.tasks}
        for shard in split.shards:
            _check_shard(Path(info.path), shard, counts, keys, report)
            report.num_shards += 1
            report.num_samples += shard.num_samples
            if progress is not None:
                progress(report.num_samples)
        if report.num_problems == problems_before:  # else the counts differ for a reason already told
            _check_counts(name, split, counts, report)
    if report.ok:
        report.copies = find_copies(Path(info.path), info.splits)
    return report


def _check_shard(
    folder: Path,
    shard: Shard,
    counts: Counts,
    keys: set[int],
    report: CheckReport,
) -> None:
    """Compares the shard and its index with `dataset.json`, every sample with the index, webdataset with the index."""
    where = f"Shard {shard.file}"
    path = folder / shard.file
    try:
        opened = OpenShard(LocalFiles(str(folder)), shard, shard.file)
    except BadSample as error:
        report.add_problem(str(error))
        return
    # The sums of the samples are compared all the same: they say which of them are damaged.
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        report.add_problem(f"{where}: it should have {shard.num_bytes} bytes, found {num_bytes}.")
    elif file_sha256(path) != shard.sha256:
        report.add_problem(f"{where}: its bytes were changed (the sha256 differs from dataset.json).")
    if opened.index.shape != (shard.num_samples, 6):
        found = opened.index.shape
        report.add_problem(f"{where}: its index should have {shard.num_samples} rows of 6, found {found}.")
        return

    for number in range(shard.num_samples):
        # The sample by itself: one that is damaged hides nothing of the others.
        try:
            _check_sample(opened, number, counts, report.info)
        except BadSample as error:
            report.add_problem(str(error))
            continue

        # The sample among the others.
        key = opened.read_key(number)
        if hash(key) in keys:
            report.add_problem(f"{where}, sample {number}: its key '{key}' occurs a second time.")
        keys.add(hash(key))
    _check_webdataset(path, opened.index, report)


def _check_sample(opened: OpenShard, number: int, counts: Counts, info: DatasetInfo) -> None:
    """Reads the sample as a loader does and counts its labels. Raises BadSample."""
    image, labels = opened.read_sample(number, info.tasks)
    try:
        decode_to_size(image, info.image_size)
    except ValueError as error:
        raise opened.bad_sample(number, "broken-image", f"its image cannot be decoded ({error}).") from None
    for task, value in zip(info.tasks, labels.tolist(), strict=True):
        label = "unlabelled"
        if not math.isnan(value):
            label = task.classes[int(value)] if task.classes else label_name(task, value)
        counts[task.name][label] += 1


def _check_webdataset(path: Path, index: Index, report: CheckReport) -> None:
    """Reads the shard as any WebDataset program would and compares the sums of what comes out with the index."""
    # The index leads past the headers of the tar, and only a reader like this one finds out that they are damaged.
    number = 0
    try:
        for sample in webdataset.WebDataset([str(path)], shardshuffle=False, empty_check=False):
            where = f"Shard {path.name}, sample {number}"
            key = json.dumps(sample["__key__"], ensure_ascii=False)
            text = sample.get("json", b"")
            sums = [zlib.crc32(sample.get("jpg", b"")), zlib.crc32(text)]
            if number < len(index) and sums != index[number, [2, 5]].tolist():
                report.add_problem(f"{where}: webdataset reads other bytes than the index says.")
            elif f'"key":{key}'.encode() not in text:
                report.add_problem(f"{where}: webdataset reads the key {key}, its label file names another.")
            number += 1
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        reason = error.args[0] if error.args else error
        report.add_problem(f"Shard {path.name}, sample {number}: webdataset cannot read on ({reason}).")
        return
    if number != len(index):
        report.add_problem(f"Shard {path.name}: webdataset reads {number} samples, the index has {len(index)}.")


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
    for task, found in counts.items():
        packed = Counter(split.labels.get(task, {}))
        if found != packed:
            report.add_problem(
                f"Split {name}, task '{task}': dataset.json counts {dict(packed)}, the shards hold {dict(found)}."
            )
