"""`distbranch bench`: measure on this machine."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from distbranch.cli.terminal import console, numbers, show_pairs, show_rows
from distbranch.errors import UsageError, UserError

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


@bench_app.command("latency")
def bench_latency_command(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories; none: a tree of random weights.")] = None,
    against: Annotated[str, typer.Option(help="Full backbones to stand beside, separated by commas.")] = "vgg16",
    batch_sizes: Annotated[str, typer.Option(help="Images per call, separated by commas.")] = "1,8,32",
    eager: Annotated[bool, typer.Option("--eager", help="Unfolded eager execution too.")] = False,
    seconds: Annotated[float, typer.Option(help="About so long per batch size.", min=0)] = 20.0,
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = 1,
    backbone: Annotated[str, typer.Option(help="Without RUN: the backbone.")] = "vgg16",
    width: Annotated[int, typer.Option(help="Without RUN: thinness omega.", min=1)] = 32,
    image_size: Annotated[str, typer.Option(help="Without RUN: height x width.")] = "224x224",
    num_tasks: Annotated[int, typer.Option(help="Without RUN: binary tasks.", min=1)] = 40,
    tree_weights: Annotated[
        float, typer.Option(help="Without RUN: a tree of at least so many weights.", min=0)
    ] = 1.4e6,
    tree: Annotated[Path | None, typer.Option(help="Without RUN: the tree.json of a run.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
) -> None:
    """Latency, throughput and memory beside the thin, independent and full networks, in ONNX Runtime.

    Examples:
    `distbranch bench latency runs/mine --against vgg16 --eager`

    `distbranch bench latency --width 32 --image-size 224x224 --tree-weights 1.4e6 --out latency.json`
    """
    from distbranch.bench import latency

    full = [name for name in against.split(",") if name]
    if runs:
        candidates = latency.candidates_of_runs(runs, full)
    else:
        candidates = latency.candidates_of_tree(
            backbone=backbone,
            width=width,
            image_size=latency.parse_size(image_size),
            num_tasks=num_tasks,
            least_weights=tree_weights,
            tree=tree,
            against=full,
        )
    sizes = numbers(batch_sizes, "--batch-sizes")
    if not sizes or 0 in sizes:
        raise UsageError(f"--batch-sizes should be numbers from 1 on, found '{batch_sizes}'.")
    rows = latency.bench_latency(candidates, batch_sizes=sizes, eager=eager, seconds=seconds, num_threads=threads)
    values = [asdict(row) for row in rows]
    if out is not None:
        try:
            out.write_text(json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}). Give another file.") from None
    table = Table(
        "network", "runtime", "batch", "ms (10-90 %)", "x thin", "images/s", "peak MiB", "weights", "M mult-adds"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        times = f"{row.median_ms:.2f} ({row.low_ms:.2f}-{row.high_ms:.2f})"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        cells = (times, f"{row.relative:.2f}", f"{row.images_per_s:.1f}", peak, f"{row.weights:,}")
        table.add_row(row.network, row.runtime, str(row.batch_size), *cells, f"{row.multiply_adds / 1e6:,.0f}")
    console.print(table)
