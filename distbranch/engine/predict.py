"""Predictions for image files: probabilities per task, by the same decoding and normalisation as in training."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from distbranch.data.decode import decode
from distbranch.data.images import BrokenImageError, as_jpeg
from distbranch.engine.artifact import Preprocessing
from distbranch.errors import UserError
from distbranch.permissions import denied
from distbranch.tasks import TaskSet

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class Predictor(Protocol):
    """A network, or a file exported from one."""

    tasks: TaskSet

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by task name. images: uint8 [B, 3, H, W]."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One image and, per task, the probability of a binary one or those of every class of a categorical one."""

    image: Path
    scores: dict[str, float | dict[str, float]]


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The files, and the images of the folders, in order.

    Raises:
        UserError: a path that does not exist, or no image at all.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"The image {path} does not exist. Give image files or folders of them.")
        files += (
            sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
    if not files:
        raise UserError(f"There are no images ({', '.join(SUFFIXES)}) in what was given.")
    return files


@torch.inference_mode()
def predict(
    network: Predictor, preprocessing: Preprocessing, files: Sequence[Path], *, batch_size: int = 64
) -> Iterator[Prediction]:
    """Predict image by image, in the order of `files`.

    Raises:
        UserError: a file that is no image, by name.
    """
    waiting = iter(files)
    while chunk := list(islice(waiting, batch_size)):
        images = torch.stack([_read(file, preprocessing) for file in chunk])
        logits = network(images)
        columns = {task.name: _probabilities(logits[task.name], task.classes) for task in network.tasks.tasks}
        for row, file in enumerate(chunk):
            yield Prediction(file, {name: values[row] for name, values in columns.items()})


def _read(file: Path, preprocessing: Preprocessing) -> torch.Tensor:
    try:
        pixels = decode(as_jpeg(file.read_bytes()), preprocessing.image_size, preprocessing.decoder)
    except PermissionError as error:
        raise denied(error) from None
    except (OSError, BrokenImageError, ValueError) as error:
        raise UserError(f"The image {file} cannot be read: {error}. Remove it or repair it.") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _probabilities(logits: torch.Tensor, classes: tuple[str, ...]) -> list[float] | list[dict[str, float]]:
    if not classes:
        values: list[float] = logits.sigmoid().tolist()
        return values
    return [dict(zip(classes, row, strict=True)) for row in logits.softmax(dim=1).tolist()]
