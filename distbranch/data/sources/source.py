"""What every source of labelled images offers: options a person can type, and a stream of samples made from them."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from distbranch.config.paths import expand_places
from distbranch.data.image_files import ImageFiles, ImageNames, MissingImageError
from distbranch.data.images import BrokenImageError, UnknownRangeError, convert_to_jpeg, count_frames, read_image_size
from distbranch.data.shards import Labels, LabelValue, LeftOut, Sample
from distbranch.data.sources.label_text import parse_mark
from distbranch.errors import UserError
from distbranch.permissions import denied
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")


def _read_answer(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads `no` as false


# What a mark means that people use for either.
Answer = Annotated[Literal["no", "unknown"], BeforeValidator(_read_answer)]


@dataclass(frozen=True)
class Source:
    """An opened source: tasks, their known groups, the samples (read once), and how many there are (None: unknown).

    `left_out` grows, while the samples are read, by every image that is not among them. `description` goes into `dataset.json`.
    """

    tasks: tuple[Task, ...]
    samples: Iterable[Sample]
    description: Mapping[str, Any]
    num_samples: int | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


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
        "fail", description="What to do about a missing or broken image: stop, or leave it out and list it."
    )
    bits: int | None = Field(
        None, ge=9, le=16, description="How many bits images of 16 bits use: 12, say, for X-rays from 0 to 4095."
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
    rows: Iterable[Row], images: ImageFiles, options: ImageFileOptions, left_out: list[LeftOut]
) -> Iterator[Sample]:
    """Adds the image to every row; a missing or broken one stops with an error or is left out, as the options say.

    Warns in the end of images that have other names than in the table, differ in size, or hold several pictures.
    """
    names = ImageNames(images)
    survey = _ImageSurvey()
    waiting = iter(rows)
    for row in waiting:
        try:
            data = _read_image(row, names, images)
            image = convert_to_jpeg(data, options.image_size, options.bits)
        except UnknownRangeError as error:
            # A sound image, so never left out: --bits says how bright it is.
            raise UserError(f"{row.where}: image '{row.image}' cannot be used: {error}.") from None
        except BrokenImageError as error:
            if options.on_bad_image == "fail":
                raise _refuse_image(row, error, waiting, names) from None
            kind = "missing-image" if isinstance(error, MissingImageError) else "broken-image"
            left_out.append(LeftOut(row.image, kind, row.where, str(error)))
            continue

        if options.image_size is None:
            survey.compare_size(row.image, image)
        # A JPEG that is packed as it is needs no second look.
        if image is not data:
            survey.count_frames(row.image, data)
        yield Sample(sample_key(row.image), row.split, image, row.labels)
    _warn_renamed(names)
    survey.warn_sizes()
    survey.warn_frames()


def _read_image(row: Row, names: ImageNames, images: ImageFiles) -> bytes:
    try:
        return images.read(names.find(row.image))
    except PermissionError as error:
        raise denied(error) from None
    except OSError as error:
        raise UserError(f"{row.where}: image '{row.image}' cannot be read: {error.strerror or error}.") from None


def _refuse_image(row: Row, error: BrokenImageError, rows: Iterable[Row], names: ImageNames) -> UserError:
    """Why the image of a row cannot be used; where it is missing, also which of the other rows' images are."""
    others = []
    if isinstance(error, MissingImageError):
        others = [other.image for other in rows if not _exists(other.image, names)]
    also = ""
    if others:
        shown = ", ".join(f"'{name}'" for name in others[:3])
        if len(others) > 3:
            shown += ", ..."
        also = f" {len(others):,} more are missing further down: {shown}."
    return UserError(
        f"{row.where}: image '{row.image}' cannot be used: {error}.{also} "
        "Repair it, or leave such images out with --on-bad-image skip (on_bad_image: skip)."
    )


def _exists(image: str, names: ImageNames) -> bool:
    try:
        names.find(image)
    except (MissingImageError, OSError):
        return False
    return True


def _warn_renamed(names: ImageNames) -> None:
    if names.example is None:
        return
    typed, file = names.example
    logger.warning(
        "%d image(s) have another name than in the table, and just one file that can be meant was taken for each: "
        "for '%s' the file '%s'%s.",
        names.num_renamed,
        typed,
        file,
        "" if names.num_renamed == 1 else ", for instance",
    )


@dataclass
class _ImageSurvey:
    """The size of the first image and the first image of another; how many files held several pictures, and the first."""

    first_size: tuple[int, int] | None = None
    other: tuple[str, tuple[int, int]] | None = None
    num_with_frames: int = 0
    with_frames: tuple[str, int] | None = None

    def compare_size(self, name: str, image: bytes) -> None:
        if self.other is not None:
            return
        size = read_image_size(image)
        self.first_size = self.first_size or size
        if size != self.first_size:
            self.other = (name, size)

    def count_frames(self, name: str, data: bytes) -> None:
        num = count_frames(data)
        if num > 1:
            self.num_with_frames += 1
            self.with_frames = self.with_frames or (name, num)

    def warn_sizes(self) -> None:
        if self.first_size is None or self.other is None:
            return
        name, size = self.other
        logger.warning(
            "The images have different sizes (%dx%d the first, %dx%d '%s'), and a network sees all of them in one size, "
            "stretched to it. %s packs them all in the size you give.",
            *self.first_size,
            *size,
            name,
            as_typed("image_size"),
        )

    def warn_frames(self) -> None:
        if self.with_frames is not None:
            logger.warning(
                "%d image(s) hold several pictures (pages or frames), and the first of each was taken: '%s' holds %d.",
                self.num_with_frames,
                *self.with_frames,
            )


def sample_key(image: str) -> str:
    """The key of an image: its path without the extension; WebDataset ends keys at a dot, so dots become `%2E`."""
    folder, slash, name = image.replace("\\", "/").rpartition("/")
    return (folder + slash + (name.rpartition(".")[0] or name)).strip("/ ").replace(".", "%2E")


def draw_split(name: str, fractions: Mapping[str, float], seed: int) -> str:
    """The split of a name (an image, or the group it must stay with): always the same for the same seed, any order."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64 * sum(fractions.values())
    for split, fraction in fractions.items():
        point -= fraction
        if point < 0:
            return split
    return list(fractions)[-1]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
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


def read_counted_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file whose first line says how many rows follow it; `count_rows` has checked them."""
    lines = read_lines(path)
    next(lines, None)
    return lines


def count_rows(path: Path, *, num_header_lines: int) -> int:
    """Rows of a file that opens with their number and header lines. Raises UserError where number and rows differ."""
    lines = read_lines(path)
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


def map_marks_to_labels(marks: Iterable[str], minus_one: Answer | None, path: Path) -> dict[str, LabelValue | None]:
    """The label of every mark of a list (None: unlabelled): -1 or else 0 means no. Raises UserError where both could.

    Args:
        marks: all that occur; those that are neither 1, 0 nor -1 are left out.
        minus_one: what -1 means, if somebody said.
        path: the list, for messages.
    """
    values = {mark: parse_mark(mark) for mark in marks}
    found = set(values.values())
    if minus_one is None and {0, -1} <= found:
        raise UserError(
            f"{path} holds 1, 0 and -1. Say what -1 means: {as_typed('minus_one')} unknown (0 is no) or no (0 is unknown)."
        )
    signed = minus_one == "no" or (minus_one is None and -1 in found)
    label_of = {1: 1, 0: None, -1: 0} if signed else {1: 1, 0: 0, -1: None}
    return {mark: label_of[value] for mark, value in values.items() if value is not None}


def read_marks(
    image: str,
    marks: Sequence[str],
    names: Sequence[str],
    label_of: Mapping[str, LabelValue | None],
    where: str,
) -> dict[str, LabelValue]:
    """The labels of an image, from the marks of its line. Raises UserError for too many or few, and for one that is none."""
    if len(marks) != len(names):
        raise UserError(f"{where}: {len(names)} labels should follow the image '{image}', found {len(marks)}.")
    labels: dict[str, LabelValue] = {}
    for name, mark in zip(names, marks, strict=True):
        if mark not in label_of:
            raise UserError(f"{where}: the label of '{name}' should be 1, -1 or 0, found '{mark[:40]}'.")
        label = label_of[mark]
        if label is not None:
            labels[name] = label
    return labels


def find_first_file(root: Path, folders: Iterable[str], names: Sequence[str]) -> Path:
    """The first file of one of these names in one of these folders under root. Raises UserError when there is none."""
    for folder in folders:
        for name in names:
            if (root / folder / name).is_file():
                return root / folder / name
    raise UserError(f"{' or '.join(names)} was not found under {root}. Give the folder that holds the data set.")
