"""A picture that is drawn in unit coordinates: x to the right, y downward, both from 0 to 1, whatever its size in pixels."""

import math
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, ...]  # red, green, blue and optionally opacity, 0..255
Point = tuple[float, float]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour on the way from `first` (share 0) to `second` (share 1)."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first[:3], second[:3], strict=True))


def curve(start: Point, bend: Point, end: Point, num_points: int = 12) -> list[Point]:
    """A quadratic Bezier curve as points."""
    steps = [i / (num_points - 1) for i in range(num_points)]
    return [
        (
            (1 - t) ** 2 * start[0] + 2 * t * (1 - t) * bend[0] + t * t * end[0],
            (1 - t) ** 2 * start[1] + 2 * t * (1 - t) * bend[1] + t * t * end[1],
        )
        for t in steps
    ]


def mirror(points: Iterable[Point]) -> list[Point]:
    """The same points on the other half of the face, whose axis is x = 0.5."""
    return [(1 - x, y) for x, y in points]


class Canvas:
    """A square picture; lengths and widths are shares of its side, fills with four numbers are translucent."""

    def __init__(self, num_pixels: int, colour: Colour) -> None:
        self.num_pixels = num_pixels
        self.image = Image.new("RGB", (num_pixels, num_pixels), colour)
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def ellipse(self, centre: Point, radius: Point | float, fill: Colour | None, edge: Colour | None = None) -> None:
        """An ellipse of the given radii (or a disc), with an optional thin edge."""
        rx, ry = radius if isinstance(radius, tuple) else (radius, radius)
        box = self._pixels([(centre[0] - rx, centre[1] - ry), (centre[0] + rx, centre[1] + ry)])
        self._draw.ellipse(box, fill, edge, width=self._width(0.012) if edge else 0)

    def polygon(self, points: Sequence[Point], fill: Colour, edge: Colour | None = None) -> None:
        """A filled polygon with an optional thin edge."""
        self._draw.polygon(self._pixels(points), fill)
        if edge:
            self.line([*points, points[0]], edge, 0.012)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line through the points with rounded corners."""
        self._draw.line(self._pixels(points), colour, self._width(width), joint="curve")

    def box(self, corners: tuple[float, float, float, float], fill: Colour, edge: Colour | None = None) -> None:
        """A rectangle with rounded corners, given as left, top, right, bottom."""
        left, top, right, bottom = corners
        radius = 0.35 * min(right - left, bottom - top) * self.num_pixels
        pixels = self._pixels([(left, top), (right, bottom)])
        self._draw.rounded_rectangle(pixels, radius, fill, edge, width=self._width(0.012) if edge else 0)

    def star(self, centre: Point, radius: float, fill: Colour, num_points: int = 4, waist: float = 0.35) -> None:
        """A star; with four points and a narrow waist it is a sparkle."""
        points = []
        for i in range(2 * num_points):
            r = radius * (waist if i % 2 else 1)
            angle = math.pi * i / num_points - math.pi / 2
            points.append((centre[0] + r * math.cos(angle), centre[1] + r * math.sin(angle)))
        self.polygon(points, fill)

    def blur(self, radius: float) -> None:
        """Blur everything drawn so far; the radius is a share of the side (0: nothing is done)."""
        if radius == 0:
            return
        self.image.paste(self.image.filter(ImageFilter.GaussianBlur(radius * self.num_pixels)))

    def blur_inside(self, corners: tuple[float, float, float, float], radius: float) -> None:
        """Blur one rectangle of what was drawn so far."""
        (left, top), (right, bottom) = (
            (round(x * self.num_pixels), round(y * self.num_pixels)) for x, y in (corners[:2], corners[2:])
        )
        part = self.image.crop((left, top, right, bottom))
        self.image.paste(part.filter(ImageFilter.GaussianBlur(radius * self.num_pixels)), (left, top))

    def _pixels(self, points: Iterable[Point]) -> list[Point]:
        return [(x * self.num_pixels, y * self.num_pixels) for x, y in points]

    def _width(self, width: float) -> int:
        return max(1, round(width * self.num_pixels))
