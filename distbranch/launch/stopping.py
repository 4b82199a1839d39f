"""Requests to stop: signals to this process, or a file named `stop` in the run directory, which reaches every launcher."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
EXIT_PREEMPTED, EXIT_INTERRUPTED = 75, 130
SECONDS_BETWEEN_LOOKS = 0.5


class StopRequest:
    """Remembers the first signal; a second SIGINT interrupts at once, as usual."""

    def __init__(self) -> None:
        self.received: int | None = None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 75: stopped early with a checkpoint."""
        return EXIT_INTERRUPTED if self.received == signal.SIGINT else EXIT_PREEMPTED

    def __call__(self) -> bool:
        """Whether somebody asked to stop."""
        return self.received is not None

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Receive SIGINT, SIGTERM and SIGUSR2 for a while; the main thread only."""
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def stop_word(path: Path) -> Callable[[], bool]:
    """Whether the file `path` exists, looked up at most twice a second."""
    return looked_up_at_times(path.exists)


def looked_up_at_times(look: Callable[[], bool]) -> Callable[[], bool]:
    """What `look` found, asked at most twice a second and no more once it was True."""
    looked, found = -SECONDS_BETWEEN_LOOKS, False

    def ask() -> bool:
        nonlocal looked, found
        now = time.monotonic()
        if not found and now - looked >= SECONDS_BETWEEN_LOOKS:
            looked, found = now, look()
        return found

    return ask
