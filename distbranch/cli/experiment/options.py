"""The options that experiments have in common, and how one is run and its findings shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distbranch.cli.terminal import (
    console,
    parse_counts,
    print_plain,
    show_wide,
)
from distbranch.errors import UsageError

if TYPE_CHECKING:  # loads torch
    from distbranch.experiments.runner import Experiment, Findings
    from distbranch.experiments.runs import Run

experiment_app = typer.Typer(
    no_args_is_help=True,
    help="Compare configurations over seeds. Every command resumes where it was stopped, repeats no "
    "finished run, and writes results.csv, table.md and, where there is something to draw, pictures into its own directory under "
    "`run.directory`; a comparison of other things is refused there and needs another --name.",
)
SPLITS = ("val", "test")


def check_split(split: str) -> str:
    """The split, or UsageError."""
    if split not in SPLITS:
        raise UsageError(f"--split should be {' or '.join(SPLITS)}, found '{split}'.")
    return split


def check_metric(metric: str) -> str:
    """The metric if it has a mean over tasks, or UsageError."""
    from distbranch.metrics import list_means

    if metric not in list_means():
        raise UsageError(f"--metric should be one of {', '.join(list_means())}, found '{metric}'.")
    return metric


Configs = Annotated[
    list[str], typer.Argument(help="Config files; then dotted overrides for all runs.")
]
Config = Annotated[Path, typer.Argument(help="A config file.")]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas.")]
Split = Annotated[
    str, typer.Option(callback=check_split, help="val or test: of what is printed and drawn.")
]
Metric = Annotated[
    str, typer.Option(callback=check_metric, help="The mean over tasks that is compared.")
]
Jobs = Annotated[
    int | None, typer.Option(help="Runs at the same time; as many as fit if not given.", min=1)
]
Against = Annotated[
    str,
    typer.Option(
        help="Networks of the experiment, separated by commas, with which all others are compared in a sentence each."
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the experiment's directory.")]


def run_and_display(
    experiment: "Experiment",
    overrides: Sequence[str],
    *,
    seeds: str | None,
    jobs: int | None,
    name: str | None = None,
) -> "tuple[Findings, list[Run], Path]":
    """Run what is left of an experiment under a display; returns findings, runs, and where both are written."""
    from distbranch.experiments.runner import run_experiment
    from distbranch.report.progress import SweepDisplay

    chosen = None if seeds is None else parse_counts(seeds)
    return run_experiment(
        experiment, overrides, seeds=chosen, jobs=jobs, name=name, report=SweepDisplay(console)
    )


def run_and_show(experiment: "Experiment", overrides: Sequence[str], **options: Any) -> None:
    """The same, and print sentences, table and files."""
    from distbranch.experiments.analyses import make_table

    findings, runs, place = run_and_display(experiment, overrides, **options)
    for sentence in findings.sentences:
        print_plain(sentence)
    if findings.table is not None and not findings.table.empty:
        show_wide(make_table(findings.table, findings.metric))
    files = findings.files
    if runs:
        files = ["results.csv", *files]
    print_plain(f"{', '.join(files)}: {place}")


def split_names(text: str) -> list[str]:
    """Names between commas."""
    return [name for name in text.split(",") if name]
