"""`distbranch predict`: the scores of images, as a table, CSV or JSON."""

import csv
import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from distbranch.cli.terminal import console, run_folder
from distbranch.errors import UserError


class Format(StrEnum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    json = "json"


def predict(
    run: Annotated[
        str,
        typer.Argument(help="A run directory (a folder or a URL), or an .onnx file that `distbranch export` wrote."),
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    output: Annotated[Format, typer.Option("--format", help="How to write the scores.")] = Format.table,
    out: Annotated[
        Path | None, typer.Option(help="A file instead of the terminal; JSON if it ends in .json, else CSV.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="With table: tasks at least so probable are shown.", min=0, max=1)
    ] = 0.5,
) -> None:
    """Predict all tasks of images.

    Examples:
    `distbranch predict runs/quickstart photos/ --format csv --out scores.csv`

    `distbranch predict model.onnx photo.jpg`
    """
    from distbranch.config.places import make_ready
    from distbranch.engine.predict import Prediction, image_files, predict
    from distbranch.export import load_predictor

    network, preprocessing = load_predictor(run_folder(run))
    predictions = predict(network, preprocessing, image_files(images))
    if out is not None:
        make_ready(out)
        if output is Format.table:
            output = Format.json if out.suffix == ".json" else Format.csv
    if output is Format.table:
        table = Table("image", "found")
        for prediction in predictions:
            table.add_row(escape(str(prediction.image)), escape(_found(prediction.scores, threshold)))
        return console.print(table)
    done = list[Prediction](predictions)  # all of them before a file of earlier scores is replaced

    def write(file: Any) -> None:
        _write_predictions(file, done, as_json=output is Format.json)

    _to_file(out, write)
    if out is not None:
        told = f"{out}: scores of {len(done)} image(s) as {output.upper()}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    return None


def _found(scores: dict[str, Any], threshold: float) -> str:
    found = []
    for name, score in scores.items():
        if isinstance(score, dict):
            best = max(score, key=score.__getitem__)
            found.append(f"{name}={best} ({score[best]:.0%})")
        elif score >= threshold:
            found.append(f"{name} ({score:.0%})")
    return ", ".join(found)


def _write_predictions(file: Any, predictions: list[Any], *, as_json: bool) -> None:
    if as_json:
        json.dump([{"image": str(item.image), "scores": item.scores} for item in predictions], file, indent=1)
        file.write("\n")
        return
    rows = [{"image": str(item.image), **_flat(item.scores)} for item in predictions]
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def _flat(scores: dict[str, Any]) -> dict[str, str]:
    flat = {}
    for name, score in scores.items():
        inner = score if isinstance(score, dict) else {"": score}
        flat.update({f"{name}:{key}" if key else name: f"{value:.6f}" for key, value in inner.items()})
    return flat


def _to_file(out: Path | None, write: Callable[[Any], None]) -> None:
    if out is None:
        return write(sys.stdout)
    try:
        with out.open("w", newline="", encoding="utf-8") as file:
            write(file)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Give another file.") from None
    return None
