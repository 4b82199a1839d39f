"""`distbranch bench`: measure on this machine."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.terminal import show_rows

bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")


@bench_app.command("decide")
def bench_decide_command() -> None:
    """What deciding costs: affinity bookkeeping per step, and a whole decision, at 40 and 200 tasks."""
    from distbranch.bench import bench_decide

    show_rows([{**asdict(row), "share_%": 100 * row.share} for row in bench_decide()])


@bench_app.command("memory")
def bench_memory_command(
    samples: Annotated[int, typer.Option(help="Tiny generated samples.", min=1)] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(help="Where they are packed; a temporary folder if empty.")] = None,
) -> None:
    """Pack generated samples, read them once, and print the peak memory of the process."""
    from distbranch.bench import bench_memory

    with tempfile.TemporaryDirectory(dir=folder) as place:
        show_rows([asdict(bench_memory(samples, folder=Path(place) / "packed"))])
