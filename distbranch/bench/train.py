"""What working together costs: a step with all that the ranks tell each other against the same step alone, and growth.

Blocks of both kinds of steps take turns in the same processes, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from torch.nn.utils import clip_grad_norm_

from distbranch.bench.decide import planted_statistics
from distbranch.config import Config, load_config
from distbranch.data.shards import BAD_KINDS
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks, join_ranks, verify_equal
from distbranch.engine.methods import decide, may_still_grow
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.models.backbones import Architecture
from distbranch.tasks import Task

STEPS_PER_BLOCK = 5
NUM_FLAGS = 2 + len(BAD_KINDS)


@dataclass(frozen=True)
class TrainCost:
    """Medians of one benchmark. `growth_s` is the longest of all decisions with widening, re-wrapping and verification."""

    network: str
    num_ranks: int
    alone_ms: float
    together_ms: float
    growth_s: float

    @property
    def share(self) -> float:
        """Synchronisation as a share of the step without it."""
        return self.together_ms / self.alone_ms - 1


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
            "train": {"batch_size": batch_size},
            "launch": {"workers": num_ranks},
        }
    )
    queue: Any = multiprocessing.get_context("spawn").Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (num_ranks, config, image_size, num_tasks, num_blocks, port, queue)
    multiprocessing.spawn(_rank, args=arguments, nprocs=num_ranks)  # type: ignore[attr-defined, no-untyped-call]
    rows: list[TrainCost] = queue.get()
    return rows


def _rank(
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
    tasks = tuple(Task(f"task {number}") for number in range(num_tasks))
    with join_ranks(config.launch) as ranks:
        preprocessing = Preprocessing("simplejpeg", image_size, config.data.mean, config.data.std)
        net = TrainedNetwork(config, ranks, preprocessing, is_final=False)
        beginning = Architecture.thin("vgg16", config.model.width, image_size, tasks)
        net.begin(beginning, config.seed)
        step = _stepper(net, config.train.batch_size // world_size, image_size)
        thin = _interleaved(step, ranks, num_blocks)
        net.begin(beginning, config.seed)  # steps alone have led the ranks apart
        growth = _grow(net, ranks)
        grown = _interleaved(step, ranks, num_blocks)
        if ranks.is_first:
            name = f"thin-{config.model.width}"
            tree = net.network.architecture.tree
            widest = "-".join(str(tree.num_branches(layer)) for layer in range(1, tree.num_layers + 1))
            rows = [(name, thin, 0.0), (f"Branch-{config.model.width}-{config.method.alpha} ({widest})", grown, growth)]
            queue.put([TrainCost(label, world_size, *times, seconds) for label, times, seconds in rows])


def _stepper(net: TrainedNetwork, batch_size: int, image_size: tuple[int, int]) -> Callable[[bool], None]:
    """A training step as the trainer makes it; the argument says whether the ranks speak with each other."""
    ranks, num_tasks = net.ranks, len(net.network.tasks.tasks)
    generator = torch.Generator().manual_seed(ranks.rank)
    images = torch.randint(0, 256, (batch_size, 3, *image_size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (batch_size, num_tasks), generator=generator).float()
    images, labels = images.to(ranks.device), labels.to(ranks.device)

    def step(together: bool) -> None:
        pending = []
        if together:
            pending.append(ranks.start_sum(torch.zeros(NUM_FLAGS, dtype=torch.float64), on_host=True))
        net.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if together else net.no_sync():
            outputs = net.wrapped(images, flat=True)
            losses = net.network.tasks.losses(outputs, labels)
            if together:
                pending.append(ranks.start_sum(torch.zeros(3 * num_tasks, dtype=torch.float64, device=ranks.device)))
            torch.autograd.backward(losses.sum() / batch_size)
        clip_grad_norm_(net.network.parameters(), net.config.train.clip_norm, foreach=True)
        net.optimizer.step()
        for one in pending:
            one.wait()

    return step


def _interleaved(step: Callable[[bool], None], ranks: Ranks, num_blocks: int) -> tuple[float, float]:
    """Milliseconds of the slowest rank per step: alone, together; medians over the blocks after the first."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for block in range(num_blocks + 1):
        for together in (False, True) if block % 2 else (True, False):
            ranks.gather(None)  # all begin at once
            began = time.perf_counter()
            for _ in range(STEPS_PER_BLOCK):
                step(together)
            if ranks.device.type == "cuda":
                torch.cuda.synchronize()
            slowest = max(ranks.gather(time.perf_counter() - began))
            if block:
                times[together].append(slowest / STEPS_PER_BLOCK * 1000)
    return float(np.median(times[False])), float(np.median(times[True]))


def _grow(net: TrainedNetwork, ranks: Ranks) -> float:
    """Decide, widen and re-wrap until nothing is left to split; seconds of the longest of them."""
    config, longest, growing = net.config, 0.0, True
    stats = planted_statistics(len(net.network.tasks.tasks))
    while growing:
        ranks.gather(None)
        began = time.perf_counter()
        net.share_buffers()
        summed = stats.with_pair_sums(ranks.sum(stats.pair_sums()))
        architecture = net.network.architecture
        (ruling,) = ranks.on_first(lambda: decide(summed, architecture, [config.method], seed=0))  # noqa: B023
        if ruling.split is not None:
            net.widen(ruling.split)
        verify_equal(ranks, "a decision", net.fingerprint())
        longest = max(longest, time.perf_counter() - began)
        growing = may_still_grow(net.network.architecture.tree, ruling, config.method)
    return longest
