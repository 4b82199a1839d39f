"""`distbranch export`: the network of a run as one file for serving."""

from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.terminal import RunArgument, console, run_folder


def export(
    run: RunArgument,
    file_format: Annotated[str, typer.Option("--format", help="onnx, or torch: a program of torch.export.")] = "onnx",
    tasks: Annotated[
        list[str] | None, typer.Option(help="Only these tasks, separated by commas, and the branches they need.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file; model/model.onnx in the run if empty.")] = None,
    input_type: Annotated[
        str, typer.Option("--input", help="uint8: 0..255, normalised inside; float: normalised by you.")
    ] = "uint8",
) -> None:
    """Write the network of a finished run as one file, batch norm folded, compared with the run before it is kept.

    Its input is [batch, 3, height, width], RGB, its outputs are the logits of every task, named like the task.

    Examples:
    `distbranch export runs/mine --format onnx --out mine.onnx`

    `distbranch export runs/mine --tasks Shoes,Bags`

    `distbranch predict mine.onnx photos/`
    """
    from distbranch.export import export as write

    done = write(run_folder(run), file_format=file_format, tasks=tasks, out=out, input_type=input_type)
    megabytes = done.num_bytes / 1e6
    console.print(
        f"{done.file}: {done.num_tasks} tasks, {done.weights:,} weights, {megabytes:.2f} MB; "
        f"differs from the network by at most {done.difference:.1g} on {done.images}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
