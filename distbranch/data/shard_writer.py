"""Writes tar shards with their indexes: webdataset makes the tar, the index is then read from the finished file."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from webdataset.writer import TarWriter

from distbranch.data.label_maps import check_codes, decode_map, get_dense_kind
from distbranch.data.shards import (
    Index,
    Labels,
    Sample,
    Shard,
    SplitInfo,
    list_dense_tasks,
    split_member,
)
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.tasks import Task


def index_shard(path: Path, tasks: Sequence[Task] = ()) -> Index:
    """Index [n, 3 (2 + D)] of a shard, D of the tasks being dense: offset, size and crc32 of image, label file and maps.

    Raises ValueError for a file that is none of these.
    """
    suffixes = ["jpg", "json", *map(name_map_file, list_dense_tasks(tasks))]
    files: dict[str, list[list[int]]] = {}
    with tarfile.open(path, "r:") as tar, path.open("rb") as file:
        for member in tar:
            key, suffix = split_member(member.name)
            file.seek(member.offset_data)
            content = file.read(member.size)
            row = files.setdefault(key, [[-1, -1, -1]] * len(suffixes))
            row[suffixes.index(suffix)] = [member.offset_data, member.size, zlib.crc32(content)]
    return np.array(list(files.values()), dtype=np.int64).reshape(-1, 3 * len(suffixes))


def name_map_file(task: Task) -> str:
    """What follows the key and a dot in the name of a map's file."""
    return f"{task.name}.{get_dense_kind(task).suffix}"


def write_labels(key: str, labels: Labels) -> bytes:
    """The label file of a sample."""
    # Without blanks: `check` looks for the key in these bytes.
    described = {"key": key, "labels": labels}
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class LabelTally:
    """Counts the labels of one split, and refuses those that are none of its tasks."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._counts = {task.name: KINDS[task.kind].make_counts(task) for task in tasks}
        for task in tasks:
            # A class may not be called as what counts the samples without a label.
            if "unlabelled" in task.classes:
                raise UserError(
                    f"The task '{task.name}' has a class called 'unlabelled', which counts samples without a label. Give it another name."
                )

    def add_sample(self, sample: Sample) -> None:
        """Counts a sample. Raises UserError when a label is not one of its task's, or a map does not fit the image."""
        self._count_labels(sample)
        self._count_maps(sample)

    def to_json(self, num_samples: int) -> dict[str, dict[str, int | float]]:
        """What `dataset.json` says of the labels of so many samples."""
        labels = {}
        for name, counts in self._counts.items():
            labels[name] = counts.to_json() | {"unlabelled": num_samples - counts.num_labelled}
        return labels

    def _count_labels(self, sample: Sample) -> None:
        for name, value in sample.labels.items():
            if name not in self._tasks:
                raise UserError(
                    f"Sample {sample.key}: it has a label of '{name}', which is no task of the data set."
                )
            task = self._tasks[name]
            try:
                KINDS[task.kind].read_label(task, value)  # what the loader will make of it
            except UserError as error:
                raise UserError(f"Sample {sample.key}: {error}") from None
            self._counts[name].add(value)

    def _count_maps(self, sample: Sample) -> None:
        for name, content in sample.maps.items():
            task = self._tasks.get(name)
            if task is None or not task.is_dense:
                raise UserError(
                    f"Sample {sample.key}: it has a map of '{name}', which is no dense task of the data set."
                )
            try:
                codes = decode_map(task, content)
                check_codes(task, codes, sample.image)
            except UserError as error:
                raise UserError(f"Sample {sample.key}: {error}") from None
            self._counts[name].add(codes)


class ShardWriter:
    """Writes the samples of one split as `<split>-000000.tar`, ... of `shard_samples` each, with their indexes.

    The same samples give the same bytes: no time, no user name. `.info` is complete after `close`.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        tasks: Sequence[Task],
        *,
        shard_samples: int = 1000,
    ) -> None:
        self.folder = folder
        self.split = split
        self.shard_samples = shard_samples
        self._tasks = {task.name: task for task in tasks}
        self._tally = LabelTally(tasks)
        self._shards: list[Shard] = []
        self._in_shard = 0
        self._tar: Any = None

    def write_sample(self, sample: Sample) -> None:
        """Appends a sample. Raises UserError when a label is not one of its task's, or a map does not fit the image."""
        self._tally.add_sample(sample)
        if self._tar is None:
            self._open_shard()
        files = {"jpg": sample.image, "json": write_labels(sample.key, sample.labels)}
        files |= {name_map_file(self._tasks[name]): one for name, one in sample.maps.items()}
        self._tar.write({"__key__": sample.key, **files})
        self._in_shard += 1
        if self._in_shard == self.shard_samples:
            self.close()

    def close(self) -> None:
        """Completes the shard, then reads it back: the index is what is on the disk, not what was meant to be there."""
        if self._tar is None:
            return
        self._tar.close()
        _close_on_disk(self._file)
        self._tar = None
        index_path = self._path.with_suffix(".index.npy")
        file = index_path.open("wb")
        np.save(file, index_shard(self._path, list(self._tasks.values())))
        _close_on_disk(file)
        self._shards.append(
            Shard(
                file=self._path.name,
                num_samples=self._in_shard,
                num_bytes=self._path.stat().st_size,
                sha256=file_sha256(self._path),
                index=index_path.name,
                index_sha256=file_sha256(index_path),
            )
        )
        self._in_shard = 0

    def abandon(self) -> None:
        """Closes what an error left open: on NFS no folder with an open file can be removed."""
        if self._tar is None:
            return
        # The tar goes first, for at its end it writes into the file.
        for close in (self._tar.close, self._file.close):
            with suppress(OSError):  # a full disk, which is being told already
                close()

    @property
    def info(self) -> SplitInfo:
        """The split as written so far (whole shards)."""
        num_samples = sum(shard.num_samples for shard in self._shards)
        return SplitInfo(num_samples, self._tally.to_json(num_samples), tuple(self._shards))

    def _open_shard(self) -> None:
        self._path = self.folder / f"{self.split}-{len(self._shards):06d}.tar"
        self._file = self._path.open("wb")
        # PAX, for keys of any length and letters; no time and no name, for the same bytes whoever packs, and when.
        self._tar = TarWriter(
            self._file,
            encoder=False,
            user="",
            group="",
            mtime=0,
            compress=False,
            format="PAX_FORMAT",
        )


def _close_on_disk(file: BinaryIO) -> None:
    """Else the folder could be renamed on the disk before its files are there."""
    with file:
        file.flush()
        os.fsync(file.fileno())
