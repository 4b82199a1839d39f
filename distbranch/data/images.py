"""Images as bytes: what goes into a shard is a JPEG that every decoder reads without complaint."""

import io

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
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            return image.convert("RGB")
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
