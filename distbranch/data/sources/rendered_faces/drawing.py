"""Draws the face that `face.yaml` describes: a list of shapes, whose numbers and colours depend on the attributes.

Each part keeps to the area of its region, so that a nuisance can hide it alone. What belongs to the whole image (outline of
the face, skin, shoulders, the sky behind) and to the hair is spread over the picture, so no occluder can cover it. There the
nuisance is part of the drawing: in bad light the signs of the whole image are half-way between their two values, and a
spotted scarf lies over the hair. Both look the same for either value.
"""

import math
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from distbranch.data.sources.rendered_faces.attributes import HAIR_COLOURS, TASK_GROUPS
from distbranch.data.sources.rendered_faces.canvas import (
    WHITE,
    Canvas,
    Colour,
    Point,
    bend_curve,
    mirror,
    mix,
)

FACE = Path(__file__).with_name("face.yaml")
# What comes later covers what came before: the hat lies on the hair, ornaments on the shirt.
PARTS = (
    "hair behind the head",
    "body",
    "head",
    "sideburns",
    "head-wear",
    "brows",
    "eyes",
    "nose",
    "mouth and beard",
    "ornaments",
)


@cache
def read_face() -> dict[str, Any]:
    """The contents of `face.yaml`."""
    face: dict[str, Any] = yaml.safe_load(FACE.read_text(encoding="utf-8"))
    return face


def parse_colour(code: str) -> Colour:
    """A colour from its hexadecimal code."""
    return tuple(bytes.fromhex(code))


class Face:
    """One face, whose attributes and seed decide how it is drawn.

    `amounts` says how strongly each attribute is drawn (0, 0.5 or 1), `colours` which colour each name in `face.yaml` has.

    Args:
        canvas: on which it is drawn.
        attributes: 0 or 1 by name.
        rng: the source of everything that the attributes leave open.
        hidden: the region that a nuisance hides; "whole image" and "hair" matter here.
    """

    def __init__(
        self, canvas: Canvas, attributes: Mapping[str, int], rng: random.Random, hidden: str | None
    ) -> None:
        self.canvas = canvas
        self.rng = rng
        self.colours = {name: parse_colour(code) for name, code in read_face()["colours"].items()}
        self.amounts: dict[str, float] = {**attributes, "scarf": hidden == "hair"}
        if hidden == "whole image":
            self.amounts |= dict.fromkeys(TASK_GROUPS[hidden], 0.5)
        if hidden == "hair":
            # A scarf lies on a bald head as on any other.
            self.amounts["Bald"] = 0
        self._choose_person(attributes, hidden)

    def _choose_person(self, attributes: Mapping[str, int], hidden: str | None) -> None:
        """Skin and hair. All are chosen whether they are seen or not, so that a nuisance changes nothing else."""
        skin = self._choose_of("pale_skin" if attributes["Pale_Skin"] else "warm_skin")
        self.colours["skin"] = self.colours["hidden_skin"] if hidden == "whole image" else skin
        self._choose_colours("beard")
        hair = self._choose_of(next(filter(attributes.get, HAIR_COLOURS), "other_hair"))
        scarf = self._choose_of("scarf")
        self.colours["hair"] = scarf if hidden == "hair" else hair

    def _choose_of(self, palette: str) -> Colour:
        """A colour, by one number however many there are, so that an attribute changes nothing but its own sign."""
        codes = read_face()["palettes"][palette]
        return parse_colour(codes[int(self.rng.random() * len(codes))])

    def _choose_colours(self, *names: str) -> None:
        for name in names:
            self.colours[name] = parse_colour(self.rng.choice(read_face()["palettes"][name]))

    def draw(self) -> None:
        """The whole face, from back to front."""
        self._draw_background()
        self._draw_shapes("light")
        # The far background alone; the whole picture is blurred a little more at the end.
        self.canvas.blur(0.022 * self.amounts["Blurry"])
        self._draw_shapes("sparkles")
        self._choose_colours("cloth")
        self.amounts["hat_kind"] = self.rng.choice(range(3))
        self._choose_colours("hat", "iris", "paint", "frame")
        self.amounts["gaze"] = self.rng.random()
        self._choose_colours("lipstick", "metal", "silk")
        for part in PARTS:
            self._draw_shapes(part)

    def _draw_background(self) -> None:
        """Hills below a sky with small clouds."""
        rng = self.rng
        self._choose_colours("sky")
        sky = self.colours["sky"]
        self.canvas.fill_all(sky)
        hill = mix(sky, (60, 110, 90), 0.3)
        base = rng.uniform(0.55, 0.75)
        for x in (rng.uniform(0, 0.25), rng.uniform(0.75, 1)):
            self.canvas.draw_ellipse(
                (x, base + 0.45, 0.5, 0.45), mix(hill, sky, rng.uniform(0, 0.5))
            )
        for _ in range(7):
            self.canvas.draw_ellipse(
                (rng.random(), rng.uniform(0.25, 0.6), 0.02), mix(sky, WHITE, 0.45)
            )

    def _draw_shapes(self, part: str) -> None:
        for shape in read_face()[part]:
            conditions = shape.get("if", {})
            if all(self.amounts[name] == amount for name, amount in conditions.items()):
                self._draw_shape(shape)

    def _draw_shape(self, shape: Mapping[str, Any]) -> None:
        points = self._resolve_numbers(shape["at"])
        fill = self._resolve_colour(shape["fill"])
        edge = None
        if "edge" in shape:
            edge = self._resolve_colour(shape["edge"])
        kind = shape["shape"]
        if kind == "box":
            self.canvas.draw_box(points, fill, edge)
            return
        if kind == "curve":
            triples = [points[i : i + 3] for i in range(0, len(points), 3)]
            points = [point for triple in triples for point in bend_curve(*triple)]
        if "symmetric" in shape:
            # The left half on through its mirror image, back to the height at which it began.
            points = [*points, *mirror(points[::-1])]
        for half in (points, mirror(points))[: 1 + ("mirrored" in shape)]:
            if kind == "ellipse":
                for figure in half:
                    self.canvas.draw_ellipse(figure, fill, edge)
            elif kind == "star":
                for figure in half:
                    self.canvas.draw_star(figure, fill, shape["num_points"], shape["waist"])
            elif "width" in shape:
                self.canvas.draw_line(half, fill, self._resolve_numbers(shape["width"]))
            else:
                self.canvas.draw_polygon(half, fill, edge)

    def _resolve_numbers(self, value: Any) -> Any:
        """Numbers in place of `{Attribute: [without, with]}`, and the points of the outline in place of its name."""
        if value == "face":
            return self._trace_outline()
        if isinstance(value, list):
            return list(map(self._resolve_numbers, value))
        if isinstance(value, dict):
            [(name, (without, full))] = value.items()
            amount = self.amounts[name]
            return without * (1 - amount) + full * amount
        return value

    def _resolve_colour(self, value: Any) -> Colour:
        if isinstance(value, str):
            return self.colours.get(value) or parse_colour(value)
        first, second, share = value
        return mix(self._resolve_colour(first), self._resolve_colour(second), share)

    def _trace_outline(self) -> list[Point]:
        """A superellipse, square or egg-shaped, whose lower half is narrower towards the chin."""
        width = 0.26 + 0.06 * self.amounts["Chubby"]
        oval = self.amounts["Oval_Face"]
        power = 2 / (2.1 + 1.6 * (1 - oval))
        points: list[Point] = []
        for i in range(48):
            # |x|^n + |y|^n = 1: n = 2 is an ellipse, and the larger n, the squarer.
            c = math.cos(2 * math.pi * i / 48)
            s = math.sin(2 * math.pi * i / 48)
            x = math.copysign(abs(c) ** power, c)
            y = math.copysign(abs(s) ** power, s)
            # Below the middle (y > 0) an oval face is up to 38 % narrower.
            taper = 1 - (0.04 + 0.34 * oval) * max(0.0, y)
            points.append((0.5 + width * taper * x, 0.47 + 0.36 * y))
        return points
