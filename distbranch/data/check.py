"""Checks a packed data set to the last byte, and that plain webdataset reads from it what the indexes promise."""

import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import webdataset

from distbranch.data.images import BrokenImageError, decode_image
from distbranch.data.pack import Copy, find_copies
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import (
    BadSample,
    DatasetInfo,
    Index,
    Shard,
    SplitInfo,
    is_remote,
    label_name,
    parse_labels,
    read_dataset,
)
from distbranch.errors import UserError
from distbranch.tasks import Task

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
    path = folder / shard.file
    if not path.is_file():
        report.add_problem(f"Shard {shard.file}: the file is missing.")
        return
    num_bytes = path.stat().st_size
    if num_bytes != shard.num_bytes:
        report.add_problem(f"Shard {shard.file}: it should have {shard.num_bytes} bytes, found {num_bytes}.")
    # The sums of the samples are compared all the same: they say which of them are damaged.
    elif file_sha256(path) != shard.sha256:
        report.add_problem(f"Shard {shard.file}: its bytes were changed (the sha256 differs from dataset.json).")
    try:
        index = _read_index(folder, shard)
    except BadSample as error:
        report.add_problem(str(error))
        return
    with path.open("rb") as file:
        for number, row in enumerate(index):
            # The sample by itself: one that is damaged hides nothing of the others.
            try:
                key, labels = _read_sample(
                    file,
                    shard.file,
                    number,
                    row,
                    report.info.tasks,
                )
            except BadSample as error:
                report.add_problem(str(error))
                continue

            # The sample among the others.
            if hash(key) in keys:
                report.add_problem(f"Shard {shard.file}, sample {number}: its key '{key}' occurs a second time.")
            keys.add(hash(key))
            for task, label in labels.items():
                counts[task][label] += 1
    _check_webdataset(path, index, report)


def _read_index(folder: Path, shard: Shard) -> Index:
    """The index. Raises BadSample when it is not the one that was written."""
    path = folder / shard.index
    if not path.is_file():
        raise BadSample(
            "missing-shard",
            shard.file,
            None,
            f"its index {shard.index} is missing.",
        )
    if file_sha256(path) != shard.index_sha256:
        what = f"its index {shard.index} was changed (the sha256 differs from dataset.json)."
        raise BadSample("corrupt", shard.file, None, what)
    index: Index = np.load(path, allow_pickle=False)
    if index.shape != (shard.num_samples, 6):
        what = f"its index should have {shard.num_samples} rows of 6, found {index.shape}."
        raise BadSample("incomplete", shard.file, None, what)
    return index


def _read_sample(
    file: BinaryIO,
    shard: str,
    number: int,
    row: Index,
    tasks: Sequence[Task],
) -> tuple[str, dict[str, str]]:
    """Key and names of the labels of one sample, its image decoded. Raises BadSample."""
    contents = []
    for what, place in (("image", row[:3]), ("label file", row[3:])):
        offset, size, crc = place.tolist()
        file.seek(offset)
        content = file.read(size)
        if len(content) < size:
            raise BadSample(
                "truncated",
                shard,
                number,
                f"the shard ends inside its {what}.",
            )
        if zlib.crc32(content) != crc:
            raise BadSample(
                "corrupt",
                shard,
                number,
                f"the bytes of its {what} were changed (crc32 differs).",
            )
        contents.append(content)

    image, text = contents
    try:
        decode_image(image)
    except BrokenImageError as error:
        raise BadSample(
            "broken-image",
            shard,
            number,
            f"its image cannot be decoded: {error}.",
        ) from None

    parse_labels(text, tasks, shard, number)
    described = json.loads(text)
    key = described.get("key")
    if not isinstance(key, str):
        raise BadSample("incomplete", shard, number, "its label file has no field 'key'.")
    names = {}
    for task in tasks:
        if task.name in described["labels"]:
            names[task.name] = label_name(task, described["labels"][task.name])
    return key, names


def _check_webdataset(path: Path, index: Index, report: CheckReport) -> None:
    """Reads the shard as any WebDataset program would and compares the sums of what comes out with the index."""
    # The index leads past the headers of the tar, and only a reader like this one finds out that they are damaged.
    number = 0
    try:
        for sample in webdataset.WebDataset([str(path)], shardshuffle=False, empty_check=False):
            where = f"Shard {path.name}, sample {number}"
            key = json.dumps(sample["__key__"], ensure_ascii=False)
            image = sample.get("jpg", b"")
            text = sample.get("json", b"")
            sums = [zlib.crc32(image), zlib.crc32(text)]
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
        # A label file is silent about the tasks that have no label, so they are what is left.
        found["unlabelled"] = num_samples - found.total()
        packed = Counter(split.labels.get(task, {}))
        for label in sorted(found.keys() | packed.keys()):
            if found[label] != packed[label]:
                report.add_problem(
                    f"Split {name}, task '{task}': dataset.json says {packed[label]} samples with the label '{label}', "
                    f"the shards have {found[label]}."
                )
