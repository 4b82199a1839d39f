"""`distbranch experiment`: compare configurations over seeds."""

from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.terminal import Overrides, RunArgument, console, numbers, show_event, show_rows
from distbranch.errors import UsageError

experiment_app = typer.Typer(no_args_is_help=True, help="Compare configurations over seeds.")


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
    results = table(files, numbers(seeds), overrides, jobs=jobs, report=show_event)
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

    found = planted(config, numbers(seeds), overrides or [], report=show_event)
    show_rows([{"seed": seed, "adjusted Rand index": index} for seed, index in found.items()])


@experiment_app.command("groups")
def experiment_groups(run: RunArgument) -> None:
    """Print the groups of a run's first decision under either kind of affinity, side by side."""
    from distbranch.launch.experiment import top_groups

    for kind, groups in top_groups(run).items():
        console.print(f"{kind}: {len(groups)} groups", style="bold", highlight=False)
        for group in sorted(groups, key=len, reverse=True):
            console.print(f"  {', '.join(group)}", markup=False, highlight=False, soft_wrap=True)
