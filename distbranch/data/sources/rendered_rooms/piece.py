"""A piece of furniture or a smaller thing, made of boxes, cylinders and ellipsoids, that can be put anywhere.

It is built in a frame of its own: the origin on the floor in the middle of its footprint, its front towards -y, its back towards +y.
"""

import math
from dataclasses import dataclass, field

from distbranch.data.sources.rendered_rooms.scene import Look, Primitive, Shape, Vector


@dataclass
class Piece:
    """One or more things that stand together; `width` and `depth` are the footprint, `top` is where a thing can be put on it."""

    width: float
    depth: float
    class_name: str
    top: float = 0.0
    parts: list[Primitive] = field(default_factory=list)
    num_things: int = 1

    @property
    def low(self) -> float:
        """The height of its lowest point."""
        return min(part.centre[2] - part.half[2] for part in self.parts)

    @property
    def height(self) -> float:
        """The height of its highest point."""
        return max(part.centre[2] + part.half[2] for part in self.parts)

    def begin_thing(self) -> None:
        """What is added from now on is another thing: a pillow on the bed, a television on a cabinet."""
        self.num_things += 1

    def add_box(
        self,
        low: Vector,
        high: Vector,
        look: Look,
        class_name: str | None = None,
        *,
        casts_shadow: bool = True,
    ) -> None:
        """A box from its lowest to its highest corner."""
        left, front, bottom = low
        right, back, top = high
        centre = ((left + right) / 2, (front + back) / 2, (bottom + top) / 2)
        half = ((right - left) / 2, (back - front) / 2, (top - bottom) / 2)
        self._add(Shape.BOX, centre, half, look, class_name, casts_shadow)

    def add_cylinder(
        self,
        base: Vector,
        radius: float,
        height: float,
        look: Look,
        class_name: str | None = None,
        *,
        casts_shadow: bool = True,
    ) -> None:
        """An upright cylinder on the middle of its lower end."""
        centre = (base[0], base[1], base[2] + height / 2)
        half = (radius, radius, height / 2)
        self._add(Shape.CYLINDER, centre, half, look, class_name, casts_shadow)

    def add_ellipsoid(
        self,
        centre: Vector,
        half: Vector,
        look: Look,
        class_name: str | None = None,
        *,
        casts_shadow: bool = True,
    ) -> None:
        """A sphere that is stretched to its half axes."""
        self._add(Shape.SPHERE, centre, half, look, class_name, casts_shadow)

    def _add(
        self,
        shape: Shape,
        centre: Vector,
        half: Vector,
        look: Look,
        class_name: str | None,
        casts_shadow: bool,
    ) -> None:
        name = class_name or self.class_name
        thing = self.num_things - 1
        self.parts.append(Primitive(shape, centre, half, 0.0, look, name, thing, casts_shadow))

    def put_on(self, other: "Piece", x: float, y: float, turn: float, height: float) -> None:
        """Adds all parts of another piece, turned about its origin and moved to (x, y, height)."""
        self.parts += other.place(x, y, turn, first_thing=self.num_things, height=height)
        self.num_things += other.num_things

    def place(
        self, x: float, y: float, turn: float, *, first_thing: int, height: float = 0.0
    ) -> list[Primitive]:
        """Its primitives in the room, their things numbered from `first_thing` on."""
        cosine = math.cos(turn)
        sine = math.sin(turn)
        placed = []
        for part in self.parts:
            px, py, pz = part.centre
            centre = (x + cosine * px - sine * py, y + sine * px + cosine * py, pz + height)
            thing = part.thing + first_thing
            placed.append(part._replace(centre=centre, turn=part.turn + turn, thing=thing))
        return placed
