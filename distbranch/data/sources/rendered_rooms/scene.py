"""A room as data: convex primitives with a look and a class, a camera, lamps.

World: x right, y forward, z up, in metres; the floor is z = 0, x = 0 is the middle of the room. Every primitive is a unit cube,
cylinder or sphere (-1..1) that was stretched by `half`, turned about z and moved to `centre`, so three intersections are enough.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distbranch.data.sources.dense.class_names import NYU_13

Floats: TypeAlias = NDArray[np.floating]
Ints: TypeAlias = NDArray[np.integer]
Colour: TypeAlias = tuple[float, float, float]  # reflected share of red, green, blue, 0..1
Vector: TypeAlias = tuple[float, float, float]

FOCAL_LENGTH = 518.86 / 640  # in image widths, the Kinect's


class Shape(IntEnum):
    """What a primitive was before it was stretched."""

    BOX = 0
    CYLINDER = 1
    SPHERE = 2


class Texture(IntEnum):
    """How the colour of a primitive varies over its surface; see textures.py."""

    PLAIN = 0
    STRIPES = 1
    WEAVE = 2
    GRAIN = 3
    SQUARES = 4
    WALL = 5
    PLANKS = 6
    TILES = 7
    BOOKS = 8
    PICTURE = 9
    WINDOW = 10
    SCREEN = 11
    RUG = 12
    DOORS = 13
    DRAWERS = 14
    FOLDS = 15
    BALL = 16


class Look(NamedTuple):
    """What a surface looks like; `emission` is light of its own as a multiple of its colour."""

    colour: Colour
    texture: Texture = Texture.PLAIN
    emission: float = 0.0


class Primitive(NamedTuple):
    """`thing` numbers the pieces that would be bought together; what casts no shadow is flat or a lamp."""

    shape: Shape
    centre: Vector
    half: Vector
    turn: float  # radians about z
    look: Look
    class_name: str
    thing: int
    casts_shadow: bool = True


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken; the rows of `axes` are right, up and forward in world coordinates."""

    position: Floats  # [3]
    axes: Floats  # [3, 3]

    @classmethod
    def looking_at(cls, position: Vector, target: Vector, pitch: float, roll: float) -> "Camera":
        """Turned towards `target` about the vertical, then by `pitch` (up) and `roll`, in radians."""
        yaw = math.atan2(target[0] - position[0], target[1] - position[1])
        forward = (
            math.sin(yaw) * math.cos(pitch),
            math.cos(yaw) * math.cos(pitch),
            math.sin(pitch),
        )
        level = np.array([math.cos(yaw), -math.sin(yaw), 0.0])
        upright = np.cross(level, forward)
        right = math.cos(roll) * level + math.sin(roll) * upright
        up = math.cos(roll) * upright - math.sin(roll) * level
        axes = np.stack([right, up, forward])
        return cls(np.array(position, np.float32), axes.astype(np.float32))


@dataclass(frozen=True)
class Lamp:
    """A round light of a radius in metres; `strength` is its light at no distance, `reach` how fast that fades."""

    position: Floats  # [3]
    radius: float
    strength: float
    fading: float  # light is divided by 1 + fading * squared distance
    casts_shadows: bool


@dataclass(frozen=True)
class Scene:
    """All primitives as arrays; the first six are the inner faces of the room: -x, x, -y, y, floor, ceiling.

    Numbers are float32, half the time of float64: at 5 m they are right to a thousandth of a millimetre.
    """

    shape: Ints  # [P]
    centre: Floats  # [3, P]
    half: Floats  # [3, P]
    cosine: Floats  # [P] of the turn
    sine: Floats  # [P]
    colour: Floats  # [3, P]
    texture: Ints  # [P]
    emission: Floats  # [P]
    class_index: Ints  # [P]
    thing: Ints  # [P]
    casts_shadow: NDArray[np.bool_]  # [P]
    phase: Ints  # [P] makes equal textures differ
    camera: Camera
    lamps: tuple[Lamp, ...]
    exposure: float

    @property
    def num_primitives(self) -> int:
        """With the six faces of the room."""
        return len(self.shape)


NUM_FACES = 6  # of the room
CEILING_FACE = 5


def build_scene(
    faces: Sequence[Primitive],
    things: Sequence[Primitive],
    *,
    phase: Ints,
    camera: Camera,
    lamps: Sequence[Lamp],
    exposure: float,
) -> Scene:
    """The scene of the room's six faces and what stands in it; `phase` has a number for each of them."""
    everything = [*faces, *things]
    turns = np.array([one.turn for one in everything], np.float32)
    return Scene(
        shape=np.array([one.shape for one in everything]),
        centre=_to_columns([one.centre for one in everything]),
        half=_to_columns([one.half for one in everything]),
        cosine=np.cos(turns),
        sine=np.sin(turns),
        colour=_to_columns([one.look.colour for one in everything]),
        texture=np.array([one.look.texture for one in everything]),
        emission=np.array([one.look.emission for one in everything], np.float32),
        class_index=np.array([NYU_13.index(one.class_name) for one in everything]),
        thing=np.array([one.thing for one in everything]),
        casts_shadow=np.array([one.casts_shadow for one in everything]),
        phase=phase,
        camera=camera,
        lamps=tuple(lamps),
        exposure=exposure,
    )


def _to_columns(rows: Sequence[tuple[float, ...]]) -> Floats:
    return np.ascontiguousarray(np.array(rows, np.float32).T)


def make_generator(*names: object) -> np.random.Generator:
    """A generator whose numbers depend on `names` alone, on every machine: Philox with their hash as its key."""
    text = "/".join(map(str, names))
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
