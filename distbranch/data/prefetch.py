"""Makes batches ahead of need, by one thread or by several processes: the same batches in the same order either way.

Process w of n makes batches w, w + n, ... by itself; the DataLoader of torch carries them over and puts them in order.
"""

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from distbranch.errors import UserError

logger = logging.getLogger("distbranch")
SHARED_MEMORY = "/dev/shm"
NO_SHARED_MEMORY = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSYS)  # there is none, or not for us
SECONDS_TO_DIE = 2.0  # from the first sign that a process is gone until its exit code is known


class Movable(Protocol):
    """A batch."""

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which a GPU copies without waiting."""

    def share_memory(self) -> Self:
        """The batch in memory that another process can map."""


B = TypeVar("B", bound=Movable, covariant=True)


class Source(Protocol[B]):
    """Makes the batches; it travels to the processes, so it can be pickled."""

    def make_batches(self, first: int = 0, step: int = 1) -> Iterator[B]:
        """Batches first, first + step, ..."""


def from_thread(source: Source[B], prefetch: int, *, pin_memory: bool = False) -> Iterator[B]:
    """All batches of the source, `prefetch` ahead, made by one thread: decoders release the interpreter's lock."""
    batches = source.make_batches()

    def make_next() -> B | None:
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
    source: Source[B],
    num_workers: int,
    prefetch: int,
    *,
    pin_memory: bool = False,
) -> Iterator[B]:
    """All batches of the source in order, `prefetch` ahead in each of `num_workers` processes, which begin at once.

    The iterator raises a UserError if a process has died, or if there is no room in the memory that they share.
    """
    # Neither fork (the threads of gloo, gRPC and OpenMP may hold locks at that moment) nor spawn (each process would
    # import torch anew, seconds each): a server process imports once, every later process is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "distbranch.data.loader"])
    loader = DataLoader(
        _Stream(source),
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
    _warn_if_unguarded(getattr(sys.modules["__main__"], "__file__", None) or "")
    try:
        with _without_main():
            batches = iter(loader)
    except OSError as error:  # where the first batch is awaited all ranks learn of it
        return _raise_at_first_batch(UserError(_explain_no_start(error)))
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


@cache
def _warn_if_unguarded(script: str) -> None:
    """Once: ours do without the guard, but the processes of whatever else the script uses may not."""
    try:
        has_guard = "__name__" in Path(script).read_text(encoding="utf-8", errors="replace")
    except OSError:  # no script, or one from a pipe
        return
    if not has_guard:
        logger.warning(
            'The script %s has no `if __name__ == "__main__":`. Put its calls under one: a library that starts processes may run it '
            "again in each (those of data.workers do not).",
            script,
        )


def _explain_errors(batches: Iterator[B], processes: Sequence[BaseProcess]) -> Iterator[B]:
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        if _is_about_shared_memory(error):
            raise UserError(_explain_full_memory()) from None
        if not _is_from_dead_process(error):
            raise
        raise UserError(_explain_death(processes, error)) from None


def _raise_at_first_batch(error: UserError) -> Iterator[Any]:
    raise error
    yield


def _explain_no_start(error: OSError) -> str:
    """Processes share semaphores too, which are files in the shared memory."""
    if error.errno == errno.ENOSPC:
        return _explain_full_memory()
    where = f" in {SHARED_MEMORY}" if error.errno in NO_SHARED_MEMORY else ""
    return (
        f"The prefetching processes (data.workers) cannot be started ({error.strerror}{where}). Lower data.workers, or set it to 0, "
        "which needs no such processes."
    )


def _is_about_shared_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "shared memory" in str(error) and "No space left" in str(error)


def _explain_full_memory() -> str:
    return (
        f"The prefetching processes (data.workers) hand over their batches in {SHARED_MEMORY}, which is full: it has room for "
        f"{shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.1f} MiB. Give it more (`docker run --shm-size=2g`; in Kubernetes an "
        f"emptyDir of medium Memory at {SHARED_MEMORY}), or set data.workers=0."
    )


def _explain_death(processes: Sequence[BaseProcess], error: Exception) -> str:
    """One sentence by the signal or the exit code of the first that is gone."""
    connection.wait([process.sentinel for process in processes], SECONDS_TO_DIE)
    code = next((process.exitcode for process in processes if process.exitcode), None)
    if code == -signal.SIGBUS:
        return _explain_full_memory()
    if code is None:
        how = " ".join(str(error).split()) or type(error).__name__
    elif code < 0:  # as multiprocessing has it, the signal
        how = f"signal {signal.Signals(-code).name}"
    else:
        how = f"exit code {code}"
    cure = "Run the same command again; with data.workers=0 there are no such processes."
    if code == -signal.SIGKILL:
        cure = "If nobody else did, the system killed it for want of memory: lower data.workers or data.prefetch."
    return f"A prefetching process ended unexpectedly ({how}). {cure}"


class _Stream(IterableDataset[Any]):
    """What every prefetching process iterates: its own share of the batches."""

    def __init__(self, source: Source[Any]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        for batch in self._source.make_batches(worker.id, worker.num_workers):
            # Left to the queue, which shares tensors in a thread of its own, a lack of room would lose the batch in silence.
            yield batch.share_memory()


def _is_from_dead_process(error: Exception) -> bool:
    """Whether a process is gone, as against an error inside it, which arrives as "Caught ... in DataLoader worker"."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return not str(error).startswith("Caught")  # the pipe to a process that was killed breaks in several ways


def _keep_batch(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """In a prefetching process: leave signals to the trainer, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_first_signal)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
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
