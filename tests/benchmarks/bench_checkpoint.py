"""How long training stands still for a checkpoint: written at once, or copied at the step and written by a thread.

`python tests/benchmarks/bench_checkpoint.py --help`

Both kinds take turns in one process, between steps of a real network, so that whatever else the machine does falls on both.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from command_line import create_work_folder, run_as_command
from torch import Tensor, nn

from distbranch.cli.terminal import show_pairs
from distbranch.engine.checkpoint import Checkpoint, save_checkpoint
from distbranch.engine.checkpoint_writer import CheckpointWriter, copy_to_host

STEPS_BETWEEN = 10


class _Training:
    """A chain of convolutions with so many weights, trained by Adam on random images."""

    def __init__(self, num_weights: int) -> None:
        torch.manual_seed(0)
        width = 256
        num_layers = max(1, round(num_weights / (9 * width**2)))
        layers = [nn.Conv2d(width, width, 3, padding=1) for _ in range(num_layers)]
        self.network = nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), fused=True)
        self.features = torch.randn(4, width, 4, 4)
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.network(self.features).square().mean().backward()
        self.optimizer.step()

    def checkpoint(self) -> Checkpoint:
        slots: dict[str, Tensor] = {}
        for number, state in enumerate(self.optimizer.state.values()):
            for name in ("exp_avg", "exp_avg_sq"):
                slots[f"{number}:{name}"] = state[name]
        return Checkpoint({}, {"model": self.network.state_dict(), "optimizer": slots})


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(
    weights: Annotated[float, typer.Option(help="Millions of weights.", min=0.1)] = 20.0,
    repeats: Annotated[int, typer.Option(help="Checkpoints of either kind.", min=1)] = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Where they go; a temporary folder if empty.")
    ] = None,
) -> None:
    """Seconds that training stands still for a checkpoint, and what steps cost while a thread writes it."""
    training = _Training(round(1e6 * weights))
    writer = CheckpointWriter()
    at_once, copied, alone, beside = [], [], [], []
    with create_work_folder(folder) as place:
        for number in range(repeats):
            alone += [_seconds(training.step) for _ in range(STEPS_BETWEEN)]

            # As it was: every byte is on the disk before the next step.
            now = training.checkpoint()
            at_once.append(_seconds(partial(save_checkpoint, place, 2 * number, now, keep=1)))

            # As it is.
            began = time.perf_counter()
            copy = copy_to_host(training.checkpoint())
            writer.begin(partial(save_checkpoint, place, 2 * number + 1, copy, keep=1))
            copied.append(time.perf_counter() - began)
            beside += [_seconds(training.step) for _ in range(STEPS_BETWEEN)]
            writer.finish()
    show_pairs(
        [
            ("megabytes of a checkpoint", f"{12 * weights:.0f}"),
            ("written at once, s", f"{statistics.median(at_once):.3f}"),
            ("copied, and written by a thread, s", f"{statistics.median(copied):.3f}"),
            ("a step, ms", f"{1000 * statistics.median(alone):.1f}"),
            ("a step after a copy, ms", f"{1000 * statistics.median(beside):.1f}"),
        ]
    )


if __name__ == "__main__":
    run_as_command(main)
