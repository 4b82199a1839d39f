"""What every pixel sees, exactly: rays against unit shapes in the coordinates of each primitive.

A ray has camera depth 1, so its parameter is the depth along the optical axis. Each primitive is tried only in the rectangle of its
projected corners, and a shadow only in the cone that holds it; all such pairs of a primitive and a pixel are computed at once.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distbranch.data.sources.rendered_rooms.scene import (
    FOCAL_LENGTH,
    NUM_FACES,
    Floats,
    Ints,
    Lamp,
    Scene,
    Shape,
)

NEAR = 0.05  # metres in front of the camera
TINY = 1e-7  # in place of 0 in a direction, which would give 0 * infinity
SELF = 4e-3  # share of the way to the lamp in which a surface does not shade itself
CORNERS = np.array(list(itertools.product((-1, 1), repeat=3)), np.float32)  # [8, 3] of a unit cube


@dataclass(frozen=True)
class Hits:
    """What the pixels see, row by row: N = height * width."""

    size: tuple[int, int]  # height, width
    depth: Floats  # [N] metres along the optical axis
    primitive: Ints  # [N]
    point: Floats  # [3, N] in the world
    local: Floats  # [3, N] in the unit shape, -1..1
    half: Floats  # [3, N] what the unit shape was stretched by
    axis: Ints  # [N] of the face of a box: 0, 1, 2; of round shapes the largest coordinate
    normal: Floats  # [3, N] unit, in the world, towards the camera


def cast_rays(scene: Scene, size: tuple[int, int]) -> Hits:
    """The nearest surface of every pixel of a picture of `size` (height, width)."""
    rays = _find_rays(scene, size)
    depth, primitive = _cast_on_walls(scene, rays)
    number, pixel = _list_candidates(scene, size)
    away = scene.camera.position[:, None] - scene.centre
    cameras = to_local(scene, np.arange(scene.num_primitives), away)
    origin = cameras.take(number, axis=1)
    direction = to_local(scene, number, rays.take(pixel, axis=1))
    near, far = intersect(scene.shape.take(number), origin, direction)

    hit = np.flatnonzero((near < far) & (near > NEAR))
    near, number, pixel = near[hit], number[hit], pixel[hit]
    np.minimum.at(depth, pixel, near)
    nearest = near == depth[pixel]
    primitive[pixel[nearest]] = number[nearest]
    return _describe_hits(scene, size, depth, primitive, rays, cameras)


def pixel_slopes(size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Right per forward [W] and up per forward [H] at the middles of the pixels."""
    height, width = size
    u = (np.arange(width) + 0.5 - width / 2) / (FOCAL_LENGTH * width)
    v = (height / 2 - 0.5 - np.arange(height)) / (FOCAL_LENGTH * width)
    return u.astype(np.float32), v.astype(np.float32)


def to_local(scene: Scene, number: Ints, vectors: Floats) -> Floats:
    """World vectors [3, n] turned and shrunk to the unit coordinates of the primitives `number` [n]."""
    cosine = scene.cosine.take(number)
    sine = scene.sine.take(number)
    x, y, z = vectors
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, z]) / scene.half.take(
        number, axis=1
    )


def intersect(shape: Ints, origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave unit shapes [n]; they miss them where they would leave before they enter.

    Args:
        shape: [n] of `Shape`.
        origin: [3, n].
        direction: [3, n], changed where it is 0.
    """
    direction[direction == 0] = TINY
    near, far = _cross_slabs(origin, direction)
    # Every shape lies in its cube, so what misses the cube misses all.
    is_round = np.flatnonzero((shape != Shape.BOX) & (near < far))
    near[is_round], far[is_round] = _cross_round(
        shape[is_round] == Shape.CYLINDER,
        origin.take(is_round, axis=1),
        direction.take(is_round, axis=1),
    )
    return near, far


def _cross_slabs(origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    inverse = 1 / direction
    middle = origin * inverse
    extent = np.abs(inverse)
    return -(extent + middle).min(axis=0), (extent - middle).min(axis=0)


def _cross_round(
    is_cylinder: NDArray[np.bool_], origin: Floats, direction: Floats
) -> tuple[Floats, Floats]:
    """Spheres, and cylinders, which are endless ones between two slabs."""
    o = origin.copy()
    d = direction.copy()
    o[2, is_cylinder] = 0
    d[2, is_cylinder] = 0
    a = (d * d).sum(axis=0)
    b = (o * d).sum(axis=0) / a
    root = b * b - ((o * o).sum(axis=0) - 1) / a
    half = np.sqrt(np.maximum(root, 0))
    enters, leaves = _cross_slabs(origin[2:], direction[2:])
    near = np.where(is_cylinder, np.maximum(-b - half, enters), -b - half)
    far = np.where(is_cylinder, np.minimum(half - b, leaves), half - b)
    return near, np.where(root > 0, far, -np.inf)


def _find_rays(scene: Scene, size: tuple[int, int]) -> Floats:
    """The rays [3, N] in the world, as long as their camera depth is 1."""
    u, v = pixel_slopes(size)
    right, up, forward = scene.camera.axes
    rays: Floats = right[:, None, None] * u + (up[:, None] * v + forward[:, None])[:, :, None]
    return rays.reshape(3, -1)


def _cast_on_walls(scene: Scene, rays: Floats) -> tuple[Floats, Ints]:
    """Depth and face of the empty room, seen from within: where its box is left."""
    half = scene.half[:, :1]
    direction = rays / half
    direction[direction == 0] = TINY
    origin = (scene.camera.position[:, None] - scene.centre[:, :1]) / half
    inverse = 1 / direction
    leaves = np.abs(inverse) - origin * inverse
    depth = leaves.min(axis=0)
    axis = np.where(leaves[0] == depth, 0, np.where(leaves[1] == depth, 1, 2))
    positive = (
        np.where(axis == 0, direction[0], np.where(axis == 1, direction[1], direction[2])) > 0
    )
    return depth, 2 * axis + positive


def _list_candidates(scene: Scene, size: tuple[int, int]) -> tuple[Ints, Ints]:
    """All pairs of a primitive and a pixel of its rectangle: numbers [n], pixels [n]."""
    number, top, left, height, width = _find_rectangles(scene, size)
    area = height * width
    which = np.repeat(np.arange(len(number)), area)
    place = np.arange(len(which)) - np.repeat(area.cumsum() - area, area)
    row, column = np.divmod(place, width[which])
    return number[which], (top[which] + row) * size[1] + left[which] + column


def _find_rectangles(scene: Scene, size: tuple[int, int]) -> tuple[Ints, ...]:
    """Number, top, left, height and width in pixels of every primitive that may be seen."""
    height, width = size
    corners = CORNERS.T[:, :, None] * scene.half[:, None, NUM_FACES:]  # [3, 8, P]
    cosine = scene.cosine[NUM_FACES:]
    sine = scene.sine[NUM_FACES:]
    x, y, z = corners
    turned = np.stack([cosine * x - sine * y, sine * x + cosine * y, z])
    turned += (scene.centre[:, NUM_FACES:] - scene.camera.position[:, None])[:, None]
    right, up, forward = np.tensordot(scene.camera.axes, turned, axes=1)

    scale = FOCAL_LENGTH * width / np.maximum(forward, NEAR)
    columns = right * scale + width / 2
    rows = height / 2 - up * scale
    # What reaches behind the camera has no such rectangle: then the whole picture is tried.
    behind = (forward < NEAR).any(axis=0)
    top = np.where(behind, 0, rows.min(axis=0)).clip(0, height)
    bottom = np.where(behind, height, np.ceil(rows.max(axis=0))).clip(0, height)
    left = np.where(behind, 0, columns.min(axis=0)).clip(0, width)
    right = np.where(behind, width, np.ceil(columns.max(axis=0))).clip(0, width)
    seen = (forward > NEAR).any(axis=0) & (top < bottom) & (left < right)
    number = np.flatnonzero(seen)
    top, bottom, left, right = np.stack([top, bottom, left, right]).astype(int)[:, number]
    return NUM_FACES + number, top, left, bottom - top, right - left


def _describe_hits(
    scene: Scene,
    size: tuple[int, int],
    depth: Floats,
    primitive: Ints,
    rays: Floats,
    cameras: Floats,
) -> Hits:
    point = scene.camera.position[:, None] + rays * depth
    local = to_local(scene, primitive, point - scene.centre.take(primitive, axis=1))
    half = scene.half.take(primitive, axis=1)

    # Of the faces of a box those that look at the camera, so that no rounding at an edge shows the back of another.
    faces = (np.abs(cameras) > 1) | (scene.shape != Shape.BOX)
    faces[:, :NUM_FACES] = np.arange(NUM_FACES) // 2 == np.arange(3)[:, None]
    extent = np.where(faces.take(primitive, axis=1), np.abs(local), -1)
    axis = np.where(extent[1] > extent[0], 1, 0)
    axis[extent[2] > np.maximum(extent[0], extent[1])] = 2
    facing = np.where(axis == np.arange(3)[:, None], np.sign(local), np.float32(0))
    # The room is seen from within.
    facing[:, primitive < NUM_FACES] *= -1

    is_round = np.flatnonzero(scene.shape.take(primitive) != Shape.BOX)
    which = primitive[is_round]
    facing[:, is_round] = _find_round_normals(
        scene.shape.take(which) == Shape.CYLINDER,
        local.take(is_round, axis=1),
        cameras.take(which, axis=1),
        half.take(is_round, axis=1),
    )
    cosine = scene.cosine.take(primitive)
    sine = scene.sine.take(primitive)
    x, y, z = facing
    normal = np.stack([cosine * x - sine * y, sine * x + cosine * y, z])
    return Hits(size, depth, primitive, point, local, half, axis, normal)


def _find_round_normals(
    is_cylinder: NDArray[np.bool_], local: Floats, cameras: Floats, half: Floats
) -> Floats:
    """Unit normals [3, n] of points on stretched cylinders and spheres, in the axes of the shape."""
    x, y, z = local
    radius = np.sqrt(x * x + y * y)
    # A cylinder was hit on its cap where that lies nearer to 1 than its side, or where the side looks away.
    side_looks_away = x * cameras[0] + y * cameras[1] <= radius
    is_cap = is_cylinder & (np.abs(cameras[2]) > 1) & ((np.abs(z) > radius) | side_looks_away)
    normal = local / half
    normal[2, is_cylinder & ~is_cap] = 0
    normal[:2, is_cap] = 0
    length: Floats = np.sqrt((normal * normal).sum(axis=0))
    return np.divide(normal, length, out=normal)


def cast_shadows(scene: Scene, points: Floats, lamp: Lamp, positions: Floats) -> NDArray[np.bool_]:
    """Whether points [3, n] see the lamp, each at its own of the lamp's `positions` [3, n]."""
    number, nearby = _list_shaded(scene, points, lamp)
    starts = points.take(nearby, axis=1)
    origin = to_local(scene, number, starts - scene.centre.take(number, axis=1))
    direction = to_local(scene, number, positions.take(nearby, axis=1) - starts)
    near, far = intersect(scene.shape.take(number), origin, direction)
    lit = np.ones(points.shape[1], dtype=bool)
    lit[nearby[(near < far) & (near < 1) & (far > SELF)]] = False
    return lit


def _list_shaded(scene: Scene, points: Floats, lamp: Lamp) -> tuple[Ints, Ints]:
    """All pairs of a primitive that casts shadows and a point in the cone around its enclosing sphere: numbers [n], points [n]."""
    casting = np.flatnonzero(scene.casts_shadow)
    offset = scene.centre[:, casting].T - lamp.position
    radius = np.sqrt((scene.half[:, casting] ** 2).sum(axis=0)) + lamp.radius
    distance = np.sqrt((offset * offset).sum(axis=1))
    way = points - lamp.position[:, None]
    length = np.sqrt((way * way).sum(axis=0))

    sine = np.minimum(radius / distance, 1)
    cosine = np.where(sine < 1, np.sqrt(1 - sine * sine), -1)
    inside = (offset / distance[:, None]) @ way > cosine[:, None] * length
    inside &= length > (distance - radius)[:, None]
    which, nearby = np.nonzero(inside)
    return casting[which], nearby
