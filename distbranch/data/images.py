"""Images as bytes: what goes into a shard is a JPEG that every decoder reads, and what comes out are upright pixels.

Cameras store a picture as the sensor lay and note in the EXIF header how to turn it; decoders of JPEG leave that to us.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

Pixels = NDArray[np.uint8]  # [H, W, 3]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
DECODERS = ("simplejpeg", "pil")
JPEG_QUALITY = 95  # the highest that Pillow advises: above it files grow with hardly any gain
JPEG_START = b"\xff\xd8"
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")  # modes of Pillow
PHOTOMETRIC = 262  # the tag of a TIFF; 0: white is zero
# What Pillow's decoders raise for broken files (SyntaxError: a PNG).
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, KeyError, IndexError, TypeError,
          AttributeError, OverflowError, MemoryError, Image.DecompressionBombError)  # fmt: skip

ORIENTATION = 0x0112  # the EXIF tag
EXIF = b"Exif\0\0"
# An entry of EXIF: tag, type (3: two bytes, 4: four), count, value; the first byte counts most (MM) or least (II).
EXIF_ORIENTATION = re.compile(
    rb"\x01\x12\0\x03\0\0\0\x01\0([\1-\x08])|\x01\x12\0\x04\0\0\0\x01\0\0\0([\1-\x08])|\x12\x01[\3\4]\0\x01\0\0\0([\1-\x08])\0"
)
XMP_ORIENTATION = b"tiff:Orientation"

# What brings an image upright, by the value of the tag: whether its rows and its columns are read backwards, and whether the
# rows are columns afterwards. All other values: as it is.
TURNS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


class BrokenImageError(ValueError):
    """The bytes are no image, or only a part of one; the message says what is wrong with them."""


class UnknownRangeError(BrokenImageError):
    """A sound image whose brightness cannot be told without the number of bits it uses; no image to leave out."""


def decode_to_size(
    content: bytes, image_size: tuple[int, int], decoder: str = "simplejpeg"
) -> Pixels:
    """Decodes an image and resizes it, upright, to (height, width) pixels: uint8 [H, W, 3]. ValueError when it is broken.

    Large JPEGs are scaled while decoding (by the DCT, to no less than image_size), which is several times faster. What is none,
    and a JPEG of which the decoder complains, is decoded as packing does.
    """
    pixels = _decode_jpeg(content, image_size, decoder)
    if pixels is None:
        pixels = np.asarray(decode_image(content))
    if pixels.shape[:2] == image_size:
        return pixels
    height, width = image_size
    # reducing_gap: shrink by whole numbers first where that costs no quality, as the DCT does.
    resized = Image.fromarray(pixels).resize(
        (width, height), Image.Resampling.BILINEAR, reducing_gap=2.0
    )
    return np.asarray(resized)


def decode_image(data: bytes, bits: int | None = None) -> Image.Image:
    """The whole image as RGB, upright, transparent parts white; of several frames or pages the first.

    `bits`: how many of the 16 bits of a deep image are used, see `_convert_16_bits`. Raises BrokenImageError.
    """
    try:
        with _open_silently(data) as image:
            # How the file stores its pixels, which `load` forgets.
            layouts = str([tile.args for tile in image.tile])
            is_deep_colour = image.mode not in DEEP_GREY and ";16" in layouts

            # RGB first: the orientation of a TIFF is known when it is loaded.
            image.load()
            rgb = _convert_to_rgb(image, bits)
            orientation = 1
            if data.startswith(JPEG_START):
                orientation = read_orientation(data)
            else:  # of a TIFF Pillow has none left, for it has turned that by itself
                with suppress(*BROKEN):
                    orientation = int(image.getexif().get(ORIENTATION, 1))
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError("it is not an image") from None
    except BROKEN as error:
        raise BrokenImageError(f"it is a damaged image ({error})") from None
    if is_deep_colour:
        _check_deep_colour(rgb, bits)
    pixels = np.asarray(rgb)
    return Image.fromarray(turn_upright(pixels, orientation))


def convert_to_jpeg(
    data: bytes, size: tuple[int, int] | None = None, bits: int | None = None
) -> bytes:
    """The image as an upright JPEG: byte for byte where it is a sound one and keeps its size, else encoded at quality 95.

    `size`: (height, width) in pixels; it is resized to them as a loader and a prediction do. `bits`: see `decode_image`.
    Raises BrokenImageError.
    """
    jpeg = data
    if not _is_sound_jpeg(data) or read_orientation(data) != 1:
        jpeg = _encode_jpeg(decode_image(data, bits))
    if size is None or read_image_size(jpeg) == size:
        return jpeg
    pixels = decode_to_size(jpeg, size)
    return _encode_jpeg(Image.fromarray(pixels))


def read_image_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of a JPEG as it is seen, read from the header only. Raises BrokenImageError."""
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError as error:
        raise BrokenImageError(f"it is not an image in JPEG ({error})") from None
    return swap_if_sideways((height, width), read_orientation(data))


def measure_image(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of an image that `decode_to_size` reads, as it is seen, from its header. Raises BrokenImageError."""
    if data.startswith(JPEG_START):
        with suppress(BrokenImageError):
            return read_image_size(data)
    with _open_header(data) as image:
        orientation = int(image.getexif().get(ORIENTATION, 1))
        size = (image.height, image.width)
        is_deep = image.mode in (*DEEP_GREY, "I", "F") or ";16" in str(image.tile)
    if is_deep:
        raise BrokenImageError("it has more than 8 bits per channel, which only packing can scale")
    return swap_if_sideways(size, orientation)


def check_header(data: bytes) -> None:
    """Raises BrokenImageError if no image begins so; one that is damaged behind its beginning is not found."""
    with _open_header(data):
        pass


@contextmanager
def _open_header(data: bytes) -> Iterator[ImageFile.ImageFile]:
    try:
        with _open_silently(data) as image:
            yield image
    except UnidentifiedImageError:
        raise BrokenImageError("it is not an image") from None
    except BROKEN as error:
        raise BrokenImageError(f"it is a damaged image ({error})") from None


def count_frames(data: bytes) -> int:
    """How many pictures a file holds (animations, pages); a phone's second view of the same picture (MPO) counts not."""
    try:
        with _open_silently(data) as image:
            if image.format == "MPO":
                return 1
            return int(getattr(image, "n_frames", 1))
    except BROKEN:  # whoever decodes it says so
        return 1


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """The picture [H, W, 3] as it is meant to be seen; a view."""
    if orientation not in TURNS:
        return pixels
    flip_rows, flip_columns, swap = TURNS[orientation]
    if flip_rows:
        pixels = pixels[::-1]
    if flip_columns:
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if swap else pixels


def swap_if_sideways(image_size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored of a picture that has `image_size` upright, and the other way round."""
    height, width = image_size
    return (width, height) if orientation >= 5 else (height, width)


def read_orientation(content: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 (it is upright) to 8, as Pillow's `exif_transpose` understands it.

    Its bytes are searched for, since to open every image with Pillow for it would cost as much as to decode a small one.
    """
    at = content.find(EXIF)
    if at >= 0:
        exif = content[at + len(EXIF) : at + 2**16]  # no segment is longer
        order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
        # The entries of the picture itself: a thumbnail and the notes of the maker have others, further on.
        first = int.from_bytes(exif[4:8], order) + 2
        num_entries = int.from_bytes(exif[first - 2 : first], order)
        found = EXIF_ORIENTATION.search(exif, first, first + 12 * num_entries)
        if found is not None:
            return found[found.lastindex or 0][0]
    # The XMP counts only where EXIF has none, as in Pillow. A search for the plain word is ten times faster than that of a pattern.
    if XMP_ORIENTATION in content:
        found = re.search(XMP_ORIENTATION + rb'(?:="|>)([1-8])', content)
        if found is not None:
            return int(found[1])
    return 1


@contextmanager
def _open_silently(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """The image, without Pillow's warnings: raw lines for people, about what is told here or does not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            yield image


def _convert_to_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    """Pillow itself would clip values above 255 to white without a word."""
    if image.mode in ("I", "F"):
        raise BrokenImageError(
            "it has pixels of another type than 8 or 16 bits; save it with 8 bits per channel"
        )
    if image.mode in DEEP_GREY:
        return _convert_16_bits(image, bits).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _convert_16_bits(image: Image.Image, bits: int | None) -> Image.Image:
    """Grey of 16 bits as 8 bits: 0 is black, 2^bits - 1 is white.

    Detectors of 10, 12 or 14 bits are stored in 16, and nothing in the file says so: scaled as 16 bits a radiograph is
    black. So the bits have to be given, unless the brightest pixel shows that all 16 are used.
    """
    # Check that the bits are known and enough.
    grey = np.asarray(image).astype(np.uint32)
    is_transparent = grey == image.info.get("transparency", -1)
    brightest = int(grey.max(initial=0, where=~is_transparent))
    used = brightest.bit_length()
    if bits is not None and used > bits:
        raise UnknownRangeError(
            f"its brightest pixel ({brightest}) needs {used} bits, and --bits says {bits}"
        )
    if bits is None and 0 < used < 16:
        raise UnknownRangeError(
            f"it has 16 bits per pixel, of which its brightest one ({brightest}) uses {used}: say with --bits how many "
            f"all such images use ({max(used, 9)} for instance, or 16 where a dark picture is meant to be dark)"
        )

    # Scale, rounded to the nearest.
    white = 2 ** (bits or 16) - 1
    # A TIFF may count from white to black, which Pillow heeds with 8 bits only.
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        grey = white - np.minimum(grey, white)
    scaled = (grey * 255 + white // 2) // white
    scaled[is_transparent] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def _check_deep_colour(rgb: Image.Image, bits: int | None) -> None:
    """Of 16 bits per colour Pillow keeps the upper 8, so nothing can be scaled any more."""
    # A picture without a pixel above 127 of 255 leaves the highest bit unused, so it may have fewer than 16.
    may_use_fewer = int(np.asarray(rgb).max()) < 128
    if bits not in (None, 16) or (bits is None and may_use_fewer):
        raise UnknownRangeError(
            "it has 16 bits per colour, and only images that use all of them can be read (--bits 16 says that they do); "
            "save it with 8 bits per colour"
        )


def _encode_jpeg(image: Image.Image) -> bytes:
    """With as many pixels of colour as of brightness: a network sees both in one size."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    except OSError:
        size = f"{image.height}x{image.width}"
        raise BrokenImageError(
            f"it has {size} pixels, and a JPEG holds no side of more than 65,500"
        ) from None
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


def _decode_jpeg(content: bytes, image_size: tuple[int, int], decoder: str) -> Pixels | None:
    """Upright, of no less than image_size where the picture has as much; None: it is no JPEG, or none that the decoder reads."""
    if not content.startswith(JPEG_START):
        return None
    orientation = read_orientation(content)
    height, width = swap_if_sideways(image_size, orientation)
    try:
        if decoder == "pil":
            stored = _decode_by_pil(content, height, width)
        else:
            stored = simplejpeg.decode_jpeg(content, "RGB", min_height=height, min_width=width)
    except BROKEN:
        return None
    return turn_upright(stored, orientation)


def _decode_by_pil(content: bytes, height: int, width: int) -> Pixels:
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (width, height))
        return np.asarray(image.convert("RGB"))
