"""Which file a table means, where its name is not quite that of a file.

Tables and files part ways: other case, other extension, backslashes, accents in another Unicode form, a folder more or
less in front. Where just one file can be meant it is taken and told; where several can, people are asked.
"""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

from distbranch.data.image_files import ImageFiles
from distbranch.data.images import SUFFIXES, BrokenImageError

MANY_NAMES = 20_000  # from here on the search for similar spellings takes seconds
Parts = tuple[str, ...]


class ImageNames:
    """Finds files by the names of a table; the files are listed only when a name is not that of a file.

    `renamed` counts the names that were those of a file but for their form, and `example` is the first of them.
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
        candidates = self._candidates(name)
        if not candidates:
            raise MissingImageError("there is no such image", self._similar(name))
        if len(candidates) > 1:
            raise MissingImageError("there is no such image, and several could be meant", candidates)
        file = candidates[0]
        if self._taken.setdefault(file, name) != name:
            raise MissingImageError(
                f"there is no such image, and '{self._taken[file]}' already means the only one like it", [file]
            )
        self.example = self.example or (name, file)
        return file

    def _index(self) -> dict[str, list[str]]:
        if self._by_stem is None:
            self._by_stem = {}
            for file in dict.fromkeys(self._images.names()):
                self._by_stem.setdefault(_stem(_parts(file)[-1]), []).append(file)
        return self._by_stem

    def _candidates(self, name: str) -> Sequence[str]:
        """The files that differ least: first those with the folders and the extension of the name, last those with neither."""
        parts = _parts(name)
        if not parts:
            return ()
        nearest: dict[tuple[bool, bool], list[str]] = {}
        for file in self._index().get(_stem(parts[-1]), ()):
            found = _parts(file)
            shorter = min(len(found), len(parts)) - 1
            if found[len(found) - 1 - shorter : -1] == parts[len(parts) - 1 - shorter : -1]:
                nearest.setdefault((found[-1] != parts[-1], len(found) != len(parts)), []).append(file)
        return nearest[min(nearest)] if nearest else ()

    def _similar(self, name: str) -> Sequence[str]:
        """Up to three files that are spelt much like the name, for a message."""
        parts = _parts(name)
        stems = self._index()
        if not parts or len(stems) > MANY_NAMES:
            return ()
        near = difflib.get_close_matches(_stem(parts[-1]), stems, n=3, cutoff=0.8)
        return [stems[stem][0] for stem in near]


class MissingImageError(BrokenImageError):
    """There is no file of that name, or it is not clear which; `nearest` are those that it may have meant."""

    def __init__(self, what: str, nearest: Iterable[str]) -> None:
        self.nearest = list(nearest)
        shown = ", ".join(f"'{name}'" for name in self.nearest[:3])
        super().__init__(f"{what} (nearest: {shown})" if shown else what)


def _parts(name: str) -> Parts:
    """Folders and file of a name, with whatever does not tell files apart for people made equal."""
    plain = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def _stem(file: str) -> str:
    """The name without the extension of an image."""
    stem, dot, extension = file.rpartition(".")
    return stem if stem and dot + extension in SUFFIXES else file
