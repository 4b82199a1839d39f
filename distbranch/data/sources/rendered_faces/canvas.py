"""A picture that is drawn in unit coordinates: x to the right, y downward, both from 0 to 1, whatever its size in pixels."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, ...]  # red, green, blue and optionally opacity, 0..255
Point = Sequence[float]  # x, y; of an ellipse its radii as well
Box = Sequence[float]  # left, top, right, bottom

WHITE = (255, 255, 255)
EDGE_WIDTH = 0.012  # still one pixel wide where a picture of 32 pixels is drawn at twice its size
NUM_CURVE_POINTS = 12


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour on the way from `first` (share 0) to `second` (share 1)."""
    # The opacity of translucent colours is left out.
    return tuple(round(a + (b - a) * share) for a, b in zip(first[:3], second[:3], strict=True))


def bend_curve(start: Point, bend: Point, end: Point) -> list[Point]:
    """A quadratic Bezier curve as points."""
    points: list[Point] = []
    for i in range(NUM_CURVE_POINTS):
        t = i / (NUM_CURVE_POINTS - 1)
        # B(t) = (1 - t)^2 start + 2 t (1 - t) bend + t^2 end
        points.append(
            [
                (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c
                for a, b, c in zip(start, bend, end, strict=True)
            ]
        )
    return points


def mirror(points: Sequence[Point]) -> list[Point]:
    """The same points on the other half of the face, whose axis is x = 0.5."""
    return [(1 - x, *others) for x, *others in points]


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
        # In this mode fills with an opacity are mixed with what lies below.
        self._draw = ImageDraw.Draw(self.image, "RGBA")
        self._edge_width = self._count_pixels(EDGE_WIDTH)

    def draw_ellipse(self, figure: Point, fill: Colour, edge: Colour | None = None) -> None:
        """An ellipse (x, y and two radii) or a disc (x, y and one radius)."""
        x, y, rx = figure[:3]
        ry = figure[-1]
        corners = self._scale([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.ellipse(corners, fill, edge, self._edge_width)

    def draw_polygon(
        self, points: Sequence[Point], fill: Colour, edge: Colour | None = None
    ) -> None:
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
        corners = self._scale([(left, top), (right, bottom)])
        self._draw.rounded_rectangle(corners, radius, fill, edge, self._edge_width)

    def fill_all(self, colour: Colour) -> None:
        """Covers the whole picture."""
        self.draw_box((-1, -1, 2, 2), colour)  # so large that its rounded corners lie outside

    def draw_star(self, figure: Point, fill: Colour, num_points: int, waist: float) -> None:
        """A star (x, y, radius) whose inner corners lie at the share `waist` of its radius; with four points a sparkle."""
        x, y, radius = figure
        points = []
        for i in range(2 * num_points):
            r = radius * (waist if i % 2 else 1)
            angle = math.pi * i / num_points - math.pi / 2  # the first corner points upward
            points.append((x + r * math.cos(angle), y + r * math.sin(angle)))
        self.draw_polygon(points, fill)

    def blur(self, radius: float, box: Box = (0, 0, 1, 1)) -> None:
        """Blurs what was drawn so far inside a box; the radius is a share of the side (0: nothing is done)."""
        if radius:
            left, top, right, bottom = (round(x * self.num_pixels) for x in box)
            part = self.image.crop((left, top, right, bottom))
            blurred = part.filter(ImageFilter.GaussianBlur(radius * self.num_pixels))
            self.image.paste(blurred, (left, top))

    def _scale(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        return [(x * self.num_pixels, y * self.num_pixels) for x, y in points]

    def _count_pixels(self, width: float) -> int:
        return max(1, round(width * self.num_pixels))
