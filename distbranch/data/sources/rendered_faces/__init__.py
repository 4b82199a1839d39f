"""Cartoon faces with the 40 attributes of CelebA, drawn from a seed: a data set whose true groups of tasks are known.

On most images a nuisance hides one region of the face, so that all tasks of this region are difficult together: `TASK_GROUPS` is what
a correct affinity must find. Every sample is a pure function of (seed, split, index).
"""

import io
import random
from collections.abc import Iterator, Mapping
from typing import Literal

from PIL import Image
from pydantic import Field, model_validator

from distbranch.data.shards import Sample
from distbranch.data.sources.rendered_faces.attributes import (
    ATTRIBUTES,
    TASK_GROUPS,
    sample_attributes,
)
from distbranch.data.sources.rendered_faces.canvas import (
    WHITE,
    Box,
    Canvas,
    Colour,
    mix,
    spread_evenly,
)
from distbranch.data.sources.rendered_faces.drawing import Face, parse_colour, read_face
from distbranch.data.sources.source import Source, SourceOptions
from distbranch.errors import UserError
from distbranch.tasks import Task

JPEG_QUALITY = 92
SUPERSAMPLING = 2  # drawn larger and reduced, for Pillow's shapes have ragged edges


class RenderedFacesOptions(SourceOptions):
    """Faces drawn by the program itself, so nothing has to be downloaded."""

    source: Literal["rendered-faces"] = "rendered-faces"
    samples: int = Field(6000, ge=1, description="Number of faces to train on.")
    val: int = Field(500, ge=0, description="Number of faces of the val split.")
    test: int = Field(500, ge=0, description="Number of faces of the test split.")
    image_size: tuple[int, int] | None = Field(
        (64, 64), description="HxW in pixels; the faces are square."
    )
    seed: int = Field(0, description="Another seed draws other faces.")
    nuisance: float = Field(
        0.8, ge=0, le=1, description="Share of the faces on which one region is hard to see."
    )

    @model_validator(mode="after")
    def _check_square(self) -> "RenderedFacesOptions":
        if self.image_size is None or self.image_size[0] != self.image_size[1]:
            raise ValueError("image_size should be a square for rendered faces, for instance 64x64")
        return self

    def open(self) -> Source:
        """Nothing is drawn until the samples are read."""
        assert self.image_size is not None
        num_samples = {"train": self.samples, "val": self.val, "test": self.test}
        samples = render_samples(
            num_samples, image_size=self.image_size[0], seed=self.seed, nuisance=self.nuisance
        )
        return Source(
            tasks=list_attribute_tasks(),
            samples=samples,
            description=self.describe(),
            num_samples=sum(num_samples.values()),
            groups=TASK_GROUPS,
        )


def list_attribute_tasks() -> tuple[Task, ...]:
    """One binary task per attribute, in the order of CelebA."""
    return tuple(Task(name) for name in ATTRIBUTES)


def render_samples(
    num_samples: Mapping[str, int], *, image_size: int, seed: int, nuisance: float = 0.8
) -> Iterator[Sample]:
    """Faces with their labels, split by split.

    Args:
        num_samples: number of faces by split, for example {"train": 5000, "val": 500, "test": 500}.
        image_size: side of the square JPEG images in pixels.
        seed: another seed gives other faces.
        nuisance: share of the images on which one region is hidden, 0..1.
    """
    if not 0 <= nuisance <= 1:
        raise UserError(
            f"`nuisance` should be a share between 0 and 1, but it is {nuisance}. Give for example 0.8."
        )
    for split, number in num_samples.items():
        for index in range(number):
            yield _render_sample(split, index, image_size, seed, nuisance)


def _render_sample(split: str, index: int, image_size: int, seed: int, nuisance: float) -> Sample:
    # Python hashes a text seed the same way on every machine, and no sample needs the one before it.
    rng = random.Random(f"{seed}/{split}/{index}")
    labels = sample_attributes(rng)
    region = None
    if rng.random() < nuisance:
        region = rng.choice(tuple(TASK_GROUPS))
    image = render_face(labels, size=image_size, seed=rng.getrandbits(62), nuisance_region=region)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Sample(key=f"{split}-{index:08d}", split=split, image=buffer.getvalue(), labels=labels)


def render_face(
    attributes: Mapping[str, int], *, size: int, seed: int, nuisance_region: str | None = None
) -> Image.Image:
    """Draws one face as an RGB image of size x size pixels.

    Args:
        attributes: 0 or 1 for each of ATTRIBUTES; absent ones are 0.
        size: side in pixels, at least 32.
        seed: decides what the attributes leave open (colours, shapes of hats, which nuisance).
        nuisance_region: the key of TASK_GROUPS whose attributes are hidden, or None.
    """
    _check_face(attributes, size, nuisance_region)
    canvas = Canvas(size * SUPERSAMPLING)
    face = Face(
        canvas,
        dict.fromkeys(ATTRIBUTES, 0) | dict(attributes),
        random.Random(f"face/{seed}"),
        nuisance_region,
    )
    face.draw()
    # A generator of its own: with or without nuisance the face below is the same.
    _cover_region(canvas, nuisance_region, random.Random(f"nuisance/{seed}"))
    if nuisance_region == "whole image":
        # Bad light: a thin veil, through which the local attributes are still seen.
        canvas.fill_all((214, 206, 214, 70))
    canvas.blur(0.005 * face.amounts["Blurry"])
    return canvas.image.reduce(SUPERSAMPLING)


def _check_face(attributes: Mapping[str, int], size: int, nuisance_region: str | None) -> None:
    if unknown := sorted(set(attributes) - set(ATTRIBUTES)):
        raise UserError(
            f"A face has the attributes {', '.join(ATTRIBUTES)}, but {', '.join(unknown)} was given. Leave it out."
        )
    if size < 32:
        raise UserError(
            f"An image of a face should have a side of at least 32 pixels, but {size} was given. Use 64."
        )
    if nuisance_region is not None and nuisance_region not in TASK_GROUPS:
        raise UserError(
            f"A region should be one of {', '.join(TASK_GROUPS)}, but {nuisance_region!r} was given. Choose one of them."
        )


def _cover_region(canvas: Canvas, region: str | None, rng: random.Random) -> None:
    """Hides one local region: an occluder, shade, fog (low contrast) or blur over the area in which its attributes are seen."""
    covers = (
        _cover_with_flowers,
        _cover_with_cloud,
        _cover_with_ribbon,
        _cover_with_shade,
        _cover_with_fog,
        _cover_with_blur,
    )
    cover = rng.choice(covers)
    petal = parse_colour(rng.choice(read_face()["palettes"]["petal"]))
    fabric = parse_colour(rng.choice(read_face()["palettes"]["fabric"]))
    # Hair and the whole image have no area: they were hidden while they were drawn.
    for box in read_face()["nuisance_areas"].get(region, ()):
        cover(canvas, box, petal, fabric)


def _cover_with_flowers(canvas: Canvas, box: Box, petal: Colour, fabric: Colour) -> None:
    left, top, right, bottom = box
    canvas.draw_box(box, mix((70, 140, 80), fabric, 0.2))
    size = min(bottom - top, right - left, 0.12) / 2
    for x in spread_evenly(left + size, right - size, 1.9 * size):
        for y in spread_evenly(top + size, bottom - size, 1.9 * size):
            canvas.draw_star((x, y, 1.25 * size), petal, num_points=6, waist=0.75)
            canvas.draw_ellipse((x, y, 0.4 * size), mix(petal, (255, 230, 80), 0.8))


def _cover_with_cloud(canvas: Canvas, box: Box, petal: Colour, _: Colour) -> None:
    left, top, right, bottom = box
    white = mix((250, 250, 255), petal, 0.08)
    canvas.draw_box(box, white)
    size = min(bottom - top, right - left, 0.16) / 2
    for x in spread_evenly(left + 0.6 * size, right - 0.6 * size, 1.3 * size):
        canvas.draw_ellipse((x, top + 0.8 * size, 1.05 * size), white)
        canvas.draw_ellipse(
            (x, bottom - 0.8 * size, 1.05 * size), mix(white, (150, 170, 210), 0.25)
        )


def _cover_with_ribbon(canvas: Canvas, box: Box, _: Colour, fabric: Colour) -> None:
    left, top, right, bottom = box
    canvas.draw_box(box, fabric, mix(fabric, (40, 30, 40), 0.4))
    for y in spread_evenly(top + 0.03, bottom - 0.03, 0.05):
        for x in spread_evenly(left + 0.04, right - 0.04, 0.06):
            canvas.draw_ellipse((x, y, 0.012), mix(fabric, WHITE, 0.75))


def _cover_with_shade(canvas: Canvas, box: Box, _: Colour, fabric: Colour) -> None:
    canvas.draw_box(box, (*mix((40, 34, 52), fabric, 0.15), 244))


def _cover_with_fog(canvas: Canvas, box: Box, petal: Colour, _: Colour) -> None:
    canvas.draw_box(box, (*mix((226, 220, 216), petal, 0.1), 240))


def _cover_with_blur(canvas: Canvas, box: Box, _: Colour, fabric: Colour) -> None:
    canvas.blur(0.08, box)
    canvas.draw_box(box, (*mix((200, 170, 150), fabric, 0.1), 190))
