"""Tiny packed data sets with maps: of every pixel the labels follow from the colour of the picture, a grid of squares."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbranch.data.images import _encode_jpeg
from distbranch.data.label_maps import encode_map
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample
from distbranch.kinds.depth import encode_depth
from distbranch.kinds.heat import encode_heat
from distbranch.kinds.normals import encode_normals
from distbranch.tasks import Task

SQUARE = 8  # as JPEG has its blocks, so that colours stay what they are
HEIGHT, WIDTH = 48, 64
BRIGHT = Task("bright")
SEG = Task("seg", "segmentation", ("dark", "light", "never"))
DEPTH = Task("depth", "depth")
DISPARITY = Task("disparity", "depth", scale=1000.0, quantity="disparity")
NORMALS = Task("normals", "normals")
EDGES = Task("edges", "heat")
TASKS = (SEG, BRIGHT, DEPTH, NORMALS, EDGES)
DENSE = (SEG, DEPTH, NORMALS, EDGES)

Codes = dict[str, NDArray[Any]]


def make_board(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.bool_]:
    """A checkerboard [H, W]."""
    rows, columns = np.indices((height, width)) // SQUARE
    return (rows + columns) % 2 == 1


def draw_picture(board: NDArray[np.bool_]) -> bytes:
    """A JPEG, light where the board is."""
    return _encode_jpeg(
        Image.fromarray(np.where(board[..., None], np.uint8(200), np.uint8(40)).repeat(3, 2))
    )


def make_codes(board: NDArray[np.bool_], number: int = 0) -> Codes:
    """The codes of all dense tasks; the first row has no label."""
    valid = np.ones(board.shape, dtype=bool)
    valid[0] = False
    x = np.where(board, 0.6, -0.8)
    vectors = np.stack([x, np.zeros_like(x), np.sqrt(1 - x**2)], axis=-1)
    seg = np.where(valid, board, 255).astype(np.uint8)
    return {
        "seg": seg,
        "depth": encode_depth(DEPTH, np.where(board, 4.0, 2.0) + number, valid),
        "normals": encode_normals(vectors, valid),
        "edges": encode_heat(np.where(board, 1.0, 0.25), valid),
    }


def make_sample(number: int, split: str = "train", lacking: str = "", **changed: Any) -> Sample:
    """Sample `number`; `lacking`: a task without a map; `changed`: codes of another content, by task."""
    board = make_board()
    codes = make_codes(board, number) | changed
    tasks = [task for task in DENSE if task.name != lacking]
    maps = {task.name: encode_map(task, codes[task.name]) for task in tasks}
    return Sample(f"room-{number:03d}", split, draw_picture(board), {"bright": number % 2}, maps)


def pack_rooms(folder: Path, num_samples: int = 7, shard_samples: int = 3) -> DatasetInfo:
    """Samples of which every third has no depth."""

    def samples() -> Iterator[Sample]:
        for number in range(num_samples):
            yield make_sample(number, lacking="depth" if number % 3 == 2 else "")

    return pack(samples(), folder, TASKS, shard_samples=shard_samples)
