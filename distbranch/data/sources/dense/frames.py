"""Pictures with dense labels on their way into a data set: what every source of them has in common.

A source lists frames, each with functions that read its picture and its labels in the convention in which labels are stored.
Here they are read one at a time, compared, resized and encoded.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from distbranch.data.image_files import MissingImageError
from distbranch.data.images import (
    BrokenImageError,
    UnknownRangeError,
    convert_to_jpeg,
    read_image_size,
)
from distbranch.data.label_maps import encode_map, resize_codes
from distbranch.data.shards import LeftOut, Sample
from distbranch.data.sources.option_values import Names
from distbranch.data.sources.source import (
    ImageFileOptions,
    Source,
    as_typed,
    draw_split,
    explain_unreadable,
)
from distbranch.errors import UserError
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

Codes = NDArray[Any]  # [H, W] or [H, W, 3], as `encode_map` takes them
BLOCK = 10  # frames that stay together where nothing says which show one place: published lists go from place to place

# An option that only the labels of one task need.
TASK_OF_OPTION = {
    "classes": "segmentation",
    "class_map": "segmentation",
    "labels": "segmentation",
    "normal_axes": "normals",
}


@dataclass(frozen=True)
class Frame:
    """One picture: `where` names it for people; `image` and, by task, `labels` say where they lie, for the source's readers."""

    where: str
    key: str
    split: str
    image: Any
    labels: Mapping[str, Any]


@dataclass(frozen=True)
class Readers:
    """How a source reads its files: the picture as the bytes of an image file, every label as its codes.

    Each takes what a frame says of the place, and raises FileNotFoundError where there is nothing: the task is not labelled.
    """

    image: Callable[[Any], bytes]
    labels: Mapping[str, Callable[[Any], Codes]]


class DenseOptions(ImageFileOptions):
    """Options of all sources with dense labels. `all_tasks` are the tasks that a source can give."""

    all_tasks: ClassVar[tuple[str, ...]]

    root: Path = Field(description="Folder that holds the data set.")
    tasks: Names = Field((), description="Which labels become tasks.")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail",
        description="What to do about a missing image, or a damaged image or label: stop, or leave the sample out and list it.",
    )

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in tasks if name not in cls.all_tasks]
        if unknown or not tasks:
            raise ValueError(f"should be some of {', '.join(cls.all_tasks)}")
        return tuple(name for name in cls.all_tasks if name in tasks)

    @model_validator(mode="after")
    def _check_used(self) -> Self:
        for option, task in TASK_OF_OPTION.items():
            if option in self.model_fields_set and task not in self.tasks:
                raise ValueError(
                    f"{as_typed(option)} says something of '{task}', which is not among --tasks. Leave one of them out"
                )
        return self

    def make_source(
        self,
        tasks: Iterable[Task],
        frames: Iterable[Frame],
        readers: Readers,
        *,
        num_samples: int | None,
        notes: Mapping[str, str],
    ) -> Source:
        """A source of those of the tasks that were chosen; the notes go into dataset.json."""
        chosen = tuple(task for task in tasks if task.name in self.tasks)
        left_out: list[LeftOut] = []
        return Source(
            tasks=chosen,
            samples=_read_frames(frames, chosen, readers, self, left_out),
            description=self.describe(**notes),
            num_samples=num_samples,
            left_out=left_out,
        )


class DrawnValOptions(DenseOptions):
    """Options of the sources that have no val split of their own, or whose val is what everybody reports, so our test."""

    val: float = Field(
        0.1, ge=0, lt=1, description="Share of the training pictures that becomes val."
    )
    seed: int = Field(0, description="Another seed draws another val.")

    def draw_train_or_val(self, place: str) -> str:
        """Of a training picture train or val, the same for all frames of one place: a room, a city, or `name_block`."""
        return draw_split(place, {"train": 1 - self.val, "val": self.val}, self.seed)


def name_block(stem: str) -> str:
    """What stands for the place of a frame that has just a number."""
    return f"block {int(stem) // BLOCK}" if stem.isdecimal() else stem


def _read_frames(
    frames: Iterable[Frame],
    tasks: tuple[Task, ...],
    readers: Readers,
    options: DenseOptions,
    left_out: list[LeftOut],
) -> Iterator[Sample]:
    """The samples; warns in the end of tasks that some have no label of."""
    num_samples = 0
    num_unlabelled: Counter[str] = Counter()  # by task
    example: dict[str, str] = {}
    for frame in frames:
        try:
            image = _read_image(frame, readers, options.bits)
            codes = _read_labels(frame, tasks, readers, read_image_size(image))
        except BrokenImageError as error:
            left_out.append(_leave_out(frame, error, options))
            continue

        # What the samples lack is told once, in the end.
        num_samples += 1
        for task in tasks:
            if task not in codes:
                num_unlabelled[task.name] += 1
                example.setdefault(task.name, frame.key)

        if options.image_size is not None:
            if any(task.kind == "normals" for task in tasks):
                _check_aspect(read_image_size(image), options.image_size)
            image = convert_to_jpeg(image, options.image_size)
            codes = {task: resize_codes(own, options.image_size) for task, own in codes.items()}
        maps = {task.name: encode_map(task, own) for task, own in codes.items()}
        yield Sample(frame.key, frame.split, image, {}, maps)
    for name, number in num_unlabelled.items():
        logger.warning(
            "%d of %d samples have no file of '%s' and are unlabelled for this task, '%s' for instance.",
            number,
            num_samples,
            name,
            example[name],
        )


def _leave_out(frame: Frame, error: BrokenImageError, options: DenseOptions) -> LeftOut:
    """What stands in the list of those that are left out. Raises UserError where none shall be."""
    # Of an unknown range: a sound image.
    if options.on_bad_image == "fail" or isinstance(error, UnknownRangeError):
        advice = (
            "Repair it, or leave such samples out with --on-bad-image skip (on_bad_image: skip)."
        )
        raise UserError(f"{frame.where} cannot be used: {error}. {advice}") from None
    kind = "missing-image" if isinstance(error, MissingImageError) else "broken-image"
    return LeftOut(frame.key, kind, frame.where, str(error))


def _read_image(frame: Frame, readers: Readers, bits: int | None) -> bytes:
    with explain_unreadable(frame.where):
        try:
            return convert_to_jpeg(readers.image(frame.image), bits=bits)
        except FileNotFoundError:
            raise MissingImageError("there is no such image") from None
        except UserError as error:
            raise _with_place(frame.where, error) from None


def _read_labels(
    frame: Frame, tasks: Iterable[Task], readers: Readers, size: tuple[int, int]
) -> dict[Task, Codes]:
    """The codes of every task that has a file. Raises UserError, with the place, for what cannot be right."""
    labels: dict[Task, Codes] = {}
    for task in tasks:
        where = f"{frame.where}, label '{task.name}'"
        if task.name not in frame.labels:
            continue
        with explain_unreadable(where):
            try:
                codes = readers.labels[task.name](frame.labels[task.name])
            except FileNotFoundError:
                continue
            except UserError as error:
                raise _with_place(where, error) from None
        if codes.shape[:2] != size:
            height, width = codes.shape[:2]
            raise UserError(
                f"{where}: {size[0]}x{size[1]} pixels, those of the image, should be labelled, found {height}x{width}. "
                "Give image and labels in one size."
            )
        labels[task] = codes
    return labels


def _with_place(where: str, error: UserError) -> UserError:
    """The error of a reader, which is the end of a sentence or of a question, with the file before it."""
    text = str(error)
    end = "" if text.endswith("?") else "."
    return UserError(f"{where}: {text}{end}")


def _check_aspect(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    height, width = size
    # Up to the rounding to whole pixels.
    if abs(wanted[1] * height / width - wanted[0]) >= 1:
        fitting = round(wanted[1] * height / width)
        raise UserError(
            f"An image of {height}x{width} pixels would be stretched to {wanted[0]}x{wanted[1]}, and surface normals would point "
            f"elsewhere then. Give --image-size {fitting}x{wanted[1]}, or leave the task out with --tasks."
        )
