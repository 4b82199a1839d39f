"""The command line: parse, call, show. No logic."""

import csv
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from distbranch.errors import SharedError, UsageError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Multi-task networks that find out by themselves what to share.",
)
data_app = typer.Typer(no_args_is_help=True, help="Pack, check and look at data sets.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")
experiment_app = typer.Typer(no_args_is_help=True, help="Compare configurations over seeds.")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(experiment_app, name="experiment")
console = Console()
errors = Console(stderr=True)

Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted keys, `method.alpha=2 optim.lr=0.01`.")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]


class Format(StrEnum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    json = "json"


def main() -> None:
    """Run the command line; errors for people end in one sentence and exit code 1 or 2."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        app()
    except UserError as error:
        if first or not isinstance(error, SharedError):
            errors.print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from distbranch.engine.results import StoppedEarly

        if not isinstance(error, StoppedEarly):
            raise
        if first:
            errors.print(str(error), style="yellow", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


@app.callback()
def _begin() -> None:
    logger = logging.getLogger("distbranch")
    logger.handlers = [RichHandler(console=errors, show_path=False, show_time=False, markup=False)]
    logger.propagate = False
    threading.excepthook = _say_in_one_line


def _say_in_one_line(ended: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread on a full disk, say: what follows from it is told where the command ends."""
    name = ended.thread.name if ended.thread else "unknown"
    logging.getLogger("distbranch").warning("The thread %s ended: %s", name, ended.exc_value)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML file, see configs/.")] = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new directory if the run exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print sizes, start nothing.")] = False,
    help_config: Annotated[
        bool, typer.Option("--help-config", help="List every key with its default, range and meaning.")
    ] = False,
) -> None:
    """Train a run, or go on with it.

    Examples:
    `distbranch train configs/quickstart.yaml`

    `distbranch train configs/quickstart.yaml method.alpha=2 launch.workers=1 --fresh`

    `torchrun --nproc-per-node 2 -m distbranch train configs/quickstart.yaml`
    """
    from distbranch.config import load_config

    if help_config:
        return _show_keys()
    if config is None:
        raise UsageError("Give a config file, such as configs/quickstart.yaml, or --help-config.")
    resolved = load_config(config, overrides or [])
    if dry_run:
        from distbranch.launch.dry_run import plan

        return _show_pairs(plan(resolved).lines)
    from distbranch.launch import train as launch_train
    from distbranch.report.progress import ProgressDisplay

    with ProgressDisplay(console) as display:
        result = launch_train(resolved, fresh=fresh, report=display)
    if os.environ.get("RANK", "0") == "0":
        _show_result(result)
    return None


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    data: Annotated[str | None, typer.Option(help="Another packed data set with the same tasks.")] = None,
) -> None:
    """Evaluate a run on one split: a table per task, and the means."""
    from distbranch.engine.session import evaluate_run

    scores = evaluate_run(run, split, data)
    table = Table("task", "accuracy %", "balanced accuracy %", "average precision %", "labelled")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [*scores["tasks"].items(), ("mean", scores["mean"])]
    for name, row in rows:
        values = [_percent(row.get(key)) for key in ("accuracy", "balanced_accuracy", "average_precision")]
        table.add_row(escape(name), *values, str(row.get("num_labelled", "")), end_section=name == rows[-2][0])
    console.print(table)


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    output: Annotated[Format, typer.Option("--format", help="How to write the scores.")] = Format.table,
    out: Annotated[Path | None, typer.Option(help="A file instead of the terminal.")] = None,
    threshold: Annotated[float, typer.Option(help="With table: tasks at least so probable are shown.")] = 0.5,
) -> None:
    """Predict all tasks of images.

    Examples:
    `distbranch predict runs/quickstart photos/ --format csv --out scores.csv`
    """
    from distbranch.engine.artifact import load_model
    from distbranch.engine.predict import Prediction, image_files, predict

    network, preprocessing = load_model(run)
    predictions = predict(network, preprocessing, image_files(images))
    if output is Format.table and out is not None:
        output = Format.json if out.suffix == ".json" else Format.csv
    if output is Format.table:
        table = Table("image", "found")
        for prediction in predictions:
            table.add_row(escape(str(prediction.image)), escape(_found(prediction.scores, threshold)))
        return console.print(table)
    done = list[Prediction](predictions)  # all of them before a file of earlier scores is replaced

    def write(file: Any) -> None:
        _write_predictions(file, done, as_json=output is Format.json)

    return _to_file(out, write)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="Where the page goes; into the run directory if empty.")] = None,
) -> None:
    """Write one self-contained HTML page about a run, and its figures as PNG."""
    from distbranch.report.page import report as write_report

    console.print(str(write_report(run, out)), soft_wrap=True)


@app.command()
def doctor(storage: Annotated[Path, typer.Option(help="The folder of runs to check.")] = Path("runs")) -> None:
    """Say what this machine has, what is wrong with it and what to do."""
    from distbranch.launch.doctor import examine, raise_if_wrong

    findings = examine(storage)
    table = Table("", "what", "found", "what to do")
    for finding in findings:
        table.add_row(
            "[red]x[/red]" if finding.advice else "[green]ok[/green]", finding.what, finding.found, finding.advice
        )
    console.print(table)
    raise_if_wrong(findings)


@data_app.command("pack", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def data_pack(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="csv, celeba, deepfashion or rendered-faces.")],
    out: Annotated[Path, typer.Argument(help="The new folder of the packed data set.")],
    shard_samples: Annotated[int, typer.Option(help="Samples per shard.", min=1)] = 1000,
    options: Annotated[bool, typer.Option("--options", help="List the options of the source.")] = False,
) -> None:
    """Pack labelled images into shards.

    Examples:
    `distbranch data pack csv data/fps --images images.zip --table attributes.csv --ignore brand,article_type`

    `distbranch data pack rendered-faces data/faces --samples 6000 --seed 1`
    """
    from distbranch.data.sources import SOURCES, pack_source, parse_options
    from distbranch.report.progress import ProgressDisplay

    if options and source in SOURCES:
        return _show_options(SOURCES[source])
    opened = parse_options({"source": source, **_options(context.args)}).open()
    with ProgressDisplay(console) as display:
        info = pack_source(
            opened,
            out,
            shard_samples=shard_samples,
            progress=lambda done: display({"kind": "packing", "done": done, "total": opened.num_samples}),
        )
        display({"kind": "packed", "path": str(out), "num_samples": info.num_samples})
    return None


@data_app.command("check")
def data_check(path: Annotated[Path, typer.Argument(help="A packed data set.")]) -> None:
    """Verify every byte, image and label of a packed data set."""
    from distbranch.data.check import check
    from distbranch.data.shards import read_dataset
    from distbranch.report.progress import ProgressDisplay

    total = read_dataset(path).num_samples
    with ProgressDisplay(console) as display:
        found = check(path, lambda done: display({"kind": "checking", "done": done, "total": total}))
    for problem in found.problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    if not found.ok:
        raise UserError(f"{found.num_problems} problem(s) in {found.num_samples:,} samples of {path}.")
    console.print(
        f"{found.num_samples:,} samples in {found.num_shards} shards are as they were packed.", highlight=False
    )


@data_app.command("show")
def data_show(
    path: Annotated[Path, typer.Argument(help="A packed data set.")],
    out: Annotated[Path, typer.Option(help="The PNG file.")] = Path("contact-sheet.png"),
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    num_images: Annotated[int, typer.Option("--images", help="How many images.", min=1)] = 24,
    seed: Annotated[int, typer.Option(help="Chooses the images.")] = 0,
) -> None:
    """Draw a contact sheet of images with their labels."""
    from distbranch.data.show import show

    console.print(str(show(path, out, split=split, num_images=num_images, seed=seed)), soft_wrap=True)


@bench_app.command("decide")
def bench_decide_command() -> None:
    """What deciding costs: affinity bookkeeping per step, and a whole decision, at 40 and 200 tasks."""
    from distbranch.bench import bench_decide

    _show_rows([{**asdict(row), "share_%": 100 * row.share} for row in bench_decide()])


@bench_app.command("memory")
def bench_memory_command(
    samples: Annotated[int, typer.Option(help="Tiny generated samples.", min=1)] = 1_000_000,
    folder: Annotated[Path | None, typer.Option(help="Where they are packed; a temporary folder if empty.")] = None,
) -> None:
    """Pack generated samples, read them once, and print the peak memory of the process."""
    from distbranch.bench import bench_memory

    with tempfile.TemporaryDirectory(dir=folder) as place:
        _show_rows([asdict(bench_memory(samples, folder=Path(place) / "packed"))])


@experiment_app.command("table")
def experiment_table(
    configs: Annotated[list[Path], typer.Argument(help="Config files; then dotted overrides for all runs.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    split: Annotated[str, typer.Option(help="The split of the table.")] = "test",
    jobs: Annotated[int, typer.Option(help="Runs at the same time.", min=1)] = 1,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Train every config with every seed (finished runs are not repeated) and print means and spread.

    Examples:
    `distbranch experiment table configs/fps-thin-16.yaml configs/fps-branch-16-2.yaml --seeds 0,1,2`
    """
    from distbranch.launch.experiment import table
    from distbranch.report.console import result_markdown, result_table

    if split not in ("val", "test"):
        raise UsageError(f"--split should be val or test, found '{split}'.")
    overrides = [str(item) for item in configs if "=" in str(item)]
    files = [item for item in configs if "=" not in str(item)]
    if not files:
        raise UsageError("Give at least one config file before the overrides, such as configs/quickstart.yaml.")
    results = table(files, _numbers(seeds), overrides, jobs=jobs, report=_show_event)
    if markdown:
        console.print(result_markdown(results, split=split), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(result_table(results, split=split))


@experiment_app.command("planted")
def experiment_planted(
    config: Annotated[Path, typer.Argument(help="A config that packs rendered faces.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
) -> None:
    """Train on faces drawn from several seeds; compare the first groups found with the planted regions."""
    from distbranch.launch.experiment import planted

    found = planted(config, _numbers(seeds), overrides or [], report=_show_event)
    _show_rows([{"seed": seed, "adjusted Rand index": index} for seed, index in found.items()])


@experiment_app.command("groups")
def experiment_groups(run: RunArgument) -> None:
    """Print the groups of a run's first decision under either kind of affinity, side by side."""
    from distbranch.launch.experiment import top_groups

    for kind, groups in top_groups(run).items():
        console.print(f"{kind}: {len(groups)} groups", style="bold", highlight=False)
        for group in sorted(groups, key=len, reverse=True):
            console.print(f"  {', '.join(group)}", markup=False, highlight=False, soft_wrap=True)


def _numbers(text: str) -> list[int]:
    if not text.replace(",", "").isdigit():
        raise UsageError(f"--seeds should be whole numbers separated by commas, found '{text}'.")
    return [int(number) for number in text.split(",") if number]


def _show_event(event: dict[str, Any]) -> None:
    if event["kind"] != "packing":
        console.print(" ".join(map(str, event.values())), style="dim", highlight=False, soft_wrap=True)


def _show_result(result: Any) -> None:
    from distbranch.engine.session import thin_company
    from distbranch.report.console import result_table

    console.print()
    console.print(result.tree.text(result.summary["tasks"]), markup=False, highlight=False, soft_wrap=True)
    console.print()
    split = "test" if "test" in result.metrics else "val"
    if split in result.metrics:
        company = {other["name"]: [other] for other in thin_company(result)}
        console.print(result_table({**company, result.summary["name"]: [result.summary]}, split=split))
    console.print(f"run directory: {result.directory}", highlight=False, soft_wrap=True)


def _show_keys() -> None:
    from distbranch.config import describe_keys

    table = Table("key", "default", "range", "meaning")
    for row in describe_keys():
        table.add_row(*map(escape, row))
    console.print(table)


def _show_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def _show_pairs(pairs: Any) -> None:
    table = Table(show_header=False)
    for pair in pairs:
        table.add_row(*map(escape, pair))
    console.print(table)


def _show_options(options: Any) -> None:
    table = Table("option", "default", "meaning")
    for name, field in options.model_fields.items():
        if name != "source":
            default = "required" if field.is_required() else "" if field.default is None else str(field.default)
            table.add_row(f"--{name.replace('_', '-')}", escape(default), escape(field.description or ""))
    console.print(table)


def _options(arguments: list[str]) -> dict[str, str]:
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
        options[key.replace("-", "_")] = value
    return options


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


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
        with out.open("w", newline="") as file:
            write(file)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Give another file.") from None
    return None
