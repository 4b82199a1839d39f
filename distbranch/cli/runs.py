"""The commands about one run: train, evaluate, report, export; and doctor, about this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.markup import escape
from typer import Argument, Option

from distbranch.cli.terminal import (
    Overrides,
    RunArgument,
    build_table,
    console,
    print_plain,
    run_folder,
    show_pairs,
    show_wide,
)
from distbranch.errors import UsageError
from distbranch.report.tables import start_table

if TYPE_CHECKING:  # loads torch
    from distbranch.engine.results import RunResult
    from distbranch.launch.dry_run import Plan


def train(
    config: Annotated[
        Path | None, Argument(help="A YAML file, or a config of the package by its name.")
    ] = None,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, Option("--fresh", help="Start over in a new directory if the run exists.")
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check everything, print sizes, start nothing.")
    ] = False,
    # Both are those of common Ethernet between two nodes.
    bandwidth: Annotated[
        float, Option(help="With --dry-run: Gbit/s between ranks.", min=1e-3)
    ] = 10.0,
    latency: Annotated[
        float, Option(help="With --dry-run: microseconds per message.", min=0)
    ] = 50.0,
    help_config: Annotated[
        bool,
        Option(
            "--help-config",
            help="List every key with its default, range and meaning; `--help-config optim`: only those that begin with optim.",
        ),
    ] = False,
) -> None:
    """Train a run, or resume it.

    Examples:
    - `distbranch train configs/quickstart.yaml`
    - `distbranch train configs/quickstart.yaml method.alpha=2 launch.workers=1 --fresh`
    - `distbranch train configs/fps-thin-16.yaml method.groups=runs/fps-branch-16-2 method.permutation=1 run.name=permuted`
    - `torchrun --nproc-per-node 2 -m distbranch train configs/quickstart.yaml`
    """
    from distbranch.config import load_config

    if help_config:
        # Of `--help-config optim` typer takes the word for the config file.
        return _show_keys("" if config is None else str(config))
    if config is None:
        raise UsageError(
            "Give a config file, or a config of the package such as quickstart, or --help-config."
        )
    resolved = load_config(config, overrides or [])
    if dry_run:
        from distbranch.launch.dry_run import plan_run
        from distbranch.launch.scaling import Link

        return _show_plan(plan_run(resolved, Link(bandwidth, latency), fresh=fresh))
    from distbranch.launch import train as launch_train
    from distbranch.report.progress import ProgressDisplay

    with ProgressDisplay(console) as display:
        result = launch_train(resolved, fresh=fresh, report=display, config_file=config)
    # Under torchrun every rank comes here, and one table is enough.
    if os.environ.get("RANK", "0") == "0":
        _show_result(result)
    return None


def evaluate(
    run: RunArgument,
    split: Annotated[
        str | None, Option(help="train, val or test; test if not given.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, Option(help="Another packed data set with tasks of the run.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            help="A .parquet or .csv file for key, labels and scores of every image of val and test. What follows from them "
            "(thresholds, curves, the worst errors, suspected wrong labels) comes to RUN/answers and into the report."
        ),
    ] = None,
    train_too: Annotated[
        bool, Option("--train", help="With --out: also the images of train.")
    ] = False,
    precision: Annotated[
        float | None,
        Option(
            help="With --out: thresholds at which most is recalled with this precision on val; those of the best F1 if not given.",
            min=0,
            max=1,
        ),
    ] = None,
) -> None:
    """Evaluate a run on one split: a table per task, and the means; each data set of a joint run on its own tasks.

    Examples:
    - `distbranch evaluate runs/quickstart --split val`
    - `distbranch evaluate runs/quickstart --out predictions.parquet`
    - `distbranch evaluate runs/quickstart --out predictions.csv --precision 0.9`
    """
    from distbranch.engine.session import evaluate_run
    from distbranch.report.console import make_dataset_table, make_score_table

    if out is not None:
        if split is not None:
            raise UsageError(
                "--out writes val and test, with --train also train; leave out --split."
            )
        return _write_answers(run, out, data=data, with_train=train_too, precision=precision)
    if train_too or precision is not None:
        raise UsageError("--train and --precision say what is written, so they need --out FILE.")
    split = split or "test"
    scores = evaluate_run(run_folder(run), split, data)
    # Each data set of a joint run has tasks of its own, so there is a table for each.
    if "datasets" not in scores:
        return console.print(make_score_table(scores))
    for name, part in scores["datasets"].items():
        console.print(make_score_table(part, name))
    console.print(make_dataset_table(scores, split=split))
    return None


def _write_answers(run: str, out: Path, **options: Any) -> None:
    from distbranch.answers.evaluation import answer_run
    from distbranch.report.answers import tabulate_answers
    from distbranch.report.tables import render_rich

    done = answer_run(run, out, **options)
    console.print(render_rich(tabulate_answers(done.findings, in_brief=True)))
    print_plain(f"{out}: predictions of {done.num_rows:,} images")
    told = (
        f"{done.folder}: what they are worth on {done.split}, worst errors, suspected wrong labels"
    )
    if options["data"] is None:  # the report shows those of the run's own data
        told += f"; see `distbranch report {run}`"
    print_plain(told)


def report(
    run: RunArgument,
    out: Annotated[
        Path | None, Option(help="The file of the page; report.html in the run directory if empty.")
    ] = None,
    against: Annotated[
        str | None,
        Option(help="A thin run, for the gain of every task over it; the run's scout if empty."),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run or a sweep, and its figures as PNG.

    Examples:
    - `distbranch report runs/quickstart`
    - `distbranch report runs/fps-branch-16-2 --against runs/fps-thin-16`
    - `distbranch report runs/sweep-quickstart --out sweep.html`
    """
    from distbranch.report import write_report

    print_plain(write_report(run, out, against))


def doctor(
    storage: Annotated[Path, Option(help="The folder of runs to check.")] = Path("runs"),
    ranks: Annotated[
        int | None,
        Option(
            help="Measure how fast so many ranks talk to each other: those of torchrun or srun, else processes of this machine.",
            min=2,
        ),
    ] = None,
) -> None:
    """Check this machine: what it has, what is wrong with it and what to do about it. Or, with --ranks, the network between hosts.

    Examples:
    - `distbranch doctor`
    - `distbranch doctor --storage /shared/runs`
    - `distbranch doctor --ranks 8`
    """
    if ranks is not None:
        return _show_ranks(ranks)
    from distbranch.cli.site_file import describe_site_file
    from distbranch.launch.doctor import Finding, check_machine, raise_if_wrong

    findings = [*check_machine(storage), Finding("site file", *describe_site_file())]
    table = start_table()
    for head in ("", "what", "found", "what to do"):
        table.add_column(head, overflow="fold")
    for finding in findings:
        mark = "[red]x[/red]" if finding.advice else "[green]ok[/green]"
        table.add_row(mark, *map(escape, (finding.what, finding.found, finding.advice)))
    console.print(table)
    # After the table, for the exit code: a script may ask whether the machine is fit.
    return raise_if_wrong(findings)


def _show_ranks(num_ranks: int) -> None:
    from distbranch.launch.rank_check import describe_report, describe_title, measure_ranks

    report = measure_ranks(num_ranks)
    if report is not None:
        show_wide(build_table(describe_report(report), title=describe_title(report)))


def _show_result(result: "RunResult") -> None:
    from distbranch.config import load_config
    from distbranch.config.network import BASELINES
    from distbranch.engine.session import find_thin_baselines
    from distbranch.report.console import (
        describe_best,
        describe_scout,
        make_dataset_table,
        make_result_table,
    )

    if result.summary["method"] not in BASELINES:  # whose tasks share by no tree
        print_plain(f"\n{result.tree}\n")
    split = "test" if "test" in result.metrics else "val"
    if split in result.metrics:
        # What the tree gained is seen beside the thin networks that were trained on the same data.
        shown = [*find_thin_baselines(result), result.summary]
        console.print(make_result_table({one["name"]: [one] for one in shown}, split=split))
        if "datasets" in result.metrics[split]:
            console.print(make_dataset_table(result.metrics[split], split=split))
    if "best" in result.summary:
        print_plain(describe_best(result.summary))
    if scout := result.summary.get("scout"):
        print_plain(describe_scout(scout))
    # Of a run at a URL this machine holds a copy, and others look for it at the URL.
    place = load_config(result.directory / "config.yaml").run_url or result.directory
    print_plain(f"run directory: {place}")


def _show_plan(plan: "Plan") -> None:
    show_pairs(plan.lines)
    rows = [
        {
            "ranks": scale.num_ranks,
            "step ms": f"{1000 * scale.step_s:.1f}",
            "images/s": f"{scale.images_per_s:,.0f}",
            "efficiency %": f"{100 * scale.efficiency:.1f}",
            "sum of a decision ms": f"{1000 * scale.decision_s:.2f}",
        }
        for scale in plan.scales
    ]
    if rows:
        console.print(build_table(rows, num_texts=0, title="predicted scaling"))


def _show_keys(prefix: str) -> None:
    from distbranch.config import describe_keys
    from distbranch.config.reading import describe_unknown_key, known_keys

    columns = ("key", "default", "range", "meaning")
    rows = [
        dict(zip(columns, row, strict=True)) for row in describe_keys() if row[0].startswith(prefix)
    ]
    if not rows:
        keys, sections = known_keys()
        raise UsageError(describe_unknown_key(prefix, keys | sections))
    table = build_table(rows)
    table.columns[0].no_wrap = True  # a key is copied from here
    show_wide(table)


def export(
    run: RunArgument,
    file_format: Annotated[
        Literal["onnx", "torch"], Option("--format", help="torch: a program of torch.export.")
    ] = "onnx",
    tasks: Annotated[
        list[str] | None,
        Option(help="Only these tasks, separated by commas, and the branches they need."),
    ] = None,
    out: Annotated[
        Path | None, Option(help="The file; model/model.onnx in the run if empty.")
    ] = None,
    input_type: Annotated[
        Literal["uint8", "float"],
        Option("--input", help="uint8: 0..255, normalised inside; float: normalised by you."),
    ] = "uint8",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        Option(
            help="Of an ONNX file, by ONNX Runtime: int8 is calibrated on images of val. The score of every task on val before and "
            "after is shown, and written beside the file."
        ),
    ] = "fp32",
    tolerance: Annotated[
        float | None,
        Option(
            help="With --precision: keep no file that loses more than this part of any task's score (0.02: 2 %).",
            min=0,
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        Option(
            help="A model repository of NVIDIA's Triton: NAME OF RUN/1/model.onnx and config.pbtxt are written there."
        ),
    ] = None,
) -> None:
    """Write the network of a finished run as one file, batch norm folded, compared with the run before it is kept.

    Its input is [batch, 3, height, width], RGB, its outputs are the logits of every task, named like the task.

    Examples:
    - `distbranch export runs/mine --format onnx --out mine.onnx`
    - `distbranch export runs/mine --tasks Shoes,Bags`
    - `distbranch export runs/mine --precision int8 --tolerance 0.02`
    - `distbranch export runs/mine --triton repository/`
    - `distbranch predict mine.onnx photos/`
    """
    from distbranch.export import export as write

    done = write(
        run_folder(run),
        file_format=file_format,
        tasks=tasks,
        out=out,
        input_type=input_type,
        precision=precision,
        tolerance=tolerance,
        triton=triton,
    )
    if done.scores:
        _show_scores(done.scores, precision)
    print_plain(
        f"{done.file}: {done.num_tasks} tasks, {done.weights:,} weights, {done.num_bytes / 1e6:.2f} MB; "
        f"differs from the network by at most {done.difference:.1g} on {done.images}"
    )
    if not done.has_thresholds:
        print_plain(
            "It answers yes or no by probabilities alone, for no thresholds were chosen. To have them in the file, run "
            f"`distbranch evaluate {run} --out answers.parquet` and export again."
        )


def restrict(
    run: RunArgument,
    out: Annotated[Path, Argument(help="The new run directory, which must not exist.")],
    tasks: Annotated[
        list[str] | None, Option(help="Keep only these tasks, separated by commas.")
    ] = None,
    without: Annotated[
        list[str] | None, Option(help="Keep all but these tasks, separated by commas.")
    ] = None,
) -> None:
    """Make a run of some tasks of a finished run, with the branches that these need; nothing is trained.

    Examples:
    - `distbranch restrict runs/mine runs/mine-without-bags --without Bags`
    """
    from distbranch.engine.restricted_run import restrict_run

    if (tasks is None) == (without is None):
        raise UsageError("Give --tasks, those that are kept, or --without, those that are not.")
    _show_result(restrict_run(run_folder(run), out, tasks=tasks, without=without or []))


def _show_scores(scores: Mapping[str, Mapping[str, Any]], precision: str) -> None:
    from distbranch.report.console import describe_metric, format_value

    rows = []
    for task, row in scores.items():
        before, after = (format_value(row["metric"], row[when]) for when in ("before", "after"))
        lost = round(row["loss"], 3) + 0.0  # never -0.0
        cells = {"task": task, "on val": describe_metric(row["metric"])}
        rows.append(cells | {"fp32": before, precision: after, "lost": f"{lost:.1%}"})
    console.print(build_table(rows, num_texts=2))
