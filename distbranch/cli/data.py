"""`distbranch data`: pack, label, check and look at data sets."""

import shlex
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from distbranch.cli.terminal import build_table, console, print_plain
from distbranch.errors import UsageError, UserError

if TYPE_CHECKING:  # loads torch
    from distbranch.report.progress import ProgressDisplay

data_app = typer.Typer(no_args_is_help=True, help="Pack, label, check and look at data sets.")


class WithOptionsOfSource(TyperCommand):
    """A command whose help ends with the options of the source that is named, of which typer knows nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps the words: the help is shown before any of them is taken for the source."""
        ctx.meta["words"] = tuple(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        super().format_help(ctx, formatter)
        options = _find_options(str(self.name), ctx.meta["words"])
        if options is not None:
            print_options(options)


def _find_options(command: str, words: Sequence[str]) -> Any:
    """The options that a command takes besides those of typer; None where its words name no source."""
    named = [word for word in words if not word.startswith("-")]
    if command == "index":
        from distbranch.data.indexing.options import IndexOptions

        return IndexOptions
    if not named:
        return None
    from distbranch.data.sources import SOURCES

    return next((SOURCES[word] for word in named if word in SOURCES), None)


@data_app.command(
    "pack",
    cls=WithOptionsOfSource,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def data_pack(
    context: typer.Context,
    source: Annotated[
        str,
        Argument(
            help="csv, folder, hf, celeba, deepfashion, rendered-faces; with labels per pixel rendered-rooms, nyuv2, adashare-nyuv2, "
            "mtan-nyuv2, nyud-mt, cityscapes, mtan-cityscapes, taskonomy. `data pack csv --help` adds what csv takes."
        ),
    ],
    out: Annotated[Path | None, Argument(help="The new folder of the packed data set.")] = None,
    shard_samples: Annotated[int, Option(help="Samples per shard.", min=1)] = 1000,
    options: Annotated[bool, Option("--options", help="List the options of the source.")] = False,
) -> None:
    """Pack labelled images into shards.

    Examples:
    - `distbranch data pack csv data/fps --images images.zip --table attributes.csv --ignore brand,article_type`
    - `distbranch data pack csv data/clothing --images images.zip --table attributes.csv --one-task-per-class category`
    - `distbranch data pack csv data/chest --images images/ --table labels.xlsx --tags findings --separator "|" --minus-one unknown`
    - `distbranch data pack csv data/fish --images images/ --table fish.csv --number weight --unit weight=g --ordinal 'size=S<M<L'`
    - `distbranch data pack csv data/may --images may/ --table may.csv --like data/fish --fractions 0,0,1`
    - `distbranch data pack folder data/birds --root birds/ --task species --stratify species`
    - `distbranch data pack hf data/beans --data beans/ --ignore image_file_path`
    - `distbranch data pack rendered-faces data/faces --samples 6000 --seed 1`
    - `distbranch data pack rendered-rooms data/rooms --samples 2400 --tasks segmentation,depth,normals`
    """
    from distbranch.data.sources import SOURCES, pack_source, parse_options
    from distbranch.report.console import describe_dataset
    from distbranch.report.progress import ProgressDisplay

    # An unknown source is refused below, with the known ones.
    if options and source in SOURCES:
        print_options(SOURCES[source])
        return
    if source in SOURCES and (out is None or str(out).startswith("--")):
        raise UsageError(
            f"Give 'OUT', the new folder of the packed data set, after {source} and before its options."
        )
    # `OUT` is not required, for `--options` has none; so it is asked for here.
    opened = parse_options({"source": source, **_parse_options(context.args)}).open()
    assert out is not None
    # Asked before, for afterwards there always is one.
    was_there = _has_data(out)
    with ProgressDisplay(console) as display:
        progress = _show_progress(display, "packing", opened.num_samples)
        info = pack_source(opened, out, shard_samples=shard_samples, progress=progress)
        display(
            {
                "kind": "packed",
                "path": str(out),
                "num_samples": info.num_samples,
                "before": was_there,
            }
        )
    for line in describe_dataset(info):
        print_plain(line)


@data_app.command(
    "index",
    cls=WithOptionsOfSource,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def data_index(
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="SHARDS... OUT",
            help="Tars of WebDataset (paths and URLs, with {000..099} or * in quotes) or folders of them, then the folder of the index, "
            "which may be theirs.",
        ),
    ] = None,
    options: Annotated[bool, Option("--options", help="List the options.")] = False,
) -> None:
    """Make a data set of tars that others made, where they lie: labels and an index are written, no image is copied.

    Examples:
    - `distbranch data index 'shards/*.tar' data/mine --labels json:attributes`
    - `distbranch data index 's3://bucket/{00000..00999}.tar' data/mine --labels labels.parquet --key-column id`
    - `distbranch data index shards/ shards/ --labels cls,json --mapping tasks.yaml --split train='train-*',val='val-*'`
    """
    from distbranch.data.indexing.index_shards import index_shards
    from distbranch.data.indexing.options import IndexOptions
    from distbranch.data.sources import validate_options
    from distbranch.report.console import describe_dataset
    from distbranch.report.progress import ProgressDisplay

    if options:
        print_options(IndexOptions)
        return
    places = list(takewhile(lambda word: not word.startswith("--"), words or []))
    if len(places) < 2:
        raise UsageError(
            "Give 'SHARDS', tars or folders of them, and 'OUT', the folder of their index, before all options."
        )
    *shards, out = places
    # Asked before, for afterwards there always is one.
    was_there = _has_data(Path(out))
    parsed = validate_options(IndexOptions, _parse_options((words or [])[len(places) :]))
    with ProgressDisplay(console) as display:
        info = index_shards(
            shards,
            out,
            parsed,
            lambda done, total: display({"kind": "indexing", "done": done, "total": total}),
        )
        display(
            {
                "kind": "indexed",
                "path": out,
                "num_samples": info.num_samples,
                "num_tars": info.source["num_tars"],
                "before": was_there,
            }
        )
    for line in describe_dataset(info):
        print_plain(line)


@data_app.command("label")
def data_label(
    data: Annotated[str, Argument(help="A packed data set: a folder or a URL.")],
    out: Annotated[Path, Argument(help="The new folder of the labelled data set.")],
    run: Annotated[
        Path, Option(help="The directory of the teacher's run, trained on other tasks.")
    ],
    splits: Annotated[
        str, Option(metavar="SPLIT,...", help="Splits that get soft labels.")
    ] = "train",
) -> None:
    """Copy a data set and add the tasks of a finished run, with its probabilities as soft labels (joint training).

    Examples:
    - `distbranch data label data/clothing data/clothing-soft --run runs/fps-branch-16-2`
    """
    from distbranch.data.shards import read_dataset
    from distbranch.engine.labelling import label_with_teacher
    from distbranch.report.progress import ProgressDisplay

    # Before the teacher is loaded, which takes longer.
    total = read_dataset(data).num_samples
    names = [name.strip() for name in splits.split(",") if name.strip()]
    # Asked before, for afterwards there always is one.
    was_there = _has_data(out)
    with ProgressDisplay(console) as display:
        progress = _show_progress(display, "labelling", total)
        info = label_with_teacher(data, out, run, splits=names, progress=progress)
        display(
            {
                "kind": "packed",
                "path": str(out),
                "num_samples": info.num_samples,
                "before": was_there,
            }
        )


@data_app.command("check")
def data_check(paths: Annotated[list[str], Argument(help="Folders of packed data sets.")]) -> None:
    """Verify every byte, image and label of packed data sets, and count the images of each class and split.

    Examples:
    - `distbranch data check data/fps`
    """
    from distbranch.data.check import check_dataset, read_local_dataset
    from distbranch.data.pack import count_copies, describe_copies
    from distbranch.report.class_table import make_class_table
    from distbranch.report.console import describe_maps
    from distbranch.report.progress import ProgressDisplay

    # All are looked for before the first is read.
    totals = [read_local_dataset(path).num_samples for path in paths]
    for path, total in zip(paths, totals, strict=True):
        with ProgressDisplay(console) as display:
            found = check_dataset(path, _show_progress(display, "checking", total))
        for problem in found.problems:
            print_plain(problem)
        if not found.ok:
            raise UserError(
                f"{found.num_problems} problem(s) in {found.num_samples:,} samples of {path}."
            )
        print_plain(
            f"{found.num_samples:,} samples in {found.num_shards} shards are as they were packed."
        )
        console.print(make_class_table(found.info))
        for line in describe_maps(found.info):
            print_plain(line)
        for remark in found.remarks:
            print_plain(remark)
        if found.copies:
            first = " = ".join(f"'{copy.key}' ({copy.split})" for copy in found.copies[0][:3])
            print_plain(f"{describe_copies(count_copies(found.copies))}; the first: {first}.")


@data_app.command("show")
def data_show(
    path: Annotated[str, Argument(help="A packed data set: a folder or a URL.")],
    out: Annotated[Path, Option(help="The PNG file.")] = Path("contact-sheet.png"),
    split: Annotated[str, Option(help="train, val or test.")] = "train",
    num_images: Annotated[int, Option("--images", help="How many images.", min=1)] = 24,
    seed: Annotated[int, Option(help="Chooses the images.")] = 0,
) -> None:
    """Draw a contact sheet of images with their labels.

    Examples:
    - `distbranch data show data/fps --split test --images 12 --out fps.png`
    """
    from distbranch.data.contact_sheet import draw_contact_sheet

    print_plain(draw_contact_sheet(path, out, split=split, num_images=num_images, seed=seed))


def _has_data(out: Path) -> bool:
    """Whether a data set is there: packing leaves it as it is if it is the one that is asked for, and refuses any other."""
    from distbranch.data.shards import DATASET_FILE

    return (out / DATASET_FILE).exists()


def _show_progress(
    display: "ProgressDisplay", kind: str, total: int | None
) -> Callable[[int], None]:
    return lambda done: display({"kind": kind, "done": done, "total": total})


def print_options(options: Any) -> None:
    """A table of the options of a source."""
    rows = []
    # What is required comes first.
    fields = sorted(options.model_fields.items(), key=lambda item: not item[1].is_required())
    for name, field in fields:
        if name == "source":
            continue
        default = "" if field.default in (None, {}) else field.default
        if isinstance(default, tuple):
            joint = "x" if name == "image_size" else ","
            default = joint.join(map(str, default))
        # What may be chosen stands in the type alone, so that it is said once.
        meaning = field.description
        if get_origin(field.annotation) is Literal:
            meaning += f" One of: {', '.join(get_args(field.annotation))}."
        rows.append(
            {
                "option": f"--{name.replace('_', '-')}",
                "default": "required" if field.is_required() else str(default),
                "meaning": meaning,
            }
        )
    name = options.model_fields["source"].default
    console.print(build_table(rows, title=f"Options of {name}"))


def _parse_options(arguments: list[str]) -> dict[str, str]:
    """`--key value` and `--key=value` as a mapping."""
    # By hand, for every source has options of its own, and typer knows the source only after it has parsed them.
    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith("--") else [argument]
    options = [
        word.removeprefix("--").replace("-", "_") for word in words[::2] if word.startswith("--")
    ]
    if 2 * len(set(options)) != len(words):
        raise UsageError(
            "The options of a source are written --name value, each once (several values as --name a,b, a name with "
            f"blanks as --name 'a b'), found {shlex.join(arguments)}."
        )
    return dict(zip(options, words[1::2], strict=True))
