"""A disk that is soon full, mounted for one test."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """`folder` as a disk of its own; mounting one needs the rights of an administrator."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", str(folder)]
    try:
        refused = subprocess.run(mount, capture_output=True, text=True, check=False).stderr
    except FileNotFoundError:
        refused = "there is no command mount"
    if refused:
        message = f"a small disk cannot be mounted here: {refused.strip()}"
        if os.environ.get("DISTBRANCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Write `filler` until its disk is full."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
