"""What a training step costs with each way to aggregate the gradients of tasks, as a ratio to a step that adds them.

`python tests/benchmarks/bench_aggregation.py --help`

Blocks of steps of all kinds take turns in one process, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Annotated, Any, get_args

import torch
import typer
from command_line import run_as_command
from timed_step import make_batch, make_training_step, time_steps

from distbranch.bench.candidates import numbered_tasks
from distbranch.branching.tree import Split
from distbranch.cli.terminal import parse_size, show_rows
from distbranch.config import load_config
from distbranch.config.training import LossConfig
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import UsageError
from distbranch.models.architecture import Architecture

NAMES = get_args(LossConfig.model_fields["aggregation"].annotation)
STEPS_PER_BLOCK = 2


@dataclass(frozen=True)
class AggregationCost:
    """The median step, and the median over blocks of its ratio to the step beside it that adds gradients (`none`)."""

    aggregation: str
    step_ms: float
    ratio: float


def bench_aggregation(
    *,
    num_tasks: int = 5,
    num_branches: int = 3,
    width: int = 16,
    image_size: tuple[int, int] = (64, 64),
    batch_size: int = 16,
    num_blocks: int = 6,
    names: tuple[str, ...] = NAMES,
) -> list[AggregationCost]:
    """A row for each way, of a VGG-16 whose upper half has branches; images and labels are random.

    Args:
        num_tasks: binary ones.
        num_branches: of the upper half; 1: hard sharing.
        width: of the thin network.
        image_size: (height, width) in pixels.
        batch_size: images per step.
        num_blocks: of 2 steps, of every kind.
        names: of the ways; the first is what others are compared with.
    """
    tasks = numbered_tasks(num_tasks)
    thin = Architecture.thin("vgg16", width, image_size, tasks)
    tree = thin.tree
    if num_branches > 1:
        groups = tuple(
            tuple(range(first, num_tasks, num_branches)) for first in range(num_branches)
        )
        tree = tree.split(Split(tree.num_layers, groups))
        alone = tuple((branch,) for branch in range(num_branches))
        for layer in range(tree.num_layers - 1, tree.num_layers // 2, -1):
            tree = tree.split(Split(layer, alone))

    steps = {}
    for name in names:
        config = load_config(_make_config(name, batch_size))
        preprocessing = Preprocessing("simplejpeg", image_size, config.data.mean, config.data.std)
        net = TrainedNetwork(config, Ranks.alone(), preprocessing, is_final=True)
        net.begin(thin.with_tree(tree), config.seed)
        steps[name] = make_training_step(net, make_batch(config, thin))
        time_steps(steps[name], 1)

    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(num_blocks):
        for name, step in steps.items():
            seconds[name].append(time_steps(step, STEPS_PER_BLOCK)[0])
    rows = []
    for name, own in seconds.items():
        ratios = [one / plain for one, plain in zip(own, seconds[names[0]], strict=True)]
        rows.append(AggregationCost(name, 1000 * statistics.median(own), statistics.median(ratios)))
    return rows


def _make_config(name: str, batch_size: int) -> dict[str, Any]:
    return {
        "data": {"path": "random"},
        "train": {"batch_size": batch_size, "norm_batch": batch_size},
        "loss": {"aggregation": name},
    }


def main(
    tasks: Annotated[int, typer.Option(help="Binary tasks.", min=2)] = 5,
    branches: Annotated[int, typer.Option(help="Of the upper half of the network.", min=1)] = 3,
    width: Annotated[int, typer.Option(help="Of the thin network.", min=1)] = 16,
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH.")] = "64x64",
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=2)] = 16,
    blocks: Annotated[int, typer.Option(help="Of 2 steps of every kind.", min=1)] = 6,
    threads: Annotated[int, typer.Option(help="Of torch.", min=1)] = 1,
) -> None:
    """Print the time of a step, and its ratio to one that adds the gradients, for every `loss.aggregation`."""
    if branches > tasks:
        raise UsageError(f"--branches should be at most --tasks={tasks}, found {branches}.")
    torch.set_num_threads(threads)
    rows = bench_aggregation(
        num_tasks=tasks,
        num_branches=branches,
        width=width,
        image_size=parse_size(image_size),
        batch_size=batch_size,
        num_blocks=blocks,
    )
    show_rows([asdict(row) for row in rows])


if __name__ == "__main__":
    run_as_command(main)
