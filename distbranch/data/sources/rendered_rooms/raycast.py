"""What every pixel sees, exactly: rays against unit shapes in the coordinates of each primitive.

A ray has camera depth 1, so its parameter is the depth along the optical axis. Each primitive is tried only in the rectangle of its
projected corners, and a shadow only in the cone that holds it.
"""

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
CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)


@dataclass(frozen=True)
class Hits:
    """What the pixels see, row by row: N = height * width."""

    size: tuple[int, int]  # height, width
    depth: Floats  # [N] metres along the optical axis
    primitive: Ints  # [N]
    point: Floats  # [3, N] in the world
    local: Floats  # [3, N] in the unit shape, -1..1
    axis: Ints  # [N] of the face of a box: 0, 1, 2; of round shapes the largest coordinate
    normal: Floats  # [3, N] unit, in the world, towards the camera


def cast_rays(scene: Scene, size: tuple[int, int]) -> Hits:
    """The nearest surface of every pixel of a picture of `size` (height, width)."""
    u, v = pixel_slopes(size)
    depth, primitive = _cast_on_walls(scene, u, v)
    for number, (top, bottom, left, right) in _find_rectangles(scene, size):
        part = slice(top, bottom), slice(left, right)
        origin, steps = _local_rays(scene, number)
        direction = (
            steps[:, 0, None, None] * u[left:right]
            + (steps[:, 1, None] * v[top:bottom] + steps[:, 2, None])[:, :, None]
        )
        near, far = intersect(int(scene.shape[number]), origin[:, None, None], direction)
        closer = (near < far) & (near > NEAR) & (near < depth[part])
        np.copyto(depth[part], near, where=closer)
        primitive[part][closer] = number
    return _describe_hits(scene, size, depth, primitive, u, v)


def pixel_slopes(size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Right per forward [W] and up per forward [H] at the middles of the pixels."""
    height, width = size
    u = (np.arange(width) + 0.5 - width / 2) / (FOCAL_LENGTH * width)
    v = (height / 2 - 0.5 - np.arange(height)) / (FOCAL_LENGTH * width)
    return u, v


def intersect(shape: int, origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave a unit shape; they miss it where they would leave before they enter.

    Args:
        shape: of `Shape`.
        origin: [3, ...].
        direction: [3, ...], changed where it is 0.
    """
    direction[direction == 0] = TINY
    if shape == Shape.BOX:
        return _cross_slabs(origin, direction)
    used = slice(0, 2) if shape == Shape.CYLINDER else slice(0, 3)
    o = origin[used]
    d = direction[used]
    a = (d * d).sum(axis=0)
    b = (o * d).sum(axis=0)
    c = (o * o).sum(axis=0) - 1
    root = b * b - a * c
    half = np.sqrt(np.maximum(root, 0))
    near = (-b - half) / a
    far = (half - b) / a
    np.copyto(far, -np.inf, where=root <= 0)
    if shape == Shape.CYLINDER:
        enters, leaves = _cross_slabs(origin[2:], direction[2:])
        near = np.maximum(near, enters)
        far = np.minimum(far, leaves)
    return near, far


def _cross_slabs(origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    inverse = 1 / direction
    middle = origin * inverse
    extent = np.abs(inverse)
    near = (-extent - middle).max(axis=0)
    far = (extent - middle).min(axis=0)
    return near, far


def _cast_on_walls(scene: Scene, u: Floats, v: Floats) -> tuple[Floats, Ints]:
    """Depth and face of the empty room, seen from within: where its box is left."""
    right, up, forward = scene.camera.axes
    direction = (
        right[:, None, None] * u + (up[:, None] * v + forward[:, None])[:, :, None]
    ) / scene.half[0][:, None, None]
    direction[direction == 0] = TINY
    origin = (scene.camera.position - scene.centre[0]) / scene.half[0]
    inverse = 1 / direction
    leaves = np.abs(inverse) - origin[:, None, None] * inverse
    axis = leaves.argmin(axis=0)
    depth = np.take_along_axis(leaves, axis[None], axis=0)[0]
    positive = np.take_along_axis(direction, axis[None], axis=0)[0] > 0
    return depth, 2 * axis + positive


def _find_rectangles(
    scene: Scene, size: tuple[int, int]
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """The rectangle of pixels (top, bottom, left, right) of every primitive that may be seen."""
    height, width = size
    corners = CORNERS * scene.half[NUM_FACES:, None]
    cosine = scene.cosine[NUM_FACES:, None]
    sine = scene.sine[NUM_FACES:, None]
    x = cosine * corners[..., 0] - sine * corners[..., 1]
    y = sine * corners[..., 0] + cosine * corners[..., 1]
    turned = np.stack([x, y, corners[..., 2]], axis=-1)
    offset = scene.centre[NUM_FACES:, None] - scene.camera.position
    right, up, forward = np.moveaxis((turned + offset) @ scene.camera.axes.T, -1, 0)

    scale = FOCAL_LENGTH * width / np.maximum(forward, NEAR)
    columns = right * scale + width / 2
    rows = height / 2 - up * scale
    # What reaches behind the camera has no such rectangle: then the whole picture is tried.
    behind = (forward < NEAR).any(axis=1)
    visible = (forward > NEAR).any(axis=1)
    bounds = np.stack(
        [
            np.where(behind, 0, np.floor(rows.min(axis=1))),
            np.where(behind, height, np.ceil(rows.max(axis=1))),
            np.where(behind, 0, np.floor(columns.min(axis=1))),
            np.where(behind, width, np.ceil(columns.max(axis=1))),
        ]
    )
    limits = np.array([height, height, width, width])[:, None]
    top, bottom, left, right = bounds.clip(0, limits).astype(int)
    visible &= (top < bottom) & (left < right)
    return [
        (NUM_FACES + i, (top[i], bottom[i], left[i], right[i]))
        for i in np.flatnonzero(visible).tolist()
    ]


def _to_local(scene: Scene, number: int, vectors: Floats) -> Floats:
    """World vectors [..., 3] in the unit coordinates of a primitive, turned and shrunk."""
    c = scene.cosine[number]
    s = scene.sine[number]
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) / scene.half[number][:, None]
    return vectors @ turn.T


def _local_rays(scene: Scene, number: int) -> tuple[Floats, Floats]:
    """The camera [3] and the steps [3, 3] to the right, up and forward in a primitive's unit coordinates."""
    origin = _to_local(scene, number, scene.camera.position - scene.centre[number])
    return origin, _to_local(scene, number, scene.camera.axes).T


def _describe_hits(
    scene: Scene, size: tuple[int, int], depth: Floats, primitive: Ints, u: Floats, v: Floats
) -> Hits:
    right, up, forward = scene.camera.axes
    rays = right[:, None, None] * u + (up[:, None] * v + forward[:, None])[:, :, None]
    depth = depth.ravel()
    primitive = primitive.ravel()
    point = scene.camera.position[:, None] + rays.reshape(3, -1) * depth

    half = scene.half.T[:, primitive]
    cosine = scene.cosine[primitive]
    sine = scene.sine[primitive]
    x, y, z = point - scene.centre.T[:, primitive]
    local = np.stack([cosine * x + sine * y, cosine * y - sine * x, z]) / half

    axis = np.abs(local).argmax(axis=0)
    shape = scene.shape[primitive]
    # Of a cylinder the round side and the caps, of which the one is hit that lies nearer to 1.
    radius = local[0] ** 2 + local[1] ** 2
    is_cap = (shape == Shape.CYLINDER) & (np.abs(local[2]) > np.sqrt(radius))
    is_flat = (shape == Shape.BOX) | is_cap
    across = np.where(is_flat, np.where(is_cap, 2, axis) == np.arange(3)[:, None], True)
    across[2] &= (shape != Shape.CYLINDER) | is_cap
    normal = np.where(across, local, 0) / half
    # The room is seen from within.
    normal[:, primitive < NUM_FACES] *= -1
    normal = np.stack(
        [cosine * normal[0] - sine * normal[1], sine * normal[0] + cosine * normal[1], normal[2]]
    )
    normal /= np.sqrt((normal * normal).sum(axis=0))
    return Hits(size, depth, primitive, point, local, axis, normal)


def cast_shadows(scene: Scene, points: Floats, lamp: Lamp, positions: Floats) -> NDArray[np.bool_]:
    """Whether points [3, n] see the lamp, each at its own of the lamp's `positions` [3, n]."""
    lit = np.ones(points.shape[1], dtype=bool)
    for number, nearby in _find_cones(scene, points, lamp):
        start = points[:, nearby]
        way = positions[:, nearby] - start
        origin = _to_local(scene, number, (start - scene.centre[number][:, None]).T).T
        direction = _to_local(scene, number, way.T).T
        near, far = intersect(int(scene.shape[number]), origin, direction)
        lit[nearby[(near < far) & (near < 1) & (far > SELF)]] = False
    return lit


def _find_cones(scene: Scene, points: Floats, lamp: Lamp) -> list[tuple[int, Ints]]:
    """For every primitive that casts shadows the points that lie in the cone around its enclosing sphere."""
    casting = np.flatnonzero(scene.casts_shadow)
    offset = scene.centre[casting] - lamp.position
    radius = np.sqrt((scene.half[casting] ** 2).sum(axis=1)) + lamp.radius
    distance = np.sqrt((offset**2).sum(axis=1))
    way = points - lamp.position[:, None]
    length = np.sqrt((way * way).sum(axis=0))

    sine = np.minimum(radius / distance, 1)
    cosine = np.where(sine < 1, np.sqrt(1 - sine**2), -1)
    inside = (offset / distance[:, None]) @ way > cosine[:, None] * length
    inside &= length > (distance - radius)[:, None]
    cones = []
    for i, number in enumerate(casting.tolist()):
        nearby = np.flatnonzero(inside[i])
        if len(nearby):
            cones.append((number, nearby))
    return cones
