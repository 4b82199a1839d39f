"""From the bytes of a JPEG to the pixels a network sees: decoded, upright, resized, and (in training) mirrored and shifted.

Cameras store a picture as the sensor lay and note in the EXIF header how to turn it; decoders of JPEG leave that to us.
Whether an image is mirrored or shifted is read off a hash of (seed, epoch, shard, sample), so that it depends on neither
the number of ranks nor which process decodes it.
"""

import re
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

ORIENTATION = 0x0112  # the EXIF tag
APP1, START_OF_SCAN, FILL = 0xE1, 0xDA, 0xFF  # markers of a JPEG
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
BYTE_ORDERS = {b"II": "<", b"MM": ">"}
NUMBERS = {3: "H", 4: "I"}  # types of EXIF, for `struct`

# What turns the rows and columns that are stored upright, by the value of the tag; 1 and anything else: as they are.
TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


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
    """Decodes a JPEG and resizes it, upright, to (height, width) pixels: uint8 [H, W, 3]. ValueError when it is broken.

    Large images are scaled while decoding (by the DCT, to no less than image_size), which is several times faster.
    """
    height, width = image_size
    orientation = jpeg_orientation(content)
    stored = stored_size(image_size, orientation)
    pixels = upright(DECODERS[decoder](content, *stored), orientation)
    if pixels.shape[:2] == image_size:
        return pixels
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(resized)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """The picture [H, W, 3] as it is meant to be seen; a view."""
    turn = TURNS.get(orientation)
    return pixels if turn is None else turn(pixels)


def stored_size(image_size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored of a picture that has `image_size` upright, and the other way round."""
    height, width = image_size
    return (width, height) if orientation >= 5 else (height, width)


def jpeg_orientation(content: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 (it is upright) to 8, as Pillow's `exif_transpose` understands it.

    Only the few bytes that lead from segment to segment are read: to open every image for it with Pillow would cost as much
    as to decode a small one.
    """
    exif, xmp = b"", b""
    at = 2
    while at + 4 <= len(content) and content[at] == FILL and content[at + 1] != START_OF_SCAN:
        if content[at + 1] == FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if content[at + 1] == APP1 and content.startswith(EXIF, at + 4):
            exif = exif or content[at + 4 : end]
        elif content[at + 1] == APP1 and content.startswith(XMP, at + 4):
            xmp = content[at + 4 : end]
        at = end
    orientation = _exif_tag(exif)
    if orientation is None:
        found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)
        orientation = int(found[1]) if found else 1
    return orientation if orientation in TURNS else 1


def _exif_tag(exif: bytes) -> int | None:
    """The orientation among the first entries of an EXIF segment; Pillow warns of every one that is damaged."""
    tiff = exif[len(EXIF) :]
    order = BYTE_ORDERS.get(tiff[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (num_entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(num_entries):
            at = start + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, at)
            if tag == ORIENTATION and count == 1 and kind in NUMBERS:
                return int(struct.unpack_from(order + NUMBERS[kind], tiff, at + 8)[0])
    except struct.error:  # it ends before what it announces
        pass
    return None


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
