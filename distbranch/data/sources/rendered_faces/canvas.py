"""A picture that is drawn in unit coordinates: x to the right, y downward, both from 0 to 1, whatever its size in pixels."""

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, ...]  # red, green, blue and optionally opacity, 0..255
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

INK = (52, 38, 42)
WHITE = (255, 255, 255)
EDGE_WIDTH = 0.012  # still one pixel wide where a picture of 32 pixels is drawn at twice its size


def parse_colours(codes: str) -> tuple[Colour, ...]:
    """Colours from their hexadecimal codes, as in `ff0000 00ff00`."""
    return tuple(tuple(bytes.fromhex(code)) for code in codes.split())


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour on the way from `first` (share 0) to `second` (share 1)."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first[:3], second[:3], strict=True))


def darken(colour: Colour, share: float) -> Colour:
    """The colour on the way to ink."""
    return mix(colour, INK, share)


def lighten(colour: Colour, share: float) -> Colour:
    """The colour on the way to white."""
    return mix(colour, WHITE, share)


def bend_curve(start: Point, bend: Point, end: Point, num_points: int = 12) -> list[Point]:
    """A quadratic Bezier curve as points."""
    points = []
    for i in range(num_points):
        t = i / (num_points - 1)
        x, y = ((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c for a, b, c in zip(start, bend, end, strict=True))
        points.append((x, y))
    return points


def mirror(points: Iterable[Point]) -> list[Point]:
    """The same points on the other half of the face, whose axis is x = 0.5."""
    return [(1 - x, y) for x, y in points]


def symmetric(half: Sequence[Point]) -> list[Point]:
    """A line from the left half of the face on through its mirror image, back to the height at which it began."""
    return [*half, *mirror(reversed(half))]


def spread_evenly(start: float, stop: float, step: float) -> list[float]:
    """Evenly spaced from start to stop, about `step` apart; the middle where there is room for one only."""
    count = round((stop - start) / step)
    if count <= 0:
        return [(start + stop) / 2]
    return [start + (stop - start) * i / count for i in range(count + 1)]


class Canvas:
    """A square picture; lengths and widths are shares of its side, fills with four numbers are translucent."""

    def __init__(self, num_pixels: int) -> None:
        self.num_pixels = num_pixels
        self.image = Image.new("RGB", (num_pixels, num_pixels), WHITE)
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        self._edge_width = self._count_pixels(EDGE_WIDTH)

    def draw_ellipse(self, centre: Point, radii: Point, fill: Colour | None, edge: Colour | None = None) -> None:
        """An ellipse with an optional thin edge."""
        x, y = centre
        rx, ry = radii
        self._draw.ellipse(self._scale([(x - rx, y - ry), (x + rx, y + ry)]), fill, edge, self._edge_width)

    def draw_disc(self, centre: Point, radius: float, fill: Colour, edge: Colour | None = None) -> None:
        """An ellipse that is round."""
        self.draw_ellipse(centre, (radius, radius), fill, edge)

    def draw_polygon(self, points: Sequence[Point], fill: Colour, edge: Colour | None = None) -> None:
        """A filled polygon with an optional thin edge."""
        self._draw.polygon(self._scale(points), fill)
        if edge:
            self.draw_line([*points, points[0]], edge, EDGE_WIDTH)

    def draw_line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line through the points with rounded corners."""
        self._draw.line(self._scale(points), colour, self._count_pixels(width), joint="curve")

    def draw_box(self, box: Box, fill: Colour, edge: Colour | None = None) -> None:
        """A rectangle with rounded corners."""
        left, top, right, bottom = box
        radius = 0.35 * min(right - left, bottom - top) * self.num_pixels
        self._draw.rounded_rectangle(self._scale([box[:2], box[2:]]), radius, fill, edge, self._edge_width)

    def fill_all(self, colour: Colour) -> None:
        """Covers the whole picture."""
        self.draw_box((-1, -1, 2, 2), colour)  # so large that its rounded corners lie outside

    def draw_star(self, centre: Point, radius: float, fill: Colour, num_points: int, waist: float) -> None:
        """A star whose inner corners lie at the share `waist` of its radius; with four points it is a sparkle."""
        points = []
        for i in range(2 * num_points):
            r = radius * (waist if i % 2 else 1)
            angle = math.pi * i / num_points - math.pi / 2
            points.append((centre[0] + r * math.cos(angle), centre[1] + r * math.sin(angle)))
        self.draw_polygon(points, fill)

    def blur(self, radius: float, box: Box = (0, 0, 1, 1)) -> None:
        """Blurs what was drawn so far inside a box; the radius is a share of the side (0: nothing is done)."""
        if radius:
            left, top, right, bottom = (round(x * self.num_pixels) for x in box)
            part = self.image.crop((left, top, right, bottom))
            self.image.paste(part.filter(ImageFilter.GaussianBlur(radius * self.num_pixels)), (left, top))

    def _scale(self, points: Iterable[Point]) -> list[Point]:
        return [(x * self.num_pixels, y * self.num_pixels) for x, y in points]

    def _count_pixels(self, width: float) -> int:
        return max(1, round(width * self.num_pixels))
