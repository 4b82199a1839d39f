"""Where the files of a data set are opened: a local folder in place, a URL through a bounded folder of copies.

Several processes of one host share the copies. A lock per file lets one of them fetch while the others wait; whoever
reads a copy holds a shared lock on it, so that making room never takes a file in use, and a dead process holds nothing.
"""

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import fsspec
from filelock import FileLock, Timeout

from distbranch.config.places import user_cache
from distbranch.data.shards import is_remote, join
from distbranch.errors import UserError

logger = logging.getLogger("distbranch")

ATTEMPTS = 3
BACKOFF_S = 0.5
_AHEAD_THREADS = 4
_COPY = re.compile(r"[0-9a-f]{16}-.+\.(tar|npy)")  # what we put into the cache folder; anything else there is not ours
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


class DamagedDownloadError(OSError):
    """A file that arrived other than it was packed."""


@dataclass(frozen=True)
class Cache:
    """Where copies of remote shards are kept, and the bound in bytes: the file used longest ago makes room.

    Files being read stay, so the bound should hold the shards of a window with their indexes; those of the next window
    are fetched ahead where it holds two.
    """

    folder: str
    max_bytes: int = 20 * 2**30


class Files(Protocol):
    """The files of a data set."""

    def open(self, file: str, sha256: str) -> int:
        """A file descriptor for reading, the caller's to close. OSError when the file cannot be had."""


@dataclass(frozen=True)
class LocalFiles:
    """A folder of this machine, read in place (the samples are verified one by one, whoever reads them)."""

    folder: str

    def open(self, file: str, sha256: str) -> int:  # noqa: ARG002
        """A file descriptor of the file itself."""
        return os.open(join(self.folder, file), os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True)
class RemoteFiles:
    """A URL whose files are fetched once, verified, and kept in `cache`."""

    url: str
    cache: Cache

    def open(self, file: str, sha256: str) -> int:
        """A file descriptor of the copy, fetched if absent. The copy stays at least as long as it is open."""
        copy = Path(self.cache.folder) / f"{sha256[:16]}-{file.replace('/', '-')}"
        with FileLock(f"{copy}.lock"):
            absent = not copy.exists()
            if absent:
                self._fetch(file, sha256, copy)
            descriptor = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # in use, until the descriptor is closed
        os.utime(descriptor)  # the time of last use
        if absent:
            make_room(self.cache)
        return descriptor

    def _fetch(self, file: str, sha256: str, copy: Path) -> None:
        aside = Path(f"{copy}.part")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._download(file, sha256, aside)
                aside.replace(copy)
                return
            except FileNotFoundError:
                raise
            except Exception as error:  # every fsspec driver raises errors of its own
                aside.unlink(missing_ok=True)
                if attempt == ATTEMPTS:
                    if isinstance(error, OSError):
                        raise
                    raise OSError(f"{type(error).__name__}: {error}") from error
                logger.warning("Fetching %s failed (%s); trying again.", join(self.url, file), error)
                time.sleep(BACKOFF_S * 2 ** (attempt - 1))

    def _download(self, file: str, sha256: str, aside: Path) -> None:
        system, place = fsspec.core.url_to_fs(join(self.url, file))
        system.get_file(place, str(aside))
        with aside.open("rb") as written:
            found = hashlib.file_digest(written, "sha256").hexdigest()
        if found != sha256:
            raise DamagedDownloadError(f"it arrived with sha256 {found}, it was packed with {sha256}")


class FetchAhead:
    """Fetches files by threads before they are read, so that a reader waits for a slow network only once."""

    def __init__(self, files: RemoteFiles) -> None:
        self._files = files
        self._pool = ThreadPoolExecutor(_AHEAD_THREADS, "distbranch-fetch")
        self._wanted: set[str] = set()

    def want(self, files: Mapping[str, str]) -> None:
        """These files (name to sha256) will be read soon."""
        for file in files.keys() - self._wanted:
            self._pool.submit(self._fetch, file, files[file])
        self._wanted = set(files)

    def close(self) -> None:
        """Waits for what is being fetched and forgets the rest."""
        self._pool.shutdown(cancel_futures=True)

    def _fetch(self, file: str, sha256: str) -> None:
        with suppress(OSError):  # who reads the file meets the error again, and tells
            os.close(self._files.open(file, sha256))


def open_files(path: str, cache: Cache | None = None) -> Files:
    """The files of the data set at a folder or URL. UserError for a URL that this installation cannot read."""
    if not is_remote(path):
        return LocalFiles(path)
    protocol = path.split("://", 1)[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        cure = f"pip install 'distbranch[{extra}]'" if extra else f"install its fsspec driver ({error})"
        raise UserError(f"Reading {path} needs a driver that is not installed: {cure}.") from None
    except ValueError:
        known = "http, https, s3, gs"
        raise UserError(f"{path} begins with {protocol}://, which is unknown; known are {known}.") from None
    cache = cache or Cache(default_cache_folder())
    try:
        Path(cache.folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The cache folder {cache.folder} cannot be made: {error.strerror}. Choose another.") from None
    return RemoteFiles(path, cache)


def default_cache_folder() -> str:
    """The folder of this user for copies of remote shards."""
    return str(user_cache() / "shards")


def make_room(cache: Cache) -> None:
    """Removes the copies used longest ago until the rest fits; copies in use (by any process) stay."""
    folder = Path(cache.folder)
    with FileLock(folder / "room.lock"):
        copies = sorted(_copies(folder), key=lambda copy: copy[1])
        excess = sum(size for _, _, size in copies) - cache.max_bytes
        for path, _, size in copies:
            if excess <= 0:
                return
            if _removed_unless_in_use(path):
                excess -= size


def _copies(folder: Path) -> list[tuple[Path, float, int]]:
    """(path, time of last use, bytes) of every finished copy."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _COPY.fullmatch(entry.name):
                status = entry.stat()
                found.append((Path(entry.path), status.st_mtime, status.st_size))
    return found


def _removed_unless_in_use(path: Path) -> bool:
    try:
        with FileLock(f"{path}.lock", timeout=0):  # nobody is about to open it
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
    except (Timeout, BlockingIOError):
        return False
    return True
