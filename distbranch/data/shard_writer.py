"""Writes tar shards with their indexes: webdataset makes the tar, the index is then read from the finished file."""

import hashlib
import json
import mmap
import os
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.writer import TarWriter

from distbranch.data.shards import BadSample, Index, Sample, Shard, SplitInfo, label_name, label_number
from distbranch.errors import UserError
from distbranch.tasks import Task


def index_shard(path: Path) -> Index:
    """Index [n, 6] of a shard: image offset, size, crc32; label offset, size, crc32.

    Raises BadSample when it is no whole tar or when a sample lacks its image or its labels.
    """
    places: dict[str, dict[str, tuple[int, int]]] = {}  # by key and extension: offset and size in bytes
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                # As webdataset has it, the key is the name up to the first dot.
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                files = places.setdefault(folder + slash + stem, {})
                files[extension] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise BadSample(
            "truncated",
            path.name,
            None,
            f"it is not a whole tar file ({error}).",
        ) from None
    # Mapped, for a shard may be larger than the memory.
    rows = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for key, files in places.items():
            row = []
            for extension in ("jpg", "json"):
                if extension not in files:
                    raise BadSample(
                        "incomplete",
                        path.name,
                        key,
                        f"there is no {key}.{extension}.",
                    )
                offset, size = files[extension]
                row += [offset, size, zlib.crc32(content[offset : offset + size])]
            rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, 6)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes the samples of one split as `<split>-000000.tar`, ... of `shard_samples` each, with their indexes.

    The same samples give the same bytes: no time, no user name. After the `with` block `.info` is complete.
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
        _check_classes(tasks)
        self._tasks = {task.name: task for task in tasks}
        self._counts: dict[str, dict[str, int]] = {}
        for task in tasks:
            labels = task.classes if task.kind == "categorical" else ("1", "0")
            self._counts[task.name] = dict.fromkeys(labels, 0)
        self._shards: list[Shard] = []
        self._num_samples = 0
        self._in_shard = 0
        self._path = folder
        self._tar: Any = None

    def write_sample(self, sample: Sample) -> None:
        """Appends a sample. Raises UserError when a label is not one of its task's."""
        self._count_labels(sample)
        if self._tar is None:
            self._open_shard()
        # Without blanks: `check` looks for the key in these bytes.
        described = {"key": sample.key, "labels": sample.labels}
        content = json.dumps(described, ensure_ascii=False, separators=(",", ":"))
        self._tar.write({"__key__": sample.key, "jpg": sample.image, "json": content.encode()})
        self._num_samples += 1
        self._in_shard += 1
        if self._in_shard == self.shard_samples:
            self._close_shard()

    def _count_labels(self, sample: Sample) -> None:
        for name, value in sample.labels.items():
            task = self._tasks.get(name)
            if task is None:
                raise UserError(f"Sample {sample.key}: it has a label of '{name}', which is no task of the data set.")
            try:
                label_number(task, value)  # what the loader will make of it
            except UserError as error:
                raise UserError(f"Sample {sample.key}: {error}") from None
            label = label_name(task, value)
            counts = self._counts[name]
            counts[label] = counts.get(label, 0) + 1

    def _open_shard(self) -> None:
        number = len(self._shards)
        self._path = self.folder / f"{self.split}-{number:06d}.tar"
        self._file = self._path.open("wb")
        # PAX, for keys of any length and letters; no time and no name, for the same bytes whoever packs, and when.
        self._tar = TarWriter(
            self._file, encoder=False, user="", group="", mtime=0, compress=False, format="PAX_FORMAT"
        )

    def _close_shard(self) -> None:
        """Completes the tar, then reads it back: the index is what is on the disk, not what was meant to be there."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())  # else the folder could be renamed on the disk before its files are there
        self._file.close()
        self._tar = None
        index_path = self._path.with_suffix(".index.npy")
        with index_path.open("wb") as file:
            np.save(file, index_shard(self._path))
            file.flush()
            os.fsync(file.fileno())
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

    @property
    def info(self) -> SplitInfo:
        """The split as written so far (whole shards)."""
        labels = {}
        for name, counts in self._counts.items():
            labels[name] = {**counts, "unlabelled": self._num_samples - sum(counts.values())}
        return SplitInfo(num_samples=self._num_samples, labels=labels, shards=tuple(self._shards))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._tar is None:
            return
        if kind is None:
            self._close_shard()
            return
        with suppress(OSError):  # a full disk, which is being told already
            self._tar.close()
        with suppress(OSError):
            self._file.close()


def _check_classes(tasks: Sequence[Task]) -> None:
    """A class may not be called as what counts the samples without a label."""
    named = [task.name for task in tasks if "unlabelled" in task.classes]
    if named:
        raise UserError(
            f"The task '{named[0]}' has a class called 'unlabelled', which counts samples without a label. Give it another name."
        )
