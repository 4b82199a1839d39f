"""Images by name, from a folder, a zip or a tar, and which file a table means where its name is not quite that of a file.

Tables and files part ways: other case, other extension, backslashes, accents in another Unicode form, a folder more or
less in front. Where just one file can be meant it is taken and told; where several can, people are asked.
"""

import difflib
import lzma
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from distbranch.data.images import SUFFIXES, BrokenImageError
from distbranch.errors import UserError
from distbranch.permissions import denied

TAR_BLOCK = 512  # bytes
TAR_MAGIC = slice(257, 262)
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard",
              b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR"}  # fmt: skip
ZIP_START = (b"PK\x03\x04", b"PK\x05\x06")
ENCRYPTED = 0x1  # a flag of a zip's member
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
# What zipfile and what it calls raise for archives and members that are damaged or of kinds they do not know.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError,
              struct.error, IndexError, OverflowError, MemoryError)  # fmt: skip
BROKEN_TAR = (tarfile.TarError, EOFError, ValueError, struct.error, OverflowError)
MANY_NAMES = 20_000  # from here on the search for similar spellings takes seconds


class ImageFiles(Protocol):
    """A place with named image files; where an archive holds two of one name the last counts, as when it is unpacked."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def read(self, name: str) -> bytes:
        """The bytes of a file that is there. Raises BrokenImageError when its archive does not give it out."""

    def names(self) -> Iterator[str]:
        """The names of all files, read anew: an archive of millions keeps none of them."""


def open_images(path: Path) -> ImageFiles:
    """The files of a folder, a zip or a tar. Raises UserError when it is none of these, or a damaged one."""
    if path.is_dir():
        return _Folder(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give a folder of images, a .zip or a .tar.")
    try:
        with path.open("rb") as file:
            start = file.read(TAR_BLOCK)
        return _open_archive(path, start)
    except PermissionError as error:
        raise denied(error) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def _open_archive(path: Path, start: bytes) -> ImageFiles:
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"{path} is compressed by {name}, so no single image can be read from it. "
                "Unpack it and give the folder of images (or a .zip or an uncompressed .tar)."
            )
    try:
        # `is_zipfile` looks at the end, where a tar may hold a zip: so the magic of a tar goes first.
        is_tar = start[TAR_MAGIC] == b"ustar"  # very old ones have no magic
        if not is_tar and (start.startswith(ZIP_START) or zipfile.is_zipfile(path)):
            return _Zip(path)
        return _Tar(path)
    except UserError:  # which is a ValueError
        raise
    except BROKEN_ZIP + BROKEN_TAR as error:
        kind = "a folder of images, a .zip or an uncompressed .tar"
        if start.startswith(ZIP_START):
            kind = "a whole .zip"
        reason = _describe_error(error)
        raise UserError(f"{path} should be {kind}, and it is not ({reason}). Copy or pack it anew.") from None


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def has(self, name: str) -> bool:
        try:
            return (self._path / name).is_file()
        except ValueError:  # a name with a NUL
            return False

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def names(self) -> Iterator[str]:
        for folder, _, files in os.walk(self._path):
            inside = Path(folder).relative_to(self._path)
            for name in files:
                yield (inside / name).as_posix()


class _Archive:
    """Where the files of an archive lie: 8 bytes for the hash of a name and 8 per column, so millions of files fit.

    When all files lie in one top folder, that folder may be left out of a name.
    """

    def __init__(self, files: Iterable[tuple[str, Sequence[int]]], num_columns: int) -> None:
        # Arrays, for a list of millions of numbers takes five times the memory.
        hashes = array("q")
        numbers = array("Q")
        tops = set()
        for name, row in files:
            top, slash, _ = name.partition("/")
            tops.add(top + slash if slash else "")
            hashes.append(hash(name))
            numbers.extend(row)
        order = np.argsort(np.array(hashes), kind="stable")  # so that of equal ones the last stays the last
        self._hashes = np.array(hashes)[order]
        self._rows = np.array(numbers).reshape(-1, num_columns)[order]
        self._top = tops.pop() if len(tops) == 1 else ""

    def has(self, name: str) -> bool:
        return self._find_row(name) is not None

    def _find_row(self, name: str) -> tuple[str, list[int]] | None:
        """The full name of a file and its columns."""
        for full in (name, self._top + name):
            wanted = hash(full)
            place = int(np.searchsorted(self._hashes, wanted, side="right")) - 1
            if place >= 0 and self._hashes[place] == wanted:
                return full, self._rows[place].tolist()
        return None


class _Zip(_Archive):
    """A zip. The objects that `zipfile` makes for its files (600 bytes each) are made anew for the one that is read."""

    COLUMNS = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = _open_zip(path)
        super().__init__(self._list_rows(), len(self.COLUMNS))
        self._zip.filelist.clear()
        self._zip.NameToInfo.clear()

    def read(self, name: str) -> bytes:
        found = self._find_row(name)
        assert found is not None
        full, values = found
        info = zipfile.ZipInfo(full)
        for column, value in zip(self.COLUMNS, values, strict=True):
            setattr(info, column, value)
        if info.flag_bits & ENCRYPTED:
            raise BrokenImageError("it is encrypted in the zip; unpack the zip with its password and give the folder")
        if info.compress_type not in METHODS:
            method = zipfile.compressor_names.get(info.compress_type, f"method {info.compress_type}")  # type: ignore[attr-defined]
            raise BrokenImageError(
                f"it is compressed by {method} in the zip, which is not read here; unpack the zip and give the folder"
            )
        try:
            return self._zip.read(info)
        except (*BROKEN_ZIP, OSError) as error:
            # An error of the disk has a number; one of bz2, which finds damage, has none.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise BrokenImageError(f"it is damaged in the zip ({_describe_error(error)})") from None

    def names(self) -> Iterator[str]:
        with _open_zip(self._path) as archive:
            for info in _list_zip(archive):
                yield info.orig_filename

    def _list_rows(self) -> Iterator[tuple[str, list[int]]]:
        for info in _list_zip(self._zip):
            yield info.orig_filename, [getattr(info, column) for column in self.COLUMNS]


def _open_zip(path: Path) -> zipfile.ZipFile:
    """Names that are not marked as UTF-8 are so all the same where macOS and `zip` wrote them; else they are of DOS."""
    try:
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(path)


def _list_zip(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    for info in archive.filelist:
        if not info.is_dir() and not _is_of_macos(info.filename):
            yield info


class _Tar(_Archive):
    """An uncompressed tar."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(_list_tar(path), 2)
        self._file = path.open("rb")

    def read(self, name: str) -> bytes:
        found = self._find_row(name)
        assert found is not None
        offset, size = found[1]
        self._file.seek(offset)
        return self._file.read(size)

    def names(self) -> Iterator[str]:
        for name, _ in _list_tar(self._path):
            yield name


def _list_tar(path: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """Name, and (offset, size) in bytes, of every file.

    Raises UserError where the tar ends inside a file or a header, which `tarfile` takes for its end.
    """
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps every header it has read
            if member.isfile() and not _is_of_macos(member.name):
                yield member.name.removeprefix("./"), (member.offset_data, member.size)
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(TAR_BLOCK)
    if block.strip(b"\0") or len(block) not in (0, TAR_BLOCK):
        raise UserError(
            f"{path} is cut short or damaged at byte {end:,}: what follows cannot be read. Copy or pack it anew."
        )


class ImageNames:
    """Finds files by the names of a table; the files are listed only when a name is not that of a file.

    `num_renamed` counts the names that were those of a file but for their form, and `example` is the first of them.
    """

    def __init__(self, images: ImageFiles) -> None:
        self._images = images
        self._by_stem: dict[str, list[str]] | None = None
        self._taken: dict[str, str] = {}
        self.example: tuple[str, str] | None = None

    @property
    def num_renamed(self) -> int:
        """How many names of the table were not quite those of their files."""
        return len(self._taken)

    def find(self, name: str) -> str:
        """The name of the file that is meant. Raises MissingImageError when there is none, or more than one."""
        if self._images.has(name):
            return name
        candidates = self._find_nearest(name)
        if not candidates:
            raise MissingImageError("there is no such image", self._find_similar(name))
        if len(candidates) > 1:
            raise MissingImageError("there is no such image, and several could be meant", candidates)
        file = candidates[0]
        # Two names of a table for one file would give it two rows of labels.
        earlier = self._taken.setdefault(file, name)
        if earlier != name:
            what = f"there is no such image, and '{earlier}' already means the only one like it"
            raise MissingImageError(what, [file])
        self.example = self.example or (name, file)
        return file

    def _group_by_stem(self) -> dict[str, list[str]]:
        if self._by_stem is None:
            self._by_stem = {}
            for file in dict.fromkeys(self._images.names()):
                stem = _get_stem(_split_name(file)[-1])
                self._by_stem.setdefault(stem, []).append(file)
        return self._by_stem

    def _find_nearest(self, name: str) -> Sequence[str]:
        """The files that differ least: first those with the folders and the extension of the name, last those with neither."""
        parts = _split_name(name)
        if not parts:
            return ()
        nearest: dict[tuple[bool, bool], list[str]] = {}
        alike = self._group_by_stem().get(_get_stem(parts[-1]), [])
        for file in alike:
            found = _split_name(file)
            # Folders are compared from the file upwards, as far as the shorter of the two has any.
            pairs = list(zip(reversed(found), reversed(parts), strict=False))
            if any(one != other for one, other in pairs[1:]):
                continue

            # True sorts after False, and the extension counts more than a folder.
            has_other_extension = found[-1] != parts[-1]
            has_other_depth = len(found) != len(parts)
            nearest.setdefault((has_other_extension, has_other_depth), []).append(file)
        return nearest[min(nearest)] if nearest else ()

    def _find_similar(self, name: str) -> Sequence[str]:
        """Up to three files that are spelt much like the name, for a message."""
        parts = _split_name(name)
        stems = self._group_by_stem()
        if not parts or len(stems) > MANY_NAMES:
            return ()
        # 0.8: about one letter in five may differ.
        wanted = _get_stem(parts[-1])
        near = difflib.get_close_matches(wanted, stems, n=3, cutoff=0.8)
        return [stems[stem][0] for stem in near]


class MissingImageError(BrokenImageError):
    """There is no file of that name, or it is not clear which; `nearest` are those that it may have meant."""

    def __init__(self, what: str, nearest: Iterable[str]) -> None:
        self.nearest = list(nearest)
        if self.nearest:
            shown = ", ".join(f"'{name}'" for name in self.nearest[:3])
            what = f"{what} (nearest: {shown})"
        super().__init__(what)


def _split_name(name: str) -> tuple[str, ...]:
    """Folders and file of a name, with whatever does not tell files apart for people made equal."""
    plain = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def _get_stem(file: str) -> str:
    """The name without the extension of an image."""
    stem, dot, extension = file.rpartition(".")
    return stem if stem and dot + extension in SUFFIXES else file


def _describe_error(error: Exception) -> str:
    return str(error) or type(error).__name__


def _is_of_macos(name: str) -> bool:
    """Whether it is what macOS adds to an archive beside every file (and to a folder on a foreign disk)."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")
