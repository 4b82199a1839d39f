"""The parts of a face, from back to front; each keeps to the area of its region, so that a nuisance can hide it alone.

`SIDES` are the left and the right half: most parts are drawn once for each, at 0.5 plus or minus a distance from the axis.
"""

import math
from collections.abc import Sequence

from distbranch.data.sources.rendered_faces.canvas import (
    INK,
    WHITE,
    Canvas,
    Colour,
    Point,
    bend_curve,
    darken,
    lighten,
    mirror,
    mix,
    parse_colours,
    symmetric,
)
from distbranch.data.sources.rendered_faces.person import Person

SIDES = (-1, 1)
SKIES = parse_colours("badef0 fadabe cde8c4 e2d2f2 fce8aa f4c8d0 b0e2da")
CLOTHES = parse_colours("ecaaaa a0c4e8 acd8b4 f6d696 ccb8e8 b4bac8 f4bed2")
BRIGHT = parse_colours("de3e46 2c78c8 fabe3c 3ca06e 965abe")
IRISES = parse_colours("4678aa 5a8c50 6e482c 3c3c46")
PAINTS = parse_colours("783cd2 1496af dc3296")
FRAMES = parse_colours("1e1e24 962832 283c82")
METALS = parse_colours("ffc414 fa6e5a 1ebebe")
LIPSTICKS = parse_colours("d81038 c40e64 e82818")


def draw_face(canvas: Canvas, person: Person) -> None:
    """The whole face, from back to front."""
    _draw_background(canvas, person)
    _draw_back_hair(canvas, person)
    _draw_body(canvas, person)
    _draw_head(canvas, person)
    _draw_sideburns(canvas, person)
    _draw_head_wear(canvas, person)
    _draw_brows(canvas, person)
    _draw_eyes(canvas, person)
    _draw_nose(canvas, person)
    _draw_mouth(canvas, person)
    _draw_ornaments(canvas, person)


def _draw_background(canvas: Canvas, person: Person) -> None:
    """The sky: sun (young) or moon, sparkles (attractive), hills; out of focus where the picture is blurry."""
    rng = person.rng
    sky = rng.choice(SKIES)
    canvas.fill_all(sky)
    hill = mix(sky, (60, 110, 90), 0.3)
    base = rng.uniform(0.55, 0.75)
    for x in (rng.uniform(0, 0.25), rng.uniform(0.75, 1)):
        canvas.draw_ellipse((x, base + 0.45), (0.5, 0.45), mix(hill, sky, rng.uniform(0, 0.5)))
    for _ in range(7):
        canvas.draw_disc((rng.random(), rng.uniform(0.25, 0.6)), 0.02, lighten(sky, 0.45))
    _draw_sun_or_moon(canvas, person.amount("Young"), sky)
    canvas.blur(0.022 * person.amount("Blurry"))
    _draw_sparkles(canvas, person.amount("Attractive"), sky)


def _draw_sun_or_moon(canvas: Canvas, young: float, sky: Colour) -> None:
    centre = (0.11, 0.12)
    if young == 1:
        canvas.draw_star(centre, 0.125, (255, 176, 40), 10, 0.72)
        canvas.draw_disc(centre, 0.075, (255, 222, 80))
    elif young == 0:
        canvas.draw_disc(centre, 0.105, mix(sky, (50, 50, 110), 0.55))
        canvas.draw_disc(centre, 0.085, (250, 248, 226))
        canvas.draw_disc((0.145, 0.10), 0.072, mix(sky, (50, 50, 110), 0.55))
    else:
        for x, y, r in ((0.05, 0.13, 0.075), (0.13, 0.09, 0.085), (0.20, 0.14, 0.06)):
            canvas.draw_disc((x, y), r, lighten(sky, 0.5))


def _draw_sparkles(canvas: Canvas, attractive: float, sky: Colour) -> None:
    for x, y, r in ((0.90, 0.10, 0.085), (0.94, 0.27, 0.055), (0.06, 0.33, 0.055), (0.80, 0.045, 0.04)):
        if attractive == 1:
            canvas.draw_star((x, y), r + 0.015, mix(sky, (255, 120, 160), 0.75), 4, 0.42)
            canvas.draw_star((x, y), r, (255, 255, 245), 4, 0.38)
        elif attractive == 0.5:
            canvas.draw_disc((x, y), 0.7 * r, lighten(sky, 0.35))


def _draw_back_hair(canvas: Canvas, person: Person) -> None:
    """The hair behind the head: long and straight, wavy, or cropped."""
    if not person.has_hair:
        return
    w = person.half_width
    shade = person.hair
    edge = darken(shade, 0.45)
    if person.hair_hidden:
        canvas.draw_ellipse((0.5, 0.40), (w + 0.1, 0.37), shade, edge)
        for i in range(-2, 13):
            angle = 0.1 * math.pi * i
            spot = (0.5 + (w + 0.055) * math.cos(angle), 0.40 - 0.33 * math.sin(angle))
            canvas.draw_disc(spot, 0.017, lighten(shade, 0.75))
        return
    if person.has["Wavy_Hair"]:
        for radius, colour in ((0.093, edge), (0.081, shade)):
            for y, out in ((0.25, 0.01), (0.35, 0.045), (0.47, 0.055), (0.59, 0.045), (0.69, 0.04)):
                for x in (0.5 - w - out, 0.5 + w + out):
                    canvas.draw_disc((x, y), radius, colour)
    elif person.has["Straight_Hair"]:
        points = [(0.5 - 0.5 * w, 0.10), (0.5 - w - 0.045, 0.22), (0.5 - w - 0.085, 0.77), (0.5 - w + 0.08, 0.77)]
        canvas.draw_polygon(symmetric(points), shade, edge)
        for sign in SIDES:
            for shift in (0.03, 0.055):
                strand = [(0.5 + sign * (w + 0.02), 0.3), (0.5 + sign * (w + shift), 0.75)]
                canvas.draw_line(strand, lighten(shade, 0.3), 0.01)
    canvas.draw_ellipse((0.5, 0.30), (w + 0.03, 0.21), shade, edge)


def _draw_body(canvas: Canvas, person: Person) -> None:
    """Shoulders (broad for male), shirt, neck and ears."""
    broad = person.amount("Male")
    cloth = person.rng.choice(CLOTHES)
    reach = 0.24 + 0.24 * broad
    top = 0.93 - 0.06 * broad
    edge = darken(cloth, 0.5)
    left = [(0.4, 0.85), (0.5 - 0.8 * reach, top), (0.5 - reach, top + 0.05), (0.48 - reach, 1.05)]
    canvas.draw_polygon(symmetric(left), cloth, edge)
    if broad == 1:
        for sign in SIDES:
            canvas.draw_line([(0.5 + sign * 0.3, top), (0.5 + sign * 0.34, 1.02)], edge, 0.02)
    canvas.draw_polygon([(0.40, 0.76), (0.60, 0.76), (0.62, 0.87), (0.5, 0.93), (0.38, 0.87)], person.skin, person.line)
    for x in (0.5 - person.half_width - 0.005, 0.5 + person.half_width + 0.005):
        canvas.draw_ellipse((x, 0.49), (0.045, 0.06), person.skin, person.line)


def _draw_head(canvas: Canvas, person: Person) -> None:
    """The outline of the face: wide if chubby, egg-shaped if oval, else square; the second chin below it."""
    second = person.amount("Double_Chin")
    if second:
        radii = (0.15 + 0.11 * second, 0.045 + 0.065 * second)
        canvas.draw_ellipse((0.5, 0.765), radii, mix(person.skin, (190, 80, 70), 0.4), darken(person.skin, 0.75))
    canvas.draw_polygon(_trace_outline(person), person.skin, person.line)


def _trace_outline(person: Person) -> list[Point]:
    """A superellipse whose lower half is narrower towards the chin."""
    points = []
    for i in range(48):
        angle = 2 * math.pi * i / 48
        c = math.cos(angle)
        s = math.sin(angle)
        x = math.copysign(abs(c) ** (2 / person.squareness), c)
        y = math.copysign(abs(s) ** (2 / person.squareness), s)
        taper = 1 - (0.04 + 0.34 * person.amount("Oval_Face")) * max(0.0, y)
        points.append((0.5 + person.half_width * taper * x, 0.47 + 0.36 * y))
    return points


def _draw_sideburns(canvas: Canvas, person: Person) -> None:
    """Hair in front of the ears."""
    for sign in SIDES:
        x = 0.5 + sign * (person.half_width - 0.025)
        if person.hair_hidden:
            canvas.draw_ellipse((x, 0.45), (0.03, 0.10), person.hair)
        elif person.has["Sideburns"]:
            tip = [(x + sign * 0.02, 0.30), (x - sign * 0.04, 0.32), (x - sign * 0.06, 0.61), (x + sign * 0.02, 0.57)]
            canvas.draw_polygon(tip, darken(person.hair, 0.12), darken(person.hair, 0.5))


def _draw_head_wear(canvas: Canvas, person: Person) -> None:
    """Head-wear: fringe or high temples, and the hat above them."""
    w = person.half_width
    shade = person.hair
    # Chosen even where no hat is worn: what follows from the generator must not depend on an attribute.
    draw_hat = person.rng.choice((_draw_beanie, _draw_top_hat, _draw_party_hat))
    colour = person.rng.choice(BRIGHT)
    if person.has_hair:
        edge = darken(shade, 0.45)
        arc = [math.pi * i / 16 for i in range(17)]
        crown = [(0.5 + (w + 0.02) * math.cos(a), 0.27 - 0.19 * math.sin(a)) for a in arc]
        canvas.draw_polygon([*crown, *_trace_hairline(person, w)], shade, edge)
        if person.has["Bangs"]:
            for i in range(6):
                x = 0.5 + (i - 2.5) * w * 0.29
                canvas.draw_polygon([(x - 0.16 * w, 0.16), (x + 0.16 * w, 0.16), (x + 0.02, 0.268)], shade, edge)
            canvas.draw_box((0.5 - 0.8 * w, 0.12, 0.5 + 0.8 * w, 0.195), shade)
    else:
        canvas.draw_ellipse((0.41, 0.185), (0.05, 0.025), lighten(person.skin, 0.6))
    if person.has["Wearing_Hat"]:
        draw_hat(canvas, colour, darken(colour, 0.45))


def _trace_hairline(person: Person, w: float) -> list[Point]:
    """The lower edge of the hair on the forehead, left to right; high temples leave a peak in the middle."""
    if person.has["Receding_Hairline"]:
        half = [(0.5 - w, 0.275), (0.5 - 0.88 * w, 0.20), (0.5 - 0.5 * w, 0.125), (0.5 - 0.16 * w, 0.20)]
    else:
        half = [(0.5 - w, 0.275), (0.5 - 0.82 * w, 0.215), (0.5 - 0.3 * w, 0.20)]
    return symmetric(half)


def _draw_beanie(canvas: Canvas, colour: Colour, edge: Colour) -> None:
    canvas.draw_ellipse((0.5, 0.12), (0.25, 0.10), colour, edge)
    canvas.draw_box((0.23, 0.095, 0.77, 0.165), lighten(colour, 0.55), edge)
    canvas.draw_disc((0.5, 0.03), 0.035, WHITE, edge)


def _draw_top_hat(canvas: Canvas, colour: Colour, edge: Colour) -> None:
    canvas.draw_box((0.31, -0.02, 0.69, 0.15), darken(colour, 0.3), edge)
    canvas.draw_box((0.31, 0.085, 0.69, 0.13), lighten(colour, 0.6))
    canvas.draw_box((0.2, 0.125, 0.8, 0.17), darken(colour, 0.3), edge)


def _draw_party_hat(canvas: Canvas, colour: Colour, edge: Colour) -> None:
    canvas.draw_polygon([(0.25, 0.16), (0.5, -0.02), (0.75, 0.16)], colour, edge)
    for x, y in ((0.40, 0.125), (0.5, 0.06), (0.60, 0.125), (0.5, 0.135)):
        canvas.draw_disc((x, y), 0.018, (255, 240, 160))
    canvas.draw_disc((0.5, 0.015), 0.035, (255, 240, 160), edge)


def _draw_brows(canvas: Canvas, person: Person) -> None:
    """Brows: arched or level, bushy or fine."""
    width = 0.045 if person.has["Bushy_Eyebrows"] else 0.014
    lift = 0.10 if person.has["Arched_Eyebrows"] else 0.0
    left = bend_curve((0.28, 0.31 + 0.2 * lift), (0.37, 0.31 - 0.9 * lift), (0.455, 0.31 + 0.2 * lift))
    for points in (left, mirror(left)):
        canvas.draw_line(points, person.beard, width)


def _draw_eyes(canvas: Canvas, person: Person) -> None:
    """Eyes: narrow or round, shadows below, make-up above, spectacles in front."""
    has = person.has
    iris = person.rng.choice(IRISES)
    paint = person.rng.choice(PAINTS)
    frame = person.rng.choice(FRAMES)
    gaze = person.rng.uniform(-0.012, 0.012)
    height = 0.017 if has["Narrow_Eyes"] else 0.05
    for sign in SIDES:
        x = 0.5 + sign * 0.13
        if has["Bags_Under_Eyes"]:
            canvas.draw_ellipse((x, 0.448), (0.085, 0.07), mix(person.skin, (84, 56, 130), 0.75))
            canvas.draw_ellipse((x, 0.40), (0.092, 0.07), person.skin)
        if has["Heavy_Makeup"]:
            canvas.draw_polygon(
                [(x - sign * 0.06, 0.40), (x, 0.342), (x + sign * 0.12, 0.345), (x + sign * 0.07, 0.41)], paint
            )
            canvas.draw_ellipse((x, 0.393), (0.08, 0.05), paint)
        canvas.draw_ellipse((x, 0.41), (0.064, height), WHITE, INK)
        canvas.draw_ellipse((x + gaze, 0.41), (0.031, min(0.036, height)), iris)
        canvas.draw_ellipse((x + gaze, 0.41), (0.015, min(0.018, height)), (20, 18, 24))
        canvas.draw_disc((x + gaze + 0.01, 0.40), 0.007, WHITE)
        if has["Eyeglasses"]:
            canvas.draw_ellipse((x, 0.412), (0.102, 0.07), (200, 225, 255, 40), frame)
            canvas.draw_ellipse((x, 0.412), (0.094, 0.062), None, frame)
    if has["Eyeglasses"]:
        canvas.draw_line([(0.465, 0.405), (0.535, 0.405)], frame, 0.024)


def _draw_nose(canvas: Canvas, person: Person) -> None:
    """Nose: big or small, pointed or round; cheeks: rosy, high cheekbones."""
    has = person.has
    size = 0.125 if has["Big_Nose"] else 0.05
    shade = mix(person.skin, (190, 60, 50), 0.42)
    for sign in SIDES:
        if has["Rosy_Cheeks"]:
            canvas.draw_ellipse((0.5 + sign * 0.16, 0.583), (0.055, 0.045), (240, 70, 105, 205))
        if has["High_Cheekbones"]:
            bone = [(0.5 + sign * 0.23, 0.51), (0.5 + sign * 0.17, 0.535), (0.5 + sign * 0.115, 0.60)]
            canvas.draw_line(bone, mix(person.skin, (96, 40, 30), 0.75), 0.034)
    if has["Pointy_Nose"]:
        canvas.draw_polygon([(0.5, 0.475), (0.5 + size, 0.632), (0.5 - size, 0.632)], shade, person.line)
        canvas.draw_polygon([(0.5, 0.475), (0.5 + size, 0.632), (0.5, 0.632)], darken(shade, 0.45))
    else:
        canvas.draw_ellipse((0.5, 0.63 - 0.65 * size), (size, 0.65 * size), shade, person.line)
        canvas.draw_disc((0.5 - 0.3 * size, 0.63 - 0.9 * size), 0.3 * size, lighten(shade, 0.6))
    if has["Big_Nose"]:
        for sign in SIDES:
            canvas.draw_disc((0.5 + sign * 0.05, 0.61), 0.022, darken(person.skin, 0.85))


def _draw_mouth(canvas: Canvas, person: Person) -> None:
    """Stubble, goatee, lips (big, painted, smiling, open) and moustache."""
    has = person.has
    if has["5_o_Clock_Shadow"]:
        _draw_stubble(canvas, person)
    if has["Goatee"]:
        canvas.draw_polygon([(0.42, 0.785), (0.58, 0.785), (0.55, 0.845), (0.5, 0.86), (0.45, 0.845)], person.beard)
    _draw_lips(canvas, person)
    if has["Mustache"]:
        for points in (half := [(0.5, 0.645), (0.43, 0.642), (0.34, 0.685), (0.44, 0.69), (0.5, 0.68)], mirror(half)):
            canvas.draw_polygon(points, person.beard, darken(person.beard, 0.5))


def _draw_stubble(canvas: Canvas, person: Person) -> None:
    shade = mix(person.skin, (70, 76, 92), 0.45)
    half = [(0.29, 0.655), (0.32, 0.75), (0.39, 0.81), (0.5, 0.825)]
    canvas.draw_polygon(symmetric(half), shade)
    for i in range(18):
        y = 0.69 + 0.05 * ((i * 5) % 3) * (1 - abs(i - 8.5) / 12)
        canvas.draw_disc((0.33 + 0.02 * i, y), 0.005, darken(shade, 0.6))


def _draw_lips(canvas: Canvas, person: Person) -> None:
    has = person.has
    paint = person.rng.choice(LIPSTICKS)
    colour = paint if has["Wearing_Lipstick"] else mix(person.skin, (112, 84, 70), 0.45)
    thick = 0.062 if has["Big_Lips"] else 0.02
    width, bend = (0.15, 0.1) if has["Smiling"] else (0.08, -0.05)
    y = 0.735 - 0.45 * bend
    upper = bend_curve((0.5 - width, y), (0.5, y + bend), (0.5 + width, y))
    if has["Mouth_Slightly_Open"]:
        lower = bend_curve((0.5 - width, y), (0.5, y + bend + 0.17), (0.5 + width, y))
        canvas.draw_polygon([*upper, *reversed(lower)], (92, 24, 34))
        canvas.draw_ellipse((0.5, y + 0.5 * bend + 0.026), (0.5 * width, 0.02), WHITE)
        _draw_lip(canvas, lower, colour, thick)
    _draw_lip(canvas, upper, colour, thick)
    if has["Smiling"]:
        for points in (dimple := bend_curve((0.315, 0.655), (0.28, 0.71), (0.325, 0.77)), mirror(dimple)):
            canvas.draw_line(points, darken(person.skin, 0.8), 0.026)


def _draw_lip(canvas: Canvas, points: Sequence[Point], colour: Colour, thick: float) -> None:
    """A lip; a thick one has an outline."""
    if thick > 0.04:
        canvas.draw_line(points, INK, thick + 0.026)
    canvas.draw_line(points, colour, thick)


def _draw_ornaments(canvas: Canvas, person: Person) -> None:
    """Ear-rings beside the jaw; necklace and necktie below the chin."""
    has = person.has
    metal = person.rng.choice(METALS)
    silk = person.rng.choice(BRIGHT)
    if has["Wearing_Necktie"]:
        canvas.draw_polygon([(0.45, 0.915), (0.55, 0.915), (0.62, 1.03), (0.38, 1.03)], silk, WHITE)
        canvas.draw_polygon([(0.42, 0.86), (0.58, 0.86), (0.54, 0.925), (0.46, 0.925)], silk, WHITE)
    if has["Wearing_Necklace"]:
        for x, y in bend_curve((0.325, 0.875), (0.5, 1.07), (0.675, 0.875), 9):
            canvas.draw_disc((x, y), 0.031, metal, darken(metal, 0.6))
    if has["Wearing_Earrings"]:
        for sign in SIDES:
            x = 0.5 + sign * (person.half_width + 0.02)
            canvas.draw_ellipse((x, 0.60), (0.036, 0.05), metal, darken(metal, 0.6))
            canvas.draw_disc((x, 0.685), 0.034, lighten(metal, 0.35), darken(metal, 0.6))
