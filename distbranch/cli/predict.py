"""`distbranch predict`: the scores of images, as a table, CSV or JSON, and pictures of what every pixel is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from distbranch.cli.terminal import (
    build_table,
    console,
    print_plain,
    replace_unwritable,
    run_folder,
    write_output,
)

if TYPE_CHECKING:  # loads torch
    from distbranch.engine.answer_pictures import PredictionSummary
    from distbranch.engine.predict import Prediction
    from distbranch.tasks import Task


def predict(
    run: Annotated[
        str,
        Argument(
            help="A run directory (a folder or a URL), or an .onnx file that `distbranch export` wrote."
        ),
    ],
    images: Annotated[list[Path], Argument(help="Image files, or folders of them.")],
    output: Annotated[
        Literal["table", "csv", "json"], Option("--format", help="How to write the scores.")
    ] = "table",
    out: Annotated[
        Path | None,
        Option(
            help="A file instead of the terminal; JSON if it ends in .json, else CSV. Of a network with dense tasks a folder: a PNG "
            "per image and task, and predictions.csv or .json."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        Option(
            help="With table: show the tasks that are at least this probable; if not given, as probable as the thresholds that "
            "`evaluate --out` chose, or 0.5.",
            min=0,
            max=1,
        ),
    ] = None,
    on_bad_image: Annotated[
        Literal["fail", "skip"],
        Option(
            help="What to do about broken images: name all and write nothing, or leave them out and name them."
        ),
    ] = "fail",
    bits: Annotated[
        int | None,
        Option(
            help="Bits that are used in images of 16 bits; those of the training images if not given.",
            min=9,
            max=16,
        ),
    ] = None,
) -> None:
    """Predict all tasks of images.

    Examples:
    - `distbranch predict runs/quickstart photos/ --format csv --out scores.csv`
    - `distbranch predict model.onnx photo.jpg`
    - `distbranch predict runs/rooms photos/ --out answers/`
    """
    from distbranch.config.paths import check_can_be_written
    from distbranch.engine.answer_pictures import summarise_predictions
    from distbranch.engine.predict import find_images, predict_images
    from distbranch.export import load_predictor
    from distbranch.report.prediction_table import format_predictions, read_thresholds

    network, preprocessing = load_predictor(run_folder(run))
    # Images of another device may use more bits than those of training did.
    if bits is not None:
        preprocessing = replace(preprocessing, bits=bits)
    tasks = network.tasks.tasks
    chosen = read_thresholds(network)
    predictions = predict_images(
        network, preprocessing, find_images(images), on_bad_image=on_bad_image
    )
    if out is not None and any(task.is_dense for task in tasks):
        return _write_folder(tasks, predictions, out, chosen, as_json=output == "json")
    if out is not None:
        # Before the first image is read.
        check_can_be_written(out)
        if output == "table":
            output = "json" if out.suffix == ".json" else "csv"
    # All of them before a file of earlier scores is replaced.
    done = list(summarise_predictions(tasks, predictions))
    if output == "table":
        shown = {**dict.fromkeys(network.tasks.names, 0.5), **(chosen or {})}
        if threshold is not None:
            shown = dict.fromkeys(shown, threshold)
        rows = [{"image": one.image, "found": _describe_found(tasks, one, shown)} for one in done]
        # A file name may hold letters that the terminal lacks.
        printable = [
            {name: replace_unwritable(str(cell), console.encoding) for name, cell in row.items()}
            for row in rows
        ]
        return console.print(build_table(printable))
    write_output(out, format_predictions(tasks, done, chosen, as_json=output == "json"))
    if out is not None:
        print_plain(f"{out}: scores of {len(done)} image(s) as {output.upper()}")
    return None


def _write_folder(
    tasks: Sequence["Task"],
    predictions: Iterable["Prediction"],
    folder: Path,
    thresholds: Mapping[str, float] | None,
    *,
    as_json: bool,
) -> None:
    """The pictures of dense tasks, and the scores of all tasks in a file beside them."""
    from distbranch.engine.answer_pictures import (
        fill_folder,
        summarise_predictions,
        write_pictures,
    )
    from distbranch.errors import UsageError
    from distbranch.report.prediction_table import format_predictions

    if folder.is_file() or folder.suffix.lower() in (".csv", ".json", ".png"):
        raise UsageError(
            f"--out should be a folder, for this network answers with pictures, found {folder}. Scores are in predictions.csv, or "
            "with --format json in predictions.json."
        )
    name = "predictions.json" if as_json else "predictions.csv"
    with fill_folder(folder) as aside:
        done = list(summarise_predictions(tasks, write_pictures(tasks, predictions, aside)))
        write_output(aside / name, format_predictions(tasks, done, thresholds, as_json=as_json))
    print_plain(f"{folder}: answers for {len(done)} image(s), their scores in {name}")


def _describe_found(
    tasks: Sequence["Task"], one: "PredictionSummary", thresholds: Mapping[str, float]
) -> str:
    from distbranch.kinds import KINDS

    texts: dict[bool, list[str]] = {False: [], True: []}
    for task in tasks:
        kind = KINDS[task.kind]
        text = kind.describe_answer(task, one.scores[task.name], thresholds[task.name])
        texts[kind.is_dense].append(text)
    of_images = ", ".join(filter(None, texts[False]))
    return "\n".join(filter(None, [of_images, *texts[True]]))  # a line per dense task
