"""Reads a tar from beginning to end, once, and keeps where its images lie and what its label files say.

What was found is kept in a file per tar, so that a run which was stopped, or whose labels were not understood, reads none twice.
"""

import gzip
import hashlib
import json
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeVar

from distbranch.config.paths import is_remote
from distbranch.data import cache
from distbranch.data.images import BrokenImageError, measure_image
from distbranch.data.indexing.label_files import LabelFile
from distbranch.data.shards import split_member
from distbranch.errors import UserError, reason_of

Content = TypeVar("Content")

IMAGES = ("jpg", "jpeg", "png", "webp")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
WHY_NOT_COMPRESSED = "compressed, so no sample can be read without all that come before it"
BLOCK = 2**20  # bytes that are read at a time
REMOTE_BLOCK = 2**24
END_OF_TAR = bytes(1024)


class FoundSample(NamedTuple):
    """A sample: its image (offset, size, crc32; height, width), its cells by column, or what is wrong: a word and a sentence."""

    key: str
    image: Sequence[int]
    size: Sequence[int]
    cells: dict[str, str]
    kind: str = ""
    why: str = ""


@dataclass(frozen=True)
class Scan:
    """What a tar holds. `endings`: how many files end with what.

    `found`: the places of labels that say something in some sample. `fields`: where a sample of which some say nothing has values.
    """

    place: str
    num_bytes: int
    sha256: str
    endings: dict[str, int]
    samples: list[FoundSample]
    found: list[str]
    fields: list[str]


@dataclass(frozen=True)
class TarScanner:
    """Reads tars for these labels and keeps what it finds in `folder`; `stop` ends all that is being read."""

    folder: Path
    labels: Sequence[LabelFile]
    image_suffix: str | None
    stop: Event

    def scan(self, place: str) -> Path:
        """The file with the `Scan` of a tar. Raises UserError, a part of a sentence, for one that cannot be read."""
        for attempt in range(1, cache.ATTEMPTS + 1):
            try:
                return self._scan_once(place)
            except tarfile.TarError as error:
                raise UserError(f"it is not a whole tar ({error})") from None
            except UserError:
                raise
            except Exception as error:  # every fsspec driver raises errors of its own
                is_final = not is_remote(place) or isinstance(error, FileNotFoundError)
                if is_final or attempt == cache.ATTEMPTS:
                    raise UserError(f"it cannot be read ({reason_of(error)})") from error
                time.sleep(cache.BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError

    def _scan_once(self, place: str) -> Path:
        system, path = cache.find_system(place)
        # A tar that was written anew is another one.
        info = system.info(path)
        stamp = [info.get(name) for name in ("size", "ETag", "Last-Modified")]
        what = (place, system.ukey(path), stamp, self.labels, self.image_suffix)
        kept = self.folder / f"{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.json.gz"
        if kept.exists():
            return kept
        options = {"block_size": REMOTE_BLOCK, "cache_type": "readahead"}
        if place.startswith("http"):
            options = {"block_size": 0}  # one answer from beginning to end
        elif not is_remote(place):
            options = {}
        with system.open(path, "rb", **options) as file:
            scan = self._read_tar(place, _Tap(file, self.stop))
        aside = kept.with_suffix(".part")
        with gzip.open(aside, "wt", encoding="utf-8", compresslevel=1) as written:
            json.dump(vars(scan), written)
        aside.replace(kept)
        return kept

    def _read_tar(self, place: str, tap: "_Tap") -> Scan:
        parts: dict[str, _Parts] = {}
        endings: Counter[str] = Counter()
        with tarfile.open(fileobj=tap, mode="r|", bufsize=BLOCK) as tar:  # type: ignore[call-overload]
            for member in tar:
                tar.members = []  # else it remembers all
                key, suffix = split_member(member.name.removeprefix("./"))
                # Of a name that is not UTF-8 the odd bytes are written as such.
                key = key.encode(errors="backslashreplace").decode().strip()
                suffix = suffix.lower()
                # Files without a name before a dot are of some system's own.
                if not member.isfile() or not suffix or not key.rpartition("/")[2]:
                    continue
                endings[suffix] += 1
                if not self._is_image(suffix) and not any(one.fits(suffix) for one in self.labels):
                    continue
                content = tar.extractfile(member).read()
                of_key = parts.setdefault(key, _Parts())
                if suffix in of_key.seen:
                    of_key.why = f"it has two files '{suffix}'"
                of_key.seen.add(suffix)
                self._add_file(suffix, member.offset_data, content, of_key)
        tap.drain()
        if tap.tail != END_OF_TAR:
            raise UserError("it is cut: a tar ends with two empty blocks")
        samples = [self._build_sample(key, of_key) for key, of_key in parts.items()]
        labels = [(one, files) for of_key in parts.values() for one, files in of_key.labels.items()]
        found = sorted({str(one) for one, files in labels if any(files.values())})
        fields = next((of_key.fields for of_key in parts.values() if of_key.fields), [])
        sha256 = tap.sha256.hexdigest()
        return Scan(place, tap.num_bytes, sha256, dict(endings), samples, found, fields)

    def _is_image(self, suffix: str) -> bool:
        if self.image_suffix is not None:
            return suffix == self.image_suffix
        return suffix.rpartition(".")[2] in IMAGES

    def _add_file(self, suffix: str, offset: int, content: bytes, parts: "_Parts") -> None:
        if self._is_image(suffix):
            parts.images[suffix] = (offset, len(content), zlib.crc32(content))
            try:
                parts.size = measure_image(content)
            except BrokenImageError as error:
                parts.broken = str(error)
        for one in self.labels:
            if not one.fits(suffix):
                continue
            try:
                cells = one.read_cells(content)
            except UserError as error:
                parts.why = str(error)
                continue
            parts.labels.setdefault(one, {})[suffix] = cells
            if not cells:
                parts.fields = one.list_fields(content)

    def _build_sample(self, key: str, parts: "_Parts") -> FoundSample:
        """One sample from its files; of several images or label files that of the shortest ending, if it is the only one."""
        images = _choose_file(parts.images, IMAGES)
        cells: dict[str, str] = {}
        kind, why = "", ""
        for one in self.labels:
            files = _choose_file(parts.labels.get(one, {}), (one.suffix,))
            found = next(iter(files.values()), {})
            if len(files) != 1:
                kind, why = "missing-label", f"it has no {one.suffix}"
            if len(files) > 1:
                kind, why = "bad-label", f"it has several {one.suffix} ({', '.join(files)})"
            if cells.keys() & found.keys():
                name = min(cells.keys() & found.keys())
                kind, why = "bad-label", f"two of its label files say '{name}'"
            cells |= found
        if parts.why:
            kind, why = "bad-label", parts.why
        # What is wrong with the image comes first.
        if parts.broken:
            kind, why = "broken-image", parts.broken
        if not images:
            expected = self.image_suffix or ", ".join(IMAGES)
            kind, why = "missing-image", f"it has no image ({expected})"
        if len(images) > 1:
            named = ", ".join(images)
            kind, why = (
                "bad-image",
                f"it has several images ({named}), and --image-suffix says which",
            )
        image = next(iter(images.values()), (-1, -1, -1))
        return FoundSample(key, image, parts.size, cells, kind, why)


def read_scan(path: Path) -> Scan:
    """What was kept of a tar."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        values = json.load(file)
    return Scan(**values | {"samples": [FoundSample(*row) for row in values["samples"]]})


@dataclass
class _Parts:
    """What was found of a sample so far: its images and the cells of its label files, by their endings."""

    images: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)
    labels: dict[LabelFile, dict[str, dict[str, str]]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    fields: list[str] = field(default_factory=list)
    broken: str = ""
    why: str = ""


def _choose_file(files: dict[str, Content], exact: Sequence[str]) -> dict[str, Content]:
    """Those with one of the endings exactly, if any: `x.jpg` and not `x.thumb.jpg`."""
    return {suffix: file for suffix, file in files.items() if suffix in exact} or files


class _Tap:
    """A file that is read once from its beginning: all that passes is counted and hashed."""

    def __init__(self, file: Any, stop: Event) -> None:
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()
        self.tail = b""
        self._file = file
        self._stop = stop

    def read(self, size: int) -> bytes:
        """The next bytes."""
        if self._stop.is_set():
            raise UserError("reading was stopped")
        content: bytes = self._file.read(size)
        if not self.num_bytes and content.startswith(COMPRESSED):
            raise UserError(f"it is {WHY_NOT_COMPRESSED}")
        self.num_bytes += len(content)
        self.sha256.update(content)
        self.tail = (self.tail + content[-len(END_OF_TAR) :])[-len(END_OF_TAR) :]
        return content

    def drain(self) -> None:
        """Passes the rest, which tars fill with zeros."""
        while self.read(BLOCK):
            pass
