"""Light: lamps with soft shadows, skylight, corners that receive less of it, and the camera that takes the picture."""

import numpy as np
from numpy.typing import NDArray

from distbranch.data.sources.rendered_rooms.filters import blur, double_size
from distbranch.data.sources.rendered_rooms.raycast import Hits, cast_shadows
from distbranch.data.sources.rendered_rooms.scene import Floats, Lamp, Scene
from distbranch.data.sources.rendered_rooms.textures import colour_surfaces, locate_on_faces

WARM = np.array([[1.06], [1.0], [0.90]], np.float32)  # of lamps
COOL = np.array([[0.94], [1.0], [1.08]], np.float32)  # of the sky
CHECK = 0.10  # metres of the squares of the nuisance "image": finer than an output stride of 8 can follow
CHECK_SHADES = (0.48, 1.08)
CORNER = 0.28  # metres over which a wall takes light away from the next one
SENSOR_NOISE = 0.012  # standard deviation per channel


def shade(scene: Scene, hits: Hits, *, checked: bool = False) -> Floats:
    """The picture [3, H, W] in 0..1 as it is seen, before the sensor's noise.

    Args:
        scene: its colours, lamps and exposure.
        hits: what the pixels see.
        checked: a pattern of small squares lies over everything.
    """
    colour, emission = colour_surfaces(scene, hits)
    if checked:
        u, v = locate_on_faces(hits)
        is_dark = (np.floor(u / CHECK) + np.floor(v / CHECK)) % 2 == 0
        colour *= np.where(is_dark, *np.array(CHECK_SHADES, np.float32))
    light = _collect_light(scene, hits) + emission
    linear = (colour * light * scene.exposure).clip(0, 1)
    picture = np.sqrt(linear).reshape(3, *hits.size)  # a gamma of 2
    return _smooth_borders(picture, hits.primitive.reshape(hits.size))


def take_picture(picture: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bytes [H, W, 3] with the noise of a sensor."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    noisy = (picture + SENSOR_NOISE * noise) * 255 + 0.5
    return np.ascontiguousarray(np.moveaxis(noisy.clip(0, 255).astype(np.uint8), 0, -1))


def _collect_light(scene: Scene, hits: Hits) -> Floats:
    """Light that arrives at every pixel's surface: [3, N]."""
    x, _, z = hits.normal
    sky = (0.14 + 0.05 * (1 + z) + 0.06 * np.maximum(x, 0)) * _darken_corners(scene, hits)
    lamps = np.zeros_like(hits.depth)
    for lamp in scene.lamps:
        lamps += _shine(scene, hits, lamp)
    light: Floats = COOL * sky + WARM * lamps
    return light


def _shine(scene: Scene, hits: Hits, lamp: Lamp) -> Floats:
    way = lamp.position[:, None] - hits.point
    squared = (way * way).sum(axis=0)
    towards = (hits.normal * way).sum(axis=0) / np.sqrt(squared)
    light: Floats = lamp.strength * np.maximum(towards, 0) / (1 + lamp.fading * squared)
    if lamp.casts_shadows:
        light *= _soften_shadows(scene, hits, lamp)
    return light


def _soften_shadows(scene: Scene, hits: Hits, lamp: Lamp) -> Floats:
    """The share of the lamp that every pixel sees [N].

    Rays go from every other pixel of every other row, in turn to one of four points of the lamp. The blur mixes neighbours, and each
    of the four has a quarter of a binomial filter: soft shadows for a quarter of what hard ones cost.
    """
    height, width = hits.size
    points = hits.point.reshape(3, height, width)[:, ::2, ::2]
    rows, columns = np.indices(points.shape[1:], np.float32) % 2
    corners = np.stack([1 - 2 * rows, 1 - 2 * columns, 0 * rows])
    positions = lamp.position[:, None, None] + 0.7 * lamp.radius * corners
    lit = cast_shadows(scene, points.reshape(3, -1), lamp, positions.reshape(3, -1))
    soft = blur(blur(lit.reshape(points.shape[1:]).astype(np.float32)))
    return double_size(soft, hits.size).ravel()


def _darken_corners(scene: Scene, hits: Hits) -> Floats:
    """What the next walls, the floor and the ceiling leave of the light from everywhere [N]."""
    centre = scene.centre[:, :1]
    half = scene.half[:, :1]
    distance = half - np.abs(hits.point - centre)
    # A surface does not darken itself.
    strength = 0.45 * (1 - np.abs(hits.normal))
    light: Floats = np.prod(1 - strength * np.exp(-np.maximum(distance, 0) / CORNER), axis=0)
    return light


def _smooth_borders(picture: Floats, primitive: NDArray[np.integer]) -> Floats:
    """Blurs where the primitive changes, which is cheap and looks as if more rays had been cast."""
    border = np.zeros(primitive.shape, dtype=bool)
    across = primitive[:, 1:] != primitive[:, :-1]
    down = primitive[1:] != primitive[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return np.where(border, blur(picture), picture)
