"""A training step against a naive loop: one module per branch, NCHW, a loss per task, nothing fused and no autocast.

Both train the same tree from the same weights on the same samples, each in a process of its own with the same number of threads.
They take turns block by block, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import numpy as np
import torch
from timed_step import make_batch, make_training_step, time_steps
from torch import Tensor
from torch.nn import functional

from distbranch.bench.candidates import NaiveNet, branch_counts
from distbranch.config import Config, load_config
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.process_group import has_bf16, join_ranks
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network

FIRST_STEPS = 3  # whose losses are compared
STEPS_PER_BLOCK = 4
FINE_RATE = (
    1e-4  # AdamW turns the sign of a gradient that is nothing but rounding into a whole step
)


@dataclass(frozen=True)
class AgainstNaive:
    """Milliseconds per step, medians over the blocks.

    `faster`: how many times faster, block by block, with the 10th and 90th percentile; `difference`: the largest relative one
    between the losses of the first steps.
    """

    network: str
    branches: str
    threads: int
    precision: str
    naive_ms: float
    step_ms: float
    faster: float
    low: float
    high: float
    difference: float


def bench_naive(
    architectures: dict[str, Architecture],
    *,
    batch_size: int = 64,
    threads: Sequence[int] = (1,),
    precisions: Sequence[str] | None = None,
    optimizer: str = "adamw",
    num_blocks: int = 12,
) -> list[AgainstNaive]:
    """A row per network, number of threads and precision. Images and labels are random.

    precisions: `fp32` and `bf16`; None: bf16 only where this processor has it in hardware.
    """
    precisions = precisions or list_hardware_precisions()
    rows = []
    for name, architecture in architectures.items():
        for count in threads:
            for precision in precisions:
                config = load_config(
                    {
                        "data": {"path": "random"},
                        "train": {
                            "batch_size": batch_size,
                            "norm_batch": batch_size,
                            "precision": precision,
                        },
                        "optim": {"name": optimizer, "lr": FINE_RATE},
                        "launch": {"threads": count, "device": "cpu"},
                    }
                )
                rows.append(_row(name, config, architecture, num_blocks))
    return rows


def list_hardware_precisions() -> tuple[str, ...]:
    """Those in which this processor multiplies."""
    return ("fp32", "bf16") if has_bf16(torch.device("cpu")) else ("fp32",)


def _row(name: str, config: Config, architecture: Architecture, num_blocks: int) -> AgainstNaive:
    with (
        _start_process(_run_naive_process, config, architecture) as naive,
        _start_process(_run_our_process, config, architecture) as ours,
    ):
        _, expected = naive(FIRST_STEPS)
        _, found = ours(FIRST_STEPS)
        times = []
        for block in range(num_blocks):
            pair = {
                one: one(STEPS_PER_BLOCK)[0]
                for one in ((naive, ours) if block % 2 else (ours, naive))
            }
            times.append((pair[naive], pair[ours]))
    naive_ms, step_ms = np.array(times).T * 1000
    low, faster, high = np.percentile(naive_ms / step_ms, (10, 50, 90))
    return AgainstNaive(
        name,
        branch_counts(architecture.tree),
        config.launch.threads or 1,
        config.train.precision,
        float(np.median(naive_ms)),
        float(np.median(step_ms)),
        float(faster),
        float(low),
        float(high),
        float(np.max(np.abs(np.array(found) / np.array(expected) - 1))),
    )


# ---- the two processes

Turn = Callable[[int], tuple[float, list[float]]]  # so many steps: seconds per step, losses


@contextmanager
def _start_process(
    work: Callable[[Connection, Config, Architecture], None],
    config: Config,
    architecture: Architecture,
) -> Iterator[Turn]:
    """A process that makes so many steps whenever it is told to.

    Raises:
        UserError: it ended before it was told to.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, config, architecture), daemon=True)
    process.start()
    there.close()  # else this end would wait for ever on a process that is no more

    def turn(count: int) -> tuple[float, list[float]]:
        try:
            here.send(count)
            seconds, losses = cast(tuple[float, list[float]], here.recv())
        except (EOFError, OSError):
            process.join()
            raise UserError(
                f"A process of the benchmark ended by itself (exit code {process.exitcode}; -9: there was no memory left). "
                "What it wrote stands above; try a smaller batch."
            ) from None
        return seconds, losses

    try:
        yield turn
    finally:
        with suppress(OSError):  # of a process that is no more
            here.send(0)
        process.join()


def _run_naive_process(connection: Connection, config: Config, architecture: Architecture) -> None:
    torch.set_num_threads(config.launch.threads or 1)
    _answer_requests(connection, make_naive_step(config, architecture))


def _run_our_process(connection: Connection, config: Config, architecture: Architecture) -> None:
    with join_ranks(config.launch) as ranks:
        data = config.data
        preprocessing = Preprocessing(data.decoder, architecture.image_size, data.mean, data.std)
        net = TrainedNetwork(config, ranks, preprocessing, is_final=True)
        net.begin(architecture, config.seed)
        _answer_requests(connection, make_training_step(net, make_batch(config, architecture)))


def _answer_requests(connection: Connection, step: Callable[[], Tensor]) -> None:
    while (count := connection.recv()) > 0:
        connection.send(time_steps(step, count))


def make_naive_step(config: Config, architecture: Architecture) -> Callable[[], Tensor]:
    """A plain step of training; it returns the loss."""
    network = Network(architecture, config.data.mean, config.data.std)
    network.init(torch.Generator().manual_seed(config.seed))
    net = NaiveNet(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optim = config.optim
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(
            net.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        if optim.name == "sgd"
        else torch.optim.AdamW(net.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    )
    images, labels = make_batch(config, architecture)
    images = images.contiguous()

    def step() -> Tensor:
        optimizer.zero_grad()
        outputs = net(images)
        loss = torch.zeros(())
        for number, task in enumerate(architecture.tasks):
            logits, truth = outputs[task.name], labels[:, number]
            if task.kind == "categorical":
                loss = loss + functional.cross_entropy(logits, truth.long())
            else:
                loss = loss + functional.binary_cross_entropy_with_logits(logits.squeeze(1), truth)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.train.clip_norm)
        optimizer.step()
        return loss.detach()

    return step
