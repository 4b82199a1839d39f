"""Images as bytes: what goes into a shard is a JPEG that every decoder reads without complaint."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from distbranch.data.decode import decode as decode_to_size

JPEG_QUALITY = 95
JPEG_START = b"\xff\xd8"


class BrokenImageError(ValueError):
    """The bytes are no image, or only a part of one; the message says what is wrong with them."""


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels, read from the header only."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, ValueError) as error:
        raise BrokenImageError(_reason(error)) from None


def decode(data: bytes) -> Image.Image:
    """The whole image as RGB, transparent parts white. Raises BrokenImageError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _as_rgb(image)
    except BrokenImageError:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # SyntaxError: PIL on a broken PNG
        raise BrokenImageError(_reason(error)) from None


def as_jpeg(data: bytes, size: tuple[int, int] | None = None) -> bytes:
    """The image as JPEG: byte for byte where it is a sound one and keeps its size, else encoded at quality 95.

    `size`: (height, width) in pixels; it is resized to them as a loader and a prediction do. Raises BrokenImageError.
    """
    jpeg = data if _is_sound_jpeg(data) else _encoded(decode(data))
    if size is None or simplejpeg.decode_jpeg_header(jpeg)[:2] == size:
        return jpeg
    return _encoded(Image.fromarray(decode_to_size(jpeg, size)))


def _as_rgb(image: Image.Image) -> Image.Image:
    """Pillow itself would clip values above 255 to white without a word."""
    if image.mode in ("I", "F"):
        raise BrokenImageError("it has pixels of another type than 8 or 16 bits; save it with 8 bits per channel")
    if image.mode.startswith("I;16"):
        return _from_16_bits(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    scaled = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    scaled[grey == image.info.get("transparency", -1)] = 255
    return Image.fromarray(scaled)


def _encoded(image: Image.Image) -> bytes:
    """With as many pixels of colour as of brightness: a network sees both in one size."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
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
