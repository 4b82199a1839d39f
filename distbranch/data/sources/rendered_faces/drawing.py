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
from distbranch.data.sources.rendered_faces.canvas import WHITE, Canvas, Colour, Point, bend_curve, mirror, mix

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
    """The contents of `face.yaml`; its palettes are lists of colours."""
    face: dict[str, Any] = yaml.safe_load(FACE.read_text(encoding="utf-8"))
    face["palettes"] = {name: list(map(parse_colour, codes)) for name, codes in face["palettes"].items()}
    return face


def parse_colour(code: str) -> Colour:
    """A colour from its hexadecimal code."""
    return tuple(bytes.fromhex(code))


class Face:
    """One face: `amounts`, how strongly each attribute is drawn (0, 0.5 or 1), its colours and computed outlines, by name.

    Args:
        canvas: on which it is drawn.
        attributes: 0 or 1 by name.
        rng: the source of everything that the attributes leave open.
        hidden: the region that a nuisance hides; "whole image" and "hair" matter here.
    """

    def __init__(self, canvas: Canvas, attributes: Mapping[str, int], rng: random.Random, hidden: str | None) -> None:
        self.canvas = canvas
        self.rng = rng
        self.palettes: dict[str, list[Colour]] = read_face()["palettes"]
        self.colours = {name: parse_colour(code) for name, code in read_face()["colours"].items()}
        self.amounts: dict[str, float] = {**attributes, "scarf": hidden == "hair"}
        if hidden == "whole image":
            self.amounts |= dict.fromkeys(TASK_GROUPS[hidden], 0.5)
        if hidden == "hair":
            # A scarf lies on a bald head as on any other.
            self.amounts["Bald"] = 0
        self.outlines = self._trace_outlines()
        # Everything is chosen whether it is seen or not, and colours of one kind by one number however many there are,
        # so that an attribute or a nuisance changes nothing but its own sign.
        self._choose_person(attributes, hidden)

    def _choose_person(self, attributes: Mapping[str, int], hidden: str | None) -> None:
        skin = self._choose_of("pale_skin" if attributes["Pale_Skin"] else "warm_skin")
        if hidden == "whole image":
            skin = self.colours["hidden_skin"]
        self.colours |= {"skin": skin, "line": mix(skin, self.colours["ink"], 0.55)}
        self.colours["beard"] = self.rng.choice(self.palettes["beard"])
        hair = next((name for name in HAIR_COLOURS if attributes[name]), "other_hair")
        shade = self._choose_of(hair)
        scarf = self._choose_of("scarf")
        self.colours["hair"] = scarf if hidden == "hair" else shade

    def _choose_of(self, palette: str) -> Colour:
        colours = self.palettes[palette]
        return colours[int(self.rng.random() * len(colours))]

    def _choose_wear(self) -> None:
        choose = self.rng.choice
        self.colours["cloth"] = choose(self.palettes["cloth"])
        self.amounts["hat_kind"] = choose(range(3))
        self.colours["hat"] = choose(self.palettes["bright"])
        for name in ("iris", "paint", "frame"):
            self.colours[name] = choose(self.palettes[name])
        self.amounts["gaze"] = self.rng.random()
        self.colours["lips"] = choose(self.palettes["lipstick"])
        if not self.amounts["Wearing_Lipstick"]:
            self.colours["lips"] = mix(self.colours["skin"], (112, 84, 70), 0.45)
        self.colours["metal"] = choose(self.palettes["metal"])
        self.colours["silk"] = choose(self.palettes["bright"])

    def draw(self) -> None:
        """The whole face, from back to front."""
        self._draw_background()
        self._draw_shapes("light")
        # The far background alone; the whole picture is blurred a little more at the end.
        self.canvas.blur(0.022 * self.amounts["Blurry"])
        self._draw_shapes("sparkles")
        self._choose_wear()
        for part in PARTS:
            self._draw_shapes(part)

    def _draw_background(self) -> None:
        """Hills below a sky with small clouds."""
        rng = self.rng
        sky = rng.choice(self.palettes["sky"])
        self.colours["sky"] = sky
        self.canvas.fill_all(sky)
        hill = mix(sky, (60, 110, 90), 0.3)
        base = rng.uniform(0.55, 0.75)
        for x in (rng.uniform(0, 0.25), rng.uniform(0.75, 1)):
            self.canvas.draw_ellipse((x, base + 0.45, 0.5, 0.45), mix(hill, sky, rng.uniform(0, 0.5)))
        for _ in range(7):
            self.canvas.draw_ellipse((rng.random(), rng.uniform(0.25, 0.6), 0.02), mix(sky, WHITE, 0.45))

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
        """Numbers in place of `{Attribute: [without, with]}`, and points in place of the name of an outline."""
        if isinstance(value, str):
            return self.outlines[value]
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

    def _trace_outlines(self) -> dict[str, list[Point]]:
        width = self._resolve_numbers({"Chubby": [0.26, 0.32]})
        spots = _trace_arc(0.40, width + 0.055, 0.33, [0.1 * i for i in range(-2, 13)])
        # The upper edge of the hair, then its lower one on the forehead; high temples leave a peak in the middle.
        crown = _trace_arc(0.27, width + 0.02, 0.19, [i / 16 for i in range(17)])
        if self.amounts["Receding_Hairline"]:
            temple = [(1.0, 0.275), (0.88, 0.20), (0.5, 0.125), (0.16, 0.20)]
        else:
            temple = [(1.0, 0.275), (0.82, 0.215), (0.3, 0.20)]
        hairline = [(0.5 - share * width, y) for share, y in temple]
        return {
            "spots": [(x, y, 0.017) for x, y in spots],
            "crown": [*crown, *hairline, *mirror(hairline[::-1])],
            "face": self._trace_face(width),
        }

    def _trace_face(self, width: float) -> list[Point]:
        """A superellipse, square or egg-shaped, whose lower half is narrower towards the chin."""
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


def _trace_arc(y: float, rx: float, ry: float, half_turns: list[float]) -> list[Point]:
    """Points of an ellipse whose centre is on the axis of the face, from its right end (0) over the top to its left end (1)."""
    angles = [math.pi * share for share in half_turns]
    return [(0.5 + rx * math.cos(angle), y - ry * math.sin(angle)) for angle in angles]
