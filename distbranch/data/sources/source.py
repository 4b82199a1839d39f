"""What every source of labelled images offers: options a person can type, and a stream of samples made from them."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from distbranch.config.paths import expand_places
from distbranch.data.image_files import ImageFiles, ImageNames, MissingImageError
from distbranch.data.images import (
    BrokenImageError,
    UnknownRangeError,
    check_header,
    convert_to_jpeg,
    count_frames,
    read_image_size,
)
from distbranch.data.shards import Labels, LeftOut, Sample
from distbranch.errors import UserError
from distbranch.permissions import make_denied_error
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

LEAVE_OUT_IMAGES = (
    "Repair it, or leave such images out with --on-bad-image skip (on_bad_image: skip)."
)
# What folders and files of splits are called.
SPLIT_OF_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


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


class SourceOptions(BaseModel):
    """The options of one source, as typed on the command line or in the section `data.pack` of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    image_size: tuple[int, int] | None = Field(
        None,
        description="HxW in pixels (`64x48`) to which images are resized; as they are if empty.",
    )

    @field_validator("image_size", mode="before")
    @classmethod
    def _parse_size(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.lower().split("x")
        if isinstance(value, list | tuple) and len(value) == 1:
            # `64` is a square.
            value = [*value, *value]
        return value

    @field_validator("image_size")
    @classmethod
    def _check_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not all(
            1 <= side <= 65_500 for side in value
        ):  # the most a JPEG can hold
            raise ValueError("should be HxW in pixels, each from 1 to 65500, for instance 64x48")
        return value

    @field_validator("*")
    @classmethod
    def _expand_paths(cls, value: Any) -> Any:
        # Paths alone: a `$` in a prefix of class names stays as it is.
        return Path(expand_places(str(value))) if isinstance(value, Path) else value

    def open(self) -> Source:
        """Reads what has to be known beforehand (tasks, classes, counts). Raises UserError for anything not in order."""
        raise NotImplementedError

    def describe(self, **checksums: str) -> dict[str, Any]:
        """The options as plain values, with checksums of the files that hold the labels."""
        return {**self.model_dump(mode="json"), **checksums}


class ImageFileOptions(SourceOptions):
    """Options of the sources that read images which somebody else has made."""

    on_bad_image: Literal["fail", "skip"] = Field(
        "fail",
        description="What to do about a missing or broken image: stop, or leave it out and list it.",
    )
    bits: int | None = Field(
        None,
        ge=9,
        le=16,
        description="How many bits images of 16 bits use: 12, say, for X-rays from 0 to 4095.",
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
    sizes: dict[tuple[int, int], str] = {}  # the first image of the first two sizes
    with_frames: list[str] = []
    # One iterator: where the run ends early, it says which of the rows behind lack an image as well.
    waiting = iter(rows)
    for row in waiting:
        try:
            with explain_unreadable(f"{row.where}: image '{row.image}'"):
                data = images.read(names.find(row.image))
            image = convert_to_jpeg(data, options.image_size, options.bits)
        except UnknownRangeError as error:
            # A sound image, so never left out: --bits says how bright it is.
            raise UserError(f"{row.where}: image '{row.image}' cannot be used: {error}.") from None
        except BrokenImageError as error:
            if options.on_bad_image == "fail":
                raise _refuse_image(row, error, waiting, images, names) from None
            kind = "missing-image" if isinstance(error, MissingImageError) else "broken-image"
            left_out.append(LeftOut(row.image, kind, row.where, str(error)))
            continue

        if options.image_size is None and len(sizes) < 2:
            sizes.setdefault(read_image_size(image), row.image)
        # A JPEG that is packed as it is needs no second look.
        if image is not data and count_frames(data) > 1:
            with_frames.append(row.image)
        yield Sample(sample_key(row.image), row.split, image, row.labels)
    _warn_of_images(names, sizes, with_frames)


@contextmanager
def explain_unreadable(what: str) -> Iterator[None]:
    """Errors of the file system as one sentence about this file."""
    try:
        yield
    except PermissionError as error:
        raise make_denied_error(error) from None
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}.") from None


def _refuse_image(
    row: Row, error: BrokenImageError, rows: Iterable[Row], images: ImageFiles, names: ImageNames
) -> UserError:
    """Why the image of a row cannot be used, and which of the other rows' images are missing or none."""
    also = ""
    # One run shall tell all of them, and not one image each.
    others = [other.image for other in rows if find_fault(other.image, images, names)]
    if others:
        shown = ", ".join(map(repr, others[:3]))
        also = f" {len(others):,} more cannot be used further down: {shown}."
    return UserError(
        f"{row.where}: image '{row.image}' cannot be used: {error}.{also} {LEAVE_OUT_IMAGES}"
    )


def find_fault(image: str, images: ImageFiles, names: ImageNames) -> str | None:
    """Why an image is missing, or by its first bytes none at all; None for one that may be sound, which decoding alone can tell."""
    try:
        check_header(images.read(names.find(image)))
    except (BrokenImageError, OSError) as error:
        return str(error)
    return None


def _warn_of_images(
    names: ImageNames, sizes: Mapping[tuple[int, int], str], with_frames: Sequence[str]
) -> None:
    if names.example is not None:
        logger.warning(
            "%d image(s) have another name than in the table, and just one file that can be meant was taken for each: "
            "for '%s' the file '%s', for instance.",
            names.num_renamed,
            *names.example,
        )
    if len(sizes) > 1:
        (first, _), (other, name) = sizes.items()
        logger.warning(
            "The images have different sizes (%dx%d the first, %dx%d '%s'), and a network sees all of them in one size, "
            "stretched to it. --image-size (image_size) packs them all in the size you give.",
            *first,
            *other,
            name,
        )
    if with_frames:
        logger.warning(
            "%d image(s) hold several pictures (pages or frames), and the first of each was taken, as of '%s'.",
            len(with_frames),
            with_frames[0],
        )


def sample_key(image: str) -> str:
    """The key of an image: its path without the extension; WebDataset ends keys at a dot, so dots become `%2E`."""
    folder, slash, name = image.replace("\\", "/").rpartition("/")
    return (folder + slash + (name.rpartition(".")[0] or name)).strip("/ ").replace(".", "%2E")


def draw_split(name: str, fractions: Mapping[str, float], seed: int) -> str:
    """The split of a name (an image, or the group it must stay with): always the same for the same seed, any order."""
    # A hash and no generator: images that are added or left out move no other to another split.
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64 * sum(fractions.values())
    for split, fraction in fractions.items():
        point -= fraction
        if point < 0:
            return split
    # Rounding can leave a crumb behind the last share.
    return list(fractions)[-1]
