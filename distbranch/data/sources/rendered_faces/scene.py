"""Sky, body, outline of the face, hair and hat: the signs of the regions "whole image", "hair" and "head-wear"."""

import math

from distbranch.data.sources.rendered_faces.canvas import Canvas, Colour, Point, mirror, mix
from distbranch.data.sources.rendered_faces.person import BRIGHT, CLOTHES, INK, SKIES, WHITE, Person


def draw_background(canvas: Canvas, person: Person) -> None:
    """The sky: sun (young) or moon, sparkles (attractive), hills; out of focus where the picture is blurry."""
    rng = person.rng
    sky = rng.choice(SKIES)
    canvas.box((-1, -1, 2, 2), sky)
    hill, base = mix(sky, (60, 110, 90), 0.3), rng.uniform(0.55, 0.75)
    for x in (rng.uniform(0, 0.25), rng.uniform(0.75, 1)):
        canvas.ellipse((x, base + 0.45), (0.5, 0.45), mix(hill, sky, rng.uniform(0, 0.5)))
    for _ in range(7):
        canvas.ellipse((rng.random(), rng.uniform(0.25, 0.6)), 0.02, mix(sky, WHITE, 0.45))
    _sun_or_moon(canvas, person.amount("Young"), sky)
    canvas.blur(0.022 * person.amount("Blurry"))
    _sparkles(canvas, person.amount("Attractive"), sky)


def _sun_or_moon(canvas: Canvas, young: float, sky: Colour) -> None:
    centre = (0.11, 0.12)
    if young == 1:
        canvas.star(centre, 0.125, (255, 176, 40), 10, 0.72)
        canvas.ellipse(centre, 0.075, (255, 222, 80))
    elif young == 0:
        canvas.ellipse(centre, 0.105, mix(sky, (50, 50, 110), 0.55))
        canvas.ellipse(centre, 0.085, (250, 248, 226))
        canvas.ellipse((0.145, 0.10), 0.072, mix(sky, (50, 50, 110), 0.55))
    else:
        for x, y, r in ((0.05, 0.13, 0.075), (0.13, 0.09, 0.085), (0.20, 0.14, 0.06)):
            canvas.ellipse((x, y), r, mix(sky, WHITE, 0.5))


def _sparkles(canvas: Canvas, attractive: float, sky: Colour) -> None:
    for x, y, r in ((0.90, 0.10, 0.085), (0.94, 0.27, 0.055), (0.06, 0.33, 0.055), (0.80, 0.045, 0.04)):
        if attractive == 1:
            canvas.star((x, y), r + 0.015, mix(sky, (255, 120, 160), 0.75), 4, 0.42)
            canvas.star((x, y), r, (255, 255, 245), 4, 0.38)
        elif attractive == 0.5:
            canvas.ellipse((x, y), 0.7 * r, mix(sky, WHITE, 0.35))


def draw_back_hair(canvas: Canvas, person: Person) -> None:
    """The hair behind the head: long and straight, wavy, or cropped."""
    if not person.has_hair:
        return
    w, shade = person.half_width, person.hair
    edge = mix(shade, INK, 0.45)
    if person.hair_hidden:
        canvas.ellipse((0.5, 0.40), (w + 0.1, 0.37), shade, edge)
        for angle in (0.1 * math.pi * i for i in range(-2, 13)):
            canvas.ellipse(
                (0.5 + (w + 0.055) * math.cos(angle), 0.40 - 0.33 * math.sin(angle)), 0.017, mix(shade, WHITE, 0.75)
            )
        return
    if person.has["Wavy_Hair"]:
        for radius, colour in ((0.093, edge), (0.081, shade)):
            for y, out in ((0.25, 0.01), (0.35, 0.045), (0.47, 0.055), (0.59, 0.045), (0.69, 0.04)):
                for x in (0.5 - w - out, 0.5 + w + out):
                    canvas.ellipse((x, y), radius, colour)
    elif person.has["Straight_Hair"]:
        points = [(0.5 - 0.5 * w, 0.10), (0.5 - w - 0.045, 0.22), (0.5 - w - 0.085, 0.77), (0.5 - w + 0.08, 0.77)]
        canvas.polygon([*points, *mirror(reversed(points))], shade, edge)
        for sign in (-1, 1):
            for shift in (0.03, 0.055):
                strand = [(0.5 + sign * (w + 0.02), 0.3), (0.5 + sign * (w + shift), 0.75)]
                canvas.line(strand, mix(shade, WHITE, 0.3), 0.01)
    canvas.ellipse((0.5, 0.30), (w + 0.03, 0.21), shade, edge)


def draw_body(canvas: Canvas, person: Person) -> None:
    """Shoulders (broad for male), shirt, neck and ears."""
    broad = person.amount("Male")
    cloth = person.rng.choice(CLOTHES)
    reach = 0.24 + 0.24 * broad
    top = 0.93 - 0.06 * broad
    edge = mix(cloth, INK, 0.5)
    left = [(0.4, 0.85), (0.5 - 0.8 * reach, top), (0.5 - reach, top + 0.05), (0.48 - reach, 1.05)]
    canvas.polygon([*left, *mirror(reversed(left))], cloth, edge)
    if broad == 1:
        for sign in (-1, 1):
            canvas.line([(0.5 + sign * 0.3, top), (0.5 + sign * 0.34, 1.02)], edge, 0.02)
    canvas.polygon([(0.40, 0.76), (0.60, 0.76), (0.62, 0.87), (0.5, 0.93), (0.38, 0.87)], person.skin, person.line)
    for x in (0.5 - person.half_width - 0.005, 0.5 + person.half_width + 0.005):
        canvas.ellipse((x, 0.49), (0.045, 0.06), person.skin, person.line)


def draw_head(canvas: Canvas, person: Person) -> None:
    """The outline of the face: wide if chubby, egg-shaped if oval, else square; the second chin below it."""
    second = person.amount("Double_Chin")
    if second:
        centre, radius = (0.5, 0.765), (0.15 + 0.11 * second, 0.045 + 0.065 * second)
        canvas.ellipse(centre, radius, mix(person.skin, (190, 80, 70), 0.4), mix(person.skin, INK, 0.75))
    canvas.polygon(_outline(person), person.skin, person.line)


def _outline(person: Person) -> list[Point]:
    """A superellipse whose lower half is narrower towards the chin."""
    points = []
    for i in range(48):
        angle = 2 * math.pi * i / 48
        c, s = math.cos(angle), math.sin(angle)
        x = math.copysign(abs(c) ** (2 / person.squareness), c)
        y = math.copysign(abs(s) ** (2 / person.squareness), s)
        taper = 1 - (0.04 + 0.34 * person.amount("Oval_Face")) * max(0.0, y)
        points.append((0.5 + person.half_width * taper * x, 0.47 + 0.36 * y))
    return points


def draw_sideburns(canvas: Canvas, person: Person) -> None:
    """Hair in front of the ears."""
    for sign in (-1, 1):
        x = 0.5 + sign * (person.half_width - 0.025)
        if person.hair_hidden:
            canvas.ellipse((x, 0.45), (0.03, 0.10), person.hair)
        elif person.has["Sideburns"]:
            tip = [(x + sign * 0.02, 0.30), (x - sign * 0.04, 0.32), (x - sign * 0.06, 0.61), (x + sign * 0.02, 0.57)]
            canvas.polygon(tip, mix(person.hair, INK, 0.12), mix(person.hair, INK, 0.5))


def draw_top(canvas: Canvas, person: Person) -> None:
    """Head-wear: fringe or high temples, and the hat above them."""
    rng, w, shade = person.rng, person.half_width, person.hair
    hat, colour = rng.choice((_beanie, _top_hat, _party_hat)), rng.choice(BRIGHT)
    if person.has_hair:
        edge = mix(shade, INK, 0.45)
        arc = [math.pi * i / 16 for i in range(17)]
        crown = [(0.5 + (w + 0.02) * math.cos(a), 0.27 - 0.19 * math.sin(a)) for a in arc]
        canvas.polygon([*crown, *_hairline(person, w)], shade, edge)
        if person.has["Bangs"]:
            for i in range(6):
                x = 0.5 + (i - 2.5) * w * 0.29
                canvas.polygon([(x - 0.16 * w, 0.16), (x + 0.16 * w, 0.16), (x + 0.02, 0.268)], shade, edge)
            canvas.box((0.5 - 0.8 * w, 0.12, 0.5 + 0.8 * w, 0.195), shade)
    else:
        canvas.ellipse((0.41, 0.185), (0.05, 0.025), mix(person.skin, WHITE, 0.6))
    if person.has["Wearing_Hat"]:
        hat(canvas, colour, mix(colour, INK, 0.45))


def _hairline(person: Person, w: float) -> list[Point]:
    """The lower edge of the hair on the forehead, left to right; high temples leave a peak in the middle."""
    if person.has["Receding_Hairline"]:
        half = [(0.5 - w, 0.275), (0.5 - 0.88 * w, 0.20), (0.5 - 0.5 * w, 0.125), (0.5 - 0.16 * w, 0.20)]
    else:
        half = [(0.5 - w, 0.275), (0.5 - 0.82 * w, 0.215), (0.5 - 0.3 * w, 0.20)]
    return [*half, *mirror(reversed(half))]


def _beanie(canvas: Canvas, colour: Colour, edge: Colour) -> None:
    canvas.ellipse((0.5, 0.12), (0.25, 0.10), colour, edge)
    canvas.box((0.23, 0.095, 0.77, 0.165), mix(colour, WHITE, 0.55), edge)
    canvas.ellipse((0.5, 0.03), 0.035, WHITE, edge)


def _top_hat(canvas: Canvas, colour: Colour, edge: Colour) -> None:
    canvas.box((0.31, -0.02, 0.69, 0.15), mix(colour, INK, 0.3), edge)
    canvas.box((0.31, 0.085, 0.69, 0.13), mix(colour, WHITE, 0.6))
    canvas.box((0.2, 0.125, 0.8, 0.17), mix(colour, INK, 0.3), edge)


def _party_hat(canvas: Canvas, colour: Colour, edge: Colour) -> None:
    canvas.polygon([(0.25, 0.16), (0.5, -0.02), (0.75, 0.16)], colour, edge)
    for x, y in ((0.40, 0.125), (0.5, 0.06), (0.60, 0.125), (0.5, 0.135)):
        canvas.ellipse((x, y), 0.018, (255, 240, 160))
    canvas.ellipse((0.5, 0.015), 0.035, (255, 240, 160), edge)
