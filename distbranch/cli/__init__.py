"""The command line: parse, call, show. No logic."""

import logging
import os
import re
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from textwrap import fill
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from typer import Option
from typer.core import TyperGroup

from distbranch.cli.bench import bench_app
from distbranch.cli.data import data_app
from distbranch.cli.experiment import compare, experiment_app
from distbranch.cli.init import init
from distbranch.cli.listing import cancel, list_runs, logs, resume, status
from distbranch.cli.predict import predict
from distbranch.cli.runs import (
    doctor,
    evaluate,
    export,
    report,
    restrict,
    train,
)
from distbranch.cli.serve import serve
from distbranch.cli.submit import submit_app
from distbranch.cli.sweep import sweep
from distbranch.cli.terminal import console, errors, given_plugins, lasting_streams
from distbranch.config.paths import hide_secrets
from distbranch.errors import Interrupted, SharedError, StoppedEarly, UsageError, UserError
from distbranch.permissions import make_denied_error
from distbranch.plugins import describe_plugin_failure, load_plugins, make_absolute
from distbranch.streams import hide_secrets_of_record, tolerate_any_text


class Commands(TyperGroup):
    """The commands; where one ends early it says so, also after Ctrl-C, of which typer says nothing."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except StoppedEarly as stopped:
            # Every rank that torchrun started prints into the same terminal.
            if _is_first_rank() or stopped.by_one_rank:
                _print_error(str(stopped), "yellow")
            _exit_despite_threads("distbranch-waiting", stopped.exit_code)
            raise typer.Exit(stopped.exit_code) from None
        except KeyboardInterrupt:
            _exit_despite_threads("distbranch-", Interrupted.exit_code)
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    # A bug's traceback is wanted as Python prints it, without pages of local variables.
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Multi-task networks that find out by themselves what to share.",
)
# In the order of the help text: from training to looking at what came of it.
for command in (
    init,
    train,
    sweep,
    compare,
    evaluate,
    predict,
    export,
    restrict,
    serve,
    report,
    doctor,
    status,
    logs,
    cancel,
    resume,
):
    app.command()(command)
app.command("ls")(list_runs)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(submit_app, name="submit")
app.add_typer(experiment_app, name="experiment")


def main() -> None:
    """Run the command line; errors for people end in one sentence and exit code 1 or 2."""
    tolerate_any_text()
    with lasting_streams():
        _run_app()


def _run_app() -> None:
    try:
        _refuse_dashes(sys.argv[1:])
        app()
    except UserError as error:
        if _is_first_rank() or not isinstance(error, SharedError):
            _print_error("Error: " + ("\n".join(map(_fold, error.lines)) or str(error)), "red")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except PermissionError as error:
        # Wherever it comes from: any file that a command reads or writes may be somebody else's.
        _print_error(f"Error: {make_denied_error(error)}", "red")
        sys.exit(1)
    except Exception as error:  # of any kind: a bug of ours keeps its traceback
        failure = describe_plugin_failure(error)
        if failure is None:
            raise
        _print_error(f"Error: {failure}", "red")
        sys.exit(1)


def _print_error(text: str, style: str) -> None:
    errors.print(hide_secrets(text), style=style, markup=False, highlight=False, soft_wrap=True)


def _fold(line: str) -> str:
    """One of several problems, indented below its number on a terminal; in a file it stays a line, as a search wants it."""
    if not errors.is_terminal:
        return line
    # Neither a path nor an option is broken, for they are copied from here.
    return fill(
        line,
        errors.width,
        subsequent_indent=4 * " ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _exit_despite_threads(threads: str, code: int) -> None:
    """End at once if threads of these names still wait, for a network say; the end of the interpreter would wait for them."""
    if any(thread.name.startswith(threads) for thread in threading.enumerate()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"distbranch {version('distbranch')}", highlight=False)
        raise typer.Exit


def _refuse_dashes(arguments: Sequence[str]) -> None:
    """A key of a configuration that was written as an option; no option has a dot in its name."""
    for argument in arguments:
        if re.match(r"--[a-z_]+\.[a-z_.]+(=|$)", argument):
            raise UsageError(
                f"Keys are written without dashes, such as method.alpha=2, found {argument}."
            )


@app.callback()
def _setup_logging(
    _: Annotated[
        bool,
        Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    plugin: Annotated[
        list[str] | None,
        Option(
            help="A Python file, or a module, of your own to load, as the key `plugins` of a configuration; may be given again.",
        ),
    ] = None,
) -> None:
    logger = logging.getLogger("distbranch")
    # On stderr, so that stdout is what was asked for; replaced, for tests come here often in one process.
    handler = RichHandler(console=errors, show_path=False, show_time=False, markup=False)
    handler.addFilter(hide_secrets_of_record)
    logger.handlers = [handler]
    logger.propagate = False
    threading.excepthook = _log_thread_error
    given_plugins[:] = plugin or []
    load_plugins(map(make_absolute, given_plugins))


def _log_thread_error(ended: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread on a full disk, say: what follows from it is told where the command ends."""
    name = ended.thread.name if ended.thread else "unknown"
    logging.getLogger("distbranch").warning("The thread %s ended: %s", name, ended.exc_value)
