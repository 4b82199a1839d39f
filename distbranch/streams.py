"""What a process says to its terminal or log, whatever that can show."""

import io
import sys
from contextlib import suppress


def tolerate_any_text() -> None:
    """Letters that an output stream cannot show (of an ASCII or Latin log, say) become question marks, and end nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # what lies behind it was exchanged for something of another kind
                stream.reconfigure(errors="replace")
