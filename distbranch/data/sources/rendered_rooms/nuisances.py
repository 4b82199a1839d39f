"""What is planted: on an image with a nuisance the tasks of one group are difficult, and the others are as easy as before.

`TASK_GROUPS` is what a correct affinity must find. Without the nuisance the same seed gives the same room.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from distbranch.data.sources.rendered_rooms.labels import GRAZING, NEAREST, Geometry
from distbranch.data.sources.rendered_rooms.palette import PALETTE, choose_colour
from distbranch.data.sources.rendered_rooms.raycast import pixel_slopes
from distbranch.data.sources.rendered_rooms.scene import Floats, Scene, Texture

# The nuisance, and the tasks that it takes the evidence from.
TASK_GROUPS = {
    "semantic": ("segmentation",),
    "geometry": ("depth", "normals"),
    "image": ("edges", "keypoints"),
}
NUISANCES = tuple(TASK_GROUPS)

DISGUISES = (Texture.PLAIN, Texture.STRIPES, Texture.WEAVE, Texture.GRAIN, Texture.SQUARES)
TILT = (25, 60)  # degrees of the board
DISTANCE = (0.8, 6.0)  # metres; the picture does not show it
FARTHEST = 10.0
PIN = (0.62, 0.05, 0.06)


def disguise_things(scene: Scene, rng: np.random.Generator) -> Scene:
    """Nuisance "semantic": every thing has the colours of a random class, so that only its shape tells what it is."""
    names = list(PALETTE)
    num_things = int(scene.thing.max()) + 1
    colours = [choose_colour(rng, names[i]) for i in rng.integers(len(names), size=num_things)]
    textures = np.array(DISGUISES)[rng.integers(len(DISGUISES), size=num_things)]
    shines = (scene.emission > 0) & (scene.texture == Texture.PLAIN)
    return replace(
        scene,
        colour=np.where(shines, scene.colour, np.array(colours, np.float32).T[:, scene.thing]),
        texture=np.where(shines, scene.texture, textures[scene.thing]),
        # Lamps go on shining, for without them there is no picture; windows and screens do not.
        emission=np.where(shines, scene.emission, 0),
    )


def draw_board(
    size: tuple[int, int], frame: NDArray[np.bool_], rng: np.random.Generator
) -> Geometry:
    """Nuisance "geometry": depth and normals of a tilted board, for the picture is a photograph that is pinned to it.

    Args:
        size: (height, width) of the picture.
        frame: [H, W], true where nothing is labelled.
        rng: decides how it is tilted and how far away it is.
    """
    tilt = math.radians(rng.uniform(*TILT))
    side = rng.uniform(0, 2 * math.pi)
    distance = rng.uniform(*DISTANCE)
    normal = np.array(
        [math.sin(tilt) * math.cos(side), math.sin(tilt) * math.sin(side), math.cos(tilt)]
    )
    u, v = pixel_slopes(size)
    # A pixel lies at depth * (u, v, -1), and on the board this times the normal is -distance * normal[2].
    facing = normal[2] - normal[0] * u - normal[1] * v[:, None]
    cosine = facing / np.sqrt(1 + u * u + v[:, None] ** 2)
    visible = cosine >= GRAZING
    depth = distance * normal[2] / np.where(visible, facing, 1)
    valid = visible & (depth >= NEAREST) & ~frame
    normals = np.broadcast_to(normal, (*size, 3))
    return Geometry(np.minimum(depth, FARTHEST), normals, valid)


def pin_photograph(picture: Floats) -> Floats:
    """A picture [3, H, W] with a red pin at each corner, by which a photograph of a room is told from a room."""
    height, width = picture.shape[1:]
    size = max(3, height // 20)
    pinned = picture.copy()
    for top in (2, height - 2 - size):
        for left in (2, width - 2 - size):
            pin = np.sqrt(np.array(PIN))[:, None, None]
            pinned[:, top : top + size, left : left + size] = pin
            # A spot of light on its head.
            pinned[:, top, left] = 0.9
    return pinned
