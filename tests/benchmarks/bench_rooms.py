"""What drawing rooms costs: images per second of one core, by what is drawn, with all labels and encoded for a shard.

`python tests/benchmarks/bench_rooms.py --help`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from command_line import run_as_command
from threadpoolctl import threadpool_limits

from distbranch.cli.terminal import parse_size, show_rows
from distbranch.data.sources.rendered_rooms import NUISANCES, TASKS, render_samples
from distbranch.data.sources.rendered_rooms.drawing import draw_room
from distbranch.data.sources.rendered_rooms.raycast import cast_rays
from distbranch.data.sources.rendered_rooms.room import draw_scene
from distbranch.data.sources.rendered_rooms.scene import make_generator

LABELS = tuple(name for name in TASKS if name != "noise")


@dataclass(frozen=True)
class DrawingSpeed:
    """`images_per_s`: per second of processor time, so that other work on the machine hardly counts; `ms`: of one image."""

    what: str
    images_per_s: float
    ms: float


def bench_rooms(
    num_images: int = 200, image_size: tuple[int, int] = (96, 128)
) -> list[DrawingSpeed]:
    """One row for a furnished scene, for casting its rays, for the picture with its labels, and for a sample of a shard."""

    def draw_scenes() -> None:
        for index in range(num_images):
            draw_scene(make_generator(0, "train", index))

    def cast_scenes() -> None:
        for index in range(num_images):
            cast_rays(draw_scene(make_generator(0, "train", index)), image_size)

    def draw_labels() -> None:
        for index in range(num_images):
            nuisance = (None, *NUISANCES)[index % 4]
            draw_room(0, "train", index, size=image_size, nuisance=nuisance)

    def encode_samples() -> None:
        numbers = {"train": num_images}
        shares = {"train": 0.6}
        samples = render_samples(
            numbers, image_size=image_size, seed=0, shares=shares, tasks=LABELS
        )
        for _ in samples:
            pass

    steps: dict[str, Callable[[], None]] = {
        "scene": draw_scenes,
        "scene, rays": cast_scenes,
        "scene, rays, light, labels": draw_labels,
        "the same, encoded": encode_samples,
    }
    with threadpool_limits(1):
        return [_measure(what, step, num_images) for what, step in steps.items()]


def _measure(what: str, step: Callable[[], None], num_images: int) -> DrawingSpeed:
    began = time.process_time()
    step()
    seconds = time.process_time() - began
    return DrawingSpeed(what, num_images / seconds, 1000 * seconds / num_images)


def main(
    images: Annotated[int, typer.Option(help="Rooms per row.", min=1)] = 200,
    image_size: Annotated[str, typer.Option(help="HxW in pixels.")] = "96x128",
) -> None:
    """How many rendered rooms one core draws in a second."""
    rows = bench_rooms(images, parse_size(image_size))
    show_rows([asdict(row) for row in rows])


if __name__ == "__main__":
    run_as_command(main)
