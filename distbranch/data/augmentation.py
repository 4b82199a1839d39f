"""How a training image is shown: scaled, mirrored, shifted, padded, cut and changed, and the maps of its dense tasks with it.

All choices are read off hashes of (seed, epoch, shard, sample), so that they depend on neither the number of ranks nor which
process decodes the image. Of maps every step only says from which row and column a label comes, so a map is read once.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbranch.data.image_operations import (
    NUM_NUMBERS,
    RECIPES,
    TINTS,
    Operation,
    apply_operations,
    choose_operations,
)
from distbranch.data.images import Pixels
from distbranch.data.label_maps import find_centres, get_dense_kind
from distbranch.kinds.kind import Array
from distbranch.tasks import Task

OF_SCALE_AND_CROP = b"scale and crop"  # they came later, and must not change what the others draw
OF_CROP_AREA = b"crop area"
OF_RECIPE = b"recipe"
OF_JITTER = b"jitter"
OUTSIDE = -1
LARGEST_ASPECT = (
    4 / 3
)  # of a part that is cut out, beside that of the image, as in GoogLeNet's training (Szegedy et al. 2015)

Size = tuple[int, int]  # (height, width) in pixels
Places = NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """What is shown of one image.

    size: to which it is resized.
    window: as large is what is shown of that; it begins at (top, left), which is negative where the picture is padded.
    is_mirrored: left to right.
    down, right: by so many pixels it is moved, repeating its edge.
    zoom: by this factor depth is divided.
    padding: a colour.
    operations: what else is done to the image, one after the other; maps do not follow.
    """

    size: Size
    window: Size
    top: int = 0
    left: int = 0
    is_mirrored: bool = False
    down: int = 0
    right: int = 0
    zoom: float = 1.0
    padding: tuple[int, int, int] = (0, 0, 0)
    operations: tuple[Operation, ...] = ()

    def show_image(self, pixels: Pixels) -> Pixels:
        """The image [H, W, 3] of any size in that of the window."""
        shown = self._show_window(pixels)
        if self.operations:
            shown = apply_operations(shown, self.operations, self.padding)
        return shown

    def _show_window(self, pixels: Pixels) -> Pixels:
        height, width = self.size
        if pixels.shape[:2] != self.size:
            # Pillow takes the mean of what falls into a pixel where it makes an image smaller.
            scaled = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(scaled)
        if self.is_mirrored:
            pixels = pixels[:, ::-1]
        if self.down or self.right:
            pixels = shift_image(pixels, self.down, self.right)
        if self.window == self.size:
            return pixels
        shown = np.empty((*self.window, 3), dtype=np.uint8)
        shown[:] = self.padding
        rows = slice(max(self.top, 0), min(self.top + self.window[0], height))
        columns = slice(max(self.left, 0), min(self.left + self.window[1], width))
        part = pixels[rows, columns]
        first_row, first_column = max(-self.top, 0), max(-self.left, 0)
        shown[first_row : first_row + len(part), first_column : first_column + part.shape[1]] = part
        return shown

    def show_codes(self, task: Task, codes: Array) -> Array:
        """What a batch has of codes [H, W] or [H, W, C] of any size, in that of the window; not labelled where it is padded."""
        kind = get_dense_kind(task)
        rows, columns = _locate_pixels(self, codes.shape[0], codes.shape[1])
        shown = codes.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")
        if rows.min() == OUTSIDE:
            shown[rows == OUTSIDE] = kind.invalid
        if columns.min() == OUTSIDE:
            shown[:, columns == OUTSIDE] = kind.invalid
        values = kind.load_codes(task, shown)
        if self.is_mirrored:
            # Turned back first: the kind mirrors places and directions at once.
            values = kind.mirror_codes(values[:, ::-1])
        if self.zoom != 1:
            values = kind.zoom_values(task, values, self.zoom)
        return values


@dataclass(frozen=True)
class Augmentation:
    """Which views an epoch has of the images.

    flip: mirror half of them left to right.
    shift: move each by up to so many pixels, repeating its edge.
    scale: resize each by a factor between these two.
    crop: show a part of this size; of smaller images all, with `padding` around.
    depth_follows_scale: a scaled image is one of a camera so much nearer.
    crop_area: show a part that is between these two shares of the area, in the size of the whole.
    recipe: one of RECIPES, or none.
    jitter: change brightness, contrast and saturation by factors of up to so much more or less than 1.
    """

    flip: bool = False
    shift: int = 0
    seed: int = 0
    scale: tuple[float, float] | None = None
    crop: Size | None = None
    depth_follows_scale: bool = True
    padding: tuple[int, int, int] = (0, 0, 0)
    crop_area: tuple[float, float] | None = None
    recipe: str = "none"
    jitter: float = 0.0

    def choose_view(self, size: Size, epoch: int, shard: int, sample: int, copy: int = 0) -> View:
        """How this epoch shows an image that has `size` pixels, and came `copy` times before in it."""
        place = struct.pack("<4q", self.seed, epoch, shard, sample)
        if copy:
            place += struct.pack("<q", copy)
        mirror, down, right = _draw(place)
        span = 2 * self.shift + 1  # from -shift to +shift
        scaled, zoom, top, left = size, 1.0, 0, 0
        window = self.crop or size
        if self.scale is not None or self.crop is not None:
            scale, vertical, horizontal = _draw(place, OF_SCALE_AND_CROP)
            least, largest = self.scale or (1.0, 1.0)
            zoom = least + (largest - least) * scale / 2**32
            scaled = (max(1, round(zoom * size[0])), max(1, round(zoom * size[1])))
            top = _choose_first(scaled[0], window[0], vertical)
            left = _choose_first(scaled[1], window[1], horizontal)
        elif self.crop_area is not None:
            area, aspect, vertical, horizontal = _draw(place, OF_CROP_AREA, count=4)
            scaled = _choose_enlarged(size, self.crop_area, area / 2**32, aspect / 2**32)
            top = _choose_first(scaled[0], window[0], vertical)
            left = _choose_first(scaled[1], window[1], horizontal)
        return View(
            size=scaled,
            window=window,
            top=top,
            left=left,
            is_mirrored=self.flip and mirror % 2 == 1,
            down=down % span - self.shift,
            right=right % span - self.shift,
            zoom=zoom if self.depth_follows_scale else 1.0,
            padding=self.padding,
            operations=self._choose_operations(place),
        )

    def _choose_operations(self, place: bytes) -> tuple[Operation, ...]:
        chosen: tuple[Operation, ...] = ()
        if self.recipe in RECIPES:
            numbers = [one / 2**32 for one in _draw(place, OF_RECIPE, count=NUM_NUMBERS)]
            chosen = choose_operations(RECIPES[self.recipe], numbers)
        if self.jitter:
            amounts = [one / 2**31 - 1 for one in _draw(place, OF_JITTER, count=len(TINTS))]
            chosen += tuple(zip(TINTS, (self.jitter * one for one in amounts), strict=True))
        return chosen


def shift_image(image: Pixels, down: int, right: int) -> Pixels:
    """The image [H, W, 3] moved by so many pixels; what comes into view repeats the edge."""
    rows = np.arange(image.shape[0]) - down
    columns = np.arange(image.shape[1]) - right
    return image.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")


@lru_cache(maxsize=2)  # all maps of a sample have one size
def _locate_pixels(view: View, height: int, width: int) -> tuple[Places, Places]:
    """From which rows and columns of a map with so many pixels those of the window come."""
    rows = _locate(height, view.size[0], view.top, view.window[0], view.down)
    columns = _locate(
        width, view.size[1], view.left, view.window[1], view.right, is_mirrored=view.is_mirrored
    )
    return rows, columns


def _locate(
    length: int, scaled: int, first: int, num_shown: int, moved: int, *, is_mirrored: bool = False
) -> Places:
    """Of `num_shown` places from `first` on in a line that was scaled, mirrored and moved: which of its `length` old ones is there."""
    shown = np.arange(first, first + num_shown)
    places = shown - moved
    is_inside = (shown >= 0) & (shown < scaled) & (places >= 0) & (places < scaled)
    if is_mirrored:
        places = scaled - 1 - places
    return np.where(is_inside, find_centres(length, scaled).take(places, mode="clip"), OUTSIDE)


def _draw(place: bytes, purpose: bytes = b"", count: int = 3) -> tuple[int, ...]:
    """So many numbers below 2**32."""
    bits = blake2b(place, digest_size=4 * count, person=purpose).digest()
    return struct.unpack(f"<{count}I", bits)


def _choose_first(length: int, shown: int, drawn: int) -> int:
    """Where a window of `shown` pixels begins in `length`, or, negative, how many come before a picture that is smaller."""
    first = drawn % (abs(length - shown) + 1)
    return first if length >= shown else -first


def _choose_enlarged(size: Size, areas: tuple[float, float], area: float, aspect: float) -> Size:
    """To which size an image is enlarged, so that a window of its own size shows a share of its area between these two.

    area, aspect: two numbers in 0..1; the share is even in the area, the aspect of the part in its logarithm.
    """
    least, largest = areas
    share = least + (largest - least) * area
    # A large part has no room for another aspect than that of the image.
    ratio = min(LARGEST_ASPECT, 1 / share) ** (2 * aspect - 1)
    height = (share / ratio) ** 0.5
    width = (share * ratio) ** 0.5
    return round(size[0] / height), round(size[1] / width)
