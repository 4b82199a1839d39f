"""What it costs a training step that its run is watched: metrics.jsonl alone, or all trackers and the gauges of Prometheus too.

`python tests/benchmarks/bench_track.py --help`

Both kinds take turns in one process, so that whatever else the machine does falls on both. A turn has several logged lines, for
trackers send from threads and processes of their own, and what these take from the steps counts.
"""

import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from command_line import create_work_folder, run_as_command
from planted_trees import build_thin_and_tree
from timed_step import make_batch, make_training_step

from distbranch.cli.terminal import parse_size, show_pairs
from distbranch.config import Config, load_config
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks
from distbranch.engine.gauges import describe_slowest
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_log import RunLog
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.launch.drawing import log_decision
from distbranch.models.architecture import Architecture
from distbranch.track import track_run

ALL = ("tensorboard", "wandb", "mlflow")
LINES_PER_TURN = 4


def _open_log(config: Config, iterations: int, stack: ExitStack) -> RunLog:
    """The log of a run as training opens it; its pages are ended with the stack."""
    directory = RunDirectory(config.run_directory)
    directory.path.mkdir(parents=True)
    report, draw = stack.enter_context(track_run(config, lambda _: None, log_decision))
    options: dict[str, Any] = {"after": 0, "iterations": iterations, "track": config.track}
    return RunLog(directory, report=report, draw=draw, **options)


def _make_line(architecture: Architecture, iteration: int, seconds: float) -> dict[str, Any]:
    """What is logged of the steps since the last line."""
    return {
        "iteration": iteration,
        "branches": {spec.name: 1 for spec in architecture.backbone.specs},
        "loss": 1 / iteration,
        "task_loss": {task.name: 1 / iteration for task in architecture.tasks},
        "learning_rate": 0.1,
        "gradient_norm": 1.0,
        "samples_per_second": 1 / seconds,
        "data_wait": 0.01,
        "seconds_alone": describe_slowest([seconds], ["here"]),
    }


def main(
    width: Annotated[int, typer.Option(help="Thinness omega.", min=1)] = 32,
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=4)] = 64,
    image_size: Annotated[str, typer.Option(help="height x width.")] = "64x64",
    log_every: Annotated[int, typer.Option(help="Steps from line to line.", min=1)] = 50,
    blocks: Annotated[int, typer.Option(help="Turns of each kind.", min=1)] = 6,
    folder: Annotated[Path | None, typer.Option(help="For what is written.")] = None,
) -> None:
    """Milliseconds of a training step of 40 tasks on one thread, unwatched and with everything on, and what that adds."""
    os.environ.setdefault("WANDB_MODE", "offline")
    size = parse_size(image_size)
    architecture = next(iter(build_thin_and_tree(width, size, None).values()))
    iterations = blocks * LINES_PER_TURN * log_every
    with create_work_folder(folder) as place, ExitStack() as stack:
        configs = [
            load_config(
                {
                    "data": {"path": "random"},
                    "run": {"name": name, "directory": str(place)},
                    "train": {"batch_size": batch_size, "norm_batch": batch_size},
                    "launch": {"threads": 1, "device": "cpu"},
                    "track": track,
                }
            )
            for name, track in (("alone", ()), ("watched", ALL))
        ]
        torch.set_num_threads(1)
        preprocessing = Preprocessing("simplejpeg", size, configs[0].data.mean, configs[0].data.std)
        net = TrainedNetwork(
            configs[0], Ranks(0, 1, torch.device("cpu")), preprocessing, is_final=True
        )
        net.begin(architecture, configs[0].seed)
        step = make_training_step(net, make_batch(configs[0], architecture))
        logs = [_open_log(config, iterations, stack) for config in configs]

        def take_turn(log: RunLog, block: int) -> float:
            """Milliseconds per step, with what is logged."""
            began = time.perf_counter()
            for line in range(1, LINES_PER_TURN + 1):
                for _ in range(log_every):
                    step()
                seconds = (time.perf_counter() - began) / (line * log_every)
                iteration = (block * LINES_PER_TURN + line) * log_every
                log.write_step(_make_line(architecture, iteration, seconds))
            return 1000 * (time.perf_counter() - began) / (LINES_PER_TURN * log_every)

        for _ in range(10):  # kernels are chosen, memory is first taken
            step()
        turns: list[dict[RunLog, float]] = []
        for block in range(blocks):
            order = logs if block % 2 else logs[::-1]
            turns.append({log: take_turn(log, block) for log in order})
    alone, watched = ([turn[log] for turn in turns] for log in logs)
    added = [100 * (w / a - 1) for a, w in zip(alone, watched, strict=True)]
    show_pairs(
        [
            ("a step alone, ms", f"{statistics.median(alone):.1f}"),
            ("a step that is watched, ms", f"{statistics.median(watched):.1f}"),
            ("more, % (median of the turns)", f"{statistics.median(added):.2f}"),
            ("more, % (from, to)", f"{min(added):.2f}, {max(added):.2f}"),
        ]
    )


if __name__ == "__main__":
    run_as_command(main)
