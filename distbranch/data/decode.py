"""From the bytes of a JPEG to the pixels a network sees: decoded, resized, and (in training) mirrored and shifted.

Whether an image is mirrored or shifted is read off a hash of (seed, epoch, shard, sample), so that it depends on neither
the number of ranks nor which process decodes it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True)
class Augmentation:
    """Mirror half of the images left to right; move each by up to `shift` pixels, repeating its edge pixels."""

    flip: bool = False
    shift: int = 0

    def __call__(self, image: Pixels, seed: int, epoch: int, shard: int, sample: int) -> Pixels:
        """The image [H, W, 3] as this epoch shows it."""
        if not self.flip and not self.shift:
            return image
        bits = blake2b(struct.pack("<4q", seed, epoch, shard, sample), digest_size=12).digest()
        mirror, down, right = struct.unpack("<3I", bits)
        if self.flip and mirror % 2:
            image = image[:, ::-1]
        if self.shift:
            span = 2 * self.shift + 1
            image = moved(image, down % span - self.shift, right % span - self.shift)
        return image


def moved(image: Pixels, down: int, right: int) -> Pixels:
    """The image [H, W, 3] moved by so many pixels; what comes into view repeats the edge."""
    rows = np.arange(image.shape[0]) - down
    columns = np.arange(image.shape[1]) - right
    return image.take(rows, axis=0, mode="clip").take(columns, axis=1, mode="clip")


def decode(content: bytes, image_size: tuple[int, int], decoder: str = "simplejpeg") -> Pixels:
    """Decodes a JPEG and resizes it to (height, width) pixels: uint8 [H, W, 3]. ValueError when it is broken.

    Large images are scaled while decoding (by the DCT, to no less than image_size), which is several times faster.
    """
    height, width = image_size
    pixels = DECODERS[decoder](content, height, width)
    if pixels.shape[:2] == image_size:
        return pixels
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(resized)


def _with_simplejpeg(content: bytes, height: int, width: int) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB", min_height=height, min_width=width)
    return pixels


def _with_pil(content: bytes, height: int, width: int) -> Pixels:
    try:
        with Image.open(BytesIO(content)) as image:
            image.draft("RGB", (width, height))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for broken files
        raise ValueError(str(error)) from None


DECODERS: dict[str, Callable[[bytes, int, int], Pixels]] = {"simplejpeg": _with_simplejpeg, "pil": _with_pil}
