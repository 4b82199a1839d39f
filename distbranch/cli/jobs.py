"""`distbranch status|logs|cancel RUN`: how a run goes, whoever trains it."""

from typing import Annotated

import typer

from distbranch.cli.terminal import RunArgument, console, run_folder, show_pairs


def status(run: RunArgument) -> None:
    """Say what a run has come to, and what its job does.

    Examples:
    `distbranch status runs/quickstart`
    """
    from distbranch.launch.jobs import describe_status

    show_pairs(describe_status(run_folder(run)))


def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what the job of a run has said.

    Examples:
    `distbranch logs runs/quickstart --follow`
    """
    from distbranch.launch.jobs import read_log

    for piece in read_log(run_folder(run), follow=follow):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)


def cancel(
    run: RunArgument,
    patience: Annotated[float, typer.Option(help="Seconds for the run to save itself.", min=1)] = 120,
) -> None:
    """Save everything and stop a run; the same command that started it continues it.

    Examples:
    `distbranch cancel runs/quickstart --patience 300`
    """
    from distbranch.launch.jobs import cancel_run

    cancel_run(
        run_folder(run),
        patience_s=patience,
        say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
