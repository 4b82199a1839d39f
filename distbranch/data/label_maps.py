"""Maps of dense tasks as files: PNGs of the codes of their kinds (kinds/dense.py), of 8 or 16 bits."""

from io import BytesIO

import numpy as np
from PIL import Image

from distbranch.kinds.kind import Array
from distbranch.tasks import Task

ZLIB_LEVEL = 6


def encode_map(task: Task, codes: Array) -> bytes:  # noqa: ARG001
    """A PNG of codes: uint8 [H, W] of segmentation and heat, uint8 [H, W, 3] of normals, uint16 [H, W] of depth."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(codes)).save(buffer, "PNG", compress_level=ZLIB_LEVEL)
    return buffer.getvalue()


def decode_map(task: Task, content: bytes) -> Array:  # noqa: ARG001
    """The codes, the inverse of `encode_map`."""
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        return np.asarray(image)
