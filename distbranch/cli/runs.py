"""The commands about one run: train, evaluate, report, export; status, logs and cancel of its job; and doctor, about this machine."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from distbranch.cli.terminal import Overrides, RunArgument, console, run_folder, show_pairs, show_wide
from distbranch.errors import UsageError


def train(
    config: Annotated[Path | None, typer.Argument(help="A YAML file, see configs/.")] = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new directory if the run exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print sizes, start nothing.")] = False,
    bandwidth: Annotated[float, typer.Option(help="With --dry-run: Gbit/s between ranks.", min=1e-3)] = 10.0,
    latency: Annotated[float, typer.Option(help="With --dry-run: microseconds per message.", min=0)] = 50.0,
    help_config: Annotated[
        bool,
        typer.Option(
            "--help-config",
            help="List every key with its default, range and meaning; `--help-config optim`: those that begin with optim.",
        ),
    ] = False,
) -> None:
    """Train a run, or go on with it.

    Examples:
    `distbranch train configs/quickstart.yaml`

    `distbranch train configs/quickstart.yaml method.alpha=2 launch.workers=1 --fresh`

    `distbranch train configs/fps-thin-16.yaml method.groups=runs/fps-branch-16-2 method.permutation=1 run.name=permuted`

    `torchrun --nproc-per-node 2 -m distbranch train configs/quickstart.yaml`
    """
    from distbranch.config import load_config

    if help_config:
        return _show_keys("" if config is None else str(config))
    if config is None:
        raise UsageError("Give a config file, such as configs/quickstart.yaml, or --help-config.")
    resolved = load_config(config, overrides or [])
    if dry_run:
        from distbranch.launch.dry_run import plan_run
        from distbranch.launch.scaling import Link

        return _show_plan(plan_run(resolved, Link(bandwidth, latency), fresh=fresh))
    from distbranch.launch import train as launch_train
    from distbranch.report.progress import ProgressDisplay

    with ProgressDisplay(console) as display:
        result = launch_train(resolved, fresh=fresh, report=display)
    if os.environ.get("RANK", "0") == "0":
        _show_result(result)
    return None


def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    data: Annotated[str | None, typer.Option(help="Another packed data set with tasks of the run.")] = None,
) -> None:
    """Evaluate a run on one split: a table per task, and the means; each data set of a joint run on its own tasks.

    Examples:
    `distbranch evaluate runs/quickstart --split val`
    """
    from distbranch.engine.session import evaluate_run
    from distbranch.report.console import dataset_table, score_table

    scores = evaluate_run(run_folder(run), split, data)
    if "datasets" not in scores:
        return console.print(score_table(scores))
    for name, part in scores["datasets"].items():
        console.print(score_table(part, name))
    console.print(dataset_table(scores, split=split))
    return None


def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="Where the page goes; into the run directory if empty.")] = None,
) -> None:
    """Write one self-contained HTML page about a run or a sweep, and its figures as PNG.

    Examples:
    `distbranch report runs/quickstart`

    `distbranch report runs/sweep-quickstart --out sweep.html`
    """
    from distbranch.report.sweep_files import is_sweep

    folder = run_folder(run)
    if is_sweep(folder):
        from distbranch.report.sweep_page import report_sweep as write_report
    else:
        from distbranch.report.page import report as write_report
    console.print(str(write_report(folder, out)), soft_wrap=True)


def doctor(storage: Annotated[Path, typer.Option(help="The folder of runs to check.")] = Path("runs")) -> None:
    """Say what this machine has, what is wrong with it and what to do.

    Examples:
    `distbranch doctor`

    `distbranch doctor --storage /shared/runs`
    """
    from distbranch.launch.doctor import check_machine, raise_if_wrong

    findings = check_machine(storage)
    table = Table("", "what", "found", "what to do")
    for finding in findings:
        mark = "[red]x[/red]" if finding.advice else "[green]ok[/green]"
        table.add_row(mark, *map(escape, (finding.what, finding.found, finding.advice)))
    console.print(table)
    raise_if_wrong(findings)


def _show_result(result: Any) -> None:
    from distbranch.config import load_config
    from distbranch.engine.session import find_thin_baselines
    from distbranch.report.console import dataset_table, result_table

    console.print()
    console.print(result.tree.text(result.summary["tasks"]), markup=False, highlight=False, soft_wrap=True)
    console.print()
    split = "test" if "test" in result.metrics else "val"
    if split in result.metrics:
        company = {other["name"]: [other] for other in find_thin_baselines(result)}
        console.print(result_table({**company, result.summary["name"]: [result.summary]}, split=split))
        if "datasets" in result.metrics[split]:
            console.print(dataset_table(result.metrics[split], split=split))
    place = load_config(result.directory / "config.yaml").run_url or result.directory
    console.print(f"run directory: {place}", highlight=False, soft_wrap=True)


def _show_plan(plan: Any) -> None:
    show_pairs(plan.lines)
    if plan.scales:
        table = Table("ranks", "step ms", "images/s", "efficiency %", "sum of a decision ms", title="predicted scaling")
        for column in table.columns:
            column.justify = "right"
        for scale in plan.scales:
            times = (f"{1000 * scale.step_s:.1f}", f"{scale.images_per_s:,.0f}", f"{100 * scale.efficiency:.1f}")
            table.add_row(str(scale.num_ranks), *times, f"{1000 * scale.decision_s:.2f}")
        console.print(table)


def _show_keys(prefix: str) -> None:
    from distbranch.config import describe_keys
    from distbranch.config.reading import describe_unknown_key, known_keys

    rows = [row for row in describe_keys() if row[0].startswith(prefix)]
    if not rows:
        keys, sections = known_keys()
        raise UsageError(describe_unknown_key(prefix, keys | sections))
    table = Table("key", "default", "range", "meaning")
    table.columns[0].no_wrap = True  # a key is copied from here
    for row in rows:
        table.add_row(*map(escape, row))
    show_wide(table)


def export(
    run: RunArgument,
    file_format: Annotated[str, typer.Option("--format", help="onnx, or torch: a program of torch.export.")] = "onnx",
    tasks: Annotated[
        list[str] | None, typer.Option(help="Only these tasks, separated by commas, and the branches they need.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file; model/model.onnx in the run if empty.")] = None,
    input_type: Annotated[
        str, typer.Option("--input", help="uint8: 0..255, normalised inside; float: normalised by you.")
    ] = "uint8",
) -> None:
    """Write the network of a finished run as one file, batch norm folded, compared with the run before it is kept.

    Its input is [batch, 3, height, width], RGB, its outputs are the logits of every task, named like the task.

    Examples:
    `distbranch export runs/mine --format onnx --out mine.onnx`

    `distbranch export runs/mine --tasks Shoes,Bags`

    `distbranch predict mine.onnx photos/`
    """
    from distbranch.export import export as write

    done = write(run_folder(run), file_format=file_format, tasks=tasks, out=out, input_type=input_type)
    megabytes = done.num_bytes / 1e6
    console.print(
        f"{done.file}: {done.num_tasks} tasks, {done.weights:,} weights, {megabytes:.2f} MB; "
        f"differs from the network by at most {done.difference:.1g} on {done.images}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def status(run: RunArgument) -> None:
    """Say what a run has come to, and what its job does.

    Examples:
    `distbranch status runs/quickstart`
    """
    from distbranch.launch.jobs import describe_status

    show_pairs(describe_status(run_folder(run)))


def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print what the job of a run has said.

    Examples:
    `distbranch logs runs/quickstart --follow`
    """
    from distbranch.launch.jobs import read_log

    for piece in read_log(run_folder(run), follow=follow):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)


def cancel(
    run: RunArgument,
    patience: Annotated[float, typer.Option(help="Seconds for the run to save itself.", min=1)] = 120,
) -> None:
    """Save everything and stop a run; the same command that started it continues it.

    Examples:
    `distbranch cancel runs/quickstart --patience 300`
    """
    from distbranch.launch.jobs import cancel_run

    cancel_run(
        run_folder(run),
        patience_s=patience,
        say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
