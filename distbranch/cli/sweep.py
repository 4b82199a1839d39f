"""`distbranch sweep`: many runs that differ in a few keys, and one table of them."""

from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.terminal import Overrides, console, show_pairs
from distbranch.errors import UserError


def sweep(
    config: Annotated[
        Path, typer.Argument(help="A YAML file of a sweep, see configs/sweep-*.yaml.")
    ],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, list the trials, start nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Trials at the same time, as `concurrency`.", min=1)
    ] = None,
) -> None:
    """Train a sweep, or resume it: finished trials are never repeated.

    Examples:
    - `distbranch sweep configs/sweep-quickstart.yaml`
    - `distbranch sweep configs/sweep-thinness-branching.yaml --jobs 2 seeds=[0] grid.method.alpha=[1,2] train.iterations=1000`
    """
    from distbranch.config.sweep import load_sweep

    given = [*(overrides or []), *([f"concurrency={jobs}"] if jobs else [])]
    loaded = load_sweep(config, given)
    if dry_run:
        from distbranch.sweep.run import describe_plan

        return show_pairs(describe_plan(loaded))
    from distbranch.report.console import make_front_table
    from distbranch.report.progress import SweepDisplay
    from distbranch.sweep.run import run_sweep

    # of ASCII, as for a run: trials may take hours between two lines
    with console.status("trials run", spinner="line"):
        rows = run_sweep(loaded, SweepDisplay(console))
    statuses = [row["status"] for row in rows]
    if "finished" in statuses:
        console.print()
        console.print(make_front_table(loaded.path))
    console.print(
        f"results.csv, results.parquet, report.html, pareto.png: {loaded.path}",
        highlight=False,
        soft_wrap=True,
    )
    if "failed" in statuses:
        raise UserError(
            f"{statuses.count('failed')} of {len(rows)} trials failed (reasons above and in {loaded.path}/results.csv); "
            "the others are finished. The same command tries them again."
        )
    return None
