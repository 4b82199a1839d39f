"""Answers of dense tasks as files: a PNG per image and task, which holds codes as label files do (classes with a palette)."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from distbranch.engine.predict import Prediction
from distbranch.errors import UserError, reason_of
from distbranch.kinds import KINDS
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import Array, Summary
from distbranch.tasks import Task, unused_name


@dataclass(frozen=True)
class PredictionSummary:
    """One image and, per task, its answer, or a few numbers about one that is a picture; `pictures`: how the names of those begin."""

    image: Path
    scores: dict[str, Summary]
    pictures: str = ""


def summarise_predictions(
    tasks: Sequence[Task], predictions: Iterable[Prediction]
) -> Iterator[PredictionSummary]:
    """Predictions without pictures, which would fill the memory."""
    for one in predictions:
        scores = {}
        for task in tasks:
            scores[task.name] = KINDS[task.kind].summarise_answer(task, one.scores[task.name])
        yield PredictionSummary(one.image, scores, one.pictures)


def write_pictures(
    tasks: Sequence[Task], predictions: Iterable[Prediction], folder: Path
) -> Iterator[Prediction]:
    """Passes predictions on, and writes the answers of dense tasks to FOLDER/<image>.<task>.png; of images alike named to others."""
    taken: set[str] = set()
    for one in predictions:
        stem = unused_name(one.image.stem, taken)
        taken.add(stem)
        for task in tasks:
            kind, answer = KINDS[task.kind], one.scores[task.name]
            if isinstance(kind, DenseKind) and not isinstance(answer, float | dict):
                picture = make_picture(kind, kind.encode_answer(task, answer))
                picture.save(folder / f"{stem}.{task.name}.png")
        yield replace(one, pictures=stem)


def make_picture(kind: DenseKind, codes: Array) -> Image.Image:
    """Codes of 8 or 16 bits as an image; numbers of classes have colours."""
    picture = Image.fromarray(codes)
    palette = kind.get_palette()
    if palette is not None:
        picture.putpalette(palette.tobytes())
    return picture


@contextmanager
def fill_folder(folder: Path) -> Iterator[Path]:
    """A folder whose files come to `folder` if all goes well, and vanish otherwise.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as aside:
            yield Path(aside)
            for file in sorted(Path(aside).iterdir()):
                file.replace(folder / file.name)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be written ({reason_of(error)}). Give another place."
        ) from None
