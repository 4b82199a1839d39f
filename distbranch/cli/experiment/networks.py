"""What networks are worth: `experiment table`, `company` and `dense`, and `distbranch compare`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from distbranch.cli.experiment.options import (
    Against,
    Config,
    Configs,
    Jobs,
    Metric,
    Name,
    Seeds,
    Split,
    check_metric,
    experiment_app,
    run_and_display,
    run_and_show,
    split_names,
)
from distbranch.cli.terminal import (
    Overrides,
    add_given_plugins,
    console,
    parse_counts,
    print_plain,
    run_folder,
    show_wide,
)
from distbranch.errors import UsageError

NEAREST = "nearest"  # instead of two widths


@experiment_app.command("table")
def experiment_table(
    configs: Configs,
    seeds: Seeds = "0,1,2",
    split: Split = "test",
    against: Against = "",
    metric: Annotated[
        str, typer.Option(callback=check_metric, help="Of which differences are told.")
    ] = "average_precision",
    jobs: Jobs = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    name: Annotated[str, typer.Option(help="Name of the table's directory.")] = "table",
) -> None:
    """Train every config with every seed and print means and spread, and differences with how sure they are.

    The runs are `<config>-seed<seed>` in `run.directory`, as `distbranch train` would make them. A config that begins from the
    run of another (`method.pretrained: runs/<config>`) is trained after it, each seed from that seed's run.

    Examples:
    - `distbranch experiment table configs/fps-thin-16.yaml configs/fps-branch-16-2.yaml --seeds 0,1,2`
    - `distbranch experiment table configs/fps-thin-16.yaml configs/fps-branch-16-2.yaml --against fps-thin-16`
    """
    from distbranch.experiments.designs import design_table
    from distbranch.experiments.runs import split_by_data_set
    from distbranch.report.console import make_result_markdown, make_result_table

    files, own = _separate_overrides(configs)
    experiment = design_table(files, own, split=split, metric=metric, against=split_names(against))
    findings, runs, place = run_and_display(experiment, own, seeds=seeds, jobs=jobs, name=name)
    for title, part in split_by_data_set(runs, split).items():
        if title:
            console.print(f"the tasks of {title}", style="bold", highlight=False)
        if markdown:
            print_plain(make_result_markdown(part, split=split))
        else:
            console.print(make_result_table(part, split=split))
    for sentence in findings.sentences:
        print_plain(sentence)
    print_plain(f"{', '.join(findings.files)}, report.html: {place}")


@experiment_app.command("company")
def experiment_company(
    configs: Configs,
    widths: Annotated[
        str, typer.Option(help="Widths of the thin networks, separated by commas.")
    ] = "8,12,16,24,32,48",
    uneven: Annotated[
        str,
        typer.Option(
            help="Plain networks of two widths, BELOW:ABOVE the middle of the units, separated by commas; `nearest`: those nearest "
            "in multiply-adds and weights to the finished run of each config of the first seed."
        ),
    ] = "",
    beside: Annotated[
        str,
        typer.Option(
            help="Config files with recipes of their own, separated by commas, to be shown beside."
        ),
    ] = "",
    seeds: Seeds = "0,1,2",
    metric: Metric = "average_precision",
    split: Split = "test",
    against: Against = "",
    jobs: Jobs = None,
    name: Annotated[str, typer.Option(help="Name of the experiment's directory.")] = "company",
) -> None:
    """Grown networks beside the plain networks of equal multiply-adds and of equal weights, trained with the same recipe.

    Plain networks have one width, or two: multiply-adds lie in the low layers and weights in the high ones, so a network that is
    narrow below and wide above can cost what a tree costs in both.

    Examples:
    - `distbranch experiment company configs/fps-branch-16-2.yaml configs/fps-branch-32-2.yaml --widths 8,12,16,24,32,48`
    - `distbranch experiment company configs/fps-branch-16-2.yaml --uneven 16:24,16:48,nearest --against fps-thin-32`
    """
    from distbranch.experiments.equal_cost import design_equal_cost

    line = parse_counts(widths, "--widths")
    if len(set(line)) < 2 or 0 in line:
        raise UsageError(
            f"--widths should be at least two numbers from 1 on, such as 8,16,32, found '{widths}'."
        )
    files, own = _separate_overrides(configs)
    pairs = split_names(uneven)
    experiment = design_equal_cost(
        files,
        line,
        own,
        metric=metric,
        split=split,
        uneven=[_read_two_widths(text) for text in pairs if text != NEAREST],
        nearest_to_seed=parse_counts(seeds)[0] if NEAREST in pairs else None,
        beside=[Path(file) for file in split_names(beside)],
        against=split_names(against),
    )
    run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("dense")
def experiment_dense(
    config: Config,
    overrides: Overrides = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Of single-task, hard-sharing, cross-stitch, mtan, nddr, sluice, tree, groups, adashare, separated by commas; all "
            "if not given. single-task is always trained."
        ),
    ] = "",
    search: Annotated[
        Path | None,
        typer.Option(
            help="Config of AdaShare's search: of it adashare, optim and train.iterations count, all else is that of CONFIG, which is "
            "the search too if this is not given."
        ),
    ] = None,
    policies: Annotated[
        int, typer.Option(help="Policies drawn, beside the most probable one.", min=0)
    ] = 8,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="A given tree: a finished run, or its tree.json; the known groups of the data if not given."
        ),
    ] = None,
    split_from: Annotated[
        str | None,
        typer.Option(
            help="Lowest unit that known groups have for themselves; the last but one if not given."
        ),
    ] = None,
    permutations: Annotated[int, typer.Option(help="Permuted trees of those groups.", min=0)] = 1,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Steps of every network but the search; those of CONFIG if not given.", min=1
        ),
    ] = None,
    seeds: Seeds = "0,1,2",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Dense tasks as AdaShare's paper compares them: a network per task, hard sharing, baselines, trees, AdaShare; with Delta and costs.

    Examples:
    - `distbranch experiment dense configs/rooms-tree.yaml --search configs/rooms-adashare.yaml --seeds 0,1,2`
    - `distbranch experiment dense configs/rooms-tree.yaml --methods hard-sharing,groups --split-from block4_1`
    """
    from distbranch.experiments.analyses import make_table
    from distbranch.experiments.dense import FAMILIES, DenseOptions, design_dense, split_columns
    from distbranch.report.progress import SweepDisplay

    own = overrides or []
    options = DenseOptions(
        methods=split_names(methods) or FAMILIES,
        search=search,
        groups=groups,
        split_from=split_from,
        permutations=permutations,
        policies=policies,
        iterations=iterations,
        split=split,
    )
    experiment = design_dense(config, own, options, name=name, report=SweepDisplay(console))
    findings, _, place = run_and_display(experiment, own, seeds=seeds, jobs=jobs, name=name)
    for sentence in findings.sentences:
        print_plain(sentence)
    heads = ("Delta in %, and what one image costs", "First metrics; shares in %")
    for head, part in zip(heads, split_columns(findings.table), strict=True):
        show_wide(make_table(part, title=f"{head}; {split} split"))
    print_plain(f"results.csv, {', '.join(findings.files)}, report.html: {place}")


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run directories, folders or URLs; those of the reference first."),
    ],
    metric: Metric = "average_precision",
    split: Split = "test",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with values in 0..1.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Compare finished runs: means of every method over its seeds, and differences against the first method.

    Runs whose names differ only in `-seed<seed>` are one method. A difference is paired by seed and task, and its spread is
    over seeds.

    Examples:
    `distbranch compare runs/fps-thin-16-seed* runs/fps-branch-16-2-seed*`
    """
    from distbranch.experiments.analyses import compare_methods, format_markdown, make_table
    from distbranch.experiments.runs import check_defined, read_runs, tabulate_runs

    methods = read_runs([run_folder(run) for run in runs])
    check_defined(methods, metric, (split,))
    table = compare_methods(tabulate_runs(methods), metric, split)
    about = f"{split} split; differences against {table['method'][0]}"
    if csv:
        print_plain(table.to_csv(index=False).rstrip("\n"))
    elif markdown:
        print_plain(f"{about}\n\n{format_markdown(table, metric)}")
    else:
        print_plain(f"{about}; shares in %")
        show_wide(make_table(table, metric))


def _read_two_widths(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if found is None:
        raise UsageError(
            f"--uneven should be widths such as 16:32,16:48 (below and above the middle of the units) or {NEAREST}, found '{text}'."
        )
    return int(found[1]), int(found[2])


def _separate_overrides(items: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Config files and overrides, which a list of arguments cannot tell apart; as a path a URL would lose a slash."""
    files = [Path(item) for item in items if "=" not in item]
    if not files:
        raise UsageError(
            "Give at least one config file before the overrides, such as configs/quickstart.yaml."
        )
    return files, add_given_plugins([item for item in items if "=" in item])
