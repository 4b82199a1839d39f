"""Reads single samples out of shards: a positioned read per file by the index, each verified by its crc32.

Nothing is read in between, so damage to a tar header costs no sample, and damage to a sample costs that sample alone.
Several data sets are read as one whose shards are numbered through, as `plan.MixedPlan` numbers them.
"""

import json
import os
import tarfile
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from distbranch.data.cache import (
    Cache,
    DamagedDownloadError,
    Files,
    RemoteFiles,
    find_remote,
    open_files,
)
from distbranch.data.images import Pixels, decode_to_size
from distbranch.data.label_maps import decode_map
from distbranch.data.shards import (
    BadSample,
    DatasetInfo,
    Index,
    Shard,
    join,
    list_dense_tasks,
    parse_labels,
    split_member,
)
from distbranch.errors import UserError
from distbranch.kinds.kind import Array
from distbranch.permissions import make_denied_error
from distbranch.tasks import Task

_AHEAD_THREADS = 4  # of every reader: one stream of a distant store fills no network
_HEADER_BYTES = 512  # of a tar; the header of a file ends where its content begins


@dataclass(frozen=True)
class ShardSource:
    """Shards of one data set at `path` (folder or URL). `dense`: its tasks with maps, in the order of the indexes."""

    path: str
    shards: Sequence[Shard]
    dense: Sequence[Task] = ()

    @classmethod
    def from_split(cls, info: DatasetInfo, split: str) -> "ShardSource":
        """Those of a split of a packed data set."""
        return cls(info.path, info.splits[split].shards, list_dense_tasks(info.tasks))


class OpenShard:
    """A shard while it is read. Everything raises BadSample, under `name` and the sample's key.

    A file that is deleted while it is open goes unnoticed: the descriptor reads on, and what it reads is whole.
    """

    def __init__(self, files: Files, shard: Shard, name: str, dense: Sequence[Task] = ()) -> None:
        self.name = name
        self.dense = dense
        with os.fdopen(self._open_file(files, shard.index, shard.index_sha256), "rb") as file:
            content = file.read()
        if sha256(content).hexdigest() != shard.index_sha256:
            raise BadSample(
                "corrupt", name, None, f"its index {shard.index} is not the one that was packed."
            )
        self.index: Index = np.load(
            BytesIO(content), allow_pickle=False
        )  # a pickle from elsewhere could run any code
        self._descriptor = self._open_file(files, shard.file, shard.sha256)
        weakref.finalize(self, os.close, self._descriptor)  # as soon as nobody has it any more
        # Of our own tars the labels are among the images.
        self._labels = self._descriptor
        if shard.labels:
            self._labels = self._open_file(files, shard.labels, shard.labels_sha256)
            weakref.finalize(self, os.close, self._labels)

    def read_sample(self, sample: int, tasks: Sequence[Task]) -> tuple[bytes, NDArray[np.float32]]:
        """The JPEG and the labels [T] (NaN = unlabelled) of a sample."""
        image, content = self.read_files(sample)
        return image, self._parse_labels(sample, content, tasks)

    def read_labels(self, sample: int, tasks: Sequence[Task]) -> NDArray[np.float32]:
        """The labels [T] of a sample alone."""
        return self._parse_labels(sample, self._read_label_file(sample), tasks)

    def read_pixels(
        self,
        sample: int,
        tasks: Sequence[Task],
        image_size: tuple[int, int],
        decoder: str = "simplejpeg",
    ) -> tuple[Pixels, NDArray[np.float32]]:
        """The image as a network sees it, [H, W, 3], and the labels."""
        content, labels = self.read_sample(sample, tasks)
        try:
            return decode_to_size(content, image_size, decoder), labels
        except ValueError as error:
            raise self.bad_sample(
                sample, "broken-image", f"its image cannot be decoded ({error})."
            ) from None

    def read_codes(self, sample: int) -> dict[str, Array]:
        """The codes of a sample's maps, by task; a task without a map is not among them."""
        codes = {}
        for name, content in self.read_maps(sample).items():
            (task,) = (task for task in self.dense if task.name == name)
            try:
                codes[name] = decode_map(task, content)
            except UserError as error:
                raise self.bad_sample(sample, "bad-label", str(error)) from None
        return codes

    def read_maps(self, sample: int) -> dict[str, bytes]:
        """The maps of a sample by task, as they were packed; those that are there."""
        entry = self.index[sample].tolist()
        maps = {}
        for number, task in enumerate(self.dense, start=2):
            member = entry[3 * number : 3 * number + 3]
            if member[0] >= 0:
                what = f"map of '{task.name}'"
                maps[task.name] = self._read_verified(sample, member, what, self._descriptor)
        return maps

    def read_files(self, sample: int) -> tuple[bytes, bytes]:
        """The JPEG and the label file of a sample, as they were packed."""
        image = self._read_verified(
            sample, self.index[sample, :3].tolist(), "image", self._descriptor
        )
        return image, self._read_label_file(sample)

    def _read_label_file(self, sample: int) -> bytes:
        entry = self.index[sample, 3:6].tolist()
        content = self._read_verified(sample, entry, "label file", self._labels)
        # A search in the bytes, which costs nothing: only who needs the labels parses them.
        if b'"labels"' not in content:
            raise self.bad_sample(sample, "incomplete", "its label file has no field 'labels'.")
        return content

    def _parse_labels(
        self, sample: int, content: bytes, tasks: Sequence[Task]
    ) -> NDArray[np.float32]:
        try:
            return parse_labels(content, tasks)
        except UserError as error:
            raise self.bad_sample(sample, "bad-label", str(error)) from None

    def read_key(self, sample: int) -> str | int:
        """The key of a sample, from the tar header before its image; its number where that header cannot be read.

        That header holds no letters but those of ASCII, and not many: of other keys the label file tells the whole, and of tars that
        others made, in which keys may repeat, by what name we tell its samples apart.
        """
        offset, _, _, label_offset, label_size, *_ = self.index[sample].tolist()
        try:
            header = os.pread(self._descriptor, _HEADER_BYTES, offset - _HEADER_BYTES)
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (tarfile.HeaderError, OSError):
            return sample
        is_foreign = self._labels != self._descriptor
        if is_foreign or "?" in name or len(name) >= tarfile.LENGTH_NAME:
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = os.pread(self._labels, label_size, label_offset)
                return str(json.loads(content)["key"])
        return split_member(name)[0]

    def measure_tar(self) -> tuple[int, str]:
        """The bytes of the tar as it now is, and their sha256. OSError when it cannot be read."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            digest = file_digest(file, "sha256").hexdigest()
            return file.tell(), digest

    def bad_sample(self, sample: int, kind: str, what: str) -> BadSample:
        """What to raise for a sample of this shard."""
        return BadSample(kind, self.name, self.read_key(sample), what)

    def _open_file(self, files: Files, file: str, packed_sha256: str) -> int:
        try:
            return files.open(file, packed_sha256)
        except PermissionError as error:  # of this user and not of the shard: nothing to leave out
            raise make_denied_error(error, file) from None
        except DamagedDownloadError as error:
            raise BadSample(
                "corrupt", self.name, None, f"{file} cannot be used: {error}."
            ) from None
        except FileNotFoundError:
            raise BadSample(
                "missing-shard", self.name, None, f"the file {file} is absent."
            ) from None
        except OSError as error:
            raise BadSample(
                "missing-shard", self.name, None, f"the file {file} cannot be opened ({error})."
            ) from None

    def _read_verified(
        self, sample: int, member: Sequence[int], what: str, descriptor: int
    ) -> bytes:
        """The bytes of a member (offset, size, crc32) as they were packed."""
        offset, size, crc = member
        try:
            content = os.pread(descriptor, size, offset)
        except OSError as error:
            raise self.bad_sample(
                sample, "corrupt", f"its {what} cannot be read ({error})."
            ) from None
        if len(content) < size:
            raise self.bad_sample(
                sample, "truncated", f"the file ends inside or before its {what}."
            )
        # It finds damage, which is what happens to files; a forgery it would not find.
        if zlib.crc32(content) != crc:
            changed = f"its {what} is not the one that was packed (the crc32 differs)."
            raise self.bad_sample(sample, "corrupt", changed)
        return content


class ShardReader:
    """The shards of one data set or of several; of each the `max_open` shards used last stay open.

    Args:
        parts: the shards of every data set.
        cache: for those that are remote.
        max_open: shards kept open, for each data set.
    """

    def __init__(
        self,
        parts: Sequence[ShardSource],
        cache: Cache | None = None,
        *,
        max_open: int,
    ) -> None:
        # For each data set, else one that is read often would push out the others.
        self._open = lru_cache(max_open * len(parts))(self._try_to_open)
        # With the name by which people find it.
        self._shards: list[tuple[Files, Shard, str, Sequence[Task]]] = []
        self._requested: list[int] = []
        self._remote: list[RemoteFiles | None] = []
        self._ahead = ThreadPoolExecutor(_AHEAD_THREADS, "distbranch-fetch")
        for part in parts:
            files = open_files(part.path, cache)
            for shard in part.shards:
                self._remote.append(find_remote(files, shard.file))
                name = join(part.path, shard.file) if len(parts) > 1 else shard.file
                self._shards.append((files, shard, name, part.dense))

    def request_shards(self, numbers: Sequence[int]) -> None:
        """These shards will be read soon: fetches them in the background if they are remote and the cache holds them."""
        remote = []
        for number in dict.fromkeys(numbers):
            files = self._remote[number]
            if files is not None:
                remote.append((number, files, self._shards[number][1]))
        # In a smaller cache one shard of a window would push out another before either is read.
        # Several splits may read one tar.
        num_bytes = sum({shard.sha256: shard.num_bytes for _, _, shard in remote}.values())
        for number, files, shard in remote:
            if number not in self._requested and num_bytes <= files.cache.max_bytes:
                self._ahead.submit(files.fetch_shard, shard)
        self._requested = list(numbers)

    def open_shard(self, number: int, epoch: int = 0) -> OpenShard:
        """The shard, opened anew in every epoch, so that a file that vanished or was cut is noticed then at the latest.

        Raises BadSample, which is kept like a shard, so that each of its samples need not try (and wait) anew.
        """
        opened = self._open(number, epoch)
        if isinstance(opened, BadSample):
            raise opened.with_traceback(None)  # else it would grow by every sample
        return opened

    def close(self) -> None:
        """Closes every shard, once what is being fetched is there."""
        self._ahead.shutdown(cancel_futures=True)
        self._open.cache_clear()

    def _try_to_open(self, number: int, epoch: int) -> OpenShard | BadSample:  # noqa: ARG002
        try:
            return OpenShard(*self._shards[number])
        except BadSample as error:
            return error
