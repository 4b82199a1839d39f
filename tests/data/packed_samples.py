"""Tiny packed data sets for tests: the label of the task "number" says which sample it is, and so does its colour."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample
from distbranch.tasks import Task


def picture(number: int, height: int = 32, width: int = 40) -> bytes:
    """A JPEG: a dark left half, and a right half whose shade is the sample's."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] = 55 + number % 200
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


def tiny_dataset(
    folder: Path, num_samples: int = 23, shard_samples: int = 5, splits: str = "train"
) -> DatasetInfo:
    """A data set with tasks "number" (categorical), "even" (binary, unlabelled for multiples of 5), "soft"."""
    tasks = [
        Task("number", "categorical", tuple(str(n) for n in range(num_samples))),
        Task("even"),
        Task("soft"),
    ]

    def samples() -> Iterator[Sample]:
        for number in range(num_samples):
            labels: dict[str, int | float | str] = {
                "number": str(number),
                "soft": number / num_samples,
            }
            if number % 5:
                labels["even"] = 1 - number % 2
            yield Sample(f"photo-{number:04d}", splits, picture(number), labels)

    return pack(samples(), folder, tasks, shard_samples=shard_samples)
