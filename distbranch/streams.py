"""What a process says to its terminal or log, whatever that can show."""

import io
import logging
import sys
from contextlib import suppress

from distbranch.config.paths import hide_secrets


def tolerate_any_text() -> None:
    """Letters that an output stream cannot show (of an ASCII or Latin log, say) become question marks, and end nothing.

    Of errors they become escapes, as by default, for by them a file can be found.
    """
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(
                OSError
            ):  # what lies behind it was exchanged for something of another kind
                stream.reconfigure(errors=errors)


def hide_secrets_of_record(record: logging.LogRecord) -> bool:
    """A filter of a log: what it says is without the secrets of URLs."""
    record.msg, record.args = hide_secrets(record.getMessage()), None
    return True
