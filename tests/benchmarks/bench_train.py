"""What a training step costs against a naive loop, and what working together costs.

`python tests/benchmarks/bench_train.py --help`

Of the latter: a step alone, with gradients and sums, with the statistics of batch norm besides, and growth. Blocks of all kinds of
steps take turns in the same processes, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
import typer
from command_line import run_as_command
from naive_loop import bench_naive
from planted_trees import build_thin_and_tree, planted_statistics
from timed_step import make_batch, make_training_step, time_steps
from torch import Tensor

from distbranch.bench.candidates import branch_counts, numbered_tasks
from distbranch.cli.terminal import parse_counts, parse_size, show_rows
from distbranch.config import Config, load_config
from distbranch.data.plan import positions_of_rank
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks, verify_equal
from distbranch.engine.process_group import join_ranks
from distbranch.engine.round_decision import decide_round
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.engine.training_step import NormPlan
from distbranch.models.architecture import Architecture

STEPS_PER_BLOCK = 5


@dataclass(frozen=True)
class TrainCost:
    """Medians of one benchmark.

    alone_ms: a step that tells nothing.
    gradients_ms: with gradients and sums over all ranks.
    together_ms: with the statistics of groups of images that are spread over all ranks, too (`train.norm_batch`).
    growth_s: the longest of all decisions with widening, re-wrapping and verification.
    """

    network: str
    num_ranks: int
    alone_ms: float
    gradients_ms: float
    together_ms: float
    growth_s: float

    @property
    def gradients_share(self) -> float:
        """What gradients and sums add, as a share of the step alone."""
        return self.gradients_ms / self.alone_ms - 1

    @property
    def norm_share(self) -> float:
        """What the messages of batch norm take of the whole step."""
        return 1 - self.gradients_ms / self.together_ms


def bench_train(
    *,
    width: int = 32,
    alpha: float = 2.0,
    image_size: tuple[int, int] = (64, 64),
    batch_size: int = 64,
    num_tasks: int = 40,
    num_ranks: int = 2,
    num_blocks: int = 12,
) -> list[TrainCost]:
    """Two rows: the thin network, and the tree it grows into on planted statistics. Images and labels are random.

    Args:
        width: omega.
        alpha: branching factor of the growth.
        image_size: (height, width) in pixels.
        batch_size: over all ranks.
        num_tasks: binary tasks.
        num_ranks: processes on this machine, one GPU each if there are GPUs.
        num_blocks: of 5 steps, of either kind.
    """
    config = load_config(
        {
            "data": {"path": "random"},
            "model": {"width": width},
            "method": {"alpha": alpha, "affinity": "phi"},
            "train": {"batch_size": batch_size, "norm_batch": batch_size},
            "launch": {"workers": num_ranks},
        }
    )
    queue: Any = multiprocessing.get_context("spawn").Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (num_ranks, config, image_size, num_tasks, num_blocks, port, queue)
    multiprocessing.spawn(_run_rank, args=arguments, nprocs=num_ranks)  # type: ignore[attr-defined, no-untyped-call]
    rows: list[TrainCost] = queue.get()
    return rows


def _run_rank(
    rank: int,
    world_size: int,
    config: Config,
    image_size: tuple[int, int],
    num_tasks: int,
    num_blocks: int,
    port: int,
    queue: Any,
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    tasks = numbered_tasks(num_tasks)
    with join_ranks(config.launch) as ranks:
        preprocessing = Preprocessing("simplejpeg", image_size, config.data.mean, config.data.std)
        net = TrainedNetwork(config, ranks, preprocessing, is_final=False)
        beginning = Architecture.thin("vgg16", config.model.width, image_size, tasks)
        net.begin(beginning, config.seed)
        batch = make_batch(config, beginning, rank)
        thin = _time_interleaved(net, batch, num_blocks)
        net.begin(beginning, config.seed)  # steps alone have led the ranks apart
        growth = _grow(net, ranks)
        grown = _time_interleaved(net, batch, num_blocks)
        if ranks.is_first:
            name = f"thin-{config.model.width}"
            widest = branch_counts(net.network.architecture.tree)
            rows = [
                (name, thin, 0.0),
                (f"Branch-{config.model.width}-{config.method.alpha} ({widest})", grown, growth),
            ]
            queue.put(
                [
                    TrainCost(label, world_size, *times, growth_s=seconds)
                    for label, times, seconds in rows
                ]
            )


def _time_interleaved(
    net: TrainedNetwork, batch: tuple[Tensor, Tensor], num_blocks: int
) -> tuple[float, float, float]:
    """Milliseconds of the slowest rank per step: alone, with gradients, together; medians over the blocks after the first."""
    ranks, batch_size = net.ranks, net.config.train.batch_size
    (own,) = positions_of_rank(batch_size, 1, ranks.rank, ranks.world_size)
    (groups,) = NormPlan(net.config.train, ranks).group_images(torch.arange(own.start, own.stop))
    steps = [
        make_training_step(net, batch),
        make_training_step(net, batch, together=True),
        make_training_step(net, batch, together=True, groups=groups),
    ]
    times: list[list[float]] = [[], [], []]
    for block in range(num_blocks + 1):
        for kind in (0, 1, 2) if block % 2 else (2, 1, 0):
            ranks.gather(None)  # all begin at once
            slowest = max(ranks.gather(time_steps(steps[kind], STEPS_PER_BLOCK)[0]))
            if block:
                times[kind].append(slowest * 1000)
    alone, gradients, together = (float(np.median(one)) for one in times)
    return alone, gradients, together


def _grow(net: TrainedNetwork, ranks: Ranks) -> float:
    """Decide, widen and re-wrap until nothing is left to split; seconds of the longest of them."""
    config, longest, growing = net.config, 0.0, True
    stats = planted_statistics(len(net.network.tasks.tasks))
    while growing:
        ranks.gather(None)
        began = time.perf_counter()
        summed = stats.with_pair_sums(ranks.sum(stats.pair_sums()))
        architecture = net.network.architecture
        decide = partial(decide_round, summed, architecture, [config.method], seed=0)
        (ruling,) = ranks.run_on_rank_zero(decide)
        if ruling.split is not None:
            net.widen(ruling.split)
        verify_equal(ranks, "a decision", net.fingerprint())
        longest = max(longest, time.perf_counter() - began)
        growing = ruling.grows
    return longest


def main(
    width: Annotated[int, typer.Option(help="Thinness omega.", min=1)] = 32,
    ranks: Annotated[
        int, typer.Option(help="Processes on this machine; 1: no synchronisation.", min=1)
    ] = 2,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all ranks.", min=4)] = 64,
    image_size: Annotated[str, typer.Option(help="height x width.")] = "64x64",
    tree: Annotated[
        Path | None,
        typer.Option(help="The tree.json of a run; empty: a tree grown on planted statistics."),
    ] = None,
    threads: Annotated[
        str, typer.Option(help="Threads of a process, separated by commas.")
    ] = "1,2",
    blocks: Annotated[int, typer.Option(help="Turns of four or five steps.", min=1)] = 12,
) -> None:
    """What a training step costs against a naive loop (one module per branch, NCHW, nothing fused), and what synchronisation adds.

    Both are measured for a thin network and for the tree it grows into. What synchronisation adds is measured with several ranks,
    always for the tree grown on planted statistics, on all cores: --tree and --threads are of the first table.
    """
    size = parse_size(image_size)
    counts = parse_counts(threads, "--threads", least=1)
    networks = build_thin_and_tree(width, size, tree)
    compared = bench_naive(networks, batch_size=batch_size, threads=counts, num_blocks=blocks)
    show_rows([asdict(row) for row in compared])
    if ranks == 1:
        return
    rows = []
    for cost in bench_train(
        width=width, num_ranks=ranks, batch_size=batch_size, image_size=size, num_blocks=blocks
    ):
        shares = {"gradients_%": 100 * cost.gradients_share, "batch_norm_%": 100 * cost.norm_share}
        rows.append({**asdict(cost), **shares})
    show_rows(rows)


if __name__ == "__main__":
    run_as_command(main)
