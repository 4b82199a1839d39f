"""What all commands share: the terminal, also one that is closed, common arguments and their completion, and tables."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from typer import Argument

from distbranch.config.paths import hide_secrets, is_remote
from distbranch.errors import UsageError, UserError
from distbranch.report.tables import start_table

console = Console()
errors = Console(stderr=True)


# ---- arguments


def complete_key(incomplete: str) -> list[tuple[str, str]]:
    """For the shell: the dotted keys that begin so, as `key=`, each with its meaning."""
    # Imported in functions, as in all commands: a completion or a help text that takes seconds is not waited for.
    from distbranch.config import describe_keys

    return [
        (f"{key}=", meaning) for key, _, _, meaning in describe_keys() if key.startswith(incomplete)
    ]


def complete_run(incomplete: str) -> list[str]:
    """For the shell: the folders that begin so, of a run or a sweep, or with such folders below them."""
    start = Path(incomplete)
    parent = start if incomplete.endswith("/") else start.parent
    found = []
    for folder in sorted(parent.glob("*/")):
        if not str(folder).startswith(incomplete.removeprefix("./")):
            continue
        # A folder of runs is offered with a slash, so that the next word goes on below it.
        if _is_run(folder):
            found.append(str(folder))
        elif any(map(_is_run, folder.glob("*/"))):
            found.append(f"{folder}/")
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or (folder / "sweep.yaml").exists()


given_plugins: list[str] = []  # by `distbranch --plugin`, as they were typed


def add_given_plugins(overrides: list[str] | None) -> list[str]:
    """The overrides of a configuration, with the plug-ins that `--plugin` gave."""
    return [*(overrides or []), *(f"plugins+={json.dumps(name)}" for name in given_plugins)]


Overrides = Annotated[
    list[str] | None,
    Argument(
        metavar="KEY=VALUE",
        help="Dotted keys, `method.alpha=2 optim.lr=0.01`.",
        autocompletion=complete_key,
        callback=add_given_plugins,
    ),
]
RunArgument = Annotated[
    str, Argument(help="A run directory: a folder or a URL.", autocompletion=complete_run)
]


def run_folder(run: str) -> Path:
    """The folder of a run; of one at a URL the copy that is made here."""
    if not is_remote(run):
        return Path(run)
    from distbranch.engine.remote_run import download_run

    return download_run(run)


def parse_counts(text: str, option: str = "--seeds", *, least: int = 0) -> list[int]:
    """Whole numbers from `least` on, separated by commas."""
    is_list = text.replace(",", "").isdigit()
    counts = [int(number) for number in text.split(",") if number] if is_list else []
    if not counts or min(counts) < least:
        raise UsageError(
            f"{option} should be whole numbers from {least} on, separated by commas, found '{text}'."
        )
    return counts


def parse_numbers(text: str, option: str) -> list[float]:
    """Numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} should be numbers separated by commas, found '{text}'."
        ) from None


def parse_size(text: str) -> tuple[int, int]:
    """`224x224` (height x width) as numbers."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UsageError(f"An image size is HEIGHTxWIDTH, such as 224x224, found {text!r}.")
    return int(height), int(width)


# ---- what is shown


def print_plain(text: Any) -> None:
    """The text as it is, but for secrets of URLs: not as markup, not folded, without colours."""
    console.print(hide_secrets(str(text)), markup=False, highlight=False, soft_wrap=True)


def print_piece(piece: str) -> None:
    """A piece of a log, which may end within a line."""
    # Not by rich, which would fold and colour what the job wrote.
    console.file.write(piece)
    console.file.flush()


def build_table(
    rows: Sequence[Mapping[str, Any]], *, num_texts: int | None = None, title: str = ""
) -> Table:
    """A table of rows with the same keys, which head the columns; those after the first `num_texts` are numbers."""
    table = start_table(title)
    for number, name in enumerate(rows[0]):
        is_number = num_texts is not None and number >= num_texts
        # Folded, for a key that is cut could not be copied.
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_format_cell, row.values()))
    return table


def _format_cell(value: Any) -> str:
    if value is None:
        return "\u2013"  # undefined
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows with the same keys."""
    show_wide(build_table(rows))


def show_wide(table: Table) -> None:
    """A table with many columns: folded on a terminal, and in a file as wide as it wants to be."""
    if console.is_terminal:
        console.print(table)
        return
    # 1000 is wider than any of our tables, so nothing is folded.
    wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
    Console(file=console.file, width=max(console.width, wanted)).print(table)


def show_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """A table of what was asked about and the answer."""
    table = start_table(has_heads=False)
    for pair in pairs:
        table.add_row(*(escape(hide_secrets(word)) for word in pair))
    console.print(table)


def write_output(out: Path | None, text: str) -> None:
    """Write the whole text or nothing, to the terminal where no file is named: what stood in a file before stays till then.

    What cannot be written (file names that are not UTF-8, letters that the terminal lacks) becomes escapes.
    """
    if out is None:
        sys.stdout.write(replace_unwritable(text, sys.stdout.encoding or "utf-8"))
        return
    from distbranch.engine.run_directory import write_atomically

    text = replace_unwritable(text, "utf-8")
    try:
        # A pipe and /dev/stdout are written to, and not replaced.
        if (out.is_file() or not out.exists()) and os.access(out.parent, os.W_OK):
            write_atomically(out.resolve(), text)
        else:
            out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Give another file.") from None


def replace_unwritable(text: str, encoding: str) -> str:
    """The text with escapes for what an encoding cannot hold."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


# ---- a terminal that is closed while a command runs


class LastingStream:
    """A text stream that goes nowhere once writing to it has failed. All but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        try:
            self._stream.write(text)
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
    # A run is not lost because its reader (`| head`, a closed window) has seen enough.
    before = sys.stdout, sys.stderr
    ours = [
        None if stream is None else LastingStream(stream) for stream in before
    ]  # None: closed before (`>&-`)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        for stream in filter(None, ours):
            stream.flush()
        sys.stdout, sys.stderr = before
