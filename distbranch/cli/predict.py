"""`distbranch predict`: the scores of images, as a table, CSV or JSON, and pictures of what every pixel is."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from distbranch.kinds import LabelValue
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

    network, preprocessing = load_predictor(run_folder(run))
    # Images of another device may use more bits than those of training did.
    if bits is not None:
        preprocessing = replace(preprocessing, bits=bits)
    tasks = network.tasks.tasks
    chosen = None
    if network.thresholds is not None:
        chosen = {name: one["threshold"] for name, one in network.thresholds.items()}
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
        shown = dict.fromkeys(network.tasks.names, 0.5) | (chosen or {})
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


def format_predictions(
    tasks: Sequence["Task"],
    predictions: Sequence["PredictionSummary"],
    thresholds: Mapping[str, float] | None = None,
    *,
    as_json: bool,
) -> str:
    """JSON, or CSV with a column per task or `task:class`.

    With thresholds also what is answered: under "answers", or in the column `task`, or `task:answer` where that is taken.
    """
    if as_json:
        content = []
        for one in predictions:
            written: dict[str, Any] = {"pictures": one.pictures} if one.pictures else {}
            decided = _decide_answers(tasks, one, thresholds)
            if decided:
                written["answers"] = decided
            content.append({"image": str(one.image), **written, "scores": one.scores})
        return json.dumps(content, indent=1) + "\n"
    rows = [_make_row(tasks, one, thresholds) for one in predictions]
    # The writer of CSV has line ends of its own.
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _decide_answers(
    tasks: Sequence["Task"], one: "PredictionSummary", thresholds: Mapping[str, float] | None
) -> dict[str, "LabelValue"]:
    """What is answered by task, once a run was evaluated with thresholds: 1 or 0, or a class."""
    from distbranch.kinds import KINDS

    decided: dict[str, LabelValue] = {}
    if thresholds is None:
        return decided
    for task in tasks:
        kind = KINDS[task.kind]
        answer = kind.decide_answer(task, one.scores[task.name], thresholds.get(task.name))
        if answer is not None:
            decided[task.name] = answer
    return decided


def _make_row(
    tasks: Sequence["Task"], one: "PredictionSummary", thresholds: Mapping[str, float] | None
) -> dict[str, str]:
    from distbranch.kinds import KINDS
    from distbranch.tasks import unused_name

    row = {"image": str(one.image)}
    if one.pictures:
        row["pictures"] = one.pictures
    decided = _decide_answers(tasks, one, thresholds)
    for task in tasks:
        cells = KINDS[task.kind].write_answer(task, one.scores[task.name])
        # A name that is taken (a task may be called `image`) gets a number.
        for name, cell in cells.items():
            row[unused_name(name, row)] = cell
        if task.name in decided:
            name = f"{task.name}:answer" if task.name in row else task.name
            row[unused_name(name, row)] = str(decided[task.name])
    return row
