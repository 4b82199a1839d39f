"""Waiting that a wish to stop ends: for ranks that do not come, or for a download.

The main thread must not be the one that waits: Python runs the handlers of signals in it, and not while it is in a library.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LOOKS = 0.2


class NotAwaitedError(Exception):
    """Somebody asked to stop before it was there."""


class _Work(threading.Thread, Generic[T]):
    """A call in a thread of its own, which nothing waits for at the end of the process."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(name="distbranch-waiting", daemon=True)
        self._call = call
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """What the thread does."""
        try:
            self._results.append(self._call())
        except BaseException as error:  # of any kind: it is raised where the call is awaited
            self._error = error

    def result(self) -> T:
        """What the call returned or raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]


def awaited(call: Callable[[], T], should_stop: Callable[[], bool]) -> T:
    """What `call` returns, or raises.

    Raises:
        NotAwaitedError: `should_stop` came first; the call goes on without anybody.
    """
    work = _Work(call)
    work.start()
    work.join(SECONDS_BETWEEN_LOOKS)
    while work.is_alive():
        if should_stop():
            raise NotAwaitedError
        work.join(SECONDS_BETWEEN_LOOKS)
    return work.result()
