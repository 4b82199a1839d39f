"""The commands about what runs: ls, status, logs, cancel, resume. All but the last, once it trains, start without torch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from typer import Argument, Option

from distbranch.cli.terminal import (
    RunArgument,
    complete_run,
    console,
    print_piece,
    print_plain,
    run_folder,
    show_pairs,
)
from distbranch.config.paths import is_remote
from distbranch.errors import UsageError

if TYPE_CHECKING:
    from distbranch.listing.rows import Row

WIDE_ENOUGH = 1000  # of a file or a pipe: nothing is left out
RunArguments = Annotated[
    list[str],
    Argument(
        metavar="RUN...",
        help="Directories of runs or sweeps: folders or URLs.",
        autocompletion=complete_run,
    ),
]


def list_runs(
    directory: Annotated[Path, Argument(help="The folder that holds them, or a sweep.")] = Path(
        "runs"
    ),
    watch: Annotated[
        float | None,
        Option(help="Show the list again every so many seconds, until Ctrl-C.", min=0.5),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="As JSON, for a program.")] = False,
) -> None:
    """List runs, sweeps and experiments: how far, how fast, how good, and what each does; the last active one first.

    Of a sweep its trials are listed too. The score is the best so far on val, of a finished run that on test.

    Examples:
    - `distbranch ls`
    - `distbranch ls /shared/runs --watch 5`
    - `distbranch ls runs --json`
    """
    from distbranch.listing.listing import list_rows

    if as_json and watch is not None:
        raise UsageError(
            "--watch is for a terminal and --json for a program: leave one of them out."
        )
    if as_json:
        return print_plain(json.dumps([row.to_json() for row in list_rows(directory)], indent=1))
    if watch is None:
        return _show_rows(list_rows(directory), directory)
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                rows = list_rows(directory)
                live.update(_render_rows(rows, directory), refresh=True)
                time.sleep(watch)
    except KeyboardInterrupt:  # the only way to end it, so no failure
        return None


def _show_rows(rows: Sequence["Row"], directory: Path) -> None:
    from distbranch.listing.table import make_table

    if not rows:
        print_plain(_say_empty(directory))
    elif console.is_terminal:
        console.print(make_table(rows, console.width))
    else:
        # A file is as wide as its lines: nothing is folded.
        Console(file=console.file, width=WIDE_ENOUGH).print(make_table(rows, WIDE_ENOUGH))


def _render_rows(rows: Sequence["Row"], directory: Path) -> Group | Text:
    from distbranch.listing.table import make_table

    return make_table(rows, console.width) if rows else Text(_say_empty(directory))


def _say_empty(directory: Path) -> str:
    return f"There are no runs in {directory} yet."


def status(run: RunArgument) -> None:
    """Show the state of a run, or of a sweep and its trials, and of its job.

    Examples:
    - `distbranch status runs/quickstart`
    - `distbranch status runs/sweep-quickstart`
    """
    from distbranch.listing.asking import describe_status

    show_pairs(describe_status(run_folder(run)))


def logs(
    run: RunArgument,
    command: Annotated[
        str | None,
        Argument(help="Of the job that runs this command about it, such as evaluate."),
    ] = None,
    follow: Annotated[
        bool, Option("--follow", "-f", help="Follow the log until the job has ended.")
    ] = False,
) -> None:
    """Print the log of the job of a run or a sweep; of a sweep without a job, where the logs of its trials are.

    Of a run that no job trains it is that of the newest job about it.

    Examples:
    - `distbranch logs runs/quickstart --follow`
    - `distbranch logs runs/quickstart evaluate`
    - `distbranch logs runs/sweep-quickstart`
    """
    from distbranch.listing.asking import read_log

    for piece in read_log(run_folder(run), follow=follow, command=command):
        print_piece(piece)


def cancel(
    runs: RunArguments,
    patience: Annotated[
        float, Option(help="Seconds to wait until each has saved itself.", min=1)
    ] = 120,
) -> None:
    """Save everything and stop runs or sweeps; the command that started one, or `distbranch resume`, resumes it.

    A sweep stops with all its trials, and an array of Slurm as a whole.

    Examples:
    - `distbranch cancel runs/quickstart --patience 300`
    - `distbranch cancel runs/sweep-quickstart runs/another`
    """
    from distbranch.listing.asking import cancel as cancel_all

    cancel_all([run_folder(run) for run in runs], patience_s=patience, say=print_plain)


def resume(run: RunArgument) -> None:
    """Resume a run or a sweep where it was left, on this machine, with the configuration in its directory.

    A job of Slurm or Ray is not submitted again: the command that submitted it does that.

    Examples:
    - `distbranch resume runs/quickstart`
    - `distbranch resume /shared/runs/sweep-quickstart`
    """
    from distbranch.listing.asking import check_resumable
    from distbranch.listing.sweep_row import EXPERIMENT, is_sweep, list_sweep_overrides

    folder = run_folder(run).absolute()
    check_resumable(folder)
    if is_sweep(folder):
        from distbranch.cli.sweep import sweep

        sweep(folder / "sweep.yaml", list_sweep_overrides(folder))
        if (folder / EXPERIMENT).exists():
            print_plain("Its runs are trained; the command of the experiment compares them again.")
        return
    from distbranch.cli.runs import train

    # A folder may have been moved; at a URL it is a copy that lies here.
    place = {"run.directory": str(folder.parent), "run.name": folder.name}
    own = [] if is_remote(run) else [f"{key}={json.dumps(value)}" for key, value in place.items()]
    train(folder / "config.yaml", own)
