"""Images by name, from a folder, a zip or a tar, so that a source need not know which."""

import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from distbranch.errors import UserError
from distbranch.permissions import denied


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
    except PermissionError as error:
        raise denied(error) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):  # ValueError: a name with a NUL
            return None


class _Directory:
    """Where the files of an archive lie: 8 bytes for the hash of a name and 8 per column, so millions of files fit.

    When all files lie in one top folder, that folder may be left out of a name.
    """

    def __init__(self, files: Iterable[tuple[str, Sequence[int]]], num_columns: int) -> None:
        hashes, numbers = array("q"), array("Q")
        tops = set()
        for name, row in files:
            tops.add(name.partition("/")[0] + "/" if "/" in name else "")
            hashes.append(hash(name))
            numbers.extend(row)
        order = np.argsort(np.array(hashes))
        self._hashes = np.array(hashes)[order]
        self._rows = np.array(numbers).reshape(-1, num_columns)[order]
        self._top = tops.pop() if len(tops) == 1 else ""

    def find(self, name: str) -> tuple[str, list[int]] | None:
        """The full name of a file and its columns, or None where there is none of that name."""
        for full in (name, self._top + name):
            place = int(np.searchsorted(self._hashes, hash(full)))
            if place < len(self._hashes) and self._hashes[place] == hash(full):
                return full, self._rows[place].tolist()
        return None


class _Zip:
    """A zip. The objects that `zipfile` makes for its files (600 bytes each) are made anew for the one that is read."""

    COLUMNS = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        entries = (
            info for info in self._zip.filelist if not info.is_dir() and not info.filename.startswith("__MACOSX/")
        )
        rows = ((info.filename, [getattr(info, column) for column in self.COLUMNS]) for info in entries)
        self._directory = _Directory(rows, len(self.COLUMNS))
        self._zip.filelist.clear()
        self._zip.NameToInfo.clear()

    def read(self, name: str) -> bytes | None:
        found = self._directory.find(name)
        if found is None:
            return None
        info = zipfile.ZipInfo(found[0])
        for column, value in zip(self.COLUMNS, found[1], strict=True):
            setattr(info, column, value)
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError):
            return b""  # there, but damaged: the caller finds that it is no image


class _Tar:
    """An uncompressed tar."""

    def __init__(self, path: Path) -> None:
        self._directory = _Directory(_tar_files(path), 2)
        self._file = path.open("rb")

    def read(self, name: str) -> bytes | None:
        found = self._directory.find(name)
        if found is None:
            return None
        offset, size = found[1]
        self._file.seek(offset)
        return self._file.read(size)


def _tar_files(path: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """Name, and (offset, size) in bytes, of every file."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header it has read
            if member.isfile():
                yield member.name.removeprefix("./"), (member.offset_data, member.size)
