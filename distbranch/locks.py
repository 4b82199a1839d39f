"""Locks between processes, as files: flock where the storage has it, else a second file that names who holds the lock.

Storage without flock (Lustre without its mount option, some network mounts) answers every lock with an error. The second file is one
of its own because flock leaves its empty file behind, which would then seem to be held by nobody knows whom.
"""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from distbranch.errors import UserError

WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
FOR_EVER = -1.0
SECONDS_FOR_ANOTHER_HOST = (
    10.0  # so long a lock of a process that cannot be seen from here is waited for
)
SECONDS_TO_LOOK = 0.2  # filelock needs a try or two to see that an owner of this host has ended


class LockHeldError(UserError):
    """Another process holds a lock. `owner` is the file that names it, where it cannot be seen whether that still runs."""

    def __init__(self, path: Path, owner: Path | None = None) -> None:
        super().__init__(
            path, owner
        )  # the arguments of the constructor, so that it survives pickling
        self.path, self.owner = path, owner

    @property
    def advice(self) -> str:
        """What to do about an owner that may have ended; begins with a space, and is empty where the lock falls with its process."""
        if self.owner is None:
            return ""
        return (
            f" This storage has no flock, so the lock is the file {self.owner}, left by {_read_owner(self.owner)}, and whether that still "
            "runs cannot be seen from here: if it has ended, remove the file and run the same command again."
        )

    def __str__(self) -> str:
        return f"{self.path} is held by another process.{self.advice}"


@contextmanager
def hold_lock(path: Path, *, patience_s: float = FOR_EVER) -> Iterator[None]:
    """Hold the lock at `path`, whose folder exists. It falls with the process, also after kill -9.

    Args:
        path: of the lock's file, which stays.
        patience_s: how long to wait for another process, in seconds.

    Raises:
        LockHeldError: another process has held it so long; or a process of another host, of which it is unknown whether it still runs.
        OSError: the file cannot be made or written.
    """
    lock = _acquire_flock(path, patience_s) or _acquire_by_name(path, patience_s)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at `path`. It is only looked at, for not every lock is ours to take."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno not in WITHOUT_FLOCK or _is_held_by_name(path)
    return False


def _acquire_flock(path: Path, patience_s: float) -> FileLock | None:
    """The lock, once it is had; None where the storage has no flock."""
    path.open("a").close()  # filelock would wait for ever for a file that cannot be made
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=patience_s)
    except Timeout:
        raise LockHeldError(path) from None
    except OSError as error:
        if error.errno not in WITHOUT_FLOCK:
            raise
        return None
    return lock


def _acquire_by_name(path: Path, patience_s: float) -> SoftFileLock:
    """The lock, once it is had. filelock itself takes over from a process of this host that has ended."""
    owner = _place_owner(path)
    lock = SoftFileLock(owner)
    timeout_s = SECONDS_FOR_ANOTHER_HOST if patience_s == FOR_EVER else patience_s
    while True:
        before = _read_owner(owner)
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as timeout:
            may_have_ended = str(timeout) != str(
                Timeout(timeout.lock_file)
            )  # it names a holder that it cannot probe
            if may_have_ended and before == _read_owner(owner):
                raise LockHeldError(path, owner) from None
            if patience_s != FOR_EVER:
                raise LockHeldError(path) from None
        else:
            return lock


def _is_held_by_name(path: Path) -> bool:
    owner = _place_owner(path)
    if not owner.exists():
        return False
    with suppress(OSError), SoftFileLock(owner).acquire(timeout=SECONDS_TO_LOOK):
        return False
    return True


def _place_owner(path: Path) -> Path:
    return path.with_name(f"{path.name}-owner")


def _read_owner(owner: Path) -> str:
    """Who holds a lock, for people."""
    try:
        process, host, *_ = owner.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "an unknown process"
    return f"process {process} on {host.partition('?')[0]}"  # behind the sign filelock tells containers apart
