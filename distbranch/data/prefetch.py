"""Makes batches ahead of need, by one thread or by several processes: the same batches in the same order either way.

Process w of n makes batches w, w + n, ... by itself; the DataLoader of torch carries them over and puts them in order.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from distbranch.errors import UserError, reason_of
from distbranch.signals import hidden_from_children

SHARED_MEMORY = "/dev/shm"
SECONDS_TO_DIE = 2.0  # from the first sign that a process is gone until its exit code is known


@dataclass(frozen=True)
class Batch:
    """Some samples of one rank.

    images: uint8 [b, 3, H, W] (channels_last in memory); labels: float32 [b, T], NaN where unlabelled; num_bad: samples
    left out, by kind; error: one sentence that must end the run; indices: int64 [b], positions in the stream of
    training samples, or in the split in an evaluation; maps: the codes of dense tasks by name (maps.Labels); mixed: of
    images that were mixed with others the labels [b, T] of those, and the shares [b] that are their own (data/mixing.py).
    """

    images: Tensor
    labels: Tensor
    num_bad: dict[str, int]
    error: str | None
    indices: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    mixed: tuple[Tensor, ...] = ()

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies without waiting."""
        images = self.images.pin_memory()
        labels = self.labels.pin_memory()
        maps = {name: one.pin_memory() for name, one in self.maps.items()}
        mixed = tuple(one.pin_memory() for one in self.mixed)
        return replace(self, images=images, labels=labels, maps=maps, mixed=mixed)

    def share_memory(self) -> "Batch":
        """The batch in memory that another process can map (a prefetching process calls it)."""
        tensors = (self.images, self.labels, self.indices, *self.maps.values(), *self.mixed)
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        return self


# Makes batches first, first + step, ...; it travels to the processes, so it can be pickled.
MakeBatches = Callable[[int, int], Iterator[Batch]]


def from_thread(
    make_batches: MakeBatches, prefetch: int, *, pin_memory: bool = False
) -> Iterator[Batch]:
    """All batches, `prefetch` ahead, made by one thread: decoders release the interpreter's lock."""
    batches = make_batches(0, 1)

    def make_next() -> Batch | None:
        batch = next(batches, None)
        if batch is not None and pin_memory:
            return batch.pin_memory()
        return batch

    pool = ThreadPoolExecutor(1, "distbranch-loader")
    try:
        pending = deque(pool.submit(make_next) for _ in range(prefetch))
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(make_next))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def from_processes(
    make_batches: MakeBatches,
    num_workers: int,
    prefetch: int,
    *,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """All batches in order, `prefetch` ahead in each of `num_workers` processes, which begin at once.

    The iterator raises a UserError if a process has died, or if there is no room in the memory that they share.
    """
    # Neither fork (the threads of gloo, gRPC and OpenMP may hold locks at that moment) nor spawn (each process would
    # import torch anew, seconds each): a server process imports once, every later process is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "distbranch.data.loader"])
    loader = DataLoader(
        _Stream(make_batches),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch,
        collate_fn=_keep_batch,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else each loader draws from the global one, which a resumed run would notice
    )
    before = multiprocessing.active_children()
    # Apart and first, for starting it lets SIGTERM through again (Python 3.11).
    with hidden_from_children():
        resource_tracker.ensure_running()
    try:
        with _without_main(), hidden_from_children():
            batches = iter(loader)
    except OSError as error:  # where the first batch is awaited all ranks learn of it
        return _raise_at_first_batch(UserError(_explain_failure(error)))
    processes = [process for process in multiprocessing.active_children() if process not in before]
    return _explain_errors(batches, processes)


@contextmanager
def _without_main() -> Iterator[None]:
    """Else every process would run the user's script once more, and train by itself where it has no main guard.

    Nothing that travels to the processes is defined there, and a script from a pipe (`python -`) could not be run again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _explain_errors(batches: Iterator[Batch], processes: Sequence[BaseProcess]) -> Iterator[Batch]:
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        # An error inside a process arrives as "Caught ...", and the death of one in many ways: the pipe to it breaks.
        if str(error).startswith("Caught") and not _is_about_room(error):
            raise
        connection.wait([process.sentinel for process in processes], SECONDS_TO_DIE)
        exit_codes = [process.exitcode for process in processes if process.exitcode]
        raise UserError(_explain_failure(error, *exit_codes[:1])) from None


def _is_about_room(error: Exception) -> bool:
    return os.strerror(errno.ENOSPC) in str(error)


def _explain_failure(error: Exception, exit_code: int = 0) -> str:
    """One sentence by the error, or by the exit code of the first process that is gone: minus its signal."""
    if exit_code == -signal.SIGBUS or _is_about_room(error):
        return (
            f"The prefetching processes (data.workers) hand over their batches in {SHARED_MEMORY}, which is full: it has room for "
            f"{shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.1f} MiB. Give it more (`docker run --shm-size=2g`; in Kubernetes an "
            f"emptyDir of medium Memory at {SHARED_MEMORY}), or set data.workers=0."
        )
    how = reason_of(error)
    if exit_code > 0:
        how = f"exit code {exit_code}"
    elif exit_code < 0:
        how = f"signal {signal.Signals(-exit_code).name}"
    cure = "Run the same command again, or set data.workers=0, which needs no such processes."
    if exit_code == -signal.SIGKILL:
        cure = "If nobody else did, the system killed it for want of memory: lower data.workers or data.prefetch."
    return f"A prefetching process ended unexpectedly ({how}). {cure}"


def _raise_at_first_batch(error: UserError) -> Iterator[Batch]:
    raise error
    yield


class _Stream(IterableDataset[Batch]):
    """What every prefetching process iterates: its own share of the batches."""

    def __init__(self, make_batches: MakeBatches) -> None:
        self._make_batches = make_batches

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        assert worker is not None
        for batch in self._make_batches(worker.id, worker.num_workers):
            # Left to the queue, which shares tensors in a thread of its own, a lack of room would lose the batch in silence.
            yield batch.share_memory()


def _keep_batch(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """In a prefetching process: leave signals to the trainer, and end when it is gone."""
    for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_first_signal)
    # The server, of which this is a fork, does not hear it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    # The DataLoader watches the parent process, but that is the fork server, which lives as long as its children do.
    threading.Thread(target=_exit_with_trainer, daemon=True).start()


def _ignore_first_signal(number: int, _: FrameType | None) -> None:
    """A scheduler sends SIGTERM to all processes at once, and the trainer still wants its batches; the next one ends."""
    signal.signal(number, signal.SIG_DFL)


def _exit_with_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    connection.wait([trainer.sentinel])
    os._exit(1)
