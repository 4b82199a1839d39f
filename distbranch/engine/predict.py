"""Predictions for image files: what each task answers, by the same decoding and normalisation as in training."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from distbranch.data.images import SUFFIXES, UnknownRangeError, convert_to_jpeg, decode_to_size
from distbranch.engine.artifact import Preprocessing
from distbranch.errors import UserError, reason_of
from distbranch.kinds import Answer
from distbranch.permissions import make_denied_error
from distbranch.tasks import TaskSet

logger = logging.getLogger("distbranch")

NAMED = 10  # broken images in an error; a warning names all that are left out


class Predictor(Protocol):
    """A network, or a file exported from one."""

    tasks: TaskSet
    thresholds: dict[str, dict[str, Any]] | None

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by task name. images: uint8 [B, 3, H, W]."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One image and, per task, the answer of its kind: a probability, those of every class, a number in its unit, or a picture.

    `pictures`: how the names of the files begin that pictures were written to.
    """

    image: Path
    scores: dict[str, Answer]
    pictures: str = ""


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files, and the images of the folders, in order.

    Raises:
        UserError: a path that does not exist, or no image at all.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(
                f"The image {path} does not exist. Give image files or folders of them."
            )
        if path.is_dir():
            files += sorted(filter(_is_image, path.rglob("*")))
        else:
            files.append(path)
    if not files:
        raise UserError(f"There are no images ({', '.join(SUFFIXES)}) in what was given.")
    return files


def _is_image(file: Path) -> bool:
    """By its name; `._photo.jpg` is what macOS adds beside a photo on a foreign disk."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith("._") and not file.is_dir()


@torch.inference_mode()
def predict_images(
    network: Predictor,
    preprocessing: Preprocessing,
    files: Sequence[Path],
    *,
    batch_size: int = 64,
    on_bad_image: str = "fail",
) -> Iterator[Prediction]:
    """Predict image by image, in the order of `files`.

    With `on_bad_image="skip"` files that are no whole images are left out, and a warning names them.

    Raises:
        UserError: files that are no images, all of them at once after the last file; or nothing is left.
    """
    broken: list[str] = []
    waiting = iter(files)  # read chunk by chunk: a folder may hold more images than fit into memory
    while chunk := list(islice(waiting, batch_size)):
        whole, images = [], []
        for file in chunk:
            try:
                images.append(decode_input(file.read_bytes(), preprocessing))
                whole.append(file)
            except UnknownRangeError as error:
                raise UserError(f"The image {file} cannot be read: {error}.") from None
            except PermissionError as error:  # the image may be sound
                raise make_denied_error(error) from None
            except (OSError, ValueError) as error:
                broken.append(f"{file} ({reason_of(error)})")
        if not images or (broken and on_bad_image == "fail"):
            continue  # the rest is only looked through, so that all broken ones are told
        answers = network.tasks.predict(network(torch.stack(images)))
        for row, file in enumerate(whole):
            yield Prediction(file, {name: values[row] for name, values in answers.items()})

    if broken and (on_bad_image == "fail" or len(broken) == len(files)):
        named = ", ".join(broken[:NAMED])
        if len(broken) > NAMED:
            named += f" and {len(broken) - NAMED} more"
        raise UserError(
            f"{len(broken)} of {len(files)} images cannot be read, so nothing was written: {named}. "
            "Repair or remove them, or leave them out with --on-bad-image skip."
        )
    if broken:
        left_out = ", ".join(broken)
        logger.warning(
            "%d of %d images cannot be read and were left out: %s.",
            len(broken),
            len(files),
            left_out,
        )


def decode_input(content: bytes, preprocessing: Preprocessing) -> torch.Tensor:
    """The bytes of an image file as the network takes them: uint8 [3, H, W].

    Raises:
        ValueError: they are no whole image; UnknownRangeError: one of 16 bits, of which nobody said how many are used.
    """
    jpeg = convert_to_jpeg(content, bits=preprocessing.bits)
    pixels = decode_to_size(jpeg, preprocessing.image_size, preprocessing.decoder)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
