"""One room as a picture with all its labels, a pure function of (seed, split, index)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distbranch.data.sources.rendered_rooms import labels
from distbranch.data.sources.rendered_rooms.labels import Geometry
from distbranch.data.sources.rendered_rooms.nuisances import (
    disguise_things,
    draw_board,
    pin_photograph,
)
from distbranch.data.sources.rendered_rooms.raycast import cast_rays
from distbranch.data.sources.rendered_rooms.room import draw_scene
from distbranch.data.sources.rendered_rooms.scene import Floats, make_generator
from distbranch.data.sources.rendered_rooms.shading import shade, take_picture


@dataclass(frozen=True)
class Drawing:
    """A picture and its labels, H x W pixels each."""

    picture: NDArray[np.uint8]  # [H, W, 3]
    segmentation: NDArray[np.uint8]  # [H, W]: 0..12, 255 = not labelled
    geometry: Geometry
    edges: Floats  # [H, W] in 0..1
    keypoints: Floats  # [H, W] in 0..1


def draw_room(
    seed: int, split: str, index: int, *, size: tuple[int, int], nuisance: str | None = None
) -> Drawing:
    """Draws one room.

    Args:
        seed: another gives other rooms.
        split: its name.
        index: of the sample in the split.
        size: (height, width) in pixels.
        nuisance: of `NUISANCES`, or None. The room is the same with and without.

    Example:
        >>> draw_room(0, "train", 5, size=(96, 128)).picture.shape
        (96, 128, 3)
    """
    place = (seed, split, index)
    room_rng = make_generator(*place)
    scene = draw_scene(room_rng)
    hits = cast_rays(scene, size)
    # A generator of its own: with or without nuisance the room is the same.
    rng = make_generator(*place, "nuisance")
    seen = scene
    if nuisance == "semantic":
        seen = disguise_things(scene, rng)
    picture = shade(seen, hits, checked=nuisance == "image")
    geometry = labels.label_geometry(scene, hits, room_rng)
    if nuisance == "geometry":
        picture = pin_photograph(picture)
        geometry = draw_board(size, labels.find_frame(size), rng)
    slopes = labels.measure_slopes(picture)
    return Drawing(
        picture=take_picture(picture, room_rng),
        segmentation=labels.label_classes(scene, hits),
        geometry=geometry,
        edges=labels.measure_edges(slopes),
        keypoints=labels.measure_keypoints(slopes),
    )


def draw_noise(seed: int, split: str, index: int, size: tuple[int, int]) -> Floats:
    """Numbers in 0..1 [H, W] that nothing in the picture tells of: a task that cannot be learnt."""
    return make_generator(seed, split, index, "noise").random(size, dtype=np.float32)
