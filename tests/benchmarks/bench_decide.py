"""What deciding costs beside a real training step: `python tests/benchmarks/bench_decide.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from command_line import run_as_command
from planted_trees import planted_statistics

from distbranch.bench.candidates import numbered_tasks
from distbranch.branching.affinity import AffinityStats
from distbranch.branching.decision import choose_groups
from distbranch.cli.terminal import show_rows
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network


@dataclass(frozen=True)
class DecideCost:
    """Medians over the steps of one benchmark; `share` = bookkeeping / step."""

    num_tasks: int
    step_ms: float
    bookkeeping_ms: float
    decision_s: float

    @property
    def share(self) -> float:
        """Bookkeeping as a share of the training step without it."""
        return self.bookkeeping_ms / self.step_ms


def bench_decide(
    num_tasks_list: Sequence[int] = (40, 200),
    *,
    batch_size: int = 32,
    backbone: str = "vgg16",
    width: int = 32,
    image_size: tuple[int, int] = (64, 48),
    num_steps: int = 30,
) -> list[DecideCost]:
    """One row per number of tasks, for a thin network before any split: the shortest step, so the largest share.

    Steps and bookkeeping take turns in one loop, so that whatever else the machine does falls on both. The decision is over all
    d with affinities of random margins with planted groups. Images and labels are random.
    """
    return [
        _bench_one(num_tasks, batch_size, backbone, width, image_size, num_steps)
        for num_tasks in num_tasks_list
    ]


def _bench_one(
    num_tasks: int,
    batch_size: int,
    backbone: str,
    width: int,
    image_size: tuple[int, int],
    num_steps: int,
) -> DecideCost:
    tasks = numbered_tasks(num_tasks)
    network = Network(Architecture.thin(backbone, width, image_size, tasks))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch_size, 3, *image_size), dtype=torch.uint8, generator=generator
    )
    labels = torch.randint(0, 2, (batch_size, num_tasks), generator=generator).float()
    stats = AffinityStats(num_tasks)
    steps, bookkeepings = [], []
    for _ in range(num_steps):
        started = time.perf_counter()
        outputs = network(images, flat=True)
        optimizer.zero_grad()
        network.tasks.compute_losses(outputs, labels).sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
        optimizer.step()
        trained = time.perf_counter()
        stats.update(network.tasks.compute_margins(outputs, labels))
        steps.append(trained - started)
        bookkeepings.append(time.perf_counter() - trained)
    affinity = planted_statistics(num_tasks).affinity("agreement")
    started = time.perf_counter()
    choose_groups(affinity, alpha=2.0, pools_above=0)
    decision_s = time.perf_counter() - started
    return DecideCost(
        num_tasks, float(np.median(steps)) * 1000, float(np.median(bookkeepings)) * 1000, decision_s
    )


def main() -> None:
    """What deciding costs: affinity bookkeeping per step, and a whole decision, at 40 and 200 tasks."""
    show_rows([{**asdict(row), "share_%": 100 * row.share} for row in bench_decide()])


if __name__ == "__main__":
    run_as_command(main)
