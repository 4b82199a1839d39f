"""Makes batches ahead of need, by one thread or by several processes: the same batches in the same order either way.

Process w of n makes batches w, w + n, ... by itself; the DataLoader of torch carries them over and puts them in order.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from types import FrameType
from typing import Any, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from distbranch.errors import UserError


class Pinnable(Protocol):
    """A batch."""

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which a GPU copies without waiting."""


B = TypeVar("B", bound=Pinnable, covariant=True)


class Source(Protocol[B]):
    """Makes the batches; it travels to the processes, so it can be pickled."""

    def batches(self, first: int = 0, step: int = 1) -> Iterator[B]:
        """Batches first, first + step, ..."""


def from_thread(source: Source[B], prefetch: int, *, pin_memory: bool = False) -> Iterator[B]:
    """All batches of the source, `prefetch` ahead, made by one thread: decoders release the interpreter's lock."""
    batches = source.batches()

    def make() -> B | None:
        batch = next(batches, None)
        return batch.pin_memory() if batch is not None and pin_memory else batch

    pool = ThreadPoolExecutor(1, "distbranch-loader")
    try:
        pending = deque(pool.submit(make) for _ in range(prefetch))
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(make))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def from_processes(source: Source[B], num_workers: int, prefetch: int, *, pin_memory: bool = False) -> Iterator[B]:
    """All batches of the source in order, `prefetch` ahead in each of `num_workers` processes."""
    # Neither fork (the threads of gloo, gRPC and OpenMP may hold locks at that moment) nor spawn (each process would
    # import torch anew, seconds each): a server process imports once, every later process is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "distbranch.data.loader"])
    loader = DataLoader(
        _Stream(source),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch,
        collate_fn=_as_it_is,
        worker_init_fn=_begin_worker,
        multiprocessing_context=context,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else each loader draws from the global one, which a resumed run would notice
    )
    try:
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:
        if not _from_a_dead_process(error):
            raise
        raise UserError(
            f"A prefetching process ended unexpectedly ({error or type(error).__name__}). "
            "Perhaps memory ran out: lower data.workers."
        ) from error


class _Stream(IterableDataset[Any]):
    """What every prefetching process iterates: its own share of the batches."""

    def __init__(self, source: Source[Any]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        return self._source.batches(worker.id, worker.num_workers)


def _from_a_dead_process(error: Exception) -> bool:
    """Whether a process is gone, as against an error inside it, which arrives as "Caught ... in DataLoader worker"."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return not str(error).startswith("Caught")  # the pipe to a process that was killed breaks in several ways


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(_: int) -> None:
    """In a prefetching process: leave signals to the trainer, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_the_first_one)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # The DataLoader watches the parent process, but that is the fork server, which lives as long as its children do.
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()


def _leave_the_first_one(number: int, _: FrameType | None) -> None:
    """A scheduler sends SIGTERM to all processes at once, and the trainer still wants its batches; the next one ends."""
    signal.signal(number, signal.SIG_DFL)


def _end_with_the_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    connection.wait([trainer.sentinel])
    os._exit(1)
