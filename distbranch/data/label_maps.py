"""Labels of dense tasks as files: the PNG bytes of their codes, which the kinds of tasks define."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbranch.tasks import Task


def encode_map(task: Task, codes: NDArray[Any]) -> bytes:  # noqa: ARG001
    """The PNG of codes [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(codes).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode_map(task: Task, content: bytes) -> NDArray[Any]:  # noqa: ARG001
    """The codes of a PNG."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)
