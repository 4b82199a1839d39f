"""The memory that packing and loading take, whatever the size of the data set."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from distbranch.data.loader import train_loader
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.tasks import Task


@dataclass(frozen=True)
class MemoryCost:
    """What packing and reading once through a generated data set took; `peak_mib` is the resident memory of the process."""

    num_samples: int
    pack_s: float
    load_s: float
    peak_mib: float


def bench_memory(num_samples: int = 1_000_000, *, folder: Path, batch_size: int = 256) -> MemoryCost:
    """Pack `num_samples` tiny images into `folder` and read one epoch of them, in this process."""
    tasks = (Task("even"), Task("third"))
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (120, 60, 30)).save(buffer, "JPEG")
    image = buffer.getvalue()
    samples = (
        Sample(f"{number:09d}", "train", image, {"even": 1 - number % 2, "third": int(number % 3 == 0)})
        for number in range(num_samples)
    )
    began = time.perf_counter()
    info = pack(samples, folder, tasks, source={"generated": num_samples}, shard_samples=10_000)
    packed = time.perf_counter()
    seen = 0
    for batch in train_loader(info, "train", batch_size=batch_size, image_size=(8, 8)):
        seen += len(batch.images)
        if seen >= num_samples:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return MemoryCost(num_samples, packed - began, time.perf_counter() - packed, peak)
