"""The memory that packing and loading take, whatever the size of the data set: `python tests/benchmarks/bench_memory.py --help`."""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer
from command_line import create_work_folder, run_as_command
from PIL import Image

from distbranch.cli.terminal import show_rows
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


def bench_memory(
    num_samples: int = 1_000_000, *, folder: Path, batch_size: int = 256
) -> MemoryCost:
    """Pack `num_samples` tiny images into `folder` and read one epoch of them, in this process."""
    tasks = (Task("even"), Task("third"))
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (120, 60, 30)).save(buffer, "JPEG")
    image = buffer.getvalue()
    samples = (
        Sample(
            f"{number:09d}", "train", image, {"even": 1 - number % 2, "third": int(number % 3 == 0)}
        )
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


def main(
    samples: Annotated[int, typer.Option(help="Tiny generated samples.", min=1)] = 1_000_000,
    folder: Annotated[
        Path | None, typer.Option(help="Where they are packed; a temporary folder if empty.")
    ] = None,
) -> None:
    """Pack generated samples, read them once, and print the peak memory of the process."""
    with create_work_folder(folder) as place:
        show_rows([asdict(bench_memory(samples, folder=place / "packed"))])


if __name__ == "__main__":
    run_as_command(main)
