"""`distbranch bench`: measure on this machine."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from distbranch.cli.terminal import numbers, parse_size, run_folder, show_pairs, show_rows, show_wide
from distbranch.config.places import make_ready
from distbranch.errors import UsageError, UserError

WITHOUT_RUN = ("backbone", "width", "image_size", "num_tasks", "tree_weights", "tree")  # options of `bench latency`


class _RunsAreTimed(TyperGroup):
    """`distbranch bench RUN...` is `distbranch bench latency RUN...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with; a path begins those of `latency`."""
        is_path = args[0] not in self.commands and ("/" in args[0] or Path(args[0]).is_dir())
        return super().resolve_command(ctx, ["latency", *args] if is_path else args)


bench_app = typer.Typer(
    cls=_RunsAreTimed,
    no_args_is_help=True,
    help="Measure on this machine. Given run directories, `bench` measures their latency.",
)


@bench_app.command("decide")
def bench_decide_command() -> None:
    """What deciding costs: affinity bookkeeping per step, and a whole decision, at 40 and 200 tasks.

    Examples:
    `distbranch bench decide`
    """
    from distbranch.bench.decide import bench_decide

    show_rows([{**asdict(row), "share_%": 100 * row.share} for row in bench_decide()])


@bench_app.command("memory")
def bench_memory_command(
    samples: Annotated[int, typer.Option(help="Tiny generated samples.", min=1)] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(help="Where they are packed; a temporary folder if empty.")] = None,
) -> None:
    """Pack generated samples, read them once, and print the peak memory of the process.

    Examples:
    `distbranch bench memory --samples 100000`
    """
    from distbranch.bench.memory import bench_memory

    with _work_folder(folder) as place:
        show_rows([asdict(bench_memory(samples, folder=place / "packed"))])


@bench_app.command("train")
def bench_train_command(
    width: Annotated[int, typer.Option(help="Thinness omega.", min=1)] = 32,
    ranks: Annotated[int, typer.Option(help="Processes on this machine; 1: no synchronisation.", min=1)] = 2,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all ranks.", min=4)] = 64,
    image_size: Annotated[str, typer.Option(help="height x width.")] = "64x64",
    tree: Annotated[
        Path | None, typer.Option(help="The tree.json of a run; empty: a tree grown on planted statistics.")
    ] = None,
    threads: Annotated[str, typer.Option(help="Threads of a process, separated by commas.")] = "1,2",
    blocks: Annotated[int, typer.Option(help="Turns of four or five steps.", min=1)] = 12,
) -> None:
    """What a training step costs against a naive loop (one module per branch, NCHW, nothing fused), and what synchronisation adds.

    Both are measured for a thin network and for the tree it grows into. What synchronisation adds is measured with several ranks,
    always for the tree grown on planted statistics, on all cores: --tree and --threads are of the first table.

    Examples:
    `distbranch bench train --width 16 --image-size 64x48 --ranks 1`

    `distbranch bench train --ranks 1 --tree runs/mine/tree.json --width 16`
    """
    from distbranch.bench.naive import bench_naive
    from distbranch.bench.train import bench_train
    from distbranch.bench.trees import thin_and_tree

    size, counts = parse_size(image_size), numbers(threads, "--threads")
    if not counts or 0 in counts:
        raise UsageError(f"--threads should be numbers from 1 on, found '{threads}'.")
    networks = thin_and_tree(width, size, tree)
    compared = bench_naive(networks, batch_size=batch_size, threads=counts, num_blocks=blocks)
    show_rows([asdict(row) for row in compared])
    if ranks > 1:
        rows = bench_train(width=width, num_ranks=ranks, batch_size=batch_size, image_size=size, num_blocks=blocks)
        show_rows(
            [
                {**asdict(row), "gradients_%": 100 * row.gradients_share, "batch_norm_%": 100 * row.norm_share}
                for row in rows
            ]
        )


@bench_app.command("data")
def bench_data_command(
    dataset: Annotated[
        str | None, typer.Argument(help="A packed data set; none: 178x218 pictures like photographs, packed for this.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "train",
    image_size: Annotated[str, typer.Option(help="height x width to which images are resized.")] = "64x64",
    batch_size: Annotated[int, typer.Option(help="Images per batch.", min=1)] = 64,
    processes: Annotated[str, typer.Option(help="Prefetching processes, separated by commas; 0: none.")] = "0,2",
    passes: Annotated[int, typer.Option(help="Over the shards, of either reader.", min=1)] = 7,
) -> None:
    """Images per second of the loader against plain webdataset and Pillow, on the same shards, in turns.

    Examples:
    `distbranch bench data`

    `distbranch bench data data/mine --image-size 64x48 --processes 0,4`
    """
    from distbranch.bench.data import bench_data, pack_photographs
    from distbranch.data.shards import read_dataset

    size, counts = parse_size(image_size), numbers(processes, "--processes")
    if not counts:
        raise UsageError(f"--processes should be numbers, found '{processes}'.")
    with tempfile.TemporaryDirectory() as place:
        info = pack_photographs(Path(place) / "packed") if dataset is None else read_dataset(dataset)
        rows = bench_data(
            info, split=split, image_size=size, batch_size=batch_size, processes=counts, num_passes=passes
        )
    show_rows([asdict(row) for row in rows])


@bench_app.command("sweep")
def bench_sweep_command(
    trials: Annotated[int, typer.Option(help="Trials that cost nothing.", min=4)] = 2000,
    jobs: Annotated[int, typer.Option(help="Trials at the same time.", min=1)] = 2,
    folder: Annotated[
        Path | None, typer.Option(help="Where their directories go; a temporary folder if empty.")
    ] = None,
) -> None:
    """What a sweep costs by itself: its driver is killed at half of the trials, and the same command goes on.

    Examples:
    `distbranch bench sweep --trials 200 --jobs 2`
    """
    from distbranch.sweep.simulation import simulate

    with _work_folder(folder) as place:
        found = asdict(simulate(trials, at_a_time=jobs, folder=place))
    show_pairs([(name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}") for name, value in found.items()])


@bench_app.command("somp")
def bench_somp_command() -> None:
    """What choosing filters by SOMP costs on one core, against the pursuit as it is defined (for fewer rows where that is slow).

    Examples:
    `distbranch bench somp`
    """
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
    context: typer.Context,
    runs: Annotated[list[str] | None, typer.Argument(help="Run directories; none: a tree of random weights.")] = None,
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
        str, typer.Option(help="Without RUN: trees of at least so many weights, separated by commas.")
    ] = "1.49e6,2.09e6",
    tree: Annotated[Path | None, typer.Option(help="Without RUN: the tree.json of a run.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
) -> None:
    """Latency, throughput and memory beside the thin, independent and full networks, in ONNX Runtime.

    Without RUN, neither data nor training is needed: trees of random weights, as large as the paper's Branch-32-1.0 and -2.0.

    Examples:
    `distbranch bench latency --eager --out latency.json`

    `distbranch bench latency runs/mine --against vgg16 --eager`
    """
    from distbranch.bench import latency
    from distbranch.bench.trees import described_trees

    sizes, full = numbers(batch_sizes, "--batch-sizes"), [name for name in against.split(",") if name]
    if not sizes or 0 in sizes:
        raise UsageError(f"--batch-sizes should be numbers from 1 on, found '{batch_sizes}'.")
    if runs:
        _refuse_options_without_run(context)
        candidates = latency.candidates_of_runs([run_folder(run) for run in runs], full)
    else:
        pixels = parse_size(image_size)
        trees = described_trees(backbone, width, pixels, num_tasks, weights=_sizes(tree_weights), file=tree)
        candidates = latency.candidates_of_trees(trees, full)
    if out is not None:
        make_ready(out)
    rows = latency.bench_latency(candidates, batch_sizes=sizes, eager=eager, seconds=seconds, num_threads=threads)
    found = latency.comparisons(rows, candidates)
    if out is not None:
        content = {"machine": latency.machine(threads), "networks": [asdict(row) for row in rows], "compared": found}
        try:
            out.write_text(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}). Give another file.") from None
    show_wide(_latency_table(rows))
    show_rows(found)


def _refuse_options_without_run(context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in WITHOUT_RUN}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is for trees of random weights. Leave it out, or measure without RUN."
        )


def _latency_table(rows: Sequence[Any]) -> Table:
    """A row per `bench.latency.Latency`."""
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
    return table


@contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    """A folder inside `folder` that is removed in the end."""
    try:
        made = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise UsageError(
            f"--folder should be a folder that can be written, found {folder} ({error.strerror}). Give another, or none."
        ) from None
    with made as place:
        yield Path(place)


def _sizes(text: str) -> list[float]:
    try:
        return [float(size) for size in text.split(",")]
    except ValueError:
        raise UsageError(f"--tree-weights should be numbers separated by commas, found '{text}'.") from None
