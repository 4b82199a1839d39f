"""`distbranch experiment`: comparisons of runs over seeds, each a sweep with an analysis at its end; `distbranch compare`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distbranch.cli.terminal import (
    Overrides,
    RunArgument,
    add_given_plugins,
    console,
    numbers,
    print_plain,
    run_folder,
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
NEAREST = "nearest"  # instead of two widths


def _check_split(split: str) -> str:
    if split not in SPLITS:
        raise UsageError(f"--split should be {' or '.join(SPLITS)}, found '{split}'.")
    return split


def _check_metric(metric: str) -> str:
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
    str, typer.Option(callback=_check_split, help="val or test: of what is printed and drawn.")
]
Metric = Annotated[
    str, typer.Option(callback=_check_metric, help="The mean over tasks that is compared.")
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


@experiment_app.command("table")
def experiment_table(
    configs: Configs,
    seeds: Seeds = "0,1,2",
    split: Split = "test",
    against: Against = "",
    metric: Annotated[
        str, typer.Option(callback=_check_metric, help="Of which differences are told.")
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
    experiment = design_table(files, own, split=split, metric=metric, against=_split_names(against))
    findings, runs, place = _run(experiment, own, seeds=seeds, jobs=jobs, name=name)
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

    line = numbers(widths, "--widths")
    if len(set(line)) < 2 or 0 in line:
        raise UsageError(
            f"--widths should be at least two numbers from 1 on, such as 8,16,32, found '{widths}'."
        )
    files, own = _separate_overrides(configs)
    pairs = _split_names(uneven)
    experiment = design_equal_cost(
        files,
        line,
        own,
        metric=metric,
        split=split,
        uneven=[_read_two_widths(text) for text in pairs if text != NEAREST],
        nearest_to_seed=numbers(seeds)[0] if NEAREST in pairs else None,
        beside=[Path(file) for file in _split_names(beside)],
        against=_split_names(against),
    )
    _run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("grouping")
def experiment_grouping(
    run: RunArgument,
    overrides: Overrides = None,
    permutations: Annotated[int, typer.Option(help="Permuted trees.", min=1)] = 4,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas; that of the run if not given.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Metrics that are compared, separated by commas; accuracy, average precision and the first one of each kind of "
            "dense task if not given."
        ),
    ] = "",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train the learned tree of a run from scratch, and the same tree with its tasks permuted; what do the tasks lose?

    Examples:
    `distbranch experiment grouping runs/fps-branch-16-2-seed0 --permutations 4`
    """
    from distbranch.experiments.groupings import design_grouping

    metrics = [_check_metric(one) for one in _split_names(metric)]
    experiment = design_grouping(run_folder(run), permutations, split=split, metrics=metrics)
    _run_and_show(experiment, overrides or [], seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("initialisation")
def experiment_initialisation(
    config: Config,
    pretrained: Annotated[
        Path, typer.Option(help="VGG-16 weights, or the directory of a finished wide run.")
    ],
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    two_thirds: Annotated[
        bool,
        typer.Option(
            "--two-thirds",
            help="Also: SOMP with two thirds of the iterations, on a schedule of its own.",
        ),
    ] = False,
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Begin the same run by SOMP, by largest norm, with filters drawn by lot, and at random; compare the curves.

    Examples:
    `distbranch experiment initialisation configs/fps-thin-16.yaml --pretrained runs/fps-vgg-wide-seed0 --two-thirds`
    """
    from distbranch.experiments.designs import design_initialisation

    own = overrides or []
    experiment = design_initialisation(config, pretrained, own, two_thirds=two_thirds)
    _run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("affinities")
def experiment_affinities(
    config: Config,
    overrides: Overrides = None,
    scout: Annotated[
        str | None,
        typer.Option(
            help="A finished run that all tasks share; if not given the config's network is trained without branches first."
        ),
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of affinity, separated by commas; all if not given.")
    ] = "",
    groups: Annotated[int, typer.Option(help="Groups that every kind makes.", min=2)] = 4,
    split_from: Annotated[
        str | None,
        typer.Option(
            help="Lowest layer with branches, as are all above; the middle one if not given."
        ),
    ] = None,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Train the tree of every kind from scratch, and permuted ones."
        ),
    ] = False,
    permutations: Annotated[
        int, typer.Option(help="With --train: permuted trees of every kind.", min=1)
    ] = 2,
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas; the scout has the first.")
    ] = "0,1,2",
    metric: Metric = "average_precision",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """All kinds of affinity on one finished network: which groups does each make, how alike are they, and what are their trees worth?

    Examples:
    `distbranch experiment affinities configs/fps-branch-16-2.yaml --scout runs/fps-thin-16-seed0 --groups 4 --split-from conv4_1`
    `distbranch experiment affinities configs/fps-branch-16-2.yaml --kinds importance,phi --train --permutations 2 --seeds 0,1,2`
    """
    from distbranch.experiments.affinities import design_affinities
    from distbranch.experiments.scouts import train_scout
    from distbranch.report.progress import SweepDisplay

    own = overrides or []
    first_seed = numbers(seeds)[0]
    wanted: dict[str, Any] = {
        "kinds": _split_names(kinds),
        "num_groups": groups,
        "split_from": split_from,
    }
    if scout is not None:
        place = run_folder(scout)
    else:
        options: dict[str, Any] = {"jobs": jobs, "name": name, "report": SweepDisplay(console)}
        splits = (split,) if train else ()
        place = train_scout(config, own, **wanted, splits=splits, seed=first_seed, **options)
    experiment = design_affinities(
        config,
        own,
        **wanted,
        scout=place,
        permutations=permutations if train else 0,
        split=split,
        has_own_scout=scout is None,
        metric=metric,
    )
    if not train:
        seeds = str(first_seed)
    _run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("policies")
def experiment_policies(
    config: Config,
    overrides: Overrides = None,
    policies: Annotated[
        int, typer.Option(help="Policies drawn, beside the most probable one.", min=1)
    ] = 8,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Steps of training with a policy; those of the search if not given.", min=1
        ),
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
    from distbranch.experiments.policies import design_policies

    own = overrides or []
    experiment = design_policies(
        config, policies, own, iterations=iterations, split=split, name=name
    )
    _run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


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
        methods=_split_names(methods) or FAMILIES,
        search=search,
        groups=groups,
        split_from=split_from,
        permutations=permutations,
        policies=policies,
        iterations=iterations,
        split=split,
    )
    experiment = design_dense(config, own, options, name=name, report=SweepDisplay(console))
    findings, _, place = _run(experiment, own, seeds=seeds, jobs=jobs, name=name)
    for sentence in findings.sentences:
        print_plain(sentence)
    heads = ("Delta in %, and what one image costs", "First metrics; shares in %")
    for head, part in zip(heads, split_columns(findings.table), strict=True):
        show_wide(make_table(part, title=f"{head}; {split} split"))
    print_plain(f"results.csv, {', '.join(findings.files)}, report.html: {place}")


@experiment_app.command("births")
def experiment_births(
    config: Config,
    groups: Annotated[
        Path, typer.Option(help="The tree: the directory of a finished run, or its tree.json.")
    ],
    overrides: Overrides = None,
    at: Annotated[
        str, typer.Option(help="Steps at which the tree is taken, separated by commas.")
    ] = "150,300,600",
    seeds: Seeds = "0,1,2",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train a given tree from scratch, and the same tree taken at later steps by a thin run; what does late birth cost?

    Examples:
    `distbranch experiment births configs/fps-thin-16.yaml --groups runs/fps-branch-16-2-seed0 --at 150,300,600`
    """
    from distbranch.experiments.births import design_births

    own = overrides or []
    experiment = design_births(config, groups, numbers(at, "--at"), own, split=split)
    _run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("planted")
def experiment_planted(
    config: Annotated[Path, typer.Argument(help="A config that packs rendered faces or rooms.")],
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train on faces or rooms drawn from several seeds; compare the first groups found with the planted ones.

    Examples:
    - `distbranch experiment planted configs/quickstart.yaml --seeds 0,1,2`
    - `distbranch experiment planted configs/rooms-tree.yaml --seeds 3,4,5,6,7`
    """
    from distbranch.experiments.groupings import design_planted_truth

    own = overrides or []
    # Every seed is a variant of its own, for its data are others.
    experiment = design_planted_truth(config, numbers(seeds), own)
    _run_and_show(experiment, own, seeds=None, jobs=jobs, name=name)


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


def _run(
    experiment: "Experiment",
    overrides: Sequence[str],
    *,
    seeds: str | None,
    jobs: int | None,
    name: str | None = None,
) -> "tuple[Findings, list[Run], Path]":
    from distbranch.experiments.runner import run_experiment
    from distbranch.report.progress import SweepDisplay

    chosen = None if seeds is None else numbers(seeds)
    return run_experiment(
        experiment, overrides, seeds=chosen, jobs=jobs, name=name, report=SweepDisplay(console)
    )


def _run_and_show(experiment: "Experiment", overrides: Sequence[str], **options: Any) -> None:
    from distbranch.experiments.analyses import make_table

    findings, runs, place = _run(experiment, overrides, **options)
    for sentence in findings.sentences:
        print_plain(sentence)
    if findings.table is not None and not findings.table.empty:
        show_wide(make_table(findings.table, findings.metric))
    files = findings.files
    if runs:
        files = ["results.csv", *files]
    print_plain(f"{', '.join(files)}: {place}")


def _split_names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


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
