"""Standard output and error that outlive their reader: a closed terminal, or `| head`.

What is written to nobody is lost; what is trained meanwhile is not.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class LastingStream:
    """A text stream that goes nowhere once writing to it has failed. All but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        try:
            return self._stream.write(text)
        except OSError:
            self._lead_nowhere()
            return len(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        try:
            self._stream.flush()
        except OSError:
            self._lead_nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lead_nowhere(self) -> None:
        """For everybody who holds the file descriptor: what is still in a buffer would fail again at the end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let the standard streams outlive their reader for a while; at its end they are flushed."""
    before = sys.stdout, sys.stderr
    ours = [None if stream is None else LastingStream(stream) for stream in before]  # None: closed before (`>&-`)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        for stream in filter(None, ours):
            stream.flush()
        sys.stdout, sys.stderr = before
