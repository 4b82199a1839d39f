"""Images as bytes: what goes into a shard is a JPEG that every decoder reads without complaint."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from distbranch.data.decode import ORIENTATION, jpeg_orientation, stored_size, upright
from distbranch.data.decode import decode as decode_to_size

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
JPEG_QUALITY = 95
JPEG_START = b"\xff\xd8"
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")  # modes of Pillow
PHOTOMETRIC = 262  # the tag of a TIFF; 0: white is zero
# What Pillow's decoders raise for broken files (SyntaxError: a PNG).
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, KeyError, IndexError, TypeError,
          AttributeError, OverflowError, MemoryError, Image.DecompressionBombError)  # fmt: skip


class BrokenImageError(ValueError):
    """The bytes are no image, or only a part of one; the message says what is wrong with them."""


class UnknownRangeError(BrokenImageError):
    """A sound image whose brightness cannot be told without the number of bits it uses; no image to leave out."""


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of a JPEG as it is seen, read from the header only."""
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError as error:
        raise BrokenImageError(f"it is not an image in JPEG ({error})") from None
    return stored_size((height, width), jpeg_orientation(data))


def decode(data: bytes, bits: int | None = None) -> Image.Image:
    """The whole image as RGB, upright, transparent parts white; of several frames or pages the first.

    `bits`: how many of the 16 bits of a deep image are used, see `_from_16_bits`. Raises BrokenImageError.
    """
    try:
        with _opened(data) as image:
            deep_colour = image.mode not in DEEP_GREY and any(";16" in str(tile.args) for tile in image.tile)
            image.load()
            rgb = _as_rgb(image, bits)
            orientation = jpeg_orientation(data) if data.startswith(JPEG_START) else _orientation(image)
    except BrokenImageError:
        raise
    except BROKEN as error:
        raise BrokenImageError(_reason(error)) from None
    if deep_colour:
        _check_deep_colour(rgb, bits)
    return Image.fromarray(upright(np.asarray(rgb), orientation))


def as_jpeg(data: bytes, size: tuple[int, int] | None = None, bits: int | None = None) -> bytes:
    """The image as an upright JPEG: byte for byte where it is a sound one and keeps its size, else encoded at quality 95.

    `size`: (height, width) in pixels; it is resized to them as a loader and a prediction do. `bits`: see `decode`.
    Raises BrokenImageError.
    """
    as_it_is = _is_sound_jpeg(data) and jpeg_orientation(data) == 1
    jpeg = data if as_it_is else _encoded(decode(data, bits))
    if size is None or image_size(jpeg) == size:
        return jpeg
    return _encoded(Image.fromarray(decode_to_size(jpeg, size)))


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """The image, without Pillow's warnings: raw lines for people, about what is told here or does not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            yield image


def num_frames(data: bytes) -> int:
    """How many pictures a file holds (animations, pages); a phone's second view of the same picture (MPO) counts not."""
    try:
        with _opened(data) as image:
            return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except BROKEN:
        return 1


def _as_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    """Pillow itself would clip values above 255 to white without a word."""
    if image.mode in ("I", "F"):
        raise BrokenImageError("it has pixels of another type than 8 or 16 bits; save it with 8 bits per channel")
    if image.mode in DEEP_GREY:
        return _from_16_bits(image, bits).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, bits: int | None) -> Image.Image:
    """Grey of 16 bits as 8 bits: 0 is black, 2^bits - 1 is white.

    Detectors of 10, 12 or 14 bits are stored in 16, and nothing in the file says so: scaled as 16 bits a radiograph is
    black. So the bits have to be given, unless the brightest pixel shows that all 16 are used.
    """
    grey = np.asarray(image).astype(np.uint32)
    transparent = grey == image.info.get("transparency", -1)
    brightest = int(grey.max(initial=0, where=~transparent))
    used = brightest.bit_length()
    if bits is None and 0 < used < 16:
        raise UnknownRangeError(
            f"it has 16 bits per pixel, of which its brightest one ({brightest}) uses {used}: say with --bits how many "
            f"all such images use ({max(used, 9)} for instance, or 16 where a dark picture is meant to be dark)"
        )
    if bits is not None and used > bits:
        raise UnknownRangeError(f"its brightest pixel ({brightest}) needs {used} bits, and --bits says {bits}")
    white = 2 ** (bits or 16) - 1
    brightness = white - np.minimum(grey, white) if _is_white_zero(image) else grey
    scaled = ((brightness * 255 + white // 2) // white).astype(np.uint8)
    scaled[transparent] = 255
    return Image.fromarray(scaled)


def _is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black, which Pillow heeds with 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(PHOTOMETRIC) == 0


def _check_deep_colour(rgb: Image.Image, bits: int | None) -> None:
    """Of 16 bits per colour Pillow keeps the upper 8, so nothing can be scaled any more."""
    brightest = int(np.asarray(rgb).max())
    if bits not in (None, 16) or (bits is None and brightest < 128):
        raise UnknownRangeError(
            "it has 16 bits per colour, and only images that use all of them can be read (--bits 16 says that they do); "
            "save it with 8 bits per colour"
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a PNG, WebP, ...; Pillow turns a TIFF by itself."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except BROKEN:
        return 1


def _encoded(image: Image.Image) -> bytes:
    """With as many pixels of colour as of brightness: a network sees both in one size."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    except OSError:
        size = f"{image.height}x{image.width}"
        raise BrokenImageError(f"it has {size} pixels, and a JPEG holds no side of more than 65,500") from None
    return buffer.getvalue()


def _is_sound_jpeg(data: bytes) -> bool:
    """Whether a strict decoder reads it to the end (at the smallest scale: all bytes are read, few pixels are made)."""
    if not data.startswith(JPEG_START):
        return False
    try:
        simplejpeg.decode_jpeg(data, "RGB", min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    return f"it is a damaged image ({error})"
