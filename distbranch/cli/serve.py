"""`distbranch serve`: an exported file behind HTTP."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from distbranch.cli.terminal import given_plugins, print_plain
from distbranch.plugins import make_absolute


def serve(
    file: Annotated[Path, Argument(help="An .onnx file that `distbranch export` wrote.")],
    host: Annotated[
        str, Option(help="An address of this machine; 0.0.0.0 for all: whoever reaches it may ask.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="The port of it.", min=1, max=65535)] = 8000,
    replicas: Annotated[
        int, Option(help="Processes that answer; they share the cores.", min=1)
    ] = 1,
    max_megabytes: Annotated[
        float, Option(help="Most of an image file; more is refused (413).", min=0)
    ] = 20,
) -> None:
    """Answer images over HTTP as `predict --format json` does, by Ray Serve, until Ctrl-C.

    Images that arrive together go through the network together. Ask with `curl --data-binary @photo.jpg http://127.0.0.1:8000/`;
    health is at `/-/healthz`.

    Examples:
    `distbranch serve mine.onnx --port 8000`
    """
    from distbranch.launch.on_ray.serving import serve_file

    serve_file(
        file,
        host=host,
        port=port,
        replicas=replicas,
        max_megabytes=max_megabytes,
        plugins=list(map(make_absolute, given_plugins)),
        say=print_plain,
    )
