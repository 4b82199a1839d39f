"""Ray's folder for temporary files: where its disk is full processes die, and Ray itself supposes that memory ran out."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from distbranch.launch.ray_folder import choose_ray_folder

LEAST_ROOM = 2**20  # bytes; a session of Ray with two workers writes about as many
TAIL = 2**16  # bytes of a log in which the last words of a process stand
NO_ROOM = os.strerror(errno.ENOSPC).encode()


def explain_full_folder(folder: Path | None = None) -> str:
    """A sentence if the disk of Ray's folder on this machine is full, or was when processes last wrote there; else empty.

    Args:
        folder: of the session; that of the cluster which this process has joined, or would start, if None.
    """
    place = _existing(folder or _session_folder())
    if shutil.disk_usage(place).free >= LEAST_ROOM and not any(map(_says_no_room, _logs(place))):
        return ""
    return (
        f"Ray's folder for temporary files, {place}, is on a disk without room, so its processes cannot run. Make room there, or set "
        "RAY_TMPDIR to a short path on a disk with room, then run the same command again."
    )


def _session_folder() -> Path:
    from ray._private import worker

    node = worker._global_node
    if node is not None:
        return Path(node.get_session_dir_path())
    return choose_ray_folder()


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _logs(session: Path) -> Iterator[Path]:
    return (path for path in session.glob("logs/*") if path.suffix in (".err", ".out", ".log"))


def _says_no_room(log: Path) -> bool:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            return NO_ROOM in file.read()
    except OSError:
        return False
