"""The loaders of one rank, for training and for an evaluation, as the configuration says."""

import math
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from distbranch.config import Config, DataConfig
from distbranch.config.paths import is_remote
from distbranch.data.augmentation import Augmentation
from distbranch.data.balance import read_balances
from distbranch.data.cache import Cache, default_cache_folder
from distbranch.data.loader import Batch, eval_loader, train_loader
from distbranch.data.mixing import Mixing
from distbranch.data.plan import Balance, Turns
from distbranch.data.shards import DatasetInfo
from distbranch.engine.cores import num_cores
from distbranch.engine.distributed import Ranks
from distbranch.engine.process_group import num_local_ranks

MAX_LOADER_PROCESSES = 8  # decode faster than one GPU trains a thin network


def open_training(
    info: DatasetInfo,
    config: Config,
    ranks: Ranks,
    *,
    image_size: tuple[int, int],
    start: int,
    turns: Turns | None = None,
) -> Iterator[Batch]:
    """This rank's endless training batches, after `start` samples consumed by all ranks together; all ranks must call it.

    `turns`: how two parts of the samples are read in turns; None: all of them in one stream.
    """
    data = config.data
    options = _read_loader_options(info, data, ranks, image_size)
    balances: list[Balance | None] = []
    if any(data.balance.values()):
        # One rank reads the labels for all: a shard at a time, for the others wait no longer than launch.timeout_min.
        balances = read_balances(data, info, options["cache"], ranks.run_on_rank_zero)
    return train_loader(
        info,
        "train",
        batch_size=config.train.batch_size,
        start=start,
        seed=config.seed,
        augmentation=_read_augmentation(config),
        window=data.shuffle_window,
        accumulate=config.train.accumulate,
        turns=turns,
        balances=balances,
        mixing=Mixing(data.mixup, data.cutmix, config.seed),
        **options,
    )


def open_evaluation(
    info: DatasetInfo,
    split: str,
    data: DataConfig,
    ranks: Ranks,
    *,
    image_size: tuple[int, int],
    batch_size: int,
) -> Iterator[Batch]:
    """This rank's share of a split, every sample once over all ranks."""
    options = _read_loader_options(info, data, ranks, image_size)
    return eval_loader(info, split, batch_size=batch_size, **options)


def open_sample(
    info: DatasetInfo,
    config: Config,
    ranks: Ranks,
    *,
    image_size: tuple[int, int],
    num_samples: int,
    chunk: int,
) -> Generator[Batch]:
    """This rank's chunks of the first samples of the training stream, without augmentation and not balanced; it ends after them.

    Chunk k of `chunk` samples goes to rank k modulo the number of ranks, so that the chunks are the same for any number of ranks.
    """
    batches = train_loader(
        info,
        "train",
        batch_size=chunk * ranks.world_size,
        seed=config.seed,
        window=config.data.shuffle_window,
        **_read_loader_options(info, config.data, ranks, image_size),
    )
    num_rounds = math.ceil(num_samples / (chunk * ranks.world_size))
    for batch in islice(batches, num_rounds):
        kept = batch.indices < num_samples  # beyond the sample the stream goes on
        if batch.error or kept.any():
            maps = {name: one[kept] for name, one in batch.maps.items()}
            yield replace(batch, images=batch.images[kept], labels=batch.labels[kept], maps=maps)


def describe_too_many_bad(
    num_bad: Counter[str], data: DataConfig, info: DatasetInfo, split: str
) -> str | None:
    """A sentence if more samples were left out, by kind and over all ranks, than `data.max_bad_samples`; else None."""
    if num_bad.total() <= data.max_bad_samples:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in num_bad.items())
    return (
        f"{num_bad.total()} samples of '{split}' could not be read ({kinds}), more than data.max_bad_samples="
        f"{data.max_bad_samples}. Check the data set with `distbranch data check {info.path}`, or raise the limit."
    )


def _read_augmentation(config: Config) -> Augmentation:
    data = config.data
    red, green, blue = (round(255 * mean) for mean in data.mean)
    return Augmentation(
        flip=data.flip,
        shift=data.shift,
        seed=config.seed,
        scale=data.scale,
        crop=data.crop,
        depth_follows_scale=data.depth_follows_scale,
        padding=(red, green, blue),
        crop_area=data.crop_area,
        recipe=data.augment,
        jitter=data.jitter,
    )


def _read_loader_options(
    info: DatasetInfo, data: DataConfig, ranks: Ranks, image_size: tuple[int, int]
) -> dict[str, Any]:
    num_workers = data.workers
    if num_workers is None:
        num_workers = choose_num_processes(ranks)
    return {
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "image_size": image_size,
        "decoder": data.decoder,
        "num_workers": num_workers,
        "prefetch": data.prefetch,
        "on_bad_sample": data.on_bad_sample,
        "cache": open_cache(info, data),
        "pin_memory": ranks.device.type == "cuda",
    }


def open_cache(info: DatasetInfo, data: DataConfig) -> Cache | None:
    """That of data sets at a URL; a user without a home needs no folder for copies of others."""
    if not any(is_remote(member.path) for member in info.members):
        return None
    return Cache(data.cache_directory or default_cache_folder(), int(data.cache_gib * 2**30))


def choose_num_processes(ranks: Ranks) -> int:
    """The loader's processes where `data.workers` is not given.

    A GPU waits for its images unless several cores decode them. On a CPU those cores would be taken from the training.
    """
    if ranks.device.type == "cpu":
        return 0
    num_free = num_cores() // num_local_ranks() - 1  # one core drives the GPU
    return min(MAX_LOADER_PROCESSES, max(1, num_free))
