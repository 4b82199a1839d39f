"""What every source of labelled images offers: options a person can type, and a stream of samples made from them."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from distbranch.config.places import expand_places
from distbranch.data.image_files import ImageFiles
from distbranch.data.images import BrokenImageError, as_jpeg, image_size
from distbranch.data.shards import Labels, LabelValue, Sample
from distbranch.errors import UserError
from distbranch.permissions import denied
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")


@dataclass(frozen=True)
class Source:
    """An opened source: tasks, their known groups, the samples (read once), and how many there are (None: unknown).

    `skipped` counts, while the samples are read, what was left out. `description` goes into `dataset.json`.
    """

    tasks: tuple[Task, ...]
    samples: Iterable[Sample]
    description: Mapping[str, Any]
    num_samples: int | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


class SourceOptions(BaseModel, ABC):
    """The options of one source, as typed on the command line or in the section `data.pack` of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    image_size: tuple[int, int] | None = Field(
        None, description="HxW in pixels (`64x48`) to which images are resized; as they are if empty."
    )

    @field_validator("image_size", mode="before")
    @classmethod
    def _parse_size(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.lower().split("x")
        if isinstance(value, list | tuple) and len(value) == 1:
            value = [*value, *value]
        return value

    @field_validator("image_size")
    @classmethod
    def _check_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(1 <= side <= 65_500 for side in value):  # the most a JPEG can hold
            raise ValueError("should be HxW in pixels, each from 1 to 65500, for instance 64x48")
        return value

    @field_validator("*")
    @classmethod
    def _expand_paths(cls, value: Any) -> Any:
        return Path(expand_places(str(value))) if isinstance(value, Path) else value

    @abstractmethod
    def open(self) -> Source:
        """Reads what has to be known beforehand (tasks, classes, counts). Raises UserError for anything not in order."""

    def describe(self, **checksums: str) -> dict[str, Any]:
        """The options as plain values, with checksums of the files that hold the labels."""
        return {**self.model_dump(mode="json"), **checksums}


class ImageFileOptions(SourceOptions):
    """Options of the sources that read images which somebody else has made."""

    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="What to do about a missing or broken image: stop, or leave it out and count it."
    )


def as_typed(option: str) -> str:
    """How messages name an option: as on the command line, and where words are joined also as in a config."""
    return f"--{option.replace('_', '-')}" + (f" ({option})" if "_" in option else "")


@dataclass(frozen=True)
class Row:
    """One line of a table: `where` names it for people, `image` is the name of the image file."""

    where: str
    image: str
    split: str
    labels: Labels


def read_rows(
    rows: Iterable[Row], images: ImageFiles, options: ImageFileOptions, skipped: Counter[str]
) -> Iterator[Sample]:
    """Adds the image to every row; a missing or broken one stops with an error or is counted, as the options say.

    Warns in the end of images that differ in size.
    """
    first, other = None, None
    for row in rows:
        try:
            data = images.read(row.image)
        except PermissionError as error:
            raise denied(error) from None
        except OSError as error:
            raise UserError(f"{row.where}: image '{row.image}' cannot be read: {error.strerror or error}.") from None
        try:
            if data is None:
                raise BrokenImageError("there is no such image")
            image = as_jpeg(data, options.image_size)
        except BrokenImageError as error:
            if options.on_bad_image == "fail":
                raise UserError(
                    f"{row.where}: image '{row.image}' cannot be used: {error}. "
                    "Repair it, or leave such images out with --on-bad-image skip (on_bad_image: skip)."
                ) from None
            skipped["missing-image" if data is None else "broken-image"] += 1
            continue
        if options.image_size is None and other is None:
            size = image_size(image)
            first = first or size
            other = (row.image, size) if size != first else None
        yield Sample(sample_key(row.image), row.split, image, row.labels)
    if first is not None and other is not None:
        logger.warning(
            "The images have different sizes (%s the first, %s '%s'), and a network sees all of them in one size, stretched to it. "
            "%s packs them all in the size you give.",
            f"{first[0]}x{first[1]}",
            f"{other[1][0]}x{other[1][1]}",
            other[0],
            as_typed("image_size"),
        )


def sample_key(image: str) -> str:
    """The key of an image: its path without the extension; WebDataset ends keys at a dot, so dots become `%2E`."""
    folder, slash, name = image.replace("\\", "/").rpartition("/")
    return (folder + slash + (name.rpartition(".")[0] or name)).strip("/ ").replace(".", "%2E")


def seeded_split(name: str, fractions: Mapping[str, float], seed: int) -> str:
    """The split of a name (an image, or the group it must stay with): always the same for the same seed, any order."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64 * sum(fractions.values())
    for split, fraction in fractions.items():
        point -= fraction
        if point < 0:
            return split
    return list(fractions)[-1]


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not empty; any line ends, with or without a byte-order mark."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except PermissionError as error:
        raise denied(error) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8.") from None


def counted_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file whose first line says how many rows follow it; `count_rows` has checked them."""
    lines = text_lines(path)
    next(lines, None)
    return lines


def count_rows(path: Path, *, num_header_lines: int) -> int:
    """Rows of a file that opens with their number and header lines. Raises UserError where number and rows differ."""
    lines = text_lines(path)
    number, first = next(lines, (1, ""))
    if not first.isdecimal():
        raise UserError(f"{path}, line {number}: the number of rows should stand here, found '{first[:40]}'.")
    num_rows = sum(1 for _ in lines) - num_header_lines
    if num_rows != int(first):
        raise UserError(
            f"{path} says in line 1 that it has {first} rows, but it has {num_rows}: lines are missing or too many, "
            "and every label counted by its line would be wrong. Get the file again from its source."
        )
    return num_rows


def signs_to_labels(names: Iterable[str], values: Iterable[str], where: str) -> dict[str, LabelValue]:
    """Labels from the marks 1 (present), -1 (absent) and 0 (not known, so unlabelled)."""
    labels: dict[str, LabelValue] = {}
    for name, value in zip(names, values, strict=True):
        if value not in ("1", "-1", "0"):
            raise UserError(f"{where}: the label of '{name}' should be 1, -1 or 0 (unknown), found '{value[:40]}'.")
        if value != "0":
            labels[name] = int(value == "1")
    return labels


def first_existing(root: Path, folders: Iterable[str], names: Iterable[str]) -> Path:
    """The first file of one of these names in one of these folders under root. Raises UserError when there is none."""
    names = tuple(names)
    for folder in folders:
        for name in names:
            if (root / folder / name).is_file():
                return root / folder / name
    raise UserError(f"{' or '.join(names)} was not found under {root}. Give the folder that holds the data set.")
