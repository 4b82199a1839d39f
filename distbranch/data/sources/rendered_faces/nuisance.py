"""What hides a region of the drawing: an occluder, shade, fog (low contrast) or blur over the area in which its attributes are seen."""

import random

from distbranch.data.sources.rendered_faces.canvas import Canvas, Colour, mix

Box = tuple[float, float, float, float]  # left, top, right, bottom

AREAS: dict[str, tuple[Box, ...]] = {
    "eyes": ((0.25, 0.34, 0.75, 0.512),),
    "brows": ((0.25, 0.25, 0.75, 0.34),),
    "nose": ((0.24, 0.475, 0.76, 0.637),),
    "mouth and beard": ((0.27, 0.637, 0.73, 0.865),),
    "head-wear": ((0.18, -0.03, 0.82, 0.27),),
    "ornaments": ((0.11, 0.55, 0.26, 0.73), (0.74, 0.55, 0.89, 0.73), (0.28, 0.845, 0.72, 1.03)),
}
"""The areas that a nuisance covers; hair and the whole image are hidden while they are drawn (see `person.py`)."""

PETALS = ((255, 140, 170), (255, 190, 90), (170, 150, 240), (120, 200, 160), (250, 250, 250))
FABRICS = ((214, 80, 80), (70, 130, 180), (240, 180, 70), (90, 160, 120), (170, 110, 180))


def cover(canvas: Canvas, region: str, rng: random.Random) -> None:
    """Hide one local region."""
    hide = rng.choice((_flowers, _cloud, _ribbon, _shade, _fog, _blur))
    colours = rng.choice(PETALS), rng.choice(FABRICS)
    for box in AREAS[region]:
        hide(canvas, box, colours)


def haze(canvas: Canvas) -> None:
    """Bad light over the whole picture: a thin veil, through which the local attributes are still seen."""
    canvas.box((-1, -1, 2, 2), (214, 206, 214, 70))


def _flowers(canvas: Canvas, box: Box, colours: tuple[Colour, Colour]) -> None:
    left, top, right, bottom = box
    canvas.box(box, mix((70, 140, 80), colours[1], 0.2))
    size = min(bottom - top, right - left, 0.12) / 2
    for x in _steps(left + size, right - size, 1.9 * size):
        for y in _steps(top + size, bottom - size, 1.9 * size):
            canvas.star((x, y), 1.25 * size, colours[0], 6, 0.75)
            canvas.ellipse((x, y), 0.4 * size, mix(colours[0], (255, 230, 80), 0.8))


def _cloud(canvas: Canvas, box: Box, colours: tuple[Colour, Colour]) -> None:
    left, top, right, bottom = box
    white = mix((250, 250, 255), colours[0], 0.08)
    canvas.box(box, white)
    size = min(bottom - top, right - left, 0.16) / 2
    for x in _steps(left + 0.6 * size, right - 0.6 * size, 1.3 * size):
        canvas.ellipse((x, top + 0.8 * size), 1.05 * size, white)
        canvas.ellipse((x, bottom - 0.8 * size), 1.05 * size, mix(white, (150, 170, 210), 0.25))


def _ribbon(canvas: Canvas, box: Box, colours: tuple[Colour, Colour]) -> None:
    left, top, right, bottom = box
    canvas.box(box, colours[1], mix(colours[1], (40, 30, 40), 0.4))
    for y in _steps(top + 0.03, bottom - 0.03, 0.05):
        for x in _steps(left + 0.04, right - 0.04, 0.06):
            canvas.ellipse((x, y), 0.012, mix(colours[1], (255, 255, 255), 0.75))


def _shade(canvas: Canvas, box: Box, colours: tuple[Colour, Colour]) -> None:
    canvas.box(box, (*mix((40, 34, 52), colours[1], 0.15), 244))


def _fog(canvas: Canvas, box: Box, colours: tuple[Colour, Colour]) -> None:
    canvas.box(box, (*mix((226, 220, 216), colours[0], 0.1), 240))


def _blur(canvas: Canvas, box: Box, colours: tuple[Colour, Colour]) -> None:
    canvas.blur_inside(box, 0.08)
    canvas.box(box, (*mix((200, 170, 150), colours[1], 0.1), 190))


def _steps(start: float, stop: float, step: float) -> list[float]:
    """Evenly spaced from start to stop, about `step` apart; the middle where there is room for one only."""
    count = max(0, round((stop - start) / step))
    return [start + (stop - start) * i / count for i in range(count + 1)] if count else [(start + stop) / 2]
