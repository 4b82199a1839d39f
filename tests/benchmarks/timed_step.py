"""A training step as the trainer makes it, on samples that are always the same ones, and how steps are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from distbranch.branching.affinity import AffinityStats
from distbranch.config import Config
from distbranch.data.shards import BAD_KINDS
from distbranch.engine.gradient_aggregation import TaskGradients
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.models.architecture import Architecture
from distbranch.models.norm import NormGroups, take_step_sums, update_running_statistics

NUM_FLAGS = 2 + len(BAD_KINDS)


def make_batch(config: Config, architecture: Architecture, rank: int = 0) -> tuple[Tensor, Tensor]:
    """Random images uint8 [b, 3, H, W] (channels_last, as the loader gives them) and labels [b, T] of one rank."""
    generator = torch.Generator().manual_seed(rank)
    size = config.train.batch_size // config.launch.most_workers
    images = torch.randint(
        0, 256, (size, 3, *architecture.image_size), dtype=torch.uint8, generator=generator
    )
    highest = torch.tensor([max(2, task.num_outputs) for task in architecture.tasks])
    labels = (torch.rand(size, len(highest), generator=generator) * highest).floor()
    return images.contiguous(memory_format=torch.channels_last), labels


def make_training_step(
    net: TrainedNetwork,
    batch: tuple[Tensor, Tensor],
    *,
    together: bool = False,
    groups: NormGroups | None = None,
) -> Callable[[], Tensor]:
    """A step of a network that has ended growing; it returns the loss.

    together: with the gradients and sums that ranks tell each other.
    groups: of images that are normalised together; None: those of this rank.
    """
    ranks, train, num_tasks = net.ranks, net.config.train, len(net.network.tasks.tasks)
    images, labels = (tensor.to(ranks.device) for tensor in batch)
    groups = groups or NormGroups((len(images),))
    stats = AffinityStats(num_tasks, device=ranks.device)

    def step() -> Tensor:
        pending = []
        if together:
            pending.append(
                ranks.start_sum(torch.zeros(NUM_FLAGS, dtype=torch.float64), on_host=True)
            )
        net.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if together else net.no_sync():
            with torch.autocast(
                ranks.device.type, torch.bfloat16, enabled=train.precision == "bf16"
            ):
                outputs = net.wrapped(images, flat=True, groups=groups)
            losses = net.network.tasks.compute_losses(outputs, labels)
            margins = net.network.tasks.compute_margins(outputs.detach(), labels)
            own = [stats.margin_sums(margins), losses.detach().sum(dim=0, dtype=torch.float64)]
            sums = torch.cat([*own, own[0].new_full((1,), len(images)), take_step_sums(net.norms)])
            if together:
                pending.append(ranks.start_sum(sums))
            loss = losses.sum() / len(images)
            if net.aggregation is None:
                torch.autograd.backward(loss)
            else:
                by_task = TaskGradients(net.groups)
                by_task.add_pass(losses.sum(dim=0) / len(images))
                by_task.sum_over_ranks(ranks)
                by_task.set_gradients(net.aggregation.weigh(by_task, ranks, 0))
        clip_grad_norm_(net.network.parameters(), train.clip_norm, foreach=True)
        net.optimizer.step()
        for one in pending:
            one.wait()
        update_running_statistics(net.norms, sums[3 * num_tasks + 1 :], sums[3 * num_tasks])
        return loss.detach()

    return step


def time_steps(step: Callable[[], Tensor], count: int) -> tuple[float, list[float]]:
    """Seconds per step over so many of them, and their losses."""
    began = time.perf_counter()
    losses = [step() for _ in range(count)]
    if losses[0].is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / count
    return seconds, [float(loss) for loss in losses]
