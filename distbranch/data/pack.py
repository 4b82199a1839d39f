"""Packs a stream of labelled images: everything is written into a folder beside the target, renamed at the end.

So a packed folder is always whole. Nothing grows with the number of samples but a hash per key, to find those that occur
twice. What was left out and which images are exact copies of others stands by name in two more files: one copy in train
and one in test makes the test too easy.
"""

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.data.cache import open_files
from distbranch.data.images import BrokenImageError, read_image_size
from distbranch.data.number_tasks import measure_tasks, with_known_means
from distbranch.data.reader import OpenShard
from distbranch.data.shard_writer import ShardWriter
from distbranch.data.shards import (
    DATASET_FILE,
    DatasetInfo,
    LeftOut,
    Sample,
    SplitInfo,
    read_dataset,
)
from distbranch.errors import UserError
from distbranch.locks import hold_lock
from distbranch.tasks import Task

SPLITS = ("train", "val", "test")
LEFT_OUT_FILE = "left-out.csv"
COPIES_FILE = "copies.csv"
CLASS_TASKS = "class_tasks"  # in the source of dataset.json: {column: {class: task}} of a task per class or tag
PROGRESS_EVERY = 100  # samples: often enough for a bar to move, seldom enough to cost nothing


@dataclass(frozen=True)
class Copy:
    """One of several samples with the same image, byte for byte."""

    split: str
    key: str


def pack(
    samples: Iterable[Sample],
    out: str | os.PathLike[str],
    tasks: Sequence[Task],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    source: Mapping[str, Any] | None = None,
    skipped: Mapping[str, int] | None = None,
    left_out: Sequence[LeftOut] = (),
    shard_samples: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Writes the samples, in the order they come, into the new folder `out`, `shard_samples` to a shard.

    `source` says what made the data set; a finished data set with the same source, tasks and shards is returned as it is.
    The mean and deviation of a number that are not given are those of its labels in train. `skipped` counts what was left
    out before, `left_out` names what the source leaves out and is read when the samples end. `progress` is told the samples
    so far.
    Raises UserError for a target that holds anything else, a bad label, numbers that do not vary in train, a key that occurs
    twice, or a full disk.
    """
    out = Path(out).absolute()
    # As it comes back from JSON (tuples as lists, paths as text), so that it can be compared with a file.
    described: dict[str, Any] = json.loads(
        json.dumps({**(source or {}), "shard_samples": shard_samples}, default=str)
    )
    tasks = tuple(tasks)
    partial = out.with_name(f".{out.name}.partial")
    try:
        finished = _find_finished(
            out, described, tasks
        )  # it may lie where nothing can be written, not even a lock
        if finished is not None:
            return finished
        out.parent.mkdir(parents=True, exist_ok=True)
        # One of several processes packs, and the others find what it made.
        with hold_lock(out.with_name(f".{out.name}.lock")):
            finished = _find_finished(out, described, tasks)
            if finished is not None:
                return finished
            shutil.rmtree(partial, ignore_errors=True)  # what a killed packing left
            partial.mkdir()
            try:
                # The samples, which also end what the source leaves out.
                splits, size = _write_samples(
                    samples,
                    partial,
                    tasks,
                    shard_samples,
                    progress or (lambda _: None),
                )
                if not splits:
                    raise UserError(_describe_why_none(left_out))

                tasks = measure_tasks(tasks, splits)

                # What is told of them. The list of those left out is complete only now.
                copies = find_copies(partial, splits)
                write_tables(partial, left_out, copies)
                num_skipped = Counter(skipped or {}) + Counter(one.kind for one in left_out)
                info = DatasetInfo(
                    path=str(out),
                    tasks=tasks,
                    groups={name: tuple(names) for name, names in (groups or {}).items()},
                    splits=splits,
                    image_size=size,
                    source=described,
                    skipped=dict(num_skipped),
                    copies=count_copies(copies),
                )
                write_dataset(info, partial / DATASET_FILE)
                partial.rename(out)
                return info
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"The data set cannot be written to {out}: {error.strerror or error}. "
            "Give a folder that can be written, on a disk with enough room; nothing was left behind."
        ) from error


def find_copies(folder: Path, splits: Mapping[str, SplitInfo]) -> list[list[Copy]]:
    """The samples with equal images, together, in the order in which they were packed.

    The indexes hold size and crc32 of every image, so a sort finds them; only images that agree in both are read and compared.
    """
    # Only images are compared, and their place in an index is the same whatever else it holds.
    placed = [(name, shard) for name, split in splits.items() for shard in split.shards]
    # Size and crc32 (32 bits) in one number, which numpy sorts fast.
    sums = []
    if not placed:
        return []
    for _, shard in placed:
        index = np.load(folder / shard.index, allow_pickle=False)
        sums.append(index[:, 1] << 32 | index[:, 2])
    values, counts = np.unique(np.concatenate(sums), return_counts=True)
    repeated = values[counts > 1]

    alike: dict[bytes, list[Copy]] = {}  # by the sha256 of the image
    for (name, shard), own in zip(placed, sums, strict=True):
        opened = OpenShard(open_files(str(folder)), shard, shard.file)
        for sample in np.flatnonzero(np.isin(own, repeated)).tolist():
            image, content = opened.read_files(sample)
            copies = alike.setdefault(sha256(image).digest(), [])
            copies.append(Copy(name, json.loads(content)["key"]))
    return [copies for copies in alike.values() if len(copies) > 1]


def count_copies(found: Sequence[Sequence[Copy]]) -> dict[str, int]:
    """How many samples repeat an earlier one, and how many pairs of equal ones lie in different splits."""
    if not found:
        return {}
    num_copies = num_pairs = 0
    for copies in found:
        num_copies += len(copies) - 1
        sizes = Counter(copy.split for copy in copies).values()
        # All pairs, less those within a split.
        num_pairs += comb(len(copies), 2) - sum(comb(size, 2) for size in sizes)
    return {"copies": num_copies, "pairs_across_splits": num_pairs}


def describe_copies(counts: Mapping[str, int]) -> str:
    """What `count_copies` found, for people."""
    found = f"{counts['copies']:,} of the images are exact copies of others"
    pairs = counts["pairs_across_splits"]
    if pairs:
        return f"{found}, and {pairs:,} pair(s) of equal ones lie in different splits, so what is tested was seen in training"
    return f"{found}, all of them in the same split"


def _find_finished(
    out: Path, source: Mapping[str, Any], tasks: tuple[Task, ...]
) -> DatasetInfo | None:
    """The data set that is already there, if it is the one asked for; None when there is none."""
    if not out.exists():
        return None
    if not any(out.iterdir()):
        return None
    refusal = f"{out} is not empty, so nothing was packed into it"
    if not (out / DATASET_FILE).is_file():
        raise UserError(f"{refusal}: it holds no packed data set. Give a new folder.")
    info = read_dataset(out)

    # It is the one asked for, as far as its description says.
    is_same = without_unused(info.source) == without_unused(source)
    if not is_same or info.tasks != with_known_means(tasks, info.tasks):
        raise UserError(
            f"{refusal}: it holds a data set packed from another source or with other options. Give a new folder or remove it."
        )

    # It is whole, as far as sizes say: to compare the sums would take as long as to pack again.
    for split in info.splits.values():
        for shard in split.shards:
            file = out / shard.file
            if not file.is_file() or file.stat().st_size != shard.num_bytes:
                raise UserError(
                    f"{refusal}: its shard {shard.file} is missing or of another size. Remove it to pack again."
                )
    return info


def _write_samples(
    samples: Iterable[Sample],
    folder: Path,
    tasks: Sequence[Task],
    shard_samples: int,
    progress: Callable[[int], None],
) -> tuple[dict[str, SplitInfo], tuple[int, int]]:
    """Routes every sample to the writer of its split; returns the splits and the (height, width) of the first image."""
    writers = {
        name: ShardWriter(folder, name, tasks, shard_samples=shard_samples) for name in SPLITS
    }
    keys: set[int] = set()
    size = (0, 0)
    done = 0
    try:
        for sample in samples:
            if done == 0:
                size = _read_size(sample)
            if sample.split not in SPLITS:
                names = ", ".join(SPLITS)
                raise UserError(
                    f"Sample {sample.key}: the split should be one of {names}, found '{sample.split}'."
                )
            _check_key(sample.key, keys)
            writers[sample.split].write_sample(sample)
            done += 1
            if done % PROGRESS_EVERY == 0:
                progress(done)
        progress(done)
        for writer in writers.values():
            writer.close()
    finally:
        for writer in writers.values():
            writer.abandon()
    splits = {name: writer.info for name, writer in writers.items()}
    return {name: split for name, split in splits.items() if split.num_samples}, size


def _describe_why_none(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "There is not a single sample to pack. Check the table, the images and the splits."
    first = left_out[0]
    return (
        f"All {len(left_out):,} images were left out, so there is nothing to pack. "
        f"The first of them ({first.where}), '{first.image}': {first.why}."
    )


def write_dataset(info: DatasetInfo, path: Path) -> None:
    """Writes `dataset.json`, for people as well."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(info.to_json(), file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())


def write_tables(
    folder: Path, left_out: Sequence[LeftOut], copies: Sequence[Sequence[Copy]]
) -> None:
    """CSV files of what was left out and of the copies, with a number per image; each if it has a row."""
    left_out_rows = [("image", "kind", "where", "why"), *map(astuple, left_out)]
    copy_rows = [("image", "split", "key")]
    for number, alike in enumerate(copies, start=1):
        copy_rows += [(str(number), copy.split, copy.key) for copy in alike]
    for name, rows in ((LEFT_OUT_FILE, left_out_rows), (COPIES_FILE, copy_rows)):
        if len(rows) > 1:
            # Of file names that are not UTF-8 the odd bytes are written as such (`\\udce9`).
            with (folder / name).open(
                "w", encoding="utf-8", errors="backslashreplace", newline=""
            ) as file:
                csv.writer(file).writerows(rows)


def _read_size(sample: Sample) -> tuple[int, int]:
    try:
        return read_image_size(sample.image)
    except BrokenImageError as error:
        raise UserError(f"Sample {sample.key}: {error}.") from None


def _check_key(key: str, keys: set[int]) -> None:
    name = key.rpartition("/")[2]
    if not name or "." in name or key != key.strip("/ "):
        raise UserError(
            f"The key '{key}' cannot name a sample: it should be a file name without extension and dots."
        )
    # Hashes take less memory than keys. Two that collide (1 in 10^7 for two million keys) would be refused, not lost.
    if hash(key) in keys:
        raise UserError(f"Two samples have the key '{key}'. Give every image a name of its own.")
    keys.add(hash(key))


def without_unused(source: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of a source; an option that came later and is not used makes no other data set.

    Nor do the classes of a table, which follow from all else and were not noted once.
    """
    said = {key: value for key, value in source.items() if key != CLASS_TASKS}
    return {key: value for key, value in said.items() if value not in (None, "", [], {})}
