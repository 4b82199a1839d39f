"""Signals that a scheduler or a terminal sends to many processes at once, and what only serves one of them should not end by."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

# Of those that ask a run or sweep to save itself all but Ctrl-C, from which Ray and multiprocessing keep their processes themselves.
SENT_TO_MANY = {signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP}


@contextmanager
def hidden_from_children() -> Iterator[None]:
    """What is started meanwhile hears none of them, nor do its children; this process hears at the end what came.

    Slurm tells every process of a step, or a terminal its process group, and what ends at once (Ray, the server of prefetching
    processes) leaves who depends on it no time to save. A session of its own would keep off the terminal, but not Slurm.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SENT_TO_MANY)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
