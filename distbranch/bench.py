"""Measurements that anyone can repeat: what deciding costs beside a real training step, and the memory of packing and loading."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distbranch.branching.affinity import AffinityStats
from distbranch.branching.decision import choose_groups
from distbranch.data.loader import train_loader
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.models.backbones import Architecture
from distbranch.models.tree_net import TreeNet
from distbranch.tasks import Task


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
    return [_bench(num_tasks, batch_size, backbone, width, image_size, num_steps) for num_tasks in num_tasks_list]


def _bench(
    num_tasks: int, batch_size: int, backbone: str, width: int, image_size: tuple[int, int], num_steps: int
) -> DecideCost:
    tasks = tuple(Task(f"task {number}") for number in range(num_tasks))
    network = TreeNet(Architecture.thin(backbone, width, image_size, tasks))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, *image_size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (batch_size, num_tasks), generator=generator).float()
    stats = AffinityStats(num_tasks)
    steps, bookkeepings = [], []
    for _ in range(num_steps):
        started = time.perf_counter()
        outputs = network(images, flat=True)
        optimizer.zero_grad()
        network.tasks.losses(outputs, labels).sum(dim=1).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
        optimizer.step()
        trained = time.perf_counter()
        stats.update(network.tasks.margins(outputs, labels))
        steps.append(trained - started)
        bookkeepings.append(time.perf_counter() - trained)
    affinity = _planted_affinity(num_tasks)
    started = time.perf_counter()
    choose_groups(affinity, alpha=2.0, pools_above=0)
    decision_s = time.perf_counter() - started
    return DecideCost(num_tasks, float(np.median(steps)) * 1000, float(np.median(bookkeepings)) * 1000, decision_s)


def _planted_affinity(
    num_tasks: int, num_groups: int = 8, num_samples: int = 1000
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Agreement of tasks of which every group shares a part of its margins."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(num_samples, num_groups, generator=generator)[:, torch.arange(num_tasks) % num_groups]
    stats = AffinityStats(num_tasks)
    margins = (shared + torch.randn(num_samples, num_tasks, generator=generator)).sigmoid()
    for start in range(0, num_samples, 50):
        stats.update(margins[start : start + 50])
    return stats.affinity("agreement")


@dataclass(frozen=True)
class MemoryCost:
    """What packing and reading once through a generated data set took; `peak_mib` is the resident memory of the process."""

    num_samples: int
    pack_s: float
    load_s: float
    peak_mib: float


def bench_memory(num_samples: int = 1_000_000, *, folder: Path, batch_size: int = 256) -> MemoryCost:
    """Pack `num_samples` tiny images into `folder` and read one epoch of them, in this process."""
    tasks = (Task("even"), Task("third"))
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (120, 60, 30)).save(buffer, "JPEG")
    image = buffer.getvalue()
    samples = (
        Sample(f"{number:09d}", "train", image, {"even": 1 - number % 2, "third": int(number % 3 == 0)})
        for number in range(num_samples)
    )
    began = time.perf_counter()
    info = pack(samples, folder, tasks, source={"generated": num_samples}, shard_samples=10_000)
    packed = time.perf_counter()
    seen = 0
    for batch in train_loader(info, "train", batch_size=batch_size, image_size=(8, 8)):
        seen += len(batch.images)
        if seen >= num_samples:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return MemoryCost(num_samples, packed - began, time.perf_counter() - packed, peak)
