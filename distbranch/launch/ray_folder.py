"""Ray's folder for temporary files on this machine: its path is short, so that the sockets below it can have names.

The kernel takes 107 bytes for the path of a socket, and Ray adds up to 64 of them to the folder it is given. The TMPDIR of a job is
often too long for that. Where the folder's disk is full processes die, and Ray itself supposes that memory ran out.
"""

import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from distbranch.errors import UserError

BYTES_OF_SOCKET = 107
BYTES_OF_RAY = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
BYTES_OF_NAME = 24  # of a folder that is made in the chosen one, such as db12345-12345678-10-100
# Ray writes the path into command lines of its own, which take blanks and quotes for something else.
PLAIN = re.compile(r"[A-Za-z0-9_./+,@=~-]+")
LEAST_ROOM = 2**20  # bytes; a session of Ray with two workers writes about as many
TAIL = 2**16  # bytes of a log in which the last words of a process stand
NO_ROOM = os.strerror(errno.ENOSPC).encode()


def choose_ray_folder(longest_name: int = BYTES_OF_NAME) -> Path:
    """The first temporary folder in which a folder for Ray, with a name of so many bytes, leaves its sockets room.

    RAY_TMPDIR comes first, then TMPDIR, then /tmp and /var/tmp. Nothing is left in it.

    Raises:
        UserError: none will do; it says what is wrong with each.
    """
    # All problems are kept, for somebody who set one variable should learn why it was passed over.
    problems = []
    for name, folder in _list_candidates():
        problem = find_problem(folder, longest_name)
        if not problem:
            return folder
        problems.append(f"{name}{folder} {problem}")
    most = longest_path(longest_name)
    raise UserError(
        f"Ray needs a temporary folder with a path of {most} bytes at most, in which sockets can be made: "
        f"{'; '.join(problems)}. Set RAY_TMPDIR to a short folder that you may write, such as /scratch/me."
    )


def longest_path(longest_name: int = BYTES_OF_NAME) -> int:
    """How many bytes the path of the folder may have in which one with such a name is made."""
    return BYTES_OF_SOCKET - BYTES_OF_RAY - len("/") - longest_name


def find_problem(folder: Path, longest_name: int = BYTES_OF_NAME) -> str:
    """Why Ray's files cannot lie in this folder, as the end of a sentence; empty if they can."""
    num_bytes, most = len(os.fsencode(folder)), longest_path(longest_name)
    if num_bytes > most:
        return f"is too long for the names of sockets ({num_bytes} bytes, at most {most})"
    if not PLAIN.fullmatch(str(folder)):
        return "has other characters than letters, digits and ._-, which Ray does not take"
    try:
        with (
            tempfile.TemporaryDirectory(prefix="db", dir=folder) as trial,
            closing(socket.socket(socket.AF_UNIX)) as probe,
        ):
            probe.bind(str(Path(trial) / "s"))
    except OSError as error:
        return f"takes no sockets ({error.strerror or error})"
    return ""


def _list_candidates() -> Iterator[tuple[str, Path]]:
    """Folders, each with the name of the variable that gave it, or empty."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if os.environ.get(variable):
            yield f"{variable}=", Path(os.environ[variable]).absolute()
    yield "", Path("/tmp")
    yield "", Path("/var/tmp")


def explain_full_folder(folder: Path | None = None) -> str:
    """A sentence if the disk of Ray's folder on this machine is full, or was when processes last wrote there; else empty.

    Args:
        folder: of the session; that of the cluster which this process has joined, or would start, if None.
    """
    place = find_existing_folder(folder or _find_session_folder())
    if shutil.disk_usage(place).free >= LEAST_ROOM and not any(map(_is_without_room, _list_logs(place))):
        return ""
    return (
        f"Ray's folder for temporary files, {place}, is on a disk without room, so its processes cannot run. Make room there, or set "
        "RAY_TMPDIR to a short path on a disk with room, then run the same command again."
    )


def _find_session_folder() -> Path:
    # Private, for the runtime context knows only a cluster that was joined, and a full disk may have ended that midway.
    from ray._private import worker

    node = worker._global_node
    if node is not None:
        return Path(node.get_session_dir_path())
    return choose_ray_folder()


def find_existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _list_logs(session: Path) -> Iterator[Path]:
    return (path for path in session.glob("logs/*") if path.suffix in (".err", ".out", ".log"))


def _is_without_room(log: Path) -> bool:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            return NO_ROOM in file.read()
    except OSError:
        return False
