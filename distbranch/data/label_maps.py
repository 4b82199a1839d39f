"""Maps of dense tasks as files: PNGs of the codes of their kinds (kinds/dense.py), of 8 or 16 bits."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbranch.data.images import BROKEN, read_image_size
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.kinds.dense import DenseKind
from distbranch.kinds.kind import Array
from distbranch.tasks import Task

ZLIB_LEVEL = 3  # a third faster than the default, for a tenth more bytes
# Modes of Pillow. A palette is none of them: whoever reads its colours loses the codes.
MODES = ("L", "RGB", "I;16")


def get_dense_kind(task: Task) -> DenseKind:
    """The kind of a dense task."""
    kind = KINDS[task.kind]
    assert isinstance(kind, DenseKind)
    return kind


def encode_map(task: Task, codes: Array) -> bytes:
    """A PNG of codes: uint8 [H, W] of segmentation and heat, uint8 [H, W, 3] of normals, uint16 [H, W] of depth.

    Raises UserError for codes of another type. A map without a label: `encode_map(task, np.full((48, 64), 255, np.uint8))`.
    """
    _check_type(task, codes, f"the codes of '{task.name}'")
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(codes)).save(buffer, "PNG", compress_level=ZLIB_LEVEL)
    return buffer.getvalue()


def decode_map(task: Task, content: bytes) -> Array:
    """The codes, the inverse of `encode_map`. Raises UserError, a part of a sentence, for what is none of the task's."""
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            mode = image.mode
            codes = np.asarray(image)
    except BROKEN as error:
        raise UserError(f"its map of '{task.name}' cannot be decoded ({error}).") from None
    if mode not in MODES:
        raise UserError(
            f"its map of '{task.name}' should be a PNG without palette and transparency, found the mode {mode}."
        )
    _check_type(task, codes, f"its map of '{task.name}'")
    return codes


def check_codes(task: Task, codes: Array, image: bytes) -> None:
    """Raises UserError, a part of a sentence, for codes that mean nothing, or are not as many as the pixels of the image, a JPEG."""
    size = read_image_size(image)
    if codes.shape[:2] != size:
        found = f"{codes.shape[0]}x{codes.shape[1]}"
        raise UserError(
            f"its map of '{task.name}' should have the {size[0]}x{size[1]} pixels of the image, found {found}."
        )
    get_dense_kind(task).check_codes(task, codes)


def resize_map(task: Task, content: bytes, size: tuple[int, int]) -> bytes:
    """The map in (height, width) pixels; of each the label of the pixel in which its centre lies."""
    return encode_map(task, resize_codes(decode_map(task, content), size))


def resize_codes(codes: Array, size: tuple[int, int]) -> Array:
    """Codes [H, W] or [H, W, C] in (height, width) pixels."""
    if codes.shape[:2] == size:
        return codes
    rows = find_centres(codes.shape[0], size[0])
    columns = find_centres(codes.shape[1], size[1])
    return codes.take(rows, axis=0).take(columns, axis=1)


def find_centres(old: int, new: int) -> NDArray[np.int64]:
    """In which of `old` pixels the centre of each of `new` ones lies: floor((i + 0.5) * old / new)."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def _check_type(task: Task, codes: Array, what: str) -> None:
    kind = get_dense_kind(task)
    channels = (kind.channels,) if kind.channels > 1 else ()
    if codes.dtype != kind.code_type or codes.shape[2:] != channels or codes.ndim < 2:
        shape = ", ".join(["height", "width", *map(str, channels)])
        raise UserError(
            f"{what} should be {np.dtype(kind.code_type)} [{shape}], as those of a {task.kind} task, found {codes.dtype} "
            f"{list(codes.shape)}."
        )
