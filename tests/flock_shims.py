"""Storage that locks files otherwise than a local disk: a library put before the C library's own flock (LD_PRELOAD)."""

import os
import subprocess
from pathlib import Path

WITHOUT_FLOCK = "int flock(int file, int operation) { errno = %d; return -1; }"
# NFS makes byte-range locks of flock: an exclusive one needs a file open for writing, a shared one a file open for reading.
OVER_NFS = """
int flock(int file, int operation) {
    int mode = fcntl(file, F_GETFL) & O_ACCMODE;
    if ((operation & LOCK_EX) && mode == O_RDONLY) { errno = EBADF; return -1; }
    if ((operation & LOCK_SH) && mode == O_WRONLY) { errno = EBADF; return -1; }
    return syscall(SYS_flock, file, operation);
}
"""
INCLUDES = "#include <errno.h>\n#include <fcntl.h>\n#include <sys/file.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n"


def environment_without_flock(folder: Path, error: int) -> dict[str, str]:
    """The environment of a process on storage that answers every flock with `error`."""
    return _preloaded(folder, WITHOUT_FLOCK % error)


def environment_over_nfs(folder: Path) -> dict[str, str]:
    """The environment of a process on NFS."""
    return _preloaded(folder, OVER_NFS)


def _preloaded(folder: Path, source: str) -> dict[str, str]:
    file = folder / "flock.c"
    file.write_text(INCLUDES + source)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", str(file.with_suffix(".so")), str(file)], check=True
    )
    return {**os.environ, "LD_PRELOAD": str(file.with_suffix(".so"))}
