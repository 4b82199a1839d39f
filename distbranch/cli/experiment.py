"""`distbranch experiment`: comparisons of runs over seeds, each a sweep with an analysis at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from distbranch.cli.terminal import (
    Overrides,
    RunArgument,
    console,
    decimals,
    numbers,
    run_folder,
    show_rows,
)
from distbranch.errors import UsageError

experiment_app = typer.Typer(
    no_args_is_help=True,
    help="Compare configurations over seeds. Every command but `groups`, which only prints, goes on where it was stopped, repeats no "
    "finished run, and writes results.csv, table.md and, where there is something to draw, pictures into its own directory under "
    "`run.directory`; a comparison of other things is refused there and needs another --name.",
)
SPLITS = ("val", "test")

Configs = Annotated[list[str], typer.Argument(help="Config files; then dotted overrides for all runs.")]
Config = Annotated[Path, typer.Argument(help="A config file.")]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas.")]
Split = Annotated[str, typer.Option(help="val or test: of what is printed and drawn.")]
Jobs = Annotated[int | None, typer.Option(help="Runs at the same time; as many as fit if not given.", min=1)]
Name = Annotated[str | None, typer.Option(help="Name of the experiment's directory.")]


@experiment_app.command("table")
def experiment_table(
    configs: Configs,
    seeds: Seeds = "0,1,2",
    split: Split = "test",
    jobs: Jobs = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    name: Annotated[str, typer.Option(help="Name of the table's directory.")] = "table",
) -> None:
    """Train every config with every seed and print means and spread.

    The runs are `<config>-seed<seed>` in `run.directory`, as `distbranch train` would make them. A config that begins from the
    run of another (`method.pretrained: runs/<config>`) is trained after it, each seed from that seed's run.

    Examples:
    `distbranch experiment table configs/fps-thin-16.yaml configs/fps-branch-16-2.yaml --seeds 0,1,2`
    """
    from distbranch.experiments.table import by_data_set, compare_configs
    from distbranch.report.console import result_markdown, result_table

    _check_split(split)
    files, overrides = _parted(configs)
    results, place = compare_configs(
        files, numbers(seeds), overrides, split=split, name=name, jobs=jobs, report=_display()
    )
    for title, part in {"": results, **by_data_set(results, split)}.items():
        if title:
            console.print(f"the tasks of {title}", style="bold", highlight=False)
        if markdown:
            console.print(result_markdown(part, split=split), markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(result_table(part, split=split))
    _say_where(place, "results.csv, table.md, report.html")


@experiment_app.command("company")
def experiment_company(
    configs: Configs,
    widths: Annotated[str, typer.Option(help="Widths of the thin networks, separated by commas.")] = "8,12,16,24,32,48",
    seeds: Seeds = "0,1,2",
    metric: Annotated[str, typer.Option(help="The mean over tasks that is compared.")] = "average_precision",
    split: Split = "test",
    jobs: Jobs = None,
    name: Annotated[str, typer.Option(help="Name of the experiment's directory.")] = "company",
) -> None:
    """Grown networks beside the thin networks of equal multiply-adds and of equal weights, trained with the same recipe.

    Examples:
    `distbranch experiment company configs/fps-branch-16-2.yaml configs/fps-branch-32-2.yaml --widths 8,12,16,24,32,48`
    """
    from distbranch.experiments.equal_cost import company_markdown, fair_company
    from distbranch.report.console import METRICS

    _check_split(split)
    if metric not in METRICS:
        raise UsageError(f"--metric should be one of {', '.join(METRICS)}, found '{metric}'.")
    line = numbers(widths, "--widths")
    if len(set(line)) < 2 or 0 in line:
        raise UsageError(f"--widths should be at least two numbers from 1 on, such as 8,16,32, found '{widths}'.")
    files, overrides = _parted(configs)
    found, place = fair_company(
        files, line, numbers(seeds), overrides, metric=metric, split=split, name=name, jobs=jobs, report=_display()
    )
    console.print(company_markdown(found, metric, split), markup=False, highlight=False, soft_wrap=True)
    _say_where(place, "results.csv, company.csv, table.md, company.png")


@experiment_app.command("grouping")
def experiment_grouping(
    run: RunArgument,
    overrides: Overrides = None,
    permutations: Annotated[int, typer.Option(help="Permuted trees.", min=1)] = 4,
    seeds: Annotated[str | None, typer.Option(help="Seeds, separated by commas; that of the run if not given.")] = None,
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train the learned tree of a run from scratch, and the same tree with its tasks permuted; what do the tasks lose?

    Examples:
    `distbranch experiment grouping runs/fps-branch-16-2-seed0 --permutations 4`
    """
    from distbranch.experiments.grouping import compare_groupings

    _check_split(split)
    chosen = None if seeds is None else numbers(seeds)
    verdicts, place = compare_groupings(
        run_folder(run), permutations, chosen, overrides or [], split=split, name=name, jobs=jobs, report=_display()
    )
    for verdict in verdicts:
        console.print(str(verdict), markup=False, highlight=False, soft_wrap=True)
    _say_where(place, "results.csv, tasks.csv, table.md, grouping.png")


@experiment_app.command("initialisation")
def experiment_initialisation(
    config: Config,
    pretrained: Annotated[Path, typer.Option(help="VGG-16 weights, or the directory of a finished wide run.")],
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    two_thirds: Annotated[
        bool,
        typer.Option("--two-thirds", help="Also: SOMP with two thirds of the iterations, on a schedule of its own."),
    ] = False,
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Begin the same run by SOMP, by largest norm, with filters drawn by lot, and at random; compare the curves.

    Examples:
    `distbranch experiment initialisation configs/fps-thin-16.yaml --pretrained runs/fps-vgg-wide-seed0 --two-thirds`
    """
    from distbranch.experiments.initialisation import compare_beginnings, pace_rows

    found, place = compare_beginnings(
        config,
        pretrained,
        numbers(seeds),
        overrides or [],
        two_thirds=two_thirds,
        name=name,
        jobs=jobs,
        report=_display(),
    )
    show_rows(pace_rows(found))
    _say_where(place, "results.csv, curves.csv, table.md, initialisation.png")


@experiment_app.command("affinity")
def experiment_affinity(
    config: Config,
    overrides: Overrides = None,
    alphas: Annotated[str, typer.Option(help="Branching factors, separated by commas.")] = "1,2,4",
    seeds: Seeds = "0,1,2",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Grow trees by agreement (Eq. 6) and by phi for several branching factors; which is better at equal weights, on which tasks?

    Examples:
    `distbranch experiment affinity configs/fps-branch-16-2.yaml --alphas 1,2,4 --seeds 0,1,2`
    """
    from distbranch.experiments.affinity import compare_affinities

    _check_split(split)
    winners, place = compare_affinities(
        config,
        decimals(alphas, "--alphas"),
        numbers(seeds),
        overrides or [],
        split=split,
        name=name,
        jobs=jobs,
        report=_display(),
    )
    if winners:
        show_rows(
            [{"task": one.task, "phi less agreement, points": 100 * one.mean, "higher": one.kind} for one in winners]
        )
    _say_where(place, "results.csv, tasks.csv, table.md, affinity.png")


@experiment_app.command("policies")
def experiment_policies(
    config: Config,
    overrides: Overrides = None,
    policies: Annotated[int, typer.Option(help="Policies drawn, beside the most probable one.", min=1)] = 8,
    iterations: Annotated[
        int | None, typer.Option(help="Steps of training with a policy; those of the search if not given.", min=1)
    ] = None,
    seeds: Seeds = "0",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Search for a policy of AdaShare, draw policies from it, and train each from fresh weights beside hard sharing.

    Examples:
    `distbranch experiment policies configs/fps5-adashare.yaml --policies 8`
    """
    from distbranch.experiments.policies import policies_markdown, try_policies

    _check_split(split)
    found, place = try_policies(
        config,
        policies,
        numbers(seeds),
        overrides or [],
        iterations=iterations,
        split=split,
        name=name,
        jobs=jobs,
        report=_display(),
    )
    console.print(policies_markdown(found, split), markup=False, highlight=False, soft_wrap=True)
    _say_where(place, "results.csv, policies.csv, table.md, policies.png")


@experiment_app.command("planted")
def experiment_planted(
    config: Annotated[Path, typer.Argument(help="A config that packs rendered faces.")],
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train on faces drawn from several seeds; compare the first groups found with the planted regions.

    Examples:
    `distbranch experiment planted configs/quickstart.yaml --seeds 0,1,2`
    """
    from distbranch.experiments.planted_truth import planted

    found, place = planted(config, numbers(seeds), overrides or [], name=name, jobs=jobs, report=_display())
    show_rows([{"seed": seed, "adjusted Rand index": index} for seed, index in found.items()])
    _say_where(place, "results.csv, planted.csv, table.md")


@experiment_app.command("groups")
def experiment_groups(run: RunArgument) -> None:
    """Print the groups of a run's first decision under either kind of affinity, side by side.

    Examples:
    `distbranch experiment groups runs/fps-branch-16-2-seed0`
    """
    from distbranch.experiments.planted_truth import top_groups

    for kind, groups in top_groups(run_folder(run)).items():
        console.print(f"{kind}: {len(groups)} groups", style="bold", highlight=False)
        for group in sorted(groups, key=len, reverse=True):
            console.print(f"  {', '.join(group)}", markup=False, highlight=False, soft_wrap=True)


def _display() -> Any:
    from distbranch.report.sweep_console import SweepDisplay

    return SweepDisplay(console)


def _parted(items: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Config files and overrides, which a list of arguments cannot tell apart; as a path a URL would lose a slash."""
    files = [Path(item) for item in items if "=" not in item]
    if not files:
        raise UsageError("Give at least one config file before the overrides, such as configs/quickstart.yaml.")
    return files, [item for item in items if "=" in item]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UsageError(f"--split should be {' or '.join(SPLITS)}, found '{split}'.")


def _say_where(place: Path, files: str) -> None:
    console.print(f"{files}: {place}", markup=False, highlight=False, soft_wrap=True)
