"""Ray's folder for temporary files on this machine: its path is short, so that the sockets below it can have names.

The kernel takes 107 bytes for the path of a socket, and Ray adds up to 64 of them to the folder it is given. The TMPDIR of a job is
often too long for that. Where the folder's disk is full processes die, and Ray itself supposes that memory ran out.
"""

import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

from distbranch.errors import UserError

BYTES_OF_SOCKET = 107
BYTES_OF_RAY = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
BYTES_OF_NAME = 24  # of a folder that is made in the chosen one, such as db12345-12345678-10-100
# Ray writes the path into command lines of its own, which take blanks and quotes for something else.
PLAIN = re.compile(r"[A-Za-z0-9_./+,@=~-]+")
LEAST_ROOM = 2**20  # bytes; a session of Ray with two workers writes about as many
VARIABLES = ("RAY_TMPDIR", "TMPDIR")
ALWAYS_TRIED = ("/tmp", "/var/tmp")


def choose_ray_folder(longest_name: int = BYTES_OF_NAME) -> Path:
    """The first temporary folder in which a folder for Ray, with a name of so many bytes, leaves its sockets room.

    RAY_TMPDIR comes first, then TMPDIR, then /tmp and /var/tmp. Nothing is left in it.

    Raises:
        UserError: none will do; it says what is wrong with each.
    """
    named = [os.environ[variable] for variable in VARIABLES if os.environ.get(variable)]
    # All problems are kept, for somebody who set one variable should learn why it was passed over.
    problems = []
    for folder in map(Path, (*named, *ALWAYS_TRIED)):
        problem = find_problem(folder.absolute(), longest_name)
        if not problem:
            return folder.absolute()
        problems.append(f"{folder} {problem}")
    raise UserError(
        f"Ray needs a temporary folder with a path of {longest_path(longest_name)} bytes at most, in which sockets can be made: "
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
            socket.socket(socket.AF_UNIX) as probe,
        ):
            probe.bind(f"{trial}/s")
    except OSError as error:
        return f"takes no sockets ({error.strerror or error})"
    return ""


def explain_full_folder() -> str:
    """A sentence if the disk of Ray's folder on this machine is full; else empty."""
    folder = find_existing_folder(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))
    if shutil.disk_usage(folder).free >= LEAST_ROOM:
        return ""
    return (
        f"Ray's folder for temporary files, {folder}, is on a disk without room, so its processes cannot run. Make room there, or set "
        "RAY_TMPDIR to a short path on a disk with room, then run the same command again."
    )


def find_existing_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder
