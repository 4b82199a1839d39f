"""Brows, eyes, nose, mouth and ornaments: regions that each keep to an area of their own (`nuisance.AREAS`)."""

from collections.abc import Sequence

from distbranch.data.sources.rendered_faces.canvas import Canvas, Colour, Point, curve, mirror, mix
from distbranch.data.sources.rendered_faces.person import BRIGHT, FRAMES, INK, IRISES, METALS, PAINTS, WHITE, Person


def draw_brows(canvas: Canvas, person: Person) -> None:
    """Brows: arched or level, bushy or fine."""
    width = 0.045 if person.has["Bushy_Eyebrows"] else 0.014
    lift = 0.10 if person.has["Arched_Eyebrows"] else 0.0
    left = curve((0.28, 0.31 + 0.2 * lift), (0.37, 0.31 - 0.9 * lift), (0.455, 0.31 + 0.2 * lift))
    for points in (left, mirror(left)):
        canvas.line(points, person.beard, width)


def draw_eyes(canvas: Canvas, person: Person) -> None:
    """Eyes: narrow or round, shadows below, make-up above, spectacles in front."""
    has, rng = person.has, person.rng
    iris, paint, frame = rng.choice(IRISES), rng.choice(PAINTS), rng.choice(FRAMES)
    height, gaze = 0.017 if has["Narrow_Eyes"] else 0.05, rng.uniform(-0.012, 0.012)
    for sign in (-1, 1):
        x = 0.5 + sign * 0.13
        if has["Bags_Under_Eyes"]:
            canvas.ellipse((x, 0.448), (0.085, 0.07), mix(person.skin, (84, 56, 130), 0.75))
            canvas.ellipse((x, 0.40), (0.092, 0.07), person.skin)
        if has["Heavy_Makeup"]:
            canvas.polygon(
                [(x - sign * 0.06, 0.40), (x, 0.342), (x + sign * 0.12, 0.345), (x + sign * 0.07, 0.41)], paint
            )
            canvas.ellipse((x, 0.393), (0.08, 0.05), paint)
        canvas.ellipse((x, 0.41), (0.064, height), WHITE, INK)
        canvas.ellipse((x + gaze, 0.41), (0.031, min(0.036, height)), iris)
        canvas.ellipse((x + gaze, 0.41), (0.015, min(0.018, height)), (20, 18, 24))
        canvas.ellipse((x + gaze + 0.01, 0.40), 0.007, WHITE)
        if has["Eyeglasses"]:
            canvas.ellipse((x, 0.412), (0.102, 0.07), (200, 225, 255, 40), frame)
            canvas.ellipse((x, 0.412), (0.094, 0.062), None, frame)
    if has["Eyeglasses"]:
        canvas.line([(0.465, 0.405), (0.535, 0.405)], frame, 0.024)


def draw_nose(canvas: Canvas, person: Person) -> None:
    """Nose: big or small, pointed or round; cheeks: rosy, high cheekbones."""
    has = person.has
    size = 0.125 if has["Big_Nose"] else 0.05
    shade = mix(person.skin, (190, 60, 50), 0.42)
    for sign in (-1, 1):
        if has["Rosy_Cheeks"]:
            canvas.ellipse((0.5 + sign * 0.16, 0.583), (0.055, 0.045), (240, 70, 105, 205))
        if has["High_Cheekbones"]:
            bone = [(0.5 + sign * 0.23, 0.51), (0.5 + sign * 0.17, 0.535), (0.5 + sign * 0.115, 0.60)]
            canvas.line(bone, mix(person.skin, (96, 40, 30), 0.75), 0.034)
    if has["Pointy_Nose"]:
        canvas.polygon([(0.5, 0.475), (0.5 + size, 0.632), (0.5 - size, 0.632)], shade, person.line)
        canvas.polygon([(0.5, 0.475), (0.5 + size, 0.632), (0.5, 0.632)], mix(shade, INK, 0.45))
    else:
        canvas.ellipse((0.5, 0.63 - 0.65 * size), (size, 0.65 * size), shade, person.line)
        canvas.ellipse((0.5 - 0.3 * size, 0.63 - 0.9 * size), 0.3 * size, mix(shade, WHITE, 0.6))
    if has["Big_Nose"]:
        for sign in (-1, 1):
            canvas.ellipse((0.5 + sign * 0.05, 0.61), 0.022, mix(person.skin, INK, 0.85))


def draw_mouth(canvas: Canvas, person: Person) -> None:
    """Stubble, goatee, lips (big, painted, smiling, open) and moustache."""
    has = person.has
    if has["5_o_Clock_Shadow"]:
        _stubble(canvas, person)
    if has["Goatee"]:
        canvas.polygon([(0.42, 0.785), (0.58, 0.785), (0.55, 0.845), (0.5, 0.86), (0.45, 0.845)], person.beard)
    _lips(canvas, person)
    if has["Mustache"]:
        for points in (half := [(0.5, 0.645), (0.43, 0.642), (0.34, 0.685), (0.44, 0.69), (0.5, 0.68)], mirror(half)):
            canvas.polygon(points, person.beard, mix(person.beard, INK, 0.5))


def _stubble(canvas: Canvas, person: Person) -> None:
    shade = mix(person.skin, (70, 76, 92), 0.45)
    half = [(0.29, 0.655), (0.32, 0.75), (0.39, 0.81), (0.5, 0.825)]
    canvas.polygon([*half, *mirror(reversed(half))], shade)
    for i in range(18):
        y = 0.69 + 0.05 * ((i * 5) % 3) * (1 - abs(i - 8.5) / 12)
        canvas.ellipse((0.33 + 0.02 * i, y), 0.005, mix(shade, INK, 0.6))


def _lips(canvas: Canvas, person: Person) -> None:
    has = person.has
    paint = person.rng.choice(((216, 16, 56), (196, 14, 100), (232, 40, 24)))
    colour = paint if has["Wearing_Lipstick"] else mix(person.skin, (112, 84, 70), 0.45)
    thick = 0.062 if has["Big_Lips"] else 0.02
    width, bend = (0.15, 0.1) if has["Smiling"] else (0.08, -0.05)
    y = 0.735 - 0.45 * bend
    upper = curve((0.5 - width, y), (0.5, y + bend), (0.5 + width, y))
    if has["Mouth_Slightly_Open"]:
        lower = curve((0.5 - width, y), (0.5, y + bend + 0.17), (0.5 + width, y))
        canvas.polygon([*upper, *reversed(lower)], (92, 24, 34))
        canvas.ellipse((0.5, y + 0.5 * bend + 0.026), (0.5 * width, 0.02), WHITE)
        _lip(canvas, lower, colour, thick)
    _lip(canvas, upper, colour, thick)
    if has["Smiling"]:
        for points in (dimple := curve((0.315, 0.655), (0.28, 0.71), (0.325, 0.77)), mirror(dimple)):
            canvas.line(points, mix(person.skin, INK, 0.8), 0.026)


def _lip(canvas: Canvas, points: Sequence[Point], colour: Colour, thick: float) -> None:
    """A lip; a thick one has an outline."""
    if thick > 0.04:
        canvas.line(points, INK, thick + 0.026)
    canvas.line(points, colour, thick)


def draw_ornaments(canvas: Canvas, person: Person) -> None:
    """Ear-rings beside the jaw; necklace and necktie below the chin."""
    has, rng = person.has, person.rng
    metal, silk = rng.choice(METALS), rng.choice(BRIGHT)
    if has["Wearing_Necktie"]:
        canvas.polygon([(0.45, 0.915), (0.55, 0.915), (0.62, 1.03), (0.38, 1.03)], silk, WHITE)
        canvas.polygon([(0.42, 0.86), (0.58, 0.86), (0.54, 0.925), (0.46, 0.925)], silk, WHITE)
    if has["Wearing_Necklace"]:
        for x, y in curve((0.325, 0.875), (0.5, 1.07), (0.675, 0.875), 9):
            canvas.ellipse((x, y), 0.031, metal, mix(metal, INK, 0.6))
    if has["Wearing_Earrings"]:
        for sign in (-1, 1):
            x = 0.5 + sign * (person.half_width + 0.02)
            canvas.ellipse((x, 0.60), (0.036, 0.05), metal, mix(metal, INK, 0.6))
            canvas.ellipse((x, 0.685), 0.034, mix(metal, WHITE, 0.35), mix(metal, INK, 0.6))
