"""What all commands share: the terminal, also one that is closed, common arguments and their completion, and small tables."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from distbranch.config.paths import is_remote
from distbranch.errors import UsageError

console = Console()
errors = Console(stderr=True)


def complete_key(incomplete: str) -> list[tuple[str, str]]:
    """For the shell: the dotted keys that begin so, as `key=`, each with its meaning."""
    from distbranch.config import describe_keys

    return [(f"{key}=", meaning) for key, _, _, meaning in describe_keys() if key.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """For the shell: the folders that begin so, of a run or a sweep, or with such folders below them."""
    start = Path(incomplete)
    parent = start if incomplete.endswith("/") else start.parent
    found = []
    for folder in sorted(parent.glob("*/")):
        if not str(folder).startswith(incomplete.removeprefix("./")):
            continue
        if _is_run(folder):
            found.append(str(folder))
        elif any(map(_is_run, folder.glob("*/"))):
            found.append(f"{folder}/")
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or (folder / "sweep.yaml").exists()


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Dotted keys, `method.alpha=2 optim.lr=0.01`.", autocompletion=complete_key),
]
RunArgument = Annotated[str, typer.Argument(help="A run directory: a folder or a URL.", autocompletion=complete_run)]


def run_folder(run: str) -> Path:
    """The folder of a run; of one at a URL the copy that is made here."""
    if not is_remote(run):
        return Path(run)
    from distbranch.engine.remote_run import download_run

    return download_run(run)


def show_rows(rows: list[dict[str, Any]]) -> None:
    """A table of rows with the same columns."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(_format_cell, row.values()))
    show_wide(table)


def _format_cell(value: Any) -> str:
    if value is None:
        return "\u2013"  # undefined
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_wide(table: Table) -> None:
    """A table with many columns: folded on a terminal, and in a file as wide as it wants to be."""
    if console.is_terminal:
        console.print(table)
        return
    wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
    Console(file=console.file, width=max(console.width, wanted)).print(table)


def show_pairs(pairs: Any) -> None:
    """A table of what was asked about and the answer."""
    table = Table(show_header=False)
    for pair in pairs:
        table.add_row(*map(escape, pair))
    console.print(table)


def numbers(text: str, option: str = "--seeds") -> list[int]:
    """Whole numbers separated by commas."""
    if not text.replace(",", "").isdigit():
        raise UsageError(f"{option} should be whole numbers separated by commas, found '{text}'.")
    return [int(number) for number in text.split(",") if number]


def decimals(text: str, option: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} should be numbers separated by commas, found '{text}'.") from None


def parse_size(text: str) -> tuple[int, int]:
    """`224x224` (height x width) as numbers."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UsageError(f"An image size is HEIGHTxWIDTH, such as 224x224, found {text!r}.")
    return int(height), int(width)


class LastingStream:
    """A text stream that goes nowhere once writing to it has failed. All but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        try:
            return self._stream.write(text)
        except OSError:
            self._close_stream()
            return len(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        try:
            self._stream.flush()
        except OSError:
            self._close_stream()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _close_stream(self) -> None:
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
