"""Reads single samples out of shards: two positioned reads by the index, each verified by its crc32.

Nothing is read in between, so damage to a tar header costs no sample, and damage to a sample costs that sample alone.
Several data sets are read as one whose shards are numbered through, as `plan.MixedPlan` numbers them.
"""

import json
import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from distbranch.data.cache import Cache, DamagedDownloadError, FetchAhead, Files, RemoteFiles, open_files
from distbranch.data.shards import BadSample, Index, Shard, join, parse_labels
from distbranch.permissions import denied
from distbranch.tasks import Task

_HEADER_BYTES = 512  # of a tar; the header of a file ends where its content begins


@dataclass(frozen=True)
class _PlacedShard:
    """A shard among all that are read: the files of its data set, and the name by which people find it."""

    files: Files
    shard: Shard
    name: str


@dataclass(eq=False)
class _TroubleError(Exception):
    """What is wrong with a sample, before it is known how the sample is called."""

    kind: str
    what: str


# A file descriptor and the shard's index, or why they cannot be had.
_OpenShard = tuple[int, Index] | _TroubleError


class ShardReader:
    """Samples of the shards of one split, of one data set or of several; of each the `max_open` shards used last stay open.

    A shard is opened anew in every epoch, so that a file that vanished or was cut is noticed then at the latest. While a
    file is open its deletion goes unnoticed: the descriptor reads on, and what it reads is whole.

    Args:
        parts: path and shards of every data set.
        tasks: of all of them together; a label that a data set does not have is NaN.
        cache: for those that are remote.
        max_open: shards kept open, for each data set.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, Sequence[Shard]]],
        tasks: Sequence[Task],
        cache: Cache | None = None,
        *,
        max_open: int,
    ) -> None:
        self._tasks = tasks
        self._max_open = max_open * len(parts)  # else a data set that is read often would push out the others
        self._shards: list[_PlacedShard] = []
        self._open: OrderedDict[tuple[int, int], _OpenShard] = OrderedDict()
        self._ahead: list[tuple[RemoteFiles, FetchAhead]] = []
        for path, shards in parts:
            files = open_files(path, cache)
            if isinstance(files, RemoteFiles):
                self._ahead.append((files, FetchAhead(files)))
            for shard in shards:
                name = join(path, shard.file) if len(parts) > 1 else shard.file
                self._shards.append(_PlacedShard(files, shard, name))

    def request_shards(self, shards: Sequence[int]) -> None:
        """These shards will be read soon: fetches them in the background if they are remote and the cache holds them."""
        for files, ahead in self._ahead:
            wanted = {}
            num_bytes = 0
            for placed in (self._shards[number] for number in shards):
                if placed.files is files:
                    wanted[placed.shard.index] = placed.shard.index_sha256
                    wanted[placed.shard.file] = placed.shard.sha256
                    num_bytes += placed.shard.num_bytes
            # In a smaller cache one shard of a window would push out another before either is read.
            if num_bytes <= files.cache.max_bytes:
                ahead.request(wanted)

    def file_name(self, shard: int) -> str:
        """The file of a shard, with its place where there are several data sets."""
        return self._shards[shard].name

    def read_sample(self, shard: int, sample: int, epoch: int = 0) -> tuple[bytes, NDArray[np.float32]]:
        """The JPEG and the labels [T] (NaN = unlabelled) of a sample. Raises BadSample."""
        image, content = self.read_files(shard, sample, epoch)
        try:
            labels = parse_labels(content, self._tasks, self._shards[shard].name, sample)
        except BadSample as error:
            key = self.read_key(shard, sample, epoch)
            raise BadSample(error.kind, error.shard, key, error.what) from None
        return image, labels

    def read_files(self, shard: int, sample: int, epoch: int = 0) -> tuple[bytes, bytes]:
        """The JPEG and the label file of a sample, as they were packed. Raises BadSample."""
        try:
            descriptor, index = self._open_shard(shard, epoch)
            entry = index[sample].tolist()
            image = _read_verified(descriptor, entry[:3], "image")
            content = _read_verified(descriptor, entry[3:], "label file")
            # A search in the bytes, which costs nothing: only who needs the labels parses them.
            if b'"labels"' not in content:
                raise _TroubleError("incomplete", "its label file has no field 'labels'.")
        except _TroubleError as error:
            key = self.read_key(shard, sample, epoch)
            raise BadSample(
                error.kind,
                self._shards[shard].name,
                key,
                error.what,
            ) from None
        return image, content

    def read_key(self, shard: int, sample: int, epoch: int = 0) -> str | int:
        """The key of a sample, from the tar header before its image; its number where that header cannot be read.

        That header holds no letters but those of ASCII, and not many: of other keys the label file tells the whole.
        """
        try:
            descriptor, index = self._open_shard(shard, epoch)
            entry = index[sample].tolist()
            header = os.pread(descriptor, _HEADER_BYTES, entry[0] - _HEADER_BYTES)
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (_TroubleError, tarfile.HeaderError, OSError):
            return sample
        if "?" in name or len(name) >= tarfile.LENGTH_NAME:
            with suppress(_TroubleError, ValueError, KeyError, TypeError):
                content = _read_verified(descriptor, entry[3:], "label file")
                return str(json.loads(content)["key"])
        # As webdataset has it, the key is the name up to the first dot.
        folder, slash, base = name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    def close(self) -> None:
        """Closes every shard."""
        for _, ahead in self._ahead:
            ahead.close()
        while self._open:
            self._close_oldest()

    def _open_shard(self, shard: int, epoch: int) -> tuple[int, Index]:
        """Descriptor and index of a shard. Its trouble is kept as they are, so that each sample need not try (and wait) anew."""
        key = (epoch, shard)
        if key not in self._open:
            if len(self._open) >= self._max_open:
                self._close_oldest()
            self._open[key] = _try_to_open(self._shards[shard])
        self._open.move_to_end(key)
        opened = self._open[key]
        if isinstance(opened, _TroubleError):
            raise opened.with_traceback(None)  # else it would grow by every sample
        return opened

    def _close_oldest(self) -> None:
        _, oldest = self._open.popitem(last=False)
        if not isinstance(oldest, _TroubleError):
            os.close(oldest[0])


def _try_to_open(placed: _PlacedShard) -> _OpenShard:
    try:
        index = _read_index(placed)
        return _open_file(placed.files, placed.shard.file, placed.shard.sha256), index
    except _TroubleError as error:
        return error


def _read_verified(descriptor: int, member: Sequence[int], what: str) -> bytes:
    """The bytes of a member (offset, size, crc32) as they were packed."""
    offset, size, crc = member
    try:
        content = os.pread(descriptor, size, offset)
    except OSError as error:
        raise _TroubleError("corrupt", f"its {what} cannot be read ({error}).") from None
    if len(content) < size:
        raise _TroubleError("truncated", f"the file ends inside or before its {what}.")
    # It finds damage, which is what happens to files; a forgery it would not find.
    if zlib.crc32(content) != crc:
        raise _TroubleError("corrupt", f"its {what} is not the one that was packed (the crc32 differs).")
    return content


def _read_index(placed: _PlacedShard) -> Index:
    shard = placed.shard
    descriptor = _open_file(placed.files, shard.index, shard.index_sha256)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read()
    if sha256(content).hexdigest() != shard.index_sha256:
        raise _TroubleError("corrupt", f"its index {shard.index} is not the one that was packed.")
    index: Index = np.load(BytesIO(content), allow_pickle=False)  # a pickle from elsewhere could run any code
    return index


def _open_file(files: Files, file: str, packed_sha256: str) -> int:
    try:
        return files.open(file, packed_sha256)
    except DamagedDownloadError as error:
        raise _TroubleError("corrupt", f"{file} cannot be used: {error}.") from None
    except FileNotFoundError:
        raise _TroubleError("missing-shard", f"the file {file} is absent.") from None
    except PermissionError as error:  # of this user and not of the shard: nothing to leave out
        raise denied(error, file) from None
    except OSError as error:
        raise _TroubleError("missing-shard", f"the file {file} cannot be opened ({error}).") from None
