"""Images by name, from a folder, a zip or a tar, and which file a table means where its name is not quite that of a file.

Tables and files part ways: other case, other extension, backslashes, accents in another Unicode form, a folder more or
less in front. Where just one file can be meant it is taken and told; where several can, people are asked.
"""

import difflib
import errno
import lzma
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from distbranch.data.images import SUFFIXES, BrokenImageError
from distbranch.errors import UserError, reason_of
from distbranch.permissions import make_denied_error

TAR_BLOCK = 512  # bytes
TAR_MAGIC = slice(257, 262)
ZIP_START = (b"PK\x03\x04", b"PK\x05\x06")
# What zipfile, tarfile and what they call raise for archives and members that are damaged or of kinds they do not know.
BROKEN_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
                  ValueError, struct.error, IndexError, OverflowError, MemoryError)  # fmt: skip
MANY_NAMES = 20_000  # from here on the search for similar spellings takes seconds


class ImageFiles(Protocol):
    """A place with named image files; where an archive holds two of one name the last counts, as when it is unpacked."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def read(self, name: str) -> bytes:
        """The bytes of a file that is there. Raises BrokenImageError when its archive does not give it out."""

    def names(self) -> Iterator[str]:
        """The names of all files."""


def open_images(path: Path) -> ImageFiles:
    """The files of a folder, a zip or a tar. Raises UserError when it is none of these, or a damaged one."""
    if path.is_dir():
        return _Folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(TAR_BLOCK)
        # `is_zipfile` looks at the end, where a tar may hold a zip: so the magic of a tar goes first.
        is_tar = start[TAR_MAGIC] == b"ustar"  # very old ones have no magic
        if not is_tar and (start.startswith(ZIP_START) or zipfile.is_zipfile(path)):
            return _Zip(path)
        return _Tar(path)
    except UserError:  # which is a ValueError
        raise
    except PermissionError as error:
        raise make_denied_error(error) from None
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist. Give the folder, the .zip or the .tar with the images."
        ) from None
    except (*BROKEN_ARCHIVE, OSError) as error:
        raise UserError(
            f"{path} should be a folder of images, a whole .zip or an uncompressed .tar, and it is not ({reason_of(error)}). "
            "Unpack it if it is compressed, else copy it anew."
        ) from None


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
        for file in self._path.rglob("*"):
            if file.is_file():
                yield file.relative_to(self._path).as_posix()


class _Archive:
    """What an archive holds by name. When all files lie in one top folder, that folder may be left out of a name."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        # What macOS adds to an archive beside every file, and to a folder on a foreign disk, is none of them.
        self._members = {}
        for name, member in members.items():
            if not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith("._"):
                self._members[name] = member
        tops = {name.partition("/")[0] + "/" for name in self._members}
        self._top = tops.pop() if len(tops) == 1 else ""

    def has(self, name: str) -> bool:
        return name in self._members or self._top + name in self._members

    def names(self) -> Iterator[str]:
        return iter(self._members)

    def find_member(self, name: str) -> Any:
        return self._members.get(name) or self._members[self._top + name]


class _Zip(_Archive):
    def __init__(self, path: Path) -> None:
        # Names that are not marked as UTF-8 are so all the same where macOS and `zip` wrote them; else they are of DOS.
        try:
            self._zip = zipfile.ZipFile(path, metadata_encoding="utf-8")
        except UnicodeDecodeError:
            self._zip = zipfile.ZipFile(path)
        super().__init__(
            {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        )

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self.find_member(name))
        except (*BROKEN_ARCHIVE, OSError) as error:
            # An error of the disk has a number; one of bz2, which finds damage, has none, and a damaged offset is an invalid one.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise BrokenImageError(
                f"it is damaged in the zip, or cannot be read from it ({reason_of(error)}); unpack the zip and give the folder"
            ) from None


class _Tar(_Archive):
    """An uncompressed tar: its members are (offset, size) in bytes."""

    def __init__(self, path: Path) -> None:
        members = {}
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header it has read
                if member.isfile():
                    members[member.name.removeprefix("./")] = (member.offset_data, member.size)
            end = tar.offset
        super().__init__(members)
        self._file = path.open("rb")
        # Where a tar ends inside a file or a header `tarfile` takes it for the end.
        self._file.seek(end)
        block = self._file.read(TAR_BLOCK)
        if block.strip(b"\0") or len(block) not in (0, TAR_BLOCK):
            raise UserError(
                f"{path} is cut short or damaged at byte {end:,}: what follows cannot be read. Copy it anew."
            )

    def read(self, name: str) -> bytes:
        offset, size = self.find_member(name)
        self._file.seek(offset)
        return self._file.read(size)


class ImageNames:
    """Finds files by the names of a table; the files are listed only when a name is not that of a file.

    `renamed`: the name of the table, by the file, of those that differ.
    """

    def __init__(self, images: ImageFiles) -> None:
        self._images = images
        self._by_stem: dict[str, list[str]] = {}
        self.renamed: dict[str, str] = {}

    @property
    def num_renamed(self) -> int:
        """How many names of the table were not quite those of their files."""
        return len(self.renamed)

    @property
    def example(self) -> tuple[str, str] | None:
        """The first of them, and its file."""
        for file, name in self.renamed.items():
            return name, file
        return None

    def find(self, name: str) -> str:
        """The name of the file that is meant. Raises MissingImageError when there is none, or more than one."""
        if self._images.has(name):
            return name
        if not self._by_stem:
            for file in self._images.names():
                self._by_stem.setdefault(_get_stem(_split_name(file)[-1]), []).append(file)
        parts = _split_name(name) or ("",)
        candidates = self._find_nearest(parts)
        if len(candidates) != 1:
            what = "there is no such image"
            if candidates:
                what = f"{what}, and several could be meant"
            raise _explain_missing(what, candidates or self._find_similar(parts))
        file = candidates[0]
        # Two names of a table for one file would give it two rows of labels.
        earlier = self.renamed.setdefault(file, name)
        if earlier != name:
            raise _explain_missing(
                f"there is no such image, and '{earlier}' already means the only one like it",
                [file],
            )
        return file

    def _find_nearest(self, parts: Sequence[str]) -> Sequence[str]:
        """The files that differ least: first those with the folders and the extension of the name, last those with neither."""
        nearest: dict[tuple[bool, bool], list[str]] = {}
        for file in self._by_stem.get(_get_stem(parts[-1]), []):
            found = _split_name(file)
            # Folders are compared from the file upwards, as far as the shorter of the two has any.
            num_folders = min(len(found), len(parts)) - 1
            if found[-1 - num_folders : -1] != parts[-1 - num_folders : -1]:
                continue
            # True sorts after False, and the extension counts more than a folder.
            differs = (found[-1] != parts[-1], len(found) != len(parts))
            nearest.setdefault(differs, []).append(file)
        return nearest[min(nearest)] if nearest else ()

    def _find_similar(self, parts: Sequence[str]) -> Sequence[str]:
        """Up to three files that are spelt much like the name, for a message."""
        if len(self._by_stem) > MANY_NAMES:
            return ()
        # 0.8: about one letter in five may differ.
        near = difflib.get_close_matches(_get_stem(parts[-1]), self._by_stem, n=3, cutoff=0.8)
        return [self._by_stem[stem][0] for stem in near]


class MissingImageError(BrokenImageError):
    """There is no file of that name, or it is not clear which."""


def _explain_missing(what: str, nearest: Sequence[str]) -> MissingImageError:
    if nearest:
        shown = ", ".join(f"'{name}'" for name in nearest[:3])
        what = f"{what} (nearest: {shown})"
    return MissingImageError(what)


def _split_name(name: str) -> tuple[str, ...]:
    """Folders and file of a name, with whatever does not tell files apart for people made equal."""
    plain = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def _get_stem(file: str) -> str:
    """The name without the extension of an image."""
    stem, dot, extension = file.rpartition(".")
    return stem if stem and dot + extension in SUFFIXES else file
