"""`distbranch bench`: the latency of networks on this machine."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from distbranch.cli.terminal import (
    build_table,
    parse_counts,
    parse_numbers,
    parse_size,
    run_folder,
    show_rows,
    show_wide,
    write_output,
)
from distbranch.config.network import TIMM
from distbranch.config.paths import check_can_be_written
from distbranch.errors import UsageError

# Options of `bench latency` that describe a network, which a run has already.
WITHOUT_RUN = ("backbone", "width", "image_size", "num_tasks", "tree_weights", "tree")


class _LatencyOfRuns(TyperGroup):
    """`distbranch bench RUN...` is `distbranch bench latency RUN...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with; a path begins those of `latency`."""
        # A word without a slash may be a mistyped command, which typer tells better.
        if args[0] not in self.commands and ("/" in args[0] or Path(args[0]).is_dir()):
            args = ["latency", *args]
        return super().resolve_command(ctx, args)


bench_app = typer.Typer(
    cls=_LatencyOfRuns,
    no_args_is_help=True,
    help="Measure networks on this machine. Given run directories, `bench` measures their latency.",
)


@bench_app.command("latency")
def bench_latency(
    context: typer.Context,
    runs: Annotated[
        list[str] | None, Argument(help="Run directories; without any, trees of random weights.")
    ] = None,
    against: Annotated[
        str, Option(help="Full backbones to compare with, separated by commas.")
    ] = "vgg16",
    batch_sizes: Annotated[str, Option(metavar="N,N,...", help="Images per call.")] = "1,8,32",
    eager: Annotated[bool, Option("--eager", help="Measure unfolded eager execution too.")] = False,
    seconds: Annotated[
        float, Option(help="About how long to measure each batch size.", min=0)
    ] = 20.0,
    threads: Annotated[int, Option(help="Threads of each runtime.", min=1)] = 1,
    backbone: Annotated[str, Option(help="Without RUN: the backbone.")] = "vgg16",
    width: Annotated[int, Option(help="Without RUN: thinness omega.", min=1)] = 32,
    image_size: Annotated[
        str, Option(metavar="HEIGHTxWIDTH", help="Without RUN: pixels.")
    ] = "224x224",
    num_tasks: Annotated[int, Option(help="Without RUN: binary tasks.", min=1)] = 40,
    tree_weights: Annotated[
        str, Option(metavar="N,N,...", help="Without RUN: trees of at least this many weights.")
        # Of Branch-32-1.0 and Branch-32-2.0 in the paper's table.
    ] = "1.49e6,2.09e6",
    tree: Annotated[Path | None, Option(help="Without RUN: the tree.json of a run.")] = None,
    out: Annotated[Path | None, Option(help="A JSON file for the numbers.")] = None,
) -> None:
    """Latency, throughput and memory beside the thin, independent and full networks, in ONNX Runtime.

    Without RUN, neither data nor training is needed: trees of random weights, as large as the paper's Branch-32-1.0 and -2.0.

    Examples:
    - `distbranch bench latency --eager --out latency.json`
    - `distbranch bench latency runs/mine --against vgg16 --eager`
    """
    from distbranch.bench import candidates, latency

    sizes = parse_counts(batch_sizes, "--batch-sizes", least=1)
    full = [name for name in against.split(",") if name]
    if runs:
        _refuse_options_without_run(context)
        measured = candidates.list_runs([run_folder(run) for run in runs])
    else:
        pixels = parse_size(image_size)
        weights = parse_numbers(tree_weights, "--tree-weights")
        # A model of timm has widths of its own; one that is given is refused where it is made.
        has_own = backbone.startswith(TIMM) and not _is_given(context, "width")
        own_width = None if has_own else width
        measured = candidates.list_trees(
            backbone, own_width, pixels, num_tasks, weights=weights, file=tree
        )
    first = measured[0].network.architecture
    if first.dense_tasks and not _is_given(context, "against"):
        full = []  # the network of the paper ends in a vector, over which no dense head stands
    baselines = candidates.list_baselines(first, full)
    if out is not None:
        check_can_be_written(out)  # before minutes of measuring
    rows, compared = latency.bench_latency(
        [*measured, *baselines],
        batch_sizes=sizes,
        eager=eager,
        seconds=seconds,
        num_threads=threads,
    )
    if out is not None:
        content = {
            "machine": latency.describe_machine(threads),
            "networks": rows,
            "compared": compared,
        }
        write_output(out, json.dumps(content, indent=1) + "\n")
    # The file first, for a terminal may be closed.
    show_wide(build_table(list(map(_format_row, rows)), num_texts=2))
    show_rows(compared)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_options_without_run(context: typer.Context) -> None:
    for name in WITHOUT_RUN:
        if _is_given(context, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for trees of random weights. Leave it out, or measure without RUN."
            )


def _format_row(row: dict[str, Any]) -> dict[str, str]:
    peak = row["peak_mib"]
    return {
        "network": row["network"],
        "runtime": row["runtime"],
        "batch": row["batch_size"],
        "ms (10-90 %)": "{median_ms:.2f} ({low_ms:.2f}-{high_ms:.2f})".format_map(row),
        "x thin": f"{row['relative']:.2f}",
        "images/s": f"{row['images_per_s']:.1f}",
        "peak MiB": "" if peak is None else f"{peak:.0f}",
        "weights": f"{row['weights']:,}",
        "M mult-adds": f"{row['multiply_adds'] / 1e6:,.0f}",
    }
