"""Requests to stop: signals to this process, or a file named `stop` in the run directory, which reaches every launcher.

Python runs a signal's handler only when the main thread comes back to it, and a rank that waits for another one may not do so
for minutes. So a thread watches too, and ends the process where that is all that is left to do.
"""

import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType

from distbranch.errors import Interrupted, StoppedEarly

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
EXIT_PREEMPTED, EXIT_INTERRUPTED = StoppedEarly.exit_code, Interrupted.exit_code
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_UNWIND = 2.0  # after a second Ctrl-C
# After any other signal: as long as torchrun, Slurm and Kubernetes wait before they kill.
SECONDS_TO_HEAR = 30.0
BUSY = 0.1  # processor seconds per second: a long backward pass does not hear either, but it works
SHOW_CURSOR = b"\x1b[?25h"  # the progress display hides it
NONE_IN_TIME, WATCH_IS_OVER = 0, -1


class StopRequest:
    """Remembers the first signal; a second SIGINT interrupts at once, as usual."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self) -> bool:
        """Whether somebody asked to stop."""
        return self.received is not None

    def make_error(self, message: str, *, by_one_rank: bool = False) -> StoppedEarly:
        """What to raise when everything is saved: after Ctrl-C it is a KeyboardInterrupt too."""
        kind = Interrupted if self.received == signal.SIGINT else StoppedEarly
        stopped = kind(message)
        stopped.by_one_rank = by_one_rank
        return stopped

    def _receive(self, number: int, _: FrameType | None) -> None:
        # The second Ctrl-C, of somebody who does not want to wait for the checkpoint.
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    @contextmanager
    def receive_signals(self) -> Iterator["StopRequest"]:
        """Receive SIGINT, SIGTERM, SIGUSR2 and SIGHUP (unless `nohup` ignores it) for a while.

        In another thread than the main one nothing is received, for signals are the main thread's.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = set(SIGNALS)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            with self._watched():
                yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def receive_and_raise(self, message: str) -> Iterator["StopRequest"]:
        """Receive them during a stretch in which nothing needs to be saved.

        Raises:
            StoppedEarly: at the end of the stretch, which should be soon after a signal.
        """
        with self.receive_signals():
            yield self
        if self():
            raise self.make_error(message)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Let a thread see every signal as it arrives, whatever the main thread does."""
        if hasattr(
            sys, "ps1"
        ):  # a notebook or a Python prompt: its process belongs to more than this training
            yield
            return
        _ignore_in_forks()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(
            target=self._watch, args=(ours,), name="distbranch-signals", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            theirs.close()
            thread.join()
            ours.close()

    def _watch(self, arrivals: socket.socket) -> None:
        """End the process if it does not hear the first signal, or is still there after a second Ctrl-C."""
        # A handler that has not run by then waits for a rank in a call that no signal interrupts.
        first = _wait_for_signal(arrivals, SIGNALS)
        used = time.process_time()
        again = _wait_for_signal(arrivals, [signal.SIGINT], SECONDS_TO_HEAR)
        if again == NONE_IN_TIME:
            is_busy = time.process_time() - used > BUSY * SECONDS_TO_HEAR
            if self.received is None and not is_busy:
                _end_process(
                    first,
                    f"Stopped after it had only waited for another rank for {SECONDS_TO_HEAR:g} s",
                )
            again = _wait_for_signal(arrivals, [signal.SIGINT])
        if (
            again != WATCH_IS_OVER
            and _wait_for_signal(arrivals, (), SECONDS_TO_UNWIND) == NONE_IN_TIME
        ):
            _end_process(signal.SIGINT, "Interrupted at once")


@cache
def _ignore_in_forks() -> None:
    """A signal to a process that was forked from this one would else arrive here too."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _wait_for_signal(
    arrivals: socket.socket, wanted: Collection[int], patience_s: float | None = None
) -> int:
    """The next of the signals that are wanted, or WATCH_IS_OVER; NONE_IN_TIME when none at all came for so long."""
    arrivals.settimeout(patience_s)
    while True:
        try:
            arrived = arrivals.recv(1)
        except TimeoutError:
            return NONE_IN_TIME
        if not arrived:
            return WATCH_IS_OVER
        if arrived[0] in wanted:
            return arrived[0]


def _end_process(number: int, what: str) -> None:
    """Without the interpreter's own end, which would wait for the thread that does not hear."""
    told = f"{what}; the same command continues from the last checkpoint.\n".encode()
    with suppress(OSError):
        os.write(2, SHOW_CURSOR + told if os.isatty(2) else told)
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    os._exit(code)


def check_twice_a_second(look: Callable[[], bool]) -> Callable[[], bool]:
    """What `look` found, asked at most twice a second and no more once it was True."""
    looked, found = -math.inf, False

    def look_again() -> bool:
        nonlocal looked, found
        if not found and time.monotonic() - looked >= SECONDS_BETWEEN_LOOKS:
            looked = time.monotonic()
            found = look()
        return found

    return look_again
