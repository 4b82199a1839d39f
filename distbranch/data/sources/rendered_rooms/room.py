"""Furnishes a room: what stands at which wall, what hangs on it, where the camera and the lamps are.

Things keep to footprints that do not overlap. What finds no place in a dozen tries is left out, so small rooms are emptier.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from distbranch.data.sources.rendered_rooms.furniture import (
    build_bed,
    build_cabinet,
    build_chair,
    build_shelf,
    build_sofa,
    build_table,
    build_television,
    choose_chair_look,
)
from distbranch.data.sources.rendered_rooms.palette import choose_colour
from distbranch.data.sources.rendered_rooms.piece import Piece
from distbranch.data.sources.rendered_rooms.scene import (
    NUM_FACES,
    Camera,
    Lamp,
    Look,
    Primitive,
    Scene,
    Shape,
    Texture,
    build_scene,
)
from distbranch.data.sources.rendered_rooms.small_things import (
    SMALL_THINGS,
    build_ball,
    build_ceiling_lamp,
    build_picture,
    build_plant,
    build_rug,
    build_standing_lamp,
    build_window,
)

Generator = np.random.Generator
Rectangle = tuple[float, float, float, float]  # left, near or low, right, far or high

NUM_TRIES = 12
WALLS = ("back", "left", "right")
# The camera looks at the back wall; of the others it sees the far half.
WALLS_BY_CHANCE = ("back", "back", "back", "left", "right")
WALL_TURNS = {"back": 0.0, "left": math.pi / 2, "right": -math.pi / 2}


@dataclass
class Room:
    """A room being furnished; lengths in metres, x = 0 in the middle."""

    width: float
    depth: float
    height: float
    primitives: list[Primitive] = field(default_factory=list)
    footprints: list[Rectangle] = field(default_factory=list)
    on_walls: dict[str, list[Rectangle]] = field(default_factory=lambda: {w: [] for w in WALLS})
    num_things: int = NUM_FACES

    def add(self, piece: Piece, x: float, y: float, turn: float = 0.0) -> None:
        """Puts a piece on the floor, whatever is there."""
        self.primitives += piece.place(x, y, turn, first_thing=self.num_things)
        self.num_things += piece.num_things

    def stand_at_wall(self, piece: Piece, rng: Generator) -> bool:
        """With its back to a wall, if there is room for it."""
        for _ in range(NUM_TRIES):
            wall, along = self._choose_place(piece, rng)
            x, y = self._find_middle(wall, along, piece.depth)
            footprint = find_footprint(piece, x, y, WALL_TURNS[wall])
            front = (along - piece.width / 2, 0.0, along + piece.width / 2, piece.height)
            if self._is_free(footprint) and not overlap(front, self.on_walls[wall]):
                self.footprints.append(footprint)
                self.on_walls[wall].append(front)
                self.add(piece, x, y, WALL_TURNS[wall])
                return True
        return False

    def hang_on_wall(self, piece: Piece, rng: Generator) -> bool:
        """Against a wall where nothing else hangs and nothing tall stands."""
        for _ in range(NUM_TRIES):
            wall, along = self._choose_place(piece, rng)
            front = (along - piece.width / 2, piece.low, along + piece.width / 2, piece.height)
            if not overlap(front, self.on_walls[wall]):
                self.on_walls[wall].append(front)
                x, y = self._find_middle(wall, along, piece.depth)
                self.add(piece, x, y, WALL_TURNS[wall])
                return True
        return False

    def stand_freely(self, piece: Piece, rng: Generator, turn: float) -> bool:
        """Somewhere on the floor in front of the camera."""
        for _ in range(NUM_TRIES):
            x = rng.uniform(-1, 1) * (self.width / 2 - piece.width / 2 - 0.05)
            y = rng.uniform(0.30, 0.92) * self.depth
            footprint = find_footprint(piece, x, y, turn)
            if self._is_free(footprint):
                self.footprints.append(footprint)
                self.add(piece, x, y, turn)
                return True
        return False

    def _choose_place(self, piece: Piece, rng: Generator) -> tuple[str, float]:
        wall = WALLS_BY_CHANCE[int(rng.integers(len(WALLS_BY_CHANCE)))]
        margin = piece.width / 2 + 0.04
        if wall == "back":
            return wall, rng.uniform(-1, 1) * max(self.width / 2 - margin, 0.0)
        return wall, rng.uniform(0.45 * self.depth, max(self.depth - margin, 0.5 * self.depth))

    def _find_middle(self, wall: str, along: float, depth: float) -> tuple[float, float]:
        if wall == "back":
            return along, self.depth - depth / 2
        x = self.width / 2 - depth / 2
        return (-x, along) if wall == "left" else (x, along)

    def _is_free(self, footprint: Rectangle) -> bool:
        left, near, right, far = footprint
        half = self.width / 2 + 1e-6
        inside = left >= -half and right <= half and near >= 0 and far <= self.depth + 1e-6
        return inside and not overlap(footprint, self.footprints)


def find_footprint(piece: Piece, x: float, y: float, turn: float) -> Rectangle:
    """The upright rectangle that holds a turned piece."""
    cosine = abs(math.cos(turn))
    sine = abs(math.sin(turn))
    across = (cosine * piece.width + sine * piece.depth) / 2
    along = (sine * piece.width + cosine * piece.depth) / 2
    return x - across, y - along, x + across, y + along


def overlap(rectangle: Rectangle, others: list[Rectangle]) -> bool:
    """Whether it overlaps any of the others."""
    left, near, right, far = rectangle
    return any(
        left < other[2] and other[0] < right and near < other[3] and other[1] < far
        for other in others
    )


def draw_scene(rng: Generator) -> Scene:
    """A furnished room; two generators in the same state give the same one."""
    room = Room(rng.uniform(3.4, 5.2), rng.uniform(3.8, 5.6), rng.uniform(2.4, 2.9))
    camera = _place_camera(room, rng)
    faces = _build_faces(room, rng)
    ceiling_lamp = _hang_ceiling_lamp(room, rng)
    _furnish(room, rng)
    lamps = [ceiling_lamp, *_find_small_lamps(room)]
    return build_scene(
        faces,
        room.primitives,
        phase=rng.integers(0, 2**31, NUM_FACES + len(room.primitives)),
        camera=camera,
        lamps=lamps,
        exposure=rng.uniform(0.85, 1.1),
    )


def _place_camera(room: Room, rng: Generator) -> Camera:
    x = rng.uniform(-0.28, 0.28) * room.width
    y = rng.uniform(0.12, 0.5)
    target = (rng.uniform(-0.15, 0.15) * room.width, 0.62 * room.depth, 0.0)
    # Whoever takes the picture needs room, and nothing may fill it.
    room.footprints.append((x - 0.5, 0.0, x + 0.5, y + 1.1))
    pitch = math.radians(rng.uniform(-20, -5))
    roll = math.radians(rng.normal(0, 1))
    return Camera.looking_at((x, y, rng.uniform(1.3, 1.75)), target, pitch, roll)


def _build_faces(room: Room, rng: Generator) -> list[Primitive]:
    centre = (0.0, room.depth / 2, room.height / 2)
    half = (room.width / 2, room.depth / 2, room.height / 2)
    floor = Look(choose_colour(rng, "floor"), Texture.PLANKS)
    if rng.random() < 0.25:
        floor = Look(choose_colour(rng, "tiles"), Texture.TILES)
    ceiling = Look(choose_colour(rng, "ceiling"))
    wall = Look(choose_colour(rng, "wall"), Texture.WALL)
    looks = [("wall", wall)] * 4 + [("floor", floor), ("ceiling", ceiling)]
    return [
        Primitive(Shape.BOX, centre, half, 0.0, look, name, number, casts_shadow=False)
        for number, (name, look) in enumerate(looks)
    ]


def _hang_ceiling_lamp(room: Room, rng: Generator) -> Lamp:
    x = rng.uniform(-0.15, 0.15) * room.width
    y = rng.uniform(0.35, 0.6) * room.depth
    drop = rng.uniform(0.25, 0.5)
    room.add(build_ceiling_lamp(rng, room.height, drop), x, y)
    position = np.array([x, y, room.height - drop - 0.05], np.float32)
    return Lamp(position, radius=0.15, strength=1.5, fading=0.14, casts_shadows=True)


def _find_small_lamps(room: Room) -> list[Lamp]:
    """The light of the first standing or table lamps; that of more would not be seen."""
    shades = [
        one
        for one in room.primitives
        if one.shape == Shape.CYLINDER and one.look.emission > 0 and one.centre[2] < 2
    ]
    return [
        Lamp(
            np.array(one.centre, np.float32),
            radius=0.1,
            strength=0.5,
            fading=2.5,
            casts_shadows=False,
        )
        for one in shades[:2]
    ]


def _furnish(room: Room, rng: Generator) -> None:
    """Large pieces first, for small ones find a place anywhere."""
    room.hang_on_wall(build_window(rng), rng)
    room.stand_at_wall(build_bed(rng) if rng.random() < 0.5 else build_sofa(rng), rng)
    room.stand_at_wall(_build_sideboard(rng, 0.65), rng)
    room.stand_at_wall(build_shelf(rng), rng)
    _add_rug(room, rng)
    quarter = math.pi / 2 * int(rng.integers(2))
    room.stand_freely(_build_dining_set(rng), rng, quarter + rng.uniform(-0.25, 0.25))
    if rng.random() < 0.5:
        room.stand_at_wall(build_cabinet(rng, rng.uniform(0.7, 1.3)), rng)
    if rng.random() < 0.4:
        room.stand_at_wall(build_standing_lamp(rng), rng)
    if rng.random() < 0.35:
        room.stand_at_wall(build_plant(rng), rng)
    if rng.random() < 0.6:
        room.stand_freely(build_ball(rng, rng.uniform(0.11, 0.2)), rng, 0.0)
    for _ in range(int(rng.integers(0, 3))):
        room.hang_on_wall(build_picture(rng), rng)


def _build_sideboard(rng: Generator, share_with_tv: float) -> Piece:
    """A cabinet with a television on it, or with one or two small things."""
    cabinet = build_cabinet(rng, rng.uniform(0.48, 0.68))
    if rng.random() < share_with_tv:
        cabinet.put_on(build_television(rng), 0.0, 0.02, 0.0, cabinet.top)
        return cabinet
    for side in (-1, 1):
        if rng.random() < 0.7:
            x = side * cabinet.width / 2 * rng.uniform(0.3, 0.7)
            cabinet.put_on(_choose_thing(rng), x, 0.0, rng.uniform(-0.4, 0.4), cabinet.top)
    return cabinet


def _choose_thing(rng: Generator) -> Piece:
    build: Callable[[Generator], Piece] = SMALL_THINGS[int(rng.integers(len(SMALL_THINGS)))]
    return build(rng)


def _build_dining_set(rng: Generator) -> Piece:
    """A table with one to three things on it and one or two chairs at its sides, as one piece."""
    table = build_table(rng)
    x = table.width / 2
    y = table.depth / 2
    num_things = int(rng.integers(1, 4))
    for i in range(num_things):
        # Side by side, so that they never meet.
        across = (2 * (i + 0.5) / num_things - 1) * 0.62 * x
        turn = rng.uniform(-0.6, 0.6)
        table.put_on(_choose_thing(rng), across, rng.uniform(-0.4, 0.4) * y, turn, table.top)
    look = choose_chair_look(rng)
    gap = rng.uniform(0.05, 0.2)
    places = (
        (0.0, -y - gap, math.pi),
        (0.0, y + gap, 0.0),
        (x + gap, 0.0, -math.pi / 2),
        (-x - gap, 0.0, math.pi / 2),
    )
    chosen = rng.choice(len(places), size=int(rng.integers(1, 3)), replace=False).tolist()
    for number in chosen:
        cx, cy, turn = places[number]
        table.put_on(build_chair(look, rng), cx, cy, turn + rng.uniform(-0.3, 0.3), 0.0)
    table.width += 0.7
    table.depth += 0.7
    return table


def _add_rug(room: Room, rng: Generator) -> None:
    if rng.random() < 0.5:
        rug = build_rug(rng)
        x = rng.uniform(-0.2, 0.2) * room.width
        y = rng.uniform(0.45, 0.6) * room.depth
        room.add(rug, x, y, rng.uniform(-0.15, 0.15))
