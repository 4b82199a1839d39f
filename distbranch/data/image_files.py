"""Images by name, from a folder, a zip or a tar, so that a source need not know which."""

import tarfile
import zipfile
import zlib
from array import array
from pathlib import Path
from typing import Protocol

import numpy as np

from distbranch.errors import UserError


class ImageFiles(Protocol):
    """A place with named image files."""

    def read(self, name: str) -> bytes | None:
        """The bytes of the file, or None where there is none of that name."""


def open_images(path: Path) -> ImageFiles:
    """Opens a folder, a zip or a tar. Raises UserError when it is none of these."""
    if path.is_dir():
        return _Folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give a folder of images, a .zip or a .tar.")
    try:
        if zipfile.is_zipfile(path):
            return _Zip(path)
        return _Tar(path)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} should be a folder of images, a .zip or an uncompressed .tar ({error}).") from None


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


class _Zip:
    """A zip; when all its files lie in one top folder, that folder may be left out of a name."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        tops = {_top(name) for name in self._zip.NameToInfo if not name.startswith("__MACOSX/")}
        self._top = tops.pop() if len(tops) == 1 else ""

    def read(self, name: str) -> bytes | None:
        for full in (name, self._top + name):
            if full in self._zip.NameToInfo:
                try:
                    return self._zip.read(full)
                except (zipfile.BadZipFile, zlib.error, EOFError):
                    return b""  # there, but damaged: the caller finds that it is no image
        return None


class _Tar:
    """An uncompressed tar, as 24 bytes per file: hash of its name (sorted), offset and size. Top folder as in a zip."""

    def __init__(self, path: Path) -> None:
        hashes, offsets, sizes = array("q"), array("q"), array("q")
        tops = set()
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header it has read
                if member.isfile():
                    name = member.name.removeprefix("./")
                    tops.add(_top(name))
                    hashes.append(hash(name))
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
        order = np.argsort(np.array(hashes))
        self._hashes, self._offsets, self._sizes = (np.array(column)[order] for column in (hashes, offsets, sizes))
        self._top = tops.pop() if len(tops) == 1 else ""
        self._file = path.open("rb")

    def read(self, name: str) -> bytes | None:
        for full in (name, self._top + name):
            place = int(np.searchsorted(self._hashes, hash(full)))
            if place < len(self._hashes) and self._hashes[place] == hash(full):
                self._file.seek(int(self._offsets[place]))
                return self._file.read(int(self._sizes[place]))
        return None


def _top(name: str) -> str:
    """The top folder of a path, with its slash; empty when the file lies at the top."""
    return name.partition("/")[0] + "/" if "/" in name else ""
