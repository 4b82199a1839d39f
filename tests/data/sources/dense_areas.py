"""Pictures of six areas, two above three times, whose brightness says which area a pixel shows.

So every label can be held against its picture, pixel by pixel: one that is mirrored, transposed, shifted or of another sample does
not fit. The last area is labelled in no task.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distbranch.data.images import decode_to_size
from distbranch.data.label_maps import decode_map
from distbranch.data.shards import Sample
from distbranch.data.sources import parse_options
from distbranch.data.sources.source import Source

SIDE = 8  # pixels of an area: a block of a JPEG
HEIGHT, WIDTH = 2 * SIDE, 3 * SIDE
NO_LABEL = 5  # the area

METRES = np.array([0.5, 1.25, 2.0, 3.5, 7.0, 0.0])
# In the axes in which they are stored: x right, y up, z towards the camera. Walls, a floor, slants to all sides.
NORMALS = np.array([[0, 0, 1], [0, 1, 0], [0.6, 0, 0.8], [0, -0.6, 0.8], [-0.8, 0, 0.6], [0, 0, 0]])
NORMAL_CODES = np.array(
    [
        [128, 128, 255],
        [128, 255, 128],
        [204, 128, 230],
        [128, 52, 230],
        [26, 128, 204],
        [0, 0, 0],
    ]
)
METRE_CODES = np.array([500, 1250, 2000, 3500, 7000, 0])


def draw_areas(sample: int) -> NDArray[np.int64]:
    """The area of every pixel [16, 24]; each sample has them in another order."""
    order = (np.arange(6).reshape(2, 3) + sample) % 6
    return np.kron(order, np.ones((SIDE, SIDE), dtype=np.int64))


def draw_picture(sample: int) -> NDArray[np.uint8]:
    """RGB [16, 24, 3]."""
    grey = (20 + 40 * draw_areas(sample)).astype(np.uint8)
    return np.stack([grey, grey, grey], axis=2)


def read_areas(jpeg: bytes, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.int64]:
    """The area that every pixel of a picture shows."""
    grey = decode_to_size(jpeg, size).mean(axis=2)
    return np.rint((grey - 20) / 40).astype(np.int64)


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """A PNG of 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """A .npy file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def encode_colours(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """Vectors as bytes (n + 1) * 127.5, those of length 0 white."""
    colours = np.rint((vectors + 1) * 127.5)
    colours[~vectors.any(axis=2)] = 255
    return colours.astype(np.uint8)


def open_source(source: str, root: Path, **options: Any) -> Source:
    """An opened source of the name."""
    return parse_options({"source": source, "root": root, **options}).open()


def read_samples(source: str, root: Path, **options: Any) -> list[Sample]:
    """All samples of a source."""
    return list(open_source(source, root, **options).samples)


def assert_labels_fit(source: Source, expected: Mapping[str, NDArray[Any]]) -> list[Sample]:
    """Every pixel of every sample carries the code of the area that its picture shows; the samples.

    expected: by task the codes of the six areas.
    """
    samples = list(source.samples)
    assert {task.name for task in source.tasks} == set(expected)
    for sample in samples:
        areas = read_areas(sample.image)
        assert len(np.unique(areas)) == 6
        for task in source.tasks:
            codes = decode_map(task, sample.maps[task.name])
            assert codes.tolist() == np.asarray(expected[task.name])[areas].tolist(), task.name
    return samples


def decode_first(source: Source, task: str) -> NDArray[Any]:
    """The codes of the first sample."""
    sample = next(iter(source.samples))
    kinds = {one.name: one for one in source.tasks}
    return decode_map(kinds[task], sample.maps[task])


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A picture as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
