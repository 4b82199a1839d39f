"""`distbranch bench`: the latency of networks on this machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from distbranch.cli.terminal import decimals, numbers, parse_size, run_folder, show_rows, show_wide
from distbranch.config.paths import check_can_be_written
from distbranch.errors import UsageError, UserError

WITHOUT_RUN = ("backbone", "width", "image_size", "num_tasks", "tree_weights", "tree")  # options of `bench latency`
# To tests/benchmarks, for they print the figures of our own pages.
MOVED = ("data", "decide", "memory", "somp", "sweep", "train")


class _LatencyOfRuns(TyperGroup):
    """`distbranch bench RUN...` is `distbranch bench latency RUN...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with; a path begins those of `latency`.

        Raises:
            UsageError: a benchmark of this program itself, with its new command.
        """
        if args[0] in MOVED and not Path(args[0]).is_dir():
            raise UsageError(
                f"`distbranch bench {args[0]}` measured this program itself and is now `python tests/benchmarks/bench_{args[0]}.py`, "
                "in a clone of the repository."
            )
        is_path = args[0] not in self.commands and ("/" in args[0] or Path(args[0]).is_dir())
        return super().resolve_command(ctx, ["latency", *args] if is_path else args)


bench_app = typer.Typer(
    cls=_LatencyOfRuns,
    no_args_is_help=True,
    help="Measure on this machine. Given run directories, `bench` measures their latency.",
)


@bench_app.command("latency")
def bench_latency(
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
    from distbranch.bench import candidates, latency

    sizes = numbers(batch_sizes, "--batch-sizes")
    if not sizes or 0 in sizes:
        raise UsageError(f"--batch-sizes should be numbers from 1 on, found '{batch_sizes}'.")
    full = [name for name in against.split(",") if name]
    if runs:
        _refuse_options_without_run(context)
        networks = candidates.list_candidates_of_runs([run_folder(run) for run in runs], full)
    else:
        pixels = parse_size(image_size)
        weights = decimals(tree_weights, "--tree-weights")
        trees = candidates.describe_trees(backbone, width, pixels, num_tasks, weights=weights, file=tree)
        networks = candidates.list_candidates_of_trees(trees, full)
    if out is not None:
        check_can_be_written(out)  # before minutes of measuring
    rows = latency.bench_latency(networks, batch_sizes=sizes, eager=eager, seconds=seconds, num_threads=threads)
    compared = latency.compare_latencies(rows, networks)
    if out is not None:
        machine = latency.describe_machine(threads)
        content = {"machine": machine, "networks": [asdict(row) for row in rows], "compared": compared}
        try:
            out.write_text(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}). Give another file.") from None
    show_wide(_build_latency_table(rows))
    show_rows(compared)


def _refuse_options_without_run(context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in WITHOUT_RUN}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is for trees of random weights. Leave it out, or measure without RUN."
        )


def _build_latency_table(rows: Sequence[Any]) -> Table:
    """A row per `bench.latency.Latency`."""
    table = Table(
        "network", "runtime", "batch", "ms (10-90 %)", "x thin", "images/s", "peak MiB", "weights", "M mult-adds"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        table.add_row(
            row.network,
            row.runtime,
            str(row.batch_size),
            f"{row.median_ms:.2f} ({row.low_ms:.2f}-{row.high_ms:.2f})",
            f"{row.relative:.2f}",
            f"{row.images_per_s:.1f}",
            peak,
            f"{row.weights:,}",
            f"{row.multiply_adds / 1e6:,.0f}",
        )
    return table
