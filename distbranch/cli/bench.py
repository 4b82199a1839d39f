"""`distbranch bench`: measure on this machine."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.terminal import show_pairs, show_rows

bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")


@bench_app.command("decide")
def bench_decide_command() -> None:
    """What deciding costs: affinity bookkeeping per step, and a whole decision, at 40 and 200 tasks."""
    from distbranch.bench.decide import bench_decide

    show_rows([{**asdict(row), "share_%": 100 * row.share} for row in bench_decide()])


@bench_app.command("memory")
def bench_memory_command(
    samples: Annotated[int, typer.Option(help="Tiny generated samples.", min=1)] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(help="Where they are packed; a temporary folder if empty.")] = None,
) -> None:
    """Pack generated samples, read them once, and print the peak memory of the process."""
    from distbranch.bench.memory import bench_memory

    with tempfile.TemporaryDirectory(dir=folder) as place:
        show_rows([asdict(bench_memory(samples, folder=Path(place) / "packed"))])


@bench_app.command("train")
def bench_train_command(
    width: Annotated[int, typer.Option(help="Thinness omega.", min=1)] = 32,
    ranks: Annotated[int, typer.Option(help="Processes on this machine.", min=2)] = 2,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all ranks.", min=4)] = 64,
) -> None:
    """What synchronisation costs a training step, of a thin network and of the tree it grows into, and what growth costs."""
    from distbranch.bench.train import bench_train

    rows = bench_train(width=width, num_ranks=ranks, batch_size=batch_size)
    show_rows([{**asdict(row), "synchronisation_%": 100 * row.share} for row in rows])


@bench_app.command("sweep")
def bench_sweep_command(
    trials: Annotated[int, typer.Option(help="Trials that cost nothing.", min=4)] = 2000,
    jobs: Annotated[int, typer.Option(help="Trials at the same time.", min=1)] = 2,
    folder: Annotated[
        Path | None, typer.Option(help="Where their directories go; a temporary folder if empty.")
    ] = None,
) -> None:
    """What a sweep costs by itself: its driver is killed at half of the trials, and the same command goes on."""
    from distbranch.launch.sweep.simulation import simulate

    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = asdict(simulate(trials, at_a_time=jobs, folder=Path(place)))
    show_pairs([(name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}") for name, value in found.items()])


@bench_app.command("somp")
def bench_somp_command() -> None:
    """What choosing filters by SOMP costs on one core, against the pursuit as it is defined (for fewer rows where that is slow)."""
    from distbranch.bench.somp import bench_somp

    show_rows(
        [
            {
                "matrix": row.matrix,
                "rows": row.num_rows,
                "s": row.seconds,
                "naive rows": row.naive_rows,
                "naive s": row.naive_seconds,
                "all rows, s": row.naive_all_seconds,
                "same rows": row.equal_rows,
            }
            for row in bench_somp()
        ]
    )
