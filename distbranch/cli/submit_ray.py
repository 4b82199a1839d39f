"""`distbranch submit ray`: a run as a job of a Ray cluster."""

from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.terminal import Overrides, console


def submit_ray(
    config: Annotated[Path, typer.Argument(help="A YAML file inside this folder, which is uploaded.")],
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard; if empty that of RAY_ADDRESS, else http://127.0.0.1:8265."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the log; end with the job's exit code.")] = True,
) -> None:
    """Train a run as a job of a Ray cluster: this folder is uploaded, without what .gitignore names.

    Run directory and data lie outside it: absolute paths on storage that all nodes see, or URLs.

    Examples:
    `distbranch submit ray configs/celeba-branch-32-2.yaml launch.workers=16 run.directory=/shared/runs --address http://HEAD:8265`
    """
    from distbranch.launch.on_ray.job import submit_ray_job

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(piece: str) -> None:
        console.file.write(piece)
        console.file.flush()

    code = submit_ray_job(config, overrides or [], address=address, wait=wait, say=say, show=show)
    if code:
        raise typer.Exit(code)
