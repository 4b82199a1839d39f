"""What reading costs: images per second of our loader against plain webdataset and Pillow, on the same shards.

`python tests/benchmarks/bench_data.py --help`

They take turns, a pass over the shards each, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from command_line import run_as_command
from PIL import Image
from plain_reading import plain_batches

from distbranch.cli.terminal import parse_counts, parse_size, show_rows
from distbranch.config.paths import is_remote
from distbranch.data.loader import eval_loader
from distbranch.data.pack import pack
from distbranch.data.shards import DatasetInfo, Sample, join, read_dataset
from distbranch.errors import UserError
from distbranch.tasks import Task

OURS, PLAIN = "distbranch", "webdataset + Pillow"
PHOTO_SIZE = (218, 178)  # (height, width) in pixels, CelebA's
JPEG_QUALITY = 90
NUM_TASKS = 40
SLOPE = 1.7  # of the spectrum: files of 10 kB, somewhat larger than those of CelebA


@dataclass(frozen=True)
class ReadingSpeed:
    """Medians over the passes, with the 10th and 90th percentile.

    `per_core`: images per second of processor time (one process), or per process; `faster`: `per_core` relative to plain
    reading with as many processes, pass by pass.
    """

    reader: str
    processes: int
    images_per_s: float
    low: float
    high: float
    per_core: float
    faster: float


def pack_photographs(folder: Path, num_samples: int = 2048) -> DatasetInfo:
    """A packed set of 178x218 JPEGs that are as hard to decode as photographs: coloured noise with their spectrum."""
    draw = np.random.default_rng(0)
    tasks = tuple(Task(f"task {number}") for number in range(NUM_TASKS))

    def samples() -> Iterator[Sample]:
        for number in range(num_samples):
            labels = draw.integers(0, 2, NUM_TASKS).tolist()
            image = _photograph(draw)
            yield Sample(
                f"{number:06d}",
                "train",
                image,
                dict(zip((task.name for task in tasks), labels, strict=True)),
            )

    return pack(samples(), folder, tasks, source={"noise": num_samples}, shard_samples=256)


def _photograph(draw: np.random.Generator) -> bytes:
    height, width = PHOTO_SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(draw.standard_normal((4, height, width))) / frequency**SLOPE
    light, *tints = np.fft.irfft2(spectrum, s=PHOTO_SIZE)
    channels = np.stack([light + 0.3 * tint for tint in tints], axis=-1)
    pixels = (128 + 50 * channels / channels.std()).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def bench_data(
    info: DatasetInfo,
    *,
    split: str = "train",
    image_size: tuple[int, int] = (64, 64),
    batch_size: int = 64,
    processes: Sequence[int] = (0, 2),
    num_passes: int = 7,
    num_samples: int = 2048,
) -> list[ReadingSpeed]:
    """Two rows per number of prefetching processes (0: this process alone), over the first shards of a local data set.

    Args:
        info: a packed data set in a folder.
        split: of it.
        image_size: (height, width) in pixels to which images are resized.
        batch_size: images per batch.
        processes: numbers of prefetching processes.
        num_passes: of either reader.
        num_samples: of whole shards, about so many are read in a pass.

    Raises:
        UserError: no such split, or fewer shards than processes.
    """
    rows: list[ReadingSpeed] = []
    for number in processes:
        part = _first_shards(info, split, num_samples, processes=number)
        rows += _rows(part, split, image_size, batch_size, number, num_passes)
    return rows


def _first_shards(
    info: DatasetInfo, split: str, num_samples: int, *, processes: int
) -> DatasetInfo:
    """So many whole shards that every process of plain webdataset, which divides them, reads equally many."""
    if is_remote(info.path):
        raise UserError(
            f"Reading is measured on a folder of this machine, found {info.path}. Fetch it first."
        )
    if split not in info.splits:
        raise UserError(
            f"{info.path} has no split '{split}'; it has {', '.join(sorted(info.splits))}."
        )
    whole = info.splits[split]
    ends = itertools.accumulate(shard.num_samples for shard in whole.shards)
    count, share = 1 + sum(end < num_samples for end in ends), max(1, processes)
    if len(whole.shards) < share:
        raise UserError(
            f"Plain webdataset gives each process shards of its own: {processes} need at least as many, but the split '{split}' of "
            f"{info.path} has {len(whole.shards)}. Measure with fewer processes."
        )
    shards = whole.shards[: min(-(-count // share), len(whole.shards) // share) * share]
    part = replace(whole, shards=shards, num_samples=sum(shard.num_samples for shard in shards))
    return replace(info, splits={split: part})


def _rows(
    info: DatasetInfo,
    split: str,
    image_size: tuple[int, int],
    batch_size: int,
    processes: int,
    num_passes: int,
) -> list[ReadingSpeed]:
    files = [join(info.path, shard.file) for shard in info.splits[split].shards]

    def ours() -> Iterator[int]:
        batches = eval_loader(
            info, split, batch_size=batch_size, image_size=image_size, num_workers=processes
        )
        return (len(batch.images) for batch in batches)

    def plain() -> Iterator[int]:
        batches = plain_batches(
            files, info.tasks, image_size=image_size, batch_size=batch_size, num_workers=processes
        )
        return (len(images) for images, _ in batches)

    passes: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for number in range(num_passes + 1):
        both = {
            one: _pass(one, processes) for one in ((ours, plain) if number % 2 else (plain, ours))
        }
        passes.append((both[ours], both[plain]))
    measured = np.array(passes[1:])  # [passes, reader, (per second, per core)]
    faster = float(np.median(measured[:, 0, 1] / measured[:, 1, 1]))
    rows = []
    for column, (name, ratio) in enumerate(((OURS, faster), (PLAIN, 1.0))):
        low, median, high = (
            float(value) for value in np.percentile(measured[:, column, 0], (10, 50, 90))
        )
        rows.append(
            ReadingSpeed(
                name, processes, median, low, high, float(np.median(measured[:, column, 1])), ratio
            )
        )
    return rows


def _pass(read: Callable[[], Iterator[int]], processes: int) -> tuple[float, float]:
    """Images per second, and per second of a core, of one pass; processes are started before the clock."""
    batches = read()
    if processes:
        next(batches)  # from then on they are at work
    began, used = time.perf_counter(), time.process_time()
    count = sum(batches)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return count / seconds, count / (seconds * processes if processes else used)


def main(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="A packed data set; none: 178x218 pictures like photographs, packed for this."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "train",
    image_size: Annotated[
        str, typer.Option(help="height x width to which images are resized.")
    ] = "64x64",
    batch_size: Annotated[int, typer.Option(help="Images per batch.", min=1)] = 64,
    processes: Annotated[
        str, typer.Option(help="Prefetching processes, separated by commas; 0: none.")
    ] = "0,2",
    passes: Annotated[int, typer.Option(help="Over the shards, of either reader.", min=1)] = 7,
) -> None:
    """Images per second of the loader against plain webdataset and Pillow, on the same shards, in turns."""
    size = parse_size(image_size)
    counts = parse_counts(processes, "--processes")
    with tempfile.TemporaryDirectory() as folder:
        info = (
            pack_photographs(Path(folder) / "packed") if dataset is None else read_dataset(dataset)
        )
        rows = bench_data(
            info,
            split=split,
            image_size=size,
            batch_size=batch_size,
            processes=counts,
            num_passes=passes,
        )
    show_rows([asdict(row) for row in rows])


if __name__ == "__main__":
    run_as_command(main)
