"""`distbranch init`: a first configuration, for data of one's own or as it comes with the package."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from distbranch.cli.terminal import print_plain
from distbranch.errors import UsageError, UserError, reason_of


def init(
    out: Annotated[Path, Argument(help="The new YAML file.")],
    data: Annotated[
        str | None, Option(help="A packed data set: a folder or a URL.", show_default=False)
    ] = None,
    backbone: Annotated[
        str | None, Option(help="Another network, such as timm:convnext_atto.", show_default=False)
    ] = None,
    pretrained: Annotated[
        str | None, Option(help="Weights that this network begins from.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        Option("--from", help="Instead of --data: a config of the package.", show_default=False),
    ] = None,
) -> None:
    """Write a first configuration: for your data, every choice with its reason, or a copy of one of the package.

    Examples:
    - `distbranch init mine.yaml --data data/mine`
    - `distbranch init tuned.yaml --data data/mine --backbone timm:convnext_atto --pretrained convnext_atto.safetensors`
    - `distbranch init faces.yaml --from quickstart`
    """
    if (data is None) == (name is None):
        raise UsageError(
            "Give either --data, a packed data set, or --from, a config of the package."
        )
    if name is not None and (backbone or pretrained):
        raise UsageError(
            "--backbone and --pretrained go with --data, found --from: leave them out."
        )
    if out.exists():
        raise UsageError(f"{out} exists already and is kept: give the name of a new file.")
    recipe = _read_packaged(name) if name else _make_recipe(out, str(data), backbone, pretrained)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # "x": what somebody else has written meanwhile is not lost
        with out.open("x", encoding="utf-8") as file:
            file.write(recipe)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {reason_of(error)}.") from None
    print_plain(f"written to {out}; what it costs here: distbranch train {out} --dry-run")


def _read_packaged(name: str) -> str:
    from distbranch.config.packaged import PACKAGED, list_packaged

    if name not in list_packaged():
        raise UsageError(f"--from should be one of {', '.join(list_packaged())}, found '{name}'.")
    return (PACKAGED / f"{name}.yaml").read_text(encoding="utf-8")


def _make_recipe(out: Path, data: str, backbone: str | None, pretrained: str | None) -> str:
    """The text of the file; what was chosen is printed."""
    from distbranch.config import load_config
    from distbranch.data.recipe import choose_recipe, write_recipe
    from distbranch.data.shards import read_dataset

    choices = choose_recipe(read_dataset(data), data, backbone=backbone, pretrained=pretrained)
    # A file that `train` would refuse is not written.
    values = {choice.key: choice.value for choice in choices}
    load_config({"run": {"name": out.stem}}, values)
    for choice in choices:
        print_plain(f"{choice.key} = {choice.value_text}: {choice.reason}")
    head = [
        "Written by `distbranch init` for these data; each line says why, and all may be changed. Other keys have their defaults.",
        f"  distbranch train {out} --dry-run",
    ]
    return write_recipe(choices, head)
