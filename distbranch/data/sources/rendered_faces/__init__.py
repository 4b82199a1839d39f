"""Cartoon faces with the 40 attributes of CelebA, drawn from a seed: a data set whose true groups of tasks are known.

On most images a nuisance hides one region of the face, so that all tasks of this region are difficult together: `TASK_GROUPS` is what
a correct affinity must find. Every sample is a pure function of (seed, split, index).
"""

import io
import random
from collections.abc import Iterator, Mapping

from PIL import Image

from distbranch.data.pack import Sample
from distbranch.data.sources.rendered_faces import nuisance as nuisances
from distbranch.data.sources.rendered_faces.attributes import ATTRIBUTES, TASK_GROUPS, sample_attributes
from distbranch.data.sources.rendered_faces.canvas import Canvas
from distbranch.data.sources.rendered_faces.face import draw
from distbranch.data.sources.rendered_faces.person import Person
from distbranch.errors import UserError
from distbranch.tasks import Task

__all__ = ["ATTRIBUTES", "TASK_GROUPS", "render", "samples", "tasks"]

JPEG_QUALITY = 92
SUPERSAMPLING = 2


def tasks() -> tuple[Task, ...]:
    """One binary task per attribute, in the order of CelebA."""
    return tuple(Task(name) for name in ATTRIBUTES)


def samples(num_samples: Mapping[str, int], *, image_size: int, seed: int, nuisance: float = 0.8) -> Iterator[Sample]:
    """Faces with their labels, split by split.

    Args:
        num_samples: number of faces by split, for example {"train": 5000, "val": 500, "test": 500}.
        image_size: side of the square JPEG images in pixels.
        seed: another seed gives other faces.
        nuisance: share of the images on which one region is hidden, 0..1.
    """
    if not 0 <= nuisance <= 1:
        raise UserError(f"`nuisance` should be a share between 0 and 1, but it is {nuisance}. Give for example 0.8.")
    for split, number in num_samples.items():
        for index in range(number):
            yield _sample(split, index, image_size, seed, nuisance)


def _sample(split: str, index: int, image_size: int, seed: int, nuisance_share: float) -> Sample:
    rng = random.Random(f"{seed}/{split}/{index}")
    labels = sample_attributes(rng)
    region = rng.choice(tuple(TASK_GROUPS)) if rng.random() < nuisance_share else None
    image = render(labels, size=image_size, seed=rng.getrandbits(62), nuisance_region=region)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Sample(key=f"{split}-{index:08d}", split=split, image=buffer.getvalue(), labels=labels)


def render(attributes: Mapping[str, int], *, size: int, seed: int, nuisance_region: str | None = None) -> Image.Image:
    """Draw one face as an RGB image of size x size pixels.

    Args:
        attributes: 0 or 1 for each of ATTRIBUTES; absent ones are 0.
        size: side in pixels, at least 32.
        seed: decides what the attributes leave open (colours, shapes of hats, which nuisance).
        nuisance_region: the key of TASK_GROUPS whose attributes are hidden, or None.
    """
    _check(attributes, size, nuisance_region)
    labels = dict.fromkeys(ATTRIBUTES, 0) | dict(attributes)
    person = Person(labels, random.Random(f"face/{seed}"), nuisance_region)
    canvas = Canvas(size * SUPERSAMPLING, (255, 255, 255))
    draw(canvas, person)
    if nuisance_region in nuisances.AREAS:
        nuisances.cover(canvas, nuisance_region, random.Random(f"nuisance/{seed}"))
    if nuisance_region == "whole image":
        nuisances.haze(canvas)
    canvas.blur(0.005 * person.amount("Blurry"))
    return canvas.image.reduce(SUPERSAMPLING)


def _check(attributes: Mapping[str, int], size: int, nuisance_region: str | None) -> None:
    if unknown := sorted(set(attributes) - set(ATTRIBUTES)):
        raise UserError(
            f"A face has the attributes {', '.join(ATTRIBUTES)}, but {', '.join(unknown)} was given. Leave it out."
        )
    if size < 32:
        raise UserError(f"An image of a face should have a side of at least 32 pixels, but {size} was given. Use 64.")
    if nuisance_region is not None and nuisance_region not in TASK_GROUPS:
        raise UserError(
            f"A region should be one of {', '.join(TASK_GROUPS)}, but {nuisance_region!r} was given. Choose one of them."
        )
