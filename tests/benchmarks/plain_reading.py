"""Packed shards as a program without this package reads them, by webdataset and Pillow: the yardstick of `bench_data.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from distbranch.tasks import Task


def plain_batches(
    files: Sequence[str],
    tasks: Sequence[Task],
    *,
    image_size: tuple[int, int],
    batch_size: int,
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 [b, 3, H, W] and labels [b, T] of the tar files, once; decoded whole, then resized (bilinear)."""
    dataset = (
        webdataset.WebDataset(list(files), shardshuffle=False, empty_check=False)
        .decode("pil")
        .map(partial(_as_arrays, tasks=tasks, image_size=image_size))
        .batched(batch_size, collation_fn=_stacked)
    )
    return iter(DataLoader(dataset, batch_size=None, num_workers=num_workers))


def _as_arrays(
    sample: dict[str, Any], tasks: Sequence[Task], image_size: tuple[int, int]
) -> tuple[Any, Any]:
    height, width = image_size
    image = sample["jpg"].resize((width, height), Image.Resampling.BILINEAR)
    labels = sample["json"]["labels"]
    return np.asarray(image), np.array(
        [_number(task, labels.get(task.name)) for task in tasks], dtype=np.float32
    )


def _number(task: Task, value: Any) -> float:
    if value is None:
        return math.nan
    return task.classes.index(value) if task.classes else float(value)


def _stacked(samples: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    images, labels = (np.stack(column) for column in zip(*samples, strict=True))
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
