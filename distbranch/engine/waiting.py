"""Waiting that a wish to stop ends: for ranks that do not come, or for a download.

The main thread must not be the one that waits: Python runs the handlers of signals in it, and not while it is in a library.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LOOKS = 0.2


class NotAwaitedError(Exception):
    """Somebody asked to stop before it was there."""


def wait_for_result(call: Callable[[], T], should_stop: Callable[[], bool]) -> T:
    """What `call` returns, or raises.

    Raises:
        NotAwaitedError: `should_stop` came first; the call continues without anybody.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # of any kind: it is raised where the call is awaited
            future.set_exception(error)

    # No ThreadPoolExecutor: the process would wait for its threads at the end, and this call may never return.
    threading.Thread(target=run, name="distbranch-waiting", daemon=True).start()
    while not wait([future], timeout=SECONDS_BETWEEN_LOOKS).done:
        if should_stop():
            raise NotAwaitedError
    return future.result()
