"""Where the files of a data set are opened: a local folder in place, a URL through a bounded folder of copies.

Several processes share the copies. A lock per file lets one of them fetch while the others wait; whoever reads a copy holds a shared
lock on it, so that making room never takes a file in use, and a dead process holds nothing. A folder that cannot be written or
locked, or has no room, costs downloads and never a file: what it does not keep is read through a file without a name.
"""

import errno
import fcntl
import functools
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from distbranch.config.paths import find_user_cache, is_remote
from distbranch.data.shards import Shard, join
from distbranch.errors import UserError
from distbranch.locks import FOR_EVER, WITHOUT_FLOCK, LockHeldError, hold_lock

logger = logging.getLogger("distbranch")

ATTEMPTS = 3
BACKOFF_S = 0.5  # before the second attempt, then twice as long before each further one
SILENCE_S = 60  # of a web server, before it is asked again
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COPY = re.compile(
    r"[0-9a-f]{16}-.+\.(tar|npy|jsonl)"
)  # what we put into the cache folder; anything else there is not ours


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


@dataclass(frozen=True)
class LocalFiles:
    """A folder of this machine, read in place (the samples are verified one by one, whoever reads them).

    `cache`: for tars of others that its data set reads from a URL.
    """

    folder: str
    cache: Cache | None = None

    def open(self, file: str, sha256: str) -> int:
        """A file descriptor of the file itself, the caller's to close. OSError when it cannot be had."""
        remote = find_remote(self, file)
        if remote is not None:
            return remote.open(file, sha256)
        return os.open(join(self.folder, file), os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True)
class RemoteFiles:
    """A URL whose files are fetched once, verified, and kept in `cache`."""

    url: str
    cache: Cache

    def open(self, file: str, sha256: str) -> int:
        """A file descriptor of the copy, fetched if absent. The copy stays at least as long as it is open.

        Raises:
            OSError: the file cannot be had from the URL.
            UserError: neither the cache nor the folder for temporary files has room for it.
        """
        descriptor = self._open_copy(file, sha256)
        if descriptor is not None:
            return descriptor
        # Through a file that is gone as soon as it is closed.
        _warn_of_cache(self.cache.folder)
        place = Path(tempfile.gettempdir()) / f"distbranch-{uuid4()}"
        descriptor = self._fetch(file, sha256, place)
        place.unlink(missing_ok=True)
        if descriptor is None:
            raise UserError(
                f"There is no room for {join(self.url, file)}, neither in the cache {self.cache.folder} nor in the folder for temporary "
                "files (TMPDIR). Make room, lower data.cache_gib, or give another data.cache_directory."
            )
        return descriptor

    def fetch_shard(self, shard: Shard) -> None:
        """Lets the cache have the files of a shard before they are read, if it can keep them."""
        files = {shard.file: shard.sha256}
        if not is_remote(shard.file):  # else its small files may lie elsewhere
            files = {shard.index: shard.index_sha256, shard.labels: shard.labels_sha256, **files}
            files.pop("", None)
        with suppress(OSError):  # who reads the shard meets the error again, and tells
            for file, sha256 in files.items():
                descriptor = self._open_copy(file, sha256)
                if descriptor is not None:
                    os.close(descriptor)

    def _open_copy(self, file: str, sha256: str) -> int | None:
        """The same, but None where the cache cannot keep a copy."""
        # By its content, so that a data set that was packed anew finds no copy of the old one.
        name = file.replace("/", "-")
        if is_remote(file):
            name = file.partition("?")[0].rpartition("/")[2]
        copy = Path(self.cache.folder) / f"{sha256[:16]}-{name}"
        with _try_to_lock(copy) as is_locked:
            descriptor = _open_existing(copy)
            if descriptor is not None or not is_locked:
                return descriptor
            descriptor = self._fetch_copy(file, sha256, copy)
        make_room(self.cache)
        return descriptor

    def _fetch_copy(self, file: str, sha256: str, copy: Path) -> int | None:
        """Fetch into the cache, whose other copies make way on a full disk; None if that does not suffice."""
        aside = Path(f"{copy}.part")
        for _ in range(2):
            descriptor = self._fetch(file, sha256, aside)
            if descriptor is not None:
                _mark_in_use(descriptor)
                aside.replace(copy)
                return descriptor
            make_room(replace(self.cache, max_bytes=0))
        return None

    def _fetch(self, file: str, sha256: str, place: Path) -> int | None:
        """Fetch into `place`; a descriptor of it, which whatever becomes of the name leaves whole. None: it cannot be written."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                place.touch()
            except OSError:
                return None
            try:
                self._download(file, sha256, place)
                return os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            except Exception as error:  # every fsspec driver raises errors of its own
                place.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    return None
                if attempt == ATTEMPTS or isinstance(error, FileNotFoundError):
                    if isinstance(error, OSError):
                        raise
                    raise OSError(f"{type(error).__name__}: {error}") from error
                logger.warning(
                    "Fetching %s failed (%s); trying again.", join(self.url, file), error
                )
                time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError

    def _download(self, file: str, sha256: str, place: Path) -> None:
        system, source = find_system(join(self.url, file))
        system.get_file(source, str(place))
        with place.open("rb") as written:
            found = hashlib.file_digest(written, "sha256").hexdigest()
        if found != sha256:
            raise DamagedDownloadError(
                f"it arrived with sha256 {found}, it was packed with {sha256}"
            )


Files = LocalFiles | RemoteFiles  # of a data set


def open_files(path: str, cache: Cache | None = None) -> Files:
    """The files of the data set at a folder or URL. UserError for a URL that this installation cannot read."""
    if not is_remote(path):
        return LocalFiles(path, cache)
    try:
        fsspec.get_filesystem_class(path.split("://", 1)[0])
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read by this installation: {error}. http and https can; for s3 run `pip install 'distbranch[s3]'`, for gs "
            "`pip install 'distbranch[gs]'`."
        ) from None
    cache = cache or Cache(default_cache_folder())
    try:
        Path(cache.folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache folder {cache.folder} cannot be made: {error.strerror}. Give another data.cache_directory, or set XDG_CACHE_HOME."
        ) from None
    return RemoteFiles(path, cache)


def find_remote(files: Files, file: str) -> RemoteFiles | None:
    """Through what a file of a data set is fetched; None for one that is read in place."""
    if isinstance(files, LocalFiles) and is_remote(file):
        files = open_files(file, files.cache)
    return files if isinstance(files, RemoteFiles) else None


def find_system(place: str) -> tuple[Any, str]:
    """The file system of a path or URL, and what it calls that. A web server has as long as bytes arrive, and not five minutes."""
    options: dict[str, Any] = {}
    if place.startswith(("http://", "https://")):
        import aiohttp  # here, for it takes its time, and most data lie in a folder

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        options["client_kwargs"] = {"timeout": timeout}
    system, path = fsspec.core.url_to_fs(place, **options)
    return system, str(path)


def default_cache_folder() -> str:
    """The folder of this user for copies of remote shards."""
    return str(find_user_cache() / "shards")


def make_room(cache: Cache) -> None:
    """Removes the copies used longest ago until the rest fits; copies in use (by any process) stay."""
    folder = Path(cache.folder)
    with _try_to_lock(folder / "room") as is_locked:
        if not is_locked:
            return
        copies = [path for path in folder.iterdir() if _COPY.fullmatch(path.name)]
        found = {path: path.stat() for path in copies}
        excess = sum(status.st_size for status in found.values()) - cache.max_bytes
        for path in sorted(copies, key=lambda path: found[path].st_mtime):
            if excess <= 0:
                return
            # Held by somebody who is about to open it, or open.
            with _try_to_lock(path, patience_s=0) as is_free:
                if is_free and not _is_in_use(path):
                    path.unlink(missing_ok=True)
                    excess -= found[path].st_size


@contextmanager
def _try_to_lock(path: Path, *, patience_s: float = FOR_EVER) -> Iterator[bool]:
    """The lock beside `path`, as far as it can be had: whether it is held."""
    with ExitStack() as held:
        is_locked = True
        try:
            held.enter_context(hold_lock(Path(f"{path}.lock"), patience_s=patience_s))
        except (LockHeldError, OSError):
            is_locked = False
        yield is_locked


def _open_existing(copy: Path) -> int | None:
    try:
        descriptor = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # or of somebody who keeps it to himself
        return None
    _mark_in_use(descriptor)
    return descriptor


def _mark_in_use(descriptor: int) -> None:
    """Until it is closed."""
    with suppress(OSError):  # storage without flock
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    with suppress(OSError):  # the copy of another user
        os.utime(descriptor)  # the time of last use


def _is_in_use(path: Path) -> bool:
    """Whether somebody holds a shared lock on a copy. Where there is no flock nobody knows, but open files outlive their names."""
    try:
        # Over NFS an exclusive lock needs a file open for writing.
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:  # in use, or another user's
        return error.errno not in WITHOUT_FLOCK
    return False


@functools.cache
def _warn_of_cache(folder: str) -> None:
    logger.warning(
        "The cache %s cannot be written or locked, or has no room: what it does not keep is fetched again whenever it is read. "
        "Give another data.cache_directory.",
        folder,
    )
