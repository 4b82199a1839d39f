"""`distbranch data`: pack, label, check and look at data sets."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.markup import escape
from rich.table import Table

from distbranch.cli.terminal import console
from distbranch.errors import UsageError, UserError

data_app = typer.Typer(no_args_is_help=True, help="Pack, label, check and look at data sets.")


@data_app.command("pack", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def data_pack(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="csv, celeba, deepfashion or rendered-faces.")],
    out: Annotated[Path | None, typer.Argument(help="The new folder of the packed data set.")] = None,
    shard_samples: Annotated[int, typer.Option(help="Samples per shard.", min=1)] = 1000,
    options: Annotated[bool, typer.Option("--options", help="List the options of the source.")] = False,
) -> None:
    """Pack labelled images into shards.

    Examples:
    `distbranch data pack csv data/fps --images images.zip --table attributes.csv --ignore brand,article_type`

    `distbranch data pack csv data/clothing --images images.zip --table attributes.csv --one-task-per-class category`

    `distbranch data pack csv data/chest --images images/ --table labels.xlsx --tags findings --separator "|" --minus-one unknown`

    `distbranch data pack rendered-faces data/faces --samples 6000 --seed 1`
    """
    from distbranch.data.sources import SOURCES, pack_source, parse_options
    from distbranch.report.console import describe_dataset
    from distbranch.report.progress import ProgressDisplay

    if options and source in SOURCES:
        return _show_options(SOURCES[source])
    if source in SOURCES and (out is None or str(out).startswith("--")):
        raise UsageError(f"Give 'OUT', the new folder of the packed data set, after {source} and before its options.")
    opened = parse_options({"source": source, **_parse_options(context.args)}).open()
    assert out is not None
    was_there = _has_data(out)
    with ProgressDisplay(console) as display:
        info = pack_source(
            opened,
            out,
            shard_samples=shard_samples,
            progress=lambda done: display({"kind": "packing", "done": done, "total": opened.num_samples}),
        )
        display({"kind": "packed", "path": str(out), "num_samples": info.num_samples, "before": was_there})
    for line in describe_dataset(info):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return None


@data_app.command("label")
def data_label(
    data: Annotated[str, typer.Argument(help="A packed data set: a folder or a URL.")],
    out: Annotated[Path, typer.Argument(help="The new folder of the labelled data set.")],
    run: Annotated[Path, typer.Option(help="The directory of the teacher's run, trained on other tasks.")],
    splits: Annotated[str, typer.Option(help="Splits that get soft labels, separated by commas.")] = "train",
) -> None:
    """Copy a data set and add the tasks of a finished run, with its probabilities as soft labels (joint training).

    Examples:
    `distbranch data label data/clothing data/clothing-soft --run runs/fps-branch-16-2`
    """
    from distbranch.data.shards import read_dataset
    from distbranch.engine.labelling import label_with_teacher
    from distbranch.report.progress import ProgressDisplay

    total = read_dataset(data).num_samples
    names = [name.strip() for name in splits.split(",") if name.strip()]
    was_there = _has_data(out)
    with ProgressDisplay(console) as display:
        info = label_with_teacher(
            data,
            out,
            run,
            splits=names,
            progress=lambda done: display({"kind": "labelling", "done": done, "total": total}),
        )
        display({"kind": "packed", "path": str(out), "num_samples": info.num_samples, "before": was_there})


@data_app.command("check")
def data_check(paths: Annotated[list[str], typer.Argument(help="Folders of packed data sets.")]) -> None:
    """Verify every byte, image and label of packed data sets.

    Examples:
    `distbranch data check data/fps`
    """
    from distbranch.data.check import check_dataset, read_local_dataset
    from distbranch.data.pack import count_copies, describe_copies
    from distbranch.report.progress import ProgressDisplay

    totals = [read_local_dataset(path).num_samples for path in paths]
    for path, total in zip(paths, totals, strict=True):
        with ProgressDisplay(console) as display:
            found = check_dataset(
                path,
                lambda done, total=total: display({"kind": "checking", "done": done, "total": total}),  # type: ignore[misc]
            )
        for problem in found.problems:
            console.print(problem, markup=False, highlight=False, soft_wrap=True)
        if not found.ok:
            raise UserError(f"{found.num_problems} problem(s) in {found.num_samples:,} samples of {path}.")
        console.print(
            f"{found.num_samples:,} samples in {found.num_shards} shards are as they were packed.", highlight=False
        )
        if found.copies:
            first = " = ".join(f"'{copy.key}' ({copy.split})" for copy in found.copies[0][:3])
            told = f"{describe_copies(count_copies(found.copies))}; the first: {first}."
            console.print(told, markup=False, highlight=False, soft_wrap=True)


@data_app.command("show")
def data_show(
    path: Annotated[str, typer.Argument(help="A packed data set: a folder or a URL.")],
    out: Annotated[Path, typer.Option(help="The PNG file.")] = Path("contact-sheet.png"),
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    num_images: Annotated[int, typer.Option("--images", help="How many images.", min=1)] = 24,
    seed: Annotated[int, typer.Option(help="Chooses the images.")] = 0,
) -> None:
    """Draw a contact sheet of images with their labels.

    Examples:
    `distbranch data show data/fps --split test --images 12 --out fps.png`
    """
    from distbranch.data.contact_sheet import draw_contact_sheet

    console.print(str(draw_contact_sheet(path, out, split=split, num_images=num_images, seed=seed)), soft_wrap=True)


def _has_data(out: Path) -> bool:
    """Whether a data set is there: packing leaves it as it is if it is the one that is asked for, and refuses any other."""
    from distbranch.data.shards import DATASET_FILE

    return (out / DATASET_FILE).exists()


def _show_options(options: Any) -> None:
    table = Table("option", "default", "meaning")
    for name, field in options.model_fields.items():
        if name != "source":
            default = (
                "required"
                if field.is_required()
                else _format_default(field.default, "x" if name == "image_size" else ",")
            )
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            meaning = f"{field.description} One of: {', '.join(choices)}." if choices else field.description
            table.add_row(f"--{name.replace('_', '-')}", escape(default), escape(meaning or ""))
    console.print(table)


def _format_default(value: object, joint: str) -> str:
    if isinstance(value, tuple):
        return joint.join(map(str, value))
    return "" if value is None or value == {} else str(value)


def _parse_options(arguments: list[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a mapping."""
    options: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        text = waiting.pop(0)
        key, sign, value = text.removeprefix("--").partition("=")
        if not text.startswith("--") or not key:
            raise UsageError(f"An option of the source is written --name value, found '{text}'.")
        if not sign:
            if not waiting:
                raise UsageError(f"The option --{key} needs a value.")
            value = waiting.pop(0)
        if key.replace("-", "_") in options:
            raise UsageError(
                f"The option --{key} is given twice. Give it once; several values are written --{key} a,b."
            )
        options[key.replace("-", "_")] = value
    return options
