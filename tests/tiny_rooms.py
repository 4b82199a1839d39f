"""A tiny data set with maps and a run on it: of every pixel the labels follow from the colours of a random pattern."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_runs import config_of

from distbranch.data.label_maps import encode_map
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample
from distbranch.kinds.depth import encode_depth
from distbranch.kinds.heat import encode_heat
from distbranch.kinds.normals import encode_normals
from distbranch.tasks import Task

SIZE = (32, 48)
SPLITS = {"train": 24, "val": 7}
TASKS = (
    Task("seg", "segmentation", ("dark", "light", "never")),
    Task("bright"),
    Task("depth", "depth"),
    Task("normals", "normals"),
    Task("edges", "heat"),
)


def pack_tiny_rooms(folder: Path) -> DatasetInfo:
    """31 pictures; one in five lacks depth, one in seven a labelled pixel of the classes, and all a part of their pixels."""
    return pack(draw_samples(), folder, TASKS, shard_samples=8)


def draw_samples() -> Iterator[Sample]:
    """Of the `train` split first."""
    draw = np.random.default_rng(5)
    for split, count in SPLITS.items():
        for number in range(count):
            coarse = draw.random((4, 6))
            light = np.kron(coarse, np.ones((8, 8)))
            pixels = np.stack([light, 1 - light, light**2], axis=-1)
            file = BytesIO()
            Image.fromarray((255 * pixels).astype(np.uint8)).save(file, "JPEG", quality=95)

            valid = draw.random(SIZE) > 0.2 + 0.1 * (number % 4)
            x = 1.6 * light - 0.8
            vectors = np.stack([x, np.zeros_like(x), np.sqrt(1 - x**2)], axis=-1)
            classes = (light > 0.5).astype(np.uint8)
            codes = {
                "seg": np.where(valid & (number % 7 != 3), classes, 255).astype(np.uint8),
                "depth": encode_depth(TASKS[2], 1 + 3 * light, valid),
                "normals": encode_normals(vectors, valid),
                "edges": encode_heat(light, valid),
            }
            maps = {}
            for task in TASKS:
                if task.name in codes and not (task.name == "depth" and number % 5 == 1):
                    maps[task.name] = encode_map(task, codes[task.name])
            labels = {"bright": int(light.mean() > 0.5)}
            yield Sample(f"{split}-{number:02d}", split, file.getvalue(), labels, maps)


def rooms_config(data: Path | str, directory: Path | str, **dotted: Any) -> dict[str, Any]:
    """The configuration of a tiny residual network on it."""
    values = {
        "data.shift": 0,
        "model.backbone": "resnet18",
        "model.width": 4,
        "method": {"name": "fixed"},
        "train.iterations": 6,
        "train.evaluate_every": 3,
    }
    return config_of(data, directory, **(values | dotted))
