"""What a process says to its terminal or log, whatever that can show."""

import io
import sys


def tolerate_any_text() -> None:
    """Letters that an output stream cannot show (of an ASCII or Latin log, say) become question marks, and end nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
