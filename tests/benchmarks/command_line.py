"""What the commands of this folder share: errors in one sentence, work folders, numbers of an option."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from distbranch.errors import UsageError, UserError


def run_as_command(command: Callable[..., Any]) -> None:
    """Run a function as the command line of its file; errors for people end in one sentence and exit code 1 or 2."""
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
    )
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


@contextmanager
def create_work_folder(folder: Path | None) -> Iterator[Path]:
    """A folder inside `folder` (None: where temporary files go) that is removed in the end."""
    try:
        created = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise UsageError(
            f"--folder should be a folder that can be written, found {folder} ({error.strerror}). Give another, or none."
        ) from None
    with created as place:
        yield Path(place)
