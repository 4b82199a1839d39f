"""The batches of one rank: its loaders, and the feed that fetches one batch ahead and agrees with the other ranks on it.

A rank that cannot use its next batch (a bad sample, a loader that failed) says so a step before anybody needs it, so that
all ranks stop together. The message is one small sum behind the backward pass and costs no wait.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from distbranch.config import Config, DataConfig
from distbranch.data.cache import Cache, default_cache_folder
from distbranch.data.loader import Batch, eval_loader, train_loader
from distbranch.data.plan import Turns
from distbranch.data.shards import BAD_KINDS, DatasetInfo, is_remote
from distbranch.engine.distributed import Pending, Ranks
from distbranch.engine.process_group import num_cores, num_local_ranks
from distbranch.engine.waiting import NotAwaitedError, awaited
from distbranch.errors import UserError

MAX_LOADER_PROCESSES = 8  # decode faster than one GPU trains a thin network


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of the next batch: whether to stop before it, whether some rank cannot use it, what it lacks."""

    stop: bool
    failed: bool
    num_bad: Counter[str]


class BatchFeed:
    """Hands out batches that every rank can use.

    Args:
        batches: this rank's endless batches.
        ranks: this process among the others.
        should_stop: asked once per batch on every rank.
    """

    def __init__(self, batches: Iterator[Batch], ranks: Ranks, should_stop: Callable[[], bool]) -> None:
        self.ranks = ranks
        self.should_stop = should_stop
        self._batches = batches
        self._fetch()

    def agree_on_next_batch(self) -> Agreement:
        """Await what the ranks said about the next batch."""
        stop, failed, *counts = self._flags.wait().tolist()
        num_bad = Counter({kind: int(count) for kind, count in zip(BAD_KINDS, counts, strict=True)})
        return Agreement(bool(stop), bool(failed), +num_bad)  # `+` leaves kinds without a sample out

    def next_batch(self) -> tuple[Batch, float]:
        """The next batch, and the seconds that fetching the one after it took."""
        batch = self.upcoming
        return batch, self._fetch()

    def _fetch(self) -> float:
        """Fetch one batch, begin to tell the other ranks about it, and return the seconds that it took to come."""
        began = time.perf_counter()
        empty = torch.empty(0)
        self.upcoming = Batch(empty, empty, {}, None, empty)
        self.problem: str | None = None
        try:
            self.upcoming = awaited(lambda: next(self._batches), self.should_stop)
            self.problem = self.upcoming.error
        except NotAwaitedError:
            pass  # all ranks stop before they use it
        except UserError as error:  # the loader itself: a process of it died
            self.problem = str(error)
        waited = time.perf_counter() - began
        self._flags = self._start_flags()
        return waited

    def _start_flags(self) -> Pending:
        flags = [float(self.should_stop()), float(self.problem is not None)]
        flags += [float(self.upcoming.num_bad.get(kind, 0)) for kind in BAD_KINDS]
        return self.ranks.start_sum(torch.tensor(flags, dtype=torch.float64), on_host=True)


def open_training(
    info: DatasetInfo,
    config: Config,
    ranks: Ranks,
    *,
    image_size: tuple[int, int],
    start: int,
    turns: Turns | None = None,
) -> Iterator[Batch]:
    """This rank's endless training batches, after `start` samples consumed by all ranks together.

    `turns`: how two parts of the samples are read in turns; None: all of them in one stream.
    """
    return train_loader(
        info,
        "train",
        batch_size=config.train.batch_size,
        start=start,
        seed=config.seed,
        flip=config.data.flip,
        shift=config.data.shift,
        window=config.data.shuffle_window,
        accumulate=config.train.accumulate,
        turns=turns,
        **_read_loader_options(info, config.data, ranks, image_size),
    )


def open_evaluation(
    info: DatasetInfo, split: str, data: DataConfig, ranks: Ranks, *, image_size: tuple[int, int], batch_size: int
) -> Iterator[Batch]:
    """This rank's share of a split, every sample once over all ranks."""
    options = _read_loader_options(info, data, ranks, image_size)
    return eval_loader(info, split, batch_size=batch_size, **options)


def describe_too_many_bad(num_bad: Counter[str], data: DataConfig, info: DatasetInfo, split: str) -> str | None:
    """A sentence if more samples were left out, by kind and over all ranks, than `data.max_bad_samples`; else None."""
    if num_bad.total() <= data.max_bad_samples:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in num_bad.items())
    return (
        f"{num_bad.total()} samples of '{split}' could not be read ({kinds}), more than data.max_bad_samples="
        f"{data.max_bad_samples}. Check the data set with `distbranch data check {info.path}`, or raise the limit."
    )


def _read_loader_options(
    info: DatasetInfo, data: DataConfig, ranks: Ranks, image_size: tuple[int, int]
) -> dict[str, Any]:
    cache = None
    if any(is_remote(member.path) for member in info.members):  # else a user without a home needs no folder for copies
        cache = Cache(data.cache_directory or default_cache_folder(), int(data.cache_gib * 2**30))
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
        "cache": cache,
        "pin_memory": ranks.device.type == "cuda",
    }


def choose_num_processes(ranks: Ranks) -> int:
    """The loader's processes where `data.workers` is not given.

    A GPU waits for its images unless several cores decode them. On a CPU those cores would be taken from the training.
    """
    if ranks.device.type == "cpu":
        return 0
    num_free = num_cores() // num_local_ranks() - 1  # one core drives the GPU
    return min(MAX_LOADER_PROCESSES, max(1, num_free))
