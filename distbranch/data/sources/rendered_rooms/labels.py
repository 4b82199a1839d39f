"""The labels of a picture: classes, depth and normals as a structured-light sensor sees them, edges, keypoints."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distbranch.data.sources.rendered_rooms.filters import blur, differentiate
from distbranch.data.sources.rendered_rooms.raycast import Hits, pixel_slopes
from distbranch.data.sources.rendered_rooms.scene import FOCAL_LENGTH, Floats, Scene, Texture

UNLABELLED = 255
FRAME = 2  # pixels at the border of the picture that nobody labelled
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
EDGE_SCALE = 6
KEYPOINT_SCALE = 18

# The sensor. Lengths in pixels are those of a picture of 128 columns.
BASELINE = 0.075  # metres between projector and camera
SHADOW_REACH = 5  # pixels
BLOCK = 8  # pixels; screens swallow the pattern block by block
GRAZING = 0.06  # least cosine between normal and line of sight
NEAREST = 0.5  # metres
USUAL_WIDTH = 128


@dataclass(frozen=True)
class Geometry:
    """Depth in metres along the optical axis, unit normals (right, up, towards the camera), and where there are any."""

    depth: Floats  # [H, W]
    normals: Floats  # [H, W, 3]
    valid: NDArray[np.bool_]  # [H, W]


def label_classes(scene: Scene, hits: Hits) -> NDArray[np.uint8]:
    """Classes [H, W]; 255 in the frame and on the line where the class changes."""
    classes = scene.class_index[hits.primitive].reshape(hits.size).astype(np.uint8)
    line = np.zeros(hits.size, dtype=bool)
    line[:, :-1] |= classes[:, 1:] != classes[:, :-1]
    line[:-1] |= classes[1:] != classes[:-1]
    line |= find_frame(hits.size)
    return np.where(line, np.uint8(UNLABELLED), classes)


def label_geometry(scene: Scene, hits: Hits, rng: np.random.Generator) -> Geometry:
    """Depth and normals of the room, where a structured-light sensor would measure them."""
    depth = hits.depth.reshape(hits.size)
    right, up, forward = scene.camera.axes
    normals = np.stack([right, up, -forward]) @ hits.normal
    u, v = pixel_slopes(hits.size)
    length = np.sqrt(1 + u * u + v[:, None] ** 2)
    way = (hits.point - scene.camera.position[:, None]) / hits.depth
    cosine = -(hits.normal * way).sum(axis=0).reshape(hits.size) / length

    texture = scene.texture[hits.primitive].reshape(hits.size)
    lost = (texture == Texture.WINDOW) | (cosine < GRAZING) | (depth < NEAREST)
    lost |= _find_shadow(depth) | find_frame(hits.size)
    lost |= (texture == Texture.SCREEN) & _draw_blocks(hits.size, rng)
    return Geometry(depth, np.moveaxis(normals.reshape(3, *hits.size), 0, -1), ~lost)


def measure_slopes(picture: Floats) -> tuple[Floats, Floats]:
    """How fast the lightness of a blurred picture [3, H, W] changes to the right and downward."""
    return differentiate(blur(np.tensordot(LUMINANCE, picture, axes=1)))


def measure_edges(slopes: tuple[Floats, Floats]) -> Floats:
    """How steep the blurred picture is, 0..1: [H, W]."""
    across, down = slopes
    strength: Floats = np.clip(EDGE_SCALE * np.sqrt(across * across + down * down), 0, 1)
    return strength


def measure_keypoints(slopes: tuple[Floats, Floats]) -> Floats:
    """How much of a corner a pixel is (Shi and Tomasi 1994), 0..1: [H, W]."""
    across, down = slopes
    xx, xy, yy = blur(blur(np.stack([across * across, across * down, down * down])))
    smaller = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    strength: Floats = np.clip(KEYPOINT_SCALE * np.sqrt(np.maximum(smaller, 0)), 0, 1)
    return strength


def find_frame(size: tuple[int, int]) -> NDArray[np.bool_]:
    """The border of a picture that nobody labelled [H, W]."""
    frame = np.ones(size, dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    return frame


def _find_shadow(depth: Floats) -> NDArray[np.bool_]:
    """Where a nearer surface hides the projected pattern: beside it, as far as disparities differ."""
    width = depth.shape[1]
    disparity = FOCAL_LENGTH * width * BASELINE / depth
    hidden = np.zeros(depth.shape, dtype=bool)
    for k in range(1, round(SHADOW_REACH * width / USUAL_WIDTH) + 1):
        hidden[:, :-k] |= disparity[:, k:] - disparity[:, :-k] >= k
    return hidden


def _draw_blocks(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Half of the blocks of a picture."""
    height, width = size
    side = max(1, round(BLOCK * width / USUAL_WIDTH))
    blocks = rng.random((height // side + 1, width // side + 1)) < 0.5
    return blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
