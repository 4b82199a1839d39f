"""`distbranch predict`: the scores of images, as a table, CSV or JSON."""

import csv
import io
import json
import os
import sys
from dataclasses import replace
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


class OnBadImage(StrEnum):
    """What to do about a file that is no whole image."""

    fail = "fail"
    skip = "skip"


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
    on_bad_image: Annotated[
        OnBadImage,
        typer.Option(
            help="What to do about broken images: name all and write nothing, or leave them out and name them."
        ),
    ] = OnBadImage.fail,
    bits: Annotated[
        int | None,
        typer.Option(help="How many bits images of 16 bits use; as the training images if not given.", min=9, max=16),
    ] = None,
) -> None:
    """Predict all tasks of images.

    Examples:
    `distbranch predict runs/quickstart photos/ --format csv --out scores.csv`

    `distbranch predict model.onnx photo.jpg`
    """
    from distbranch.config.paths import check_can_be_written
    from distbranch.engine.predict import Prediction, find_images, predict_images
    from distbranch.export import load_predictor

    network, preprocessing = load_predictor(run_folder(run))
    if bits is not None:
        preprocessing = replace(preprocessing, bits=bits)
    predictions = predict_images(network, preprocessing, find_images(images), on_bad_image=on_bad_image)
    if out is not None:
        check_can_be_written(out)
        if output is Format.table:
            output = Format.json if out.suffix == ".json" else Format.csv
    if output is Format.table:
        table = Table("image", "found")
        for prediction in predictions:
            found = _describe_found(prediction.scores, threshold)
            table.add_row(
                *(escape(_replace_unwritable(text, console.encoding)) for text in (str(prediction.image), found))
            )
        return console.print(table)
    done = list[Prediction](predictions)  # all of them before a file of earlier scores is replaced
    text = io.StringIO(newline="")
    _write_predictions(text, done, as_json=output is Format.json)
    _write_file(out, text.getvalue())
    if out is not None:
        told = f"{out}: scores of {len(done)} image(s) as {output.upper()}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    return None


def _describe_found(scores: dict[str, Any], threshold: float) -> str:
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
    rows = [_make_row(str(item.image), item.scores) for item in predictions]
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def _make_row(image: str, scores: dict[str, Any]) -> dict[str, str]:
    """A column per task or `task:class`; a name that is taken (a task may be called `image`) gets a number."""
    from distbranch.tasks import unused_name

    row = {"image": image}
    for task, score in scores.items():
        named = {task: score}
        if isinstance(score, dict):
            named = {f"{task}:{one}": share for one, share in score.items()}
        for name, value in named.items():
            row[unused_name(name, row)] = f"{value:.6f}"
    return row


def _write_file(out: Path | None, text: str) -> None:
    """Writes the whole text or nothing: what stood in the file before stays until it is replaced."""
    if out is None:
        sys.stdout.write(_replace_unwritable(text, sys.stdout.encoding or "utf-8"))
        return
    from distbranch.engine.run_directory import write_atomically

    can_be_replaced = (out.is_file() or not out.exists()) and os.access(out.parent, os.W_OK)  # no pipe, no /dev/stdout
    try:
        if can_be_replaced:
            write_atomically(out.resolve(), _replace_unwritable(text, "utf-8"))
        else:
            out.write_text(_replace_unwritable(text, "utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Give another file.") from None


def _replace_unwritable(text: str, encoding: str) -> str:
    """The text with escapes for what cannot be written: file names that are not UTF-8, letters that the terminal lacks."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
